"""Spans of labelled words in the BIO scheme, and their F1, as seqeval defines them (Nakayama 2018;
Tjong Kim Sang & De Meulder 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.evaluation.significance.sums import ItemSums
from llm_jax.types import DataError

Span = tuple[str, int, int]


class SpanScores(NamedTuple):
    """Scores of spans, over all types together.

    Attributes:
        precision: 0 where nothing is predicted.
        recall: 0 where there are no spans.
        f1: 0 where both are 0.
        support: how many spans there are.
        predicted: how many are predicted.
        sums: statistics of each sentence, for the interval of F1.
    """

    precision: float
    recall: float
    f1: float
    support: int
    predicted: int
    sums: ItemSums


def bio_spans(tags: Sequence[str]) -> list[Span]:
    """The spans of a sentence: type, first word, and last word.

    A span begins at ``B-x``, and at ``I-x`` after ``O`` or after a word of another type; it goes on
    over ``I-x`` of its type.

    Args:
        tags: ``O``, ``B-x`` or ``I-x`` of each word.

    Raises:
        DataError: a tag is something else.
    """
    found: list[Span] = []
    kind = ""
    for at, tag in enumerate(tags):
        letter, _, own = tag.partition("-")
        if tag != "O" and (letter not in ("B", "I") or not own):
            raise DataError(f"tag {at} is {tag!r}; tags are O, B-x or I-x with a type x")
        if own and letter == "I" and own == kind:
            name, first, _ = found[-1]
            found[-1] = (name, first, at)
        elif own:
            found.append((own, at, at))
        kind = own
    return found


def span_scores(truth: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> SpanScores:
    """Precision, recall and F1 of spans, which are right where type and both ends are.

    Args:
        truth: the tags of each sentence.
        said: those of the system.

    Raises:
        DataError: no sentences, other numbers of sentences or words, or a tag that is not BIO.
    """
    if len(truth) != len(said) or not len(truth):
        raise DataError(f"there are {len(truth)} tagged sentences and {len(said)} predicted ones")
    items = np.zeros((len(truth), 3))
    for number, (a, b) in enumerate(zip(truth, said)):
        if len(a) != len(b):
            raise DataError(f"sentence {number} has {len(a)} tags and {len(b)} predicted ones")
        wanted = set(bio_spans(a))
        given = set(bio_spans(b))
        items[number] = (len(wanted & given), len(wanted), len(given))
    right, support, predicted = items.sum(axis=0)
    sums = ItemSums(items, _f1)
    return SpanScores(
        precision=_share(right, predicted),
        recall=_share(right, support),
        f1=sums.value,
        support=int(support),
        predicted=int(predicted),
        sums=sums,
    )


def _f1(sums: np.ndarray) -> float:
    return _share(2 * sums[0], sums[1] + sums[2])


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0
