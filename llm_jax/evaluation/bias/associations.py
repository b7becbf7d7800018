"""Associations measured with a model: WEAT and SEAT of its vectors, co-occurrence in its texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.evaluation.bias.cooccurrence import (
    association_bias,
    association_interval,
    cooccurrence,
)
from llm_jax.evaluation.bias.records import read_json
from llm_jax.evaluation.bias.sets import Record, figure_of
from llm_jax.evaluation.bias.weat import WeatTest, embed_words, read_weat, sentences_of, weat
from llm_jax.evaluation.text_metrics.words import unicode_words
from llm_jax.types import DataError

Embed = Callable[[Sequence[str]], Mapping[str, np.ndarray]]
"""The vector of each text, without the texts that have none."""
# Added to each count of a target: a count of 0 in a small sample is no proof of 0.
ADDED = 0.5


def measure_weat(path: Path, embed: Embed, *, seed: int, template: str = "") -> Record:
    """The tests of a file on the vectors of a model.

    Args:
        path: of the tests (``read_weat``).
        embed: the vectors.
        seed: of the partitions, where there are too many to count.
        template: of SEAT: a sentence with {} for the word. Empty for WEAT: the words themselves.

    Raises:
        DataError: a test that cannot be made, which the message names.
    """
    tests = {}
    for test in read_weat(path):
        asked = sentences_of(test, template) if template else test
        try:
            tests[test.name] = _tested(asked, embed, seed)
        except DataError as error:
            raise DataError(f"{path}, {test.name}: {error}") from error
    return {"file": path.name, "template": template, "items": len(tests), "by_test": tests}


def _tested(test: WeatTest, embed: Embed, seed: int) -> Record:
    texts = list(dict.fromkeys(word for words in test for word in words.words))
    embedded = embed_words(test, embed(texts))
    found = weat(embedded.sets, seed=seed)
    return {
        "items": sum(map(len, embedded.sets)),
        "missing": sum(map(len, embedded.missing.values())),
        "effect_size": found.effect_size,
        "p_value": found.p_value,
    }


class CooccurrenceSet(NamedTuple):
    """What is counted in the texts of a model.

    Attributes:
        groups: words of two groups, by name.
        targets: words whose association with the groups is measured.
        prompts: that the model writes after.
    """

    groups: dict[str, tuple[str, ...]]
    targets: tuple[str, ...]
    prompts: tuple[str, ...]


def read_cooccurrence(path: Path) -> CooccurrenceSet:
    """A JSON object with groups (two lists of words by name), targets and prompts.

    Raises:
        DataError: a field is missing or holds something else.
    """
    value = read_json(path)
    groups = value.get("groups") if isinstance(value, dict) else None
    if not isinstance(groups, dict) or len(groups) != 2:
        raise DataError(
            f"{path}: groups is {groups!r}; two groups are expected, each a list of words by name"
        )
    words = {name: _texts(path, f"groups.{name}", of) for name, of in groups.items()}
    targets = _texts(path, "targets", value.get("targets"))
    return CooccurrenceSet(words, targets, _texts(path, "prompts", value.get("prompts")))


def _texts(path: Path, name: str, value: Any) -> tuple[str, ...]:
    texts = value if isinstance(value, list) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{path}: {name} is {value!r}; a list of texts is expected")
    return tuple(texts)


def measure_cooccurrence(
    path: Path, asked: CooccurrenceSet, texts: Sequence[str], options: Mapping[str, int]
) -> Record:
    """Log ratios of the targets' frequencies near the words of both groups.

    Args:
        path: that ``asked`` was read from.
        asked: what is counted.
        texts: each prompt with what the model wrote after it.
        options: ``resamples`` and ``seed`` of the bootstrap over texts.

    Raises:
        DataError: the words of a group have no neighbours in the texts.
    """
    words = [unicode_words(text) for text in texts]
    counts = cooccurrence(words, asked.groups, asked.targets)
    first, second = asked.groups
    found = association_bias(counts, first, second, added=ADDED)
    mean_absolute: Record | float = found.mean_absolute
    # Of few texts some resample lacks a group: then the figure has no interval.
    with suppress(DataError):
        mean_absolute = figure_of(
            association_interval(words, asked.groups, asked.targets, added=ADDED, **options)
        )
    return {
        "file": path.name,
        "score": f"log of P(target near {first}) / P(target near {second}), {ADDED} added",
        "items": len(texts),
        "overall": {
            "items": int(counts.near.sum()),
            "mean_absolute": mean_absolute,
            "mean": found.mean,
        },
        "by_target": {
            target: {"items": int(near.sum()), "log_ratio": float(ratio)}
            for target, near, ratio in zip(asked.targets, counts.near, found.log_ratio, strict=True)
        },
    }
