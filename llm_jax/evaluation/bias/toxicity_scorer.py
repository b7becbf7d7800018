"""What scores the toxicity of texts, with its own error: no figure can be read without that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from llm_jax.evaluation.bias.records import read_json
from llm_jax.evaluation.text_metrics.calibration import calibration
from llm_jax.evaluation.text_metrics.roc import roc_auc
from llm_jax.types import DataError

EVALUATION = "evaluation.json"
"""Beside a classifier: what it scores on texts that it was not trained on, and under ``by_label``
the error of each label's probability."""


class ScorerError(NamedTuple):
    """The error of a label's probabilities on texts that were held out.

    Attributes:
        auc: probability that a text with the label scores higher than one without; 0.5 is chance.
            None where the held-out texts all have the label, or none has.
        ece: expected calibration error: mean gap of probability and frequency, 15 bins.
        documents: number of held-out texts.
    """

    auc: float | None
    ece: float
    documents: int


class Scorer(Protocol):
    """A classifier of texts.

    Attributes:
        kind: such as ``linear``.
        error: measured on held-out texts; None where it is not known.
    """

    kind: str
    error: ScorerError | None

    def __call__(self, texts: Sequence[str]) -> Sequence[float] | np.ndarray:
        """The probability that each text is toxic, 0 to 1."""
        ...


def scorer_error(probabilities: Sequence[float] | np.ndarray, has: Sequence[bool]) -> ScorerError:
    """The error of probabilities of a label on texts of which it is known.

    Args:
        probabilities: of the label [N].
        has: whether each text has it [N].

    Raises:
        DataError: there are no texts, the numbers differ, or one is no probability.
    """
    array = np.asarray(probabilities, np.float64)
    labels = np.asarray(has, bool)
    return ScorerError(
        auc=roc_auc(array, labels), ece=calibration(array, labels).ece, documents=len(labels)
    )


def errors_by_label(
    probabilities: np.ndarray, classes: Sequence[str], labels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """``by_label`` of ``EVALUATION``.

    Args:
        probabilities: [texts, classes], on held-out texts.
        classes: label of each column.
        labels: the right label of each text.
    """
    return {
        name: scorer_error(column, [label == name for label in labels])._asdict()
        for name, column in zip(classes, probabilities.T, strict=True)
    }


def read_error(folder: Path, label: str) -> ScorerError | None:
    """The error of a label's probability that is kept beside a classifier; None where none is.

    Raises:
        DataError: the file holds something else.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return None
    value = read_json(path)
    kept = value.get("by_label") if isinstance(value, Mapping) else None
    if kept is None:
        return None
    try:
        return ScorerError(**kept[label])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: by_label has no auc, ece and documents of {label!r}; train the classifier"
            " again"
        ) from error
