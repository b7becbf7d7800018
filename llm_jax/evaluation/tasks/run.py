"""Asks the questions of tasks, keeps every answer, and counts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.config import DecodeConfig
from llm_jax.config.decode import StopConfig
from llm_jax.evaluation.tasks.answers import AnswerFile, Record, open_answers
from llm_jax.evaluation.tasks.measures import baselines, chosen, figures, signature
from llm_jax.evaluation.tasks.questions import Asked, Question, Questions, questions
from llm_jax.evaluation.tasks.task import LoadedTask, Task
from llm_jax.evaluation.text_model import TextModel
from llm_jax.files import write_json
from llm_jax.progress import progress
from llm_jax.types import ConfigError

RESULTS = "results.json"
# Batches whose answers are written at once.
_BATCHES = 4


class Answering(NamedTuple):
    """One task that is asked in one way.

    Attributes:
        loaded: the task.
        asked: how.
        questions: of it.
    """

    loaded: LoadedTask
    asked: Asked
    questions: Questions

    @property
    def name(self) -> str:
        """Of its file of answers."""
        return f"{re.sub(r'[^A-Za-z0-9._-]', '_', self.loaded.task.name)}-{self.asked.shots}-shot"


def evaluate(
    model: TextModel, name: str, tasks: Sequence[LoadedTask], asked: Sequence[Asked], out: Path
) -> dict[str, Any]:
    """Asks every task in every way, or goes on with it.

    Every prompt is made, and its length checked, before the first question is asked.

    Args:
        model: the model.
        name: of the model, for the results.
        tasks: the tasks.
        asked: ways to ask them, such as with 0 and with 5 examples.
        out: folder of the answers (``answers/TASK-SHOTS-shot.jsonl``) and of ``results.json``.

    Returns:
        What ``results.json`` has: ``{"model", "step", "context", "results": [...]}``.

    Raises:
        ConfigError: answers to something else are there, or another process writes them.
        DataError: prompts that are longer than the context.
    """
    planned = [
        Answering(loaded, way, questions(loaded, way, model)) for loaded in tasks for way in asked
    ]
    names = [one.name for one in planned]
    twice = [one for one in names if names.count(one) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is asked twice; give each task and number of shots once")
    about = {
        "model": name,
        "step": model.step,
        "parameters": model.fingerprint(),
        "tokenizer": model.tokenizer.fingerprint,
        "context": model.max_length,
    }
    found = []
    for one in planned:
        path = out / "answers" / f"{one.name}.jsonl"
        with open_answers(path, {**about, **_settings(one)}) as answers:
            _answer(model, one, answers)
            found.append(_result(one, answers.records))
    results = {**about, "results": found}
    write_json(out / RESULTS, results)
    return results


def _settings(one: Answering) -> dict[str, Any]:
    task = one.loaded.task
    return {
        "task": task.name,
        "kind": task.kind,
        "file": one.loaded.file.name,
        "sha256": one.loaded.sha256,
        "template": task.template,
        "delimiter": task.delimiter,
        "separator": task.separator,
        "answer_prefix": task.answer_prefix,
        "stop": list(task.stop),
        "max_new_tokens": task.max_new_tokens,
        "shots": one.asked.shots,
        "limit": one.asked.limit,
        "seed": one.asked.seed,
        "long": one.asked.long,
        "invalid": len(one.loaded.invalid),
    }


def _result(one: Answering, records: list[Record]) -> dict[str, Any]:
    task = one.loaded.task
    first = one.questions.asked[0]
    return {
        **_settings(one),
        "answers": f"answers/{one.name}.jsonl",
        "items": len(records),
        "invalid": list(one.loaded.invalid),
        "long_prompts": [long._asdict() for long in one.questions.long],
        "example": first.prompt,
        "figures": figures(task, records),
        "baselines": baselines(task, records),
        "signature": signature(task),
    }


def _answer(model: TextModel, one: Answering, answers: AnswerFile) -> None:
    """Asks what is not answered yet, the longest questions first."""
    missing = [q for q in one.questions.asked if not answers.has(q.number)]
    missing.sort(key=_size, reverse=True)
    asker = Asker(model, one.loaded.task)
    with progress(one.name, len(missing), "question") as bar:
        for part in _parts(missing, model.batch_size * _BATCHES):
            answers.append(asker.answers(part))
            bar.advance(len(part))


def _parts(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


def _size(question: Question) -> int:
    if question.pairs:
        return max(len(pair.context) for pair in question.pairs)
    return len(question.ids)


class Asker:
    """Asks questions of one task.

    Args:
        model: the model.
        task: the task.
    """

    def __init__(self, model: TextModel, task: Task) -> None:
        self._model = model
        self._task = task
        self._unconditional: dict[str, float] = {}

    def answers(self, questions: Sequence[Question]) -> list[Record]:
        """The record of each question."""
        if self._task.kind == "choices":
            return self._choose(questions)
        if self._task.kind == "perplexity":
            return self._score(questions)
        return self._write(questions)

    def _choose(self, questions: Sequence[Question]) -> list[Record]:
        pairs = [pair for question in questions for pair in question.pairs]
        scores = iter(self._model.score(pairs))
        self._score_alone([choice for q in questions for choice in q.item.choices])
        records = []
        for question in questions:
            own = [next(scores) for _ in question.pairs]
            record = {
                **_about(question),
                "choices": list(question.item.choices),
                "texts": list(question.item.texts or question.item.choices),
                "log_likelihoods": [score.total for score in own],
                "tokens": [len(score.logprobs) for score in own],
                "unconditional": [self._unconditional[c] for c in question.item.choices],
                "gold": question.item.gold,
            }
            records.append({**record, "chosen": chosen(record)})
        return records

    def _score_alone(self, choices: Sequence[str]) -> None:
        """Scores each choice after the answer's prefix alone, once."""
        new = list(dict.fromkeys(c for c in choices if c not in self._unconditional))
        prefix = self._task.answer_prefix
        pairs = [self._model.pair(prefix, self._task.delimiter + choice) for choice in new]
        for choice, score in zip(new, self._model.score(pairs)):
            self._unconditional[choice] = score.total

    def _score(self, questions: Sequence[Question]) -> list[Record]:
        scores = iter(self._model.score([pair for q in questions for pair in q.pairs]))
        records = []
        for question in questions:
            text = question.item.fields["text"]
            own = [next(scores) for _ in question.pairs]
            record = {
                "item": question.number,
                "where": question.item.where,
                "nll": -sum(score.total for score in own),
                "tokens": sum(len(score.logprobs) for score in own),
                "words": len(text.split()),
                "bytes": len(text.encode()),
                "windows": len(own),
                "begin": text[:200],
            }
            records.append(record)
        return records

    def _write(self, questions: Sequence[Question]) -> list[Record]:
        config = DecodeConfig(
            max_new_tokens=self._task.max_new_tokens,
            temperature=0.0,
            stops=StopConfig(stop=self._task.stop),
        )
        texts = self._model.write([question.ids for question in questions], config)
        return [
            {
                **_about(question),
                "fields": dict(question.item.fields),
                "text": text.strip(),
                "references": list(question.item.references),
            }
            for question, text in zip(questions, texts)
        ]


def _about(question: Question) -> Record:
    return {
        "item": question.number,
        "where": question.item.where,
        "prompt": question.prompt,
        "cut": question.cut,
    }
