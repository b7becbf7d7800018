"""How answers count: figures of a task with their intervals, beside trivial baselines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_jax.evaluation.significance.intervals import interval_of_sums
from llm_jax.evaluation.significance.sums import ItemSums, means
from llm_jax.evaluation.tasks.answers import Record
from llm_jax.evaluation.tasks.task import Task
from llm_jax.evaluation.text_metrics.answers import answer_scores
from llm_jax.evaluation.text_metrics.rouge import rouge

Figures = dict[str, dict[str, Any]]
ROUGE = ("rouge1", "rouge2", "rougeL")


def _raw(record: Record) -> np.ndarray:
    return np.array(record["log_likelihoods"])


def _by_characters(record: Record) -> np.ndarray:
    return _raw(record) / [len(choice) for choice in record["choices"]]


def _by_bytes(record: Record) -> np.ndarray:
    return _raw(record) / [len(choice.encode()) for choice in record["choices"]]


def _by_mutual_information(record: Record) -> np.ndarray:
    return _raw(record) - record["unconditional"]


CHOICE_MEASURES: Mapping[str, Callable[[Record], np.ndarray]] = {
    "accuracy": _raw,
    "accuracy_characters": _by_characters,
    "accuracy_bytes": _by_bytes,
    "accuracy_mutual_information": _by_mutual_information,
}
"""Scores of the choices of a record; the highest is chosen, the first among equals. Characters and
bytes are those of the choice, without the blank before it."""


def chosen(record: Record) -> dict[str, int]:
    """The number of the choice by each measure."""
    return {name: int(np.argmax(score(record))) for name, score in CHOICE_MEASURES.items()}


def figures(task: Task, records: Sequence[Record]) -> Figures:
    """The figures of a task: each ``{"value", "low", "high"}``, a 95 % interval by the seeded
    bootstrap; no interval of a single item.

    Args:
        task: the task.
        records: of all answers.
    """
    if task.kind == "choices":
        return _of_choices(records)
    if task.kind == "exact":
        return _of_exact([record["text"] for record in records], records)
    if task.kind == "generation":
        return _of_rouge([record["text"] for record in records], records)
    return _of_texts(records)


def baselines(task: Task, records: Sequence[Record]) -> dict[str, Figures]:
    """The same figures of what needs no model, by name.

    Of choices: one drawn at random, the longest, and the number that is right most often. Of
    written answers: the most frequent right answer; of summaries: the document's first line.
    """
    if task.kind == "choices":
        often = Counter(record["gold"] for record in records).most_common(1)[0][0]
        longest = [int(np.argmax([len(text) for text in r["texts"]])) for r in records]
        right = {
            "random": [1 / len(record["choices"]) for record in records],
            "longest": [float(n == r["gold"]) for n, r in zip(longest, records)],
            "majority": [float(record["gold"] == often) for record in records],
        }
        return {name: {"accuracy": figure(means(values))} for name, values in right.items()}
    if task.kind == "exact":
        answers = Counter(reference for record in records for reference in record["references"])
        often_written = answers.most_common(1)[0][0]
        return {"majority": _of_exact([often_written] * len(records), records)}
    if task.kind == "generation":
        return {"first line": _of_rouge([_first_line(record) for record in records], records)}
    return {}


def signature(task: Task) -> str:
    """How figures were made."""
    parts = ["interval:bootstrap percentile 95 %, 1000 resamples, seed 12345"]
    if task.kind == "choices":
        parts.append("ties:first choice")
        parts.append(f"mutual information:after {task.answer_prefix!r}")
    if task.kind == "exact":
        parts.append("exact_match:stripped; squad, unicode:normalized as in docs/metrics.md")
    if task.kind == "generation":
        parts.append("rouge:F1, words of rouge_score; rouge_unicode:words of any language")
    return " | ".join(parts)


def _of_choices(records: Sequence[Record]) -> Figures:
    found = {}
    for name in CHOICE_MEASURES:
        right = [float(record["chosen"][name] == record["gold"]) for record in records]
        found[name] = figure(means(right))
    return found


def _of_exact(texts: Sequence[str], records: Sequence[Record]) -> Figures:
    references = [record["references"] for record in records]
    squad = answer_scores(texts, references)
    unicode = answer_scores(texts, references, normalizer="unicode", articles="none")
    stripped = [
        float(text.strip() in [one.strip() for one in own]) for text, own in zip(texts, references)
    ]
    values: dict[str, Sequence[float] | np.ndarray] = {
        "exact_match": stripped,
        "exact_match_squad": squad.exact_each,
        "f1_squad": squad.f1_each,
        "exact_match_unicode": unicode.exact_each,
        "f1_unicode": unicode.f1_each,
    }
    return {name: figure(means(each)) for name, each in values.items()}


def _of_rouge(texts: Sequence[str], records: Sequence[Record]) -> Figures:
    references = [record["references"] for record in records]
    plain = rouge(texts, references, kinds=ROUGE)
    unicode = rouge(texts, references, kinds=("rougeL",), words="unicode")
    found = {kind: figure(score.sums) for kind, score in plain.scores.items()}
    return {**found, "rougeL_unicode": figure(unicode.scores["rougeL"].sums)}


def _of_texts(records: Sequence[Record]) -> Figures:
    def per(name: str) -> np.ndarray:
        return np.array([[record["nll"], record[name]] for record in records], float)

    return {
        "perplexity": figure(ItemSums(per("tokens"), _exponential)),
        "word_perplexity": figure(ItemSums(per("words"), _exponential)),
        "byte_perplexity": figure(ItemSums(per("bytes"), _exponential)),
        "bits_per_byte": figure(ItemSums(per("bytes"), _bits)),
    }


def _exponential(sums: np.ndarray) -> float:
    # Beyond this a float has no room.
    return math.exp(min(sums[0] / sums[1], 700.0))


def _bits(sums: np.ndarray) -> float:
    return float(sums[0] / (sums[1] * math.log(2)))


def figure(sums: ItemSums) -> dict[str, Any]:
    """A figure with its 95 % interval by the seeded bootstrap; without one for a single item."""
    if len(sums.items) < 2:
        return {"value": sums.value, "low": None, "high": None}
    interval = interval_of_sums(sums)
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _first_line(record: Record) -> str:
    return str(record["fields"]["document"]).partition("\n")[0]
