"""How well predicted labels fit the true ones: accuracy, precision, recall, F1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from llm_jax.types import DataError


def classification_scores(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """Scores of predicted labels.

    Args:
        truth: the label of each document.
        predicted: what was predicted for each.

    Returns:
        ``accuracy``; ``macro_f1``, the mean of the classes' F1, over the classes that are true or
        predicted of some document; and ``classes``: by label ``documents`` (of that true label),
        ``precision`` (None where it was never predicted), ``recall`` (None where no document has
        it) and ``f1`` = 2 · right / (documents + predictions).

    Raises:
        DataError: no documents, or other numbers of them.
    """
    if len(truth) != len(predicted):
        raise DataError(
            f"there are {len(truth):,} true labels and {len(predicted):,} predicted ones; give one"
            " of each for every document"
        )
    if not truth:
        raise DataError("there are no labels to score; pass at least one")
    right = Counter(t for t, p in zip(truth, predicted) if t == p)
    documents = Counter(truth)
    predictions = Counter(predicted)
    classes: dict[str, dict[str, Any]] = {
        label: {
            "documents": documents[label],
            "precision": _share(right[label], predictions[label]),
            "recall": _share(right[label], documents[label]),
            "f1": 2 * right[label] / (documents[label] + predictions[label]),
        }
        for label in sorted({*documents, *predictions})
    }
    return {
        "accuracy": right.total() / len(truth),
        "macro_f1": sum(scores["f1"] for scores in classes.values()) / len(classes),
        "classes": classes,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
