"""Accuracy and macro F1 of labels as functions of sums, for intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_jax.evaluation.significance.sums import ItemSums


def macro_f1_sums(labels: Sequence[str], predictions: Sequence[str]) -> ItemSums:
    """Macro F1 over the classes that occur or are predicted (``classification_scores``)."""
    classes = sorted({*labels, *predictions})
    column = {name: n for n, name in enumerate(classes)}
    items = np.zeros((len(labels), 2 * len(classes)))
    for row, label, prediction in zip(items, labels, predictions, strict=True):
        row[column[label]] += 1
        row[column[prediction]] += 1
        if label == prediction:
            row[len(classes) + column[label]] = 2

    def score(sums: np.ndarray) -> float:
        decided, right = np.split(sums, 2)
        some = decided > 0
        return float((right[some] / decided[some]).mean())

    return ItemSums(items, score)
