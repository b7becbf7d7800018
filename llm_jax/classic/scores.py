"""How well predicted labels fit the true ones: accuracy, precision, recall, F1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.types import DataError


class ClassScores(NamedTuple):
    """Scores of one class.

    Attributes:
        precision: None where the class is never predicted.
        recall: None where the class never occurs.
        f1: 2 * right / (support + predicted); 0 where the class neither occurs nor is predicted.
        support: how often the class occurs.
        predicted: how often the class is predicted.
    """

    precision: float | None
    recall: float | None
    f1: float
    support: int
    predicted: int


class ClassificationScores(NamedTuple):
    """Scores of labels.

    Attributes:
        accuracy: share of right labels.
        macro_f1: mean F1 over classes, each counting the same.
        micro_f1: F1 of all decisions together; with one label an item it is the accuracy, unless
            ``classes`` leaves some out.
        weighted_f1: mean F1 over classes by how often they occur.
        by_class: of each class.
        items: their number.
    """

    accuracy: float
    macro_f1: float
    micro_f1: float
    weighted_f1: float
    by_class: dict[Hashable, ClassScores]
    items: int


def classification_scores(
    labels: Sequence[Hashable],
    predictions: Sequence[Hashable],
    classes: Sequence[Hashable] | None = None,
) -> ClassificationScores:
    """Accuracy and macro, micro and weighted F1.

    Args:
        labels: the right ones.
        predictions: of the system.
        classes: that count for F1; those that occur or are predicted, in order, if None. A class
            that never occurs and is never predicted has F1 0.

    Raises:
        DataError: there are no labels, the numbers differ, or ``classes`` repeats one or is empty.
    """
    if not len(labels):
        raise DataError("there are no labels to score")
    if len(labels) != len(predictions):
        raise DataError(f"there are {len(labels)} labels and {len(predictions)} predictions")
    if classes is None:
        classes = list(dict.fromkeys([*labels, *predictions]))
    if not len(classes) or len(set(classes)) != len(classes):
        raise DataError(f"classes is {list(classes)}; it expects each class once")
    support_of = Counter(labels)
    predicted_of = Counter(predictions)
    pairs = zip(labels, predictions, strict=True)
    right_of = Counter(label for label, prediction in pairs if label == prediction)
    by_class = {
        name: _class_scores(support_of[name], predicted_of[name], right_of[name])
        for name in classes
    }
    f1 = np.array([scores.f1 for scores in by_class.values()])
    support = np.array([scores.support for scores in by_class.values()])
    decided = support.sum() + sum(scores.predicted for scores in by_class.values())
    right = sum(right_of[name] for name in classes)
    total = support.sum()
    return ClassificationScores(
        accuracy=right_of.total() / len(labels),
        macro_f1=float(f1.mean()),
        micro_f1=float(2 * right / decided) if decided else 0.0,
        weighted_f1=float((f1 * support).sum() / total) if total else 0.0,
        by_class=by_class,
        items=len(labels),
    )


def _class_scores(support: int, predicted: int, right: int) -> ClassScores:
    return ClassScores(
        precision=right / predicted if predicted else None,
        recall=right / support if support else None,
        f1=2 * right / (support + predicted) if support + predicted else 0.0,
        support=support,
        predicted=predicted,
    )
