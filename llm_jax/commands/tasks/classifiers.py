"""The classifiers that ``llm-jax task classify`` leaves: of words, or a model with classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llm_jax.checkpoints.open_run import open_run
from llm_jax.classic.text_classifier import CLASSIFIER, TextClassifier
from llm_jax.commands.tasks.texts import encode
from llm_jax.decode.classify import class_probabilities
from llm_jax.evaluation.bias.records import read_json
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError, DataError

CLASSES = "classes.json"
"""In the folder of a model that was trained to give labels: the labels, in order."""

Texts = tuple[str, ...]


class Classifier(Protocol):
    """Gives the labels of texts.

    Attributes:
        kind: ``linear`` or ``model``.
        classes: the labels.
    """

    kind: str
    classes: tuple[str, ...]

    def probabilities(self, texts: Sequence[Texts], wheres: Sequence[str]) -> np.ndarray:
        """Of each label, float [texts, classes].

        Args:
            texts: one or two of each record, as the classifier was trained.
            wheres: file and line of each, for errors.
        """
        ...


class WordClassifier:
    """A linear classifier of words.

    Args:
        folder: of the classifier.
    """

    kind = "linear"

    def __init__(self, folder: Path) -> None:
        self._classifier = TextClassifier.load(folder)
        self.classes = tuple(self._classifier.classes)

    def probabilities(self, texts: Sequence[Texts], wheres: Sequence[str]) -> np.ndarray:
        for one, where in zip(texts, wheres, strict=True):
            if len(one) != 1:
                raise ConfigError(
                    f"{where} has {len(one)} texts, and a classifier of words reads one; leave out"
                    " --second-field"
                )
        return self._classifier.predict_proba([one for (one,) in texts])


class ModelClassifier:
    """A model with classes of rows, trained by ``llm-jax task classify --model``.

    Args:
        folder: of the task.

    Raises:
        ConfigError: it labels words.
        DataError: its labels are damaged.
        CheckpointError: there is no model.
    """

    kind = "model"

    def __init__(self, folder: Path) -> None:
        self._run = open_run(folder / "run")
        self._tokenizer = open_tokenizer(self._run.folder / "tokenizer")
        labels = read_json(folder / CLASSES)
        pooler = self._run.config.model.pooler
        if not isinstance(labels, list) or pooler is None or pooler.num_classes != len(labels):
            raise DataError(
                f"{folder / CLASSES} does not have the labels of the model in {folder / 'run'};"
                " train it again"
            )
        if pooler.reads == "each":
            raise ConfigError(
                f"{folder} labels words (task tag), and not texts; give a folder of task classify"
            )
        self.classes = tuple(map(str, labels))

    def probabilities(self, texts: Sequence[Texts], wheres: Sequence[str]) -> np.ndarray:
        most = self._run.config.model.max_length
        encoded = encode(self._tokenizer, texts, wheres, most=most, long="refuse")
        objective = self._run.config.data.objective
        typed = getattr(objective, "token_types", False)
        types = encoded.types if typed else None
        return np.stack(class_probabilities(self._run, encoded.rows, token_types=types))


CLASSIFIERS: dict[str, Callable[[Path], Classifier]] = {
    CLASSIFIER: WordClassifier,
    CLASSES: ModelClassifier,
}
"""The file by which a folder is known -> opens it."""


def open_classifier(folder: Path) -> Classifier:
    """The classifier in a folder.

    Raises:
        ConfigError: the folder holds no kind that is known, or a model that labels words.
        DataError: its files are damaged.
    """
    for name, opened in CLASSIFIERS.items():
        if (folder / name).is_file():
            return opened(folder)
    raise ConfigError(
        f"{str(folder)!r} is no folder of a classifier: it has no {' or '.join(CLASSIFIERS)}; make"
        " one with `llm-jax task classify`"
    )
