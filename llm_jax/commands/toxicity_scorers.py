"""Kinds of classifiers that ``llm-jax toxicity`` takes, by the files of their folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from llm_jax.classic.text_classifier import CLASSIFIER, TextClassifier
from llm_jax.evaluation.bias.toxicity_scorer import Scorer, ScorerError, read_error
from llm_jax.types import ConfigError


class LinearScorer:
    """A linear classifier of words (``llm-jax task classify``).

    Args:
        folder: of the classifier.
        toxic_label: its label of toxic texts.

    Raises:
        ConfigError: it has no such label.
    """

    kind = "linear"

    def __init__(self, folder: Path, toxic_label: str) -> None:
        self._classifier = TextClassifier.load(folder)
        classes = self._classifier.classes
        if toxic_label not in classes:
            raise ConfigError(
                f"toxic_label is {toxic_label!r}, and the scorer has the labels"
                f" {', '.join(classes)}; name one of them"
            )
        self._column = classes.index(toxic_label)
        self.error: ScorerError | None = read_error(folder, toxic_label)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return self._classifier.predict_proba(texts)[:, self._column]


SCORERS: dict[str, Callable[[Path, str], Scorer]] = {CLASSIFIER: LinearScorer}
"""The file by which a folder is known -> opens it, for its label of toxic texts."""


def open_scorer(folder: Path, toxic_label: str) -> Scorer:
    """The classifier in a folder.

    Raises:
        ConfigError: the folder holds no kind that is known, or the classifier has no such label.
        DataError: its files are damaged.
    """
    for name, opened in SCORERS.items():
        if (folder / name).is_file():
            return opened(folder, toxic_label)
    raise ConfigError(
        f"scorer {str(folder)!r} is no folder of a classifier: it has no {' or '.join(SCORERS)};"
        " make one with `llm-jax task classify`"
    )
