"""The classifiers that ``llm-jax toxicity`` takes as scorers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_jax.commands.tasks.classifiers import open_classifier
from llm_jax.evaluation.bias.toxicity_scorer import ScorerError, read_error
from llm_jax.types import ConfigError


class ClassifierScorer:
    """The probability of one label.

    Args:
        folder: of the classifier.
        toxic_label: its label of toxic texts.

    Raises:
        ConfigError: the folder has no classifier, or it has no such label.
        DataError: its files are damaged.
    """

    def __init__(self, folder: Path, toxic_label: str) -> None:
        self._classifier = open_classifier(folder)
        classes = self._classifier.classes
        if toxic_label not in classes:
            raise ConfigError(
                f"toxic_label is {toxic_label!r}, and the scorer has the labels"
                f" {', '.join(classes)}; name one of them"
            )
        self.kind = self._classifier.kind
        self._column = classes.index(toxic_label)
        self.error: ScorerError | None = read_error(folder, toxic_label)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The label's probability of each text, 0 where a text is blank."""
        found = np.zeros(len(texts))
        places = [n for n, text in enumerate(texts) if text.strip()]
        if places:
            rows = [(texts[n],) for n in places]
            wheres = [f"text {n}" for n in places]
            found[places] = self._classifier.probabilities(rows, wheres)[:, self._column]
        return found
