"""Records of the known files as items."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.evaluation.bias.records import Row
from llm_jax.evaluation.tasks.task import Item, check_gold
from llm_jax.types import DataError

_LETTER = re.compile(r"^([A-Z])\.", re.MULTILINE)


def read_lettered(row: Row) -> Item:
    """question, options (a line "A. …" each) and answer ("B. …"); letters are the choices."""
    question, options, gold = _options(row)
    letters = tuple(chr(ord("A") + i) for i in range(len(options)))
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options))
    fields = {"question": question, "options": lines}
    return Item(row.where, fields, letters, gold, texts=options)


def read_options(row: Row) -> Item:
    """The same file; the texts of the options are the choices."""
    question, options, gold = _options(row)
    return Item(row.where, {"question": question}, options, check_gold(row, gold, options))


def _options(row: Row) -> tuple[str, tuple[str, ...], int]:
    """The question, its options and the number of the right one."""
    question = row.text("question")
    text = row.text("options")
    begins = _begins(text)
    if not begins:
        # In one record of CommonsenseQA the first options stand in the question.
        text = f"{question}\n{text}"
        begins = _begins(text)
        question = text[: begins[0].start()].strip() if begins else question
    ends = [match.start() for match in begins[1:]] + [len(text)]
    options = tuple(text[m.end() : end].strip() for m, end in zip(begins, ends))
    if "" in options or len(options) < 2:
        raise DataError(f'{row.where}: options is {text!r}; two or more, "A. …" each, are expected')
    answer = row.text("answer")
    named = re.match(r"([A-Z])\.", answer)
    gold = ord(named[1]) - ord("A") if named else -1
    option = options[gold] if 0 <= gold < len(options) else ""
    # In some records the question mark that the question lacks ends the last option.
    if answer[2:].strip() not in (option, option.rstrip("?")) or not option:
        raise DataError(f"{row.where}: answer is {answer!r}; one of the options is expected")
    return question, options, gold


def _begins(text: str) -> list[re.Match[str]]:
    """Where options begin. A line within one may look like the next: they are in the order of the
    alphabet.
    """
    found: list[re.Match[str]] = []
    for match in _LETTER.finditer(text):
        if match[1] == chr(ord("A") + len(found)):
            found.append(match)
    return found


def read_boolq(row: Row) -> Item:
    """passage, question and answer (true, false, or these as text)."""
    answer = row.fields.get("answer")
    known = {"true": 1, "false": 0}
    if str(answer).lower() not in known:
        raise DataError(f"{row.where}: answer is {answer!r}; true or false is expected")
    fields = {"passage": row.text("passage"), "question": row.text("question").rstrip("?")}
    return Item(row.where, fields, ("no", "yes"), known[str(answer).lower()])


def read_truthfulqa(row: Row) -> Item:
    """question and mc1_targets: {"choices": [...], "labels": [0, 1, ...]}, or {answer: 0 or 1}."""
    targets = row.fields.get("mc1_targets")
    if not isinstance(targets, Mapping):
        raise DataError(
            f"{row.where}: mc1_targets is {targets!r}; an object with choices and labels is"
            " expected (a file of right answers alone is for the task truthfulqa_gen)"
        )
    by_answer = targets
    if "choices" in targets:
        choices = _texts(row, "mc1_targets.choices", targets["choices"])
        labels = targets.get("labels")
        if not isinstance(labels, list) or len(labels) != len(choices):
            raise DataError(
                f"{row.where}: mc1_targets.labels is {labels!r}; one a choice is expected"
            )
        by_answer = dict(zip(choices, labels))
    right = [number for number, label in enumerate(by_answer.values()) if label == 1]
    if len(right) != 1:
        raise DataError(f"{row.where}: mc1_targets has {len(right)} right answers; one is expected")
    answers = tuple(by_answer)
    fields = {"question": row.text("question")}
    return Item(row.where, fields, answers, check_gold(row, right[0], answers))


def read_references(row: Row) -> Item:
    """question and answer: a text, or several that are right."""
    answer = row.fields.get("answer")
    answers = [answer] if isinstance(answer, str) else answer
    right = tuple(_texts(row, "answer", answers))
    return Item(row.where, {"question": row.text("question")}, references=right)


def read_right_answers(row: Row) -> Item:
    """question and answer, texts that are right; an empty one is none."""
    answers = row.fields.get("answer")
    if isinstance(answers, list):
        answers = [answer for answer in answers if answer != ""]
    return read_references(Row(row.where, {**row.fields, "answer": answers}))


def read_summary(row: Row) -> Item:
    """document and summary."""
    fields = {"document": row.text("document")}
    return Item(row.where, fields, references=(row.text("summary"),))


def read_choices(row: Row) -> Item:
    """question, choices (texts) and answer: the number of the right one from 0 on, or its text."""
    choices = tuple(_texts(row, "choices", row.fields.get("choices")))
    answer = row.fields.get("answer")
    if isinstance(answer, str) and answer.strip() in choices:
        gold = choices.index(answer.strip())
    elif isinstance(answer, int) and not isinstance(answer, bool):
        gold = answer
    else:
        raise DataError(
            f"{row.where}: answer is {answer!r}; the number of a choice from 0 on, or its text, is"
            " expected"
        )
    fields = {"question": row.text("question")}
    return Item(row.where, fields, choices, check_gold(row, gold, choices))


def read_document(row: Row) -> Item:
    """text, as it is: white space at its ends counts."""
    row.text("text")
    return Item(row.where, {"text": row.fields["text"]})


def _texts(row: Row, name: str, value: Any) -> list[str]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(f"{row.where}: {name} is {value!r}; a list of texts is expected")
    for number, text in enumerate(value):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{row.where}: {name}[{number}] is {text!r}; a text is expected")
    return [text.strip() for text in value]
