"""What is asked of a model: items with their examples, as token ids that fit the context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from llm_jax.decode.continuation_batches import Pair
from llm_jax.evaluation.tasks.task import Item, LoadedTask, Task
from llm_jax.evaluation.text_model import TextModel
from llm_jax.types import ConfigError, DataError

Long = Literal["refuse", "skip", "truncate-left"]


class Asked(NamedTuple):
    """How questions are chosen and asked.

    Attributes:
        shots: examples before each question.
        limit: questions of the task, drawn with ``seed``; 0 is all.
        seed: of the questions and of their examples.
        long: what becomes of a prompt that is longer than the context.
    """

    shots: int = 0
    limit: int = 0
    seed: int = 0
    long: Long = "refuse"


class Question(NamedTuple):
    """One item as it is asked.

    Attributes:
        number: of the item in its file, from 0 on.
        item: the item.
        prompt: the whole text before the answer, examples included.
        pairs: token ids of the prompt with each choice; of a text, its windows; of an answer to be
            written, none.
        ids: token ids of the prompt of an answer to be written.
        cut: tokens of the prompt that were cut off at its left.
    """

    number: int
    item: Item
    prompt: str
    pairs: tuple[Pair, ...] = ()
    ids: tuple[int, ...] = ()
    cut: int = 0


class TooLong(NamedTuple):
    """A prompt that is longer than the context.

    Attributes:
        where: its item stands.
        tokens: of the prompt with its answer.
        most: tokens that it could have.
    """

    where: str
    tokens: int
    most: int


class Questions(NamedTuple):
    """Of a task.

    Attributes:
        asked: questions, in the order of the file.
        long: prompts that are longer than the context, left out or cut as ``Asked.long`` says.
    """

    asked: tuple[Question, ...]
    long: tuple[TooLong, ...]


def questions(loaded: LoadedTask, asked: Asked, model: TextModel) -> Questions:
    """The questions of a task.

    Raises:
        ConfigError: examples for a task that takes none, or more than there are.
        DataError: prompts that are longer than the context, unless ``asked.long`` says what becomes
            of them.
    """
    task = loaded.task
    if asked.shots and task.kind == "perplexity":
        raise ConfigError(
            f"shots is {asked.shots}, and {task.name} scores whole texts, which take no examples;"
            " evaluate it by itself, with shots 0"
        )
    found = []
    long = []
    for number in chosen(len(loaded.items), asked):
        question = _asked(loaded, number, asked, model)
        excess = _excess(task, question, model)
        if not excess:
            found.append(question)
            continue
        long.append(_too_long(task, question, model))
        if asked.long == "truncate-left":
            found.append(_cut(question, excess, model))
    if long and asked.long == "refuse":
        raise DataError(_refusal(task, asked, long))
    if not found:
        raise DataError(
            f"task {task.name}: every prompt is longer than the context of {model.max_length}"
            " tokens; ask with fewer shots"
        )
    return Questions(tuple(found), tuple(long))


def chosen(count: int, asked: Asked) -> list[int]:
    """Numbers of the items that are asked, in order: a seeded draw that grows with the limit."""
    if not asked.limit or asked.limit >= count:
        return list(range(count))
    order = np.random.default_rng(asked.seed).permutation(count)
    return sorted(int(i) for i in order[: asked.limit])


def examples(items: Sequence[Item], number: int, asked: Asked) -> list[Item]:
    """The examples of an item: a seeded draw of other questions, the first of which fewer shots
    have too.

    Raises:
        ConfigError: there are too few other questions.
    """
    if not asked.shots:
        return []
    order = np.random.default_rng([asked.seed, number]).permutation(len(items))
    own = items[number].fields
    found = []
    for other in order:
        # The same question may stand in a file twice.
        if other != number and items[other].fields != own:
            found.append(items[other])
        if len(found) == asked.shots:
            return found
    raise ConfigError(
        f"shots is {asked.shots}, and {items[number].where} has {len(found)} other questions beside"
        " it; ask with fewer"
    )


def _asked(loaded: LoadedTask, number: int, asked: Asked, model: TextModel) -> Question:
    task = loaded.task
    item = loaded.items[number]
    if task.kind == "perplexity":
        return Question(number, item, "", tuple(model.rolling(item.fields["text"])))
    before = [task.example(other) for other in examples(loaded.items, number, asked)]
    prompt = task.separator.join([*before, task.prompt(item)])
    if task.kind != "choices":
        return Question(number, item, prompt, ids=tuple(model.prompt_ids(prompt)))
    pairs = tuple(model.pair(prompt, task.delimiter + choice) for choice in item.choices)
    return Question(number, item, prompt, pairs)


def _excess(task: Task, question: Question, model: TextModel) -> int:
    """Tokens by which a prompt with its answer is longer than the context."""
    if task.kind == "choices":
        return max(model.excess(pair) for pair in question.pairs)
    if task.kind == "perplexity":
        return 0
    return model.excess_to_write(len(question.ids), task.max_new_tokens)


def _too_long(task: Task, question: Question, model: TextModel) -> TooLong:
    most = model.max_length
    return TooLong(question.item.where, most + _excess(task, question, model), most)


def _cut(question: Question, excess: int, model: TextModel) -> Question:
    """The question with its prompt cut at the left, by the same tokens for all choices."""
    shortest = min([len(pair.context) for pair in question.pairs] or [len(question.ids)])
    if excess > shortest - 2:
        raise DataError(
            f"{question.item.where}: an answer by itself is as long as the context; leave the"
            " record out"
        )
    pairs = tuple(
        pair._replace(context=model.without_begin(pair.context, excess)) for pair in question.pairs
    )
    ids = model.without_begin(question.ids, excess) if question.ids else ()
    return question._replace(pairs=pairs, ids=ids, cut=excess)


def _refusal(task: Task, asked: Asked, long: list[TooLong]) -> str:
    longest = max(one.tokens for one in long)
    return (
        f"task {task.name} with {asked.shots} shots: {len(long)} prompts with their answers are"
        f" longer than the context of {long[0].most} tokens (the longest has {longest}; the first"
        f" is {long[0].where}); ask with fewer shots, leave them out (--long skip) or cut them"
        " (--long truncate-left)"
    )
