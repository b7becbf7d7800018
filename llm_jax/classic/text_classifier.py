"""A text classifier: words, their weights, and a linear model on top.

classifier = train_text_classifier(texts, labels)
classifier.predict(["a new text"])
classifier.evaluate(test_texts, test_labels)["accuracy"]
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from llm_jax.classic.bag_of_words import BagOfWords, learn_bag_of_words
from llm_jax.classic.linear import Convergence, LinearModel, train_linear
from llm_jax.classic.saved import check_format, read_json
from llm_jax.classic.scores import classification_scores
from llm_jax.classic.tf_idf import TfIdf, tfidf
from llm_jax.classic.vocabulary import VocabularyRule
from llm_jax.classic.words import WordRule
from llm_jax.files import make_folder, visible_names, write_atomic, write_json
from llm_jax.ranges import Count, NotNegative, Positive, checked
from llm_jax.storage.paths import path_of
from llm_jax.types import ConfigError, DataError

_RULE = WordRule()
_SELECTION = VocabularyRule()
_WEIGHTING = TfIdf()
_FORMAT = 1
_WORDS = "words.json"
_WEIGHTS = "weights.npz"
CLASSIFIER = "classifier.json"
"""Written last: a folder without it is not complete."""
_KEYS = {"classes", "weighting", "training"}
_NAMED = 5


class TextClassifier(NamedTuple):
    """A trained classifier.

    Attributes:
        bag: counts the words of a text.
        weighting: how counts become features.
        model: from features to classes.
        class_counts: number of training documents of each label, in the order of the classes.
        training: how training ended.
    """

    bag: BagOfWords
    weighting: TfIdf
    model: LinearModel
    class_counts: dict[str, int]
    training: Convergence

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, in the order of the columns of ``predict_proba``."""
        return tuple(self.class_counts)

    @property
    def majority(self) -> str:
        """The label of the most training documents; of several the first."""
        return max(self.class_counts, key=self.class_counts.__getitem__)

    def features(self, texts: Iterable[str]) -> csr_matrix:
        """What the linear model reads, float64 [texts, words]."""
        return tfidf(self.bag.counts(texts), self.bag.vocabulary, self.weighting)

    def predict_proba(self, texts: Iterable[str]) -> np.ndarray:
        """The probability of each class, float64 [texts, classes].

        Raises:
            DataError: something that is not a text, or there is none.
        """
        return self.model.probabilities(self.features(texts))

    def predict(self, texts: Iterable[str]) -> list[str]:
        """The most probable label of each text.

        Raises:
            DataError: something that is not a text, or there is none.
        """
        best = self.predict_proba(texts).argmax(axis=1)
        return [self.classes[i] for i in best]

    def evaluate(self, texts: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
        """Scores on texts whose labels are known, beside a trivial baseline.

        Returns:
            ``documents``; ``accuracy``; ``macro_f1``; ``classes``: by label ``documents`` (of that
            label), ``precision``, ``recall`` and ``f1`` of ``classification_scores``; ``majority``:
            the ``label`` of the most training documents, with ``accuracy`` and ``macro_f1`` of
            predicting it always; and ``converged``, whether training had come to its end.

        Raises:
            DataError: labels that do not fit the texts, or that training did not have.
        """
        _check_labels(texts, labels)
        unseen = Counter(label for label in labels if label not in self.class_counts)
        if unseen:
            raise DataError(
                f"{unseen.total():,} of {len(labels):,} documents have labels that training did not"
                f" have ({_listed(unseen)}); leave these documents out, or train with such labels"
            )
        always = classification_scores(labels, [self.majority] * len(labels))
        predicted = self.predict(texts)
        found = classification_scores(labels, predicted, sorted({*labels, *predicted}))
        classes = {
            label: {
                "documents": of.support,
                "precision": of.precision,
                "recall": of.recall,
                "f1": of.f1,
            }
            for label, of in found.by_class.items()
        }
        return {
            "documents": len(labels),
            "accuracy": found.accuracy,
            "macro_f1": found.macro_f1,
            "classes": classes,
            "majority": {
                "label": self.majority,
                "accuracy": always.accuracy,
                "macro_f1": always.macro_f1,
            },
            "converged": self.training.converged,
        }

    def save(self, folder: str | Path) -> None:
        """Writes the classifier into a folder, which is new, empty, or holds a classifier.

        Raises:
            DataError: the folder holds something else, or cannot be written.
        """
        folder = path_of(folder)
        names = visible_names(folder)
        if names and CLASSIFIER not in names:
            raise DataError(
                f"folder {str(folder)!r} holds other files ({', '.join(names[:_NAMED])}); choose"
                " another folder"
            )
        make_folder(folder, "folder")
        self.bag.save(folder / _WORDS)
        arrays = io.BytesIO()
        np.savez(arrays, **self.model._asdict())
        write_atomic(folder / _WEIGHTS, arrays.getvalue())
        value = {
            "format_version": _FORMAT,
            "classes": self.class_counts,
            "weighting": dataclasses.asdict(self.weighting),
            "training": self.training._asdict(),
        }
        write_json(folder / CLASSIFIER, value)

    @staticmethod
    def load(folder: str | Path) -> TextClassifier:
        """Reads what ``save`` wrote.

        Raises:
            DataError: a file cannot be read, or they are not those of one classifier.
        """
        folder = path_of(folder)
        where = str(folder / CLASSIFIER)
        value = read_json(folder / CLASSIFIER)
        check_format(value, where, "a saved text classifier", _FORMAT, _KEYS)
        try:
            classifier = TextClassifier(
                bag=BagOfWords.load(folder / _WORDS),
                weighting=TfIdf(**value["weighting"]),
                model=_load_weights(folder / _WEIGHTS),
                class_counts={str(label): int(n) for label, n in value["classes"].items()},
                training=Convergence(**value["training"]),
            )
        except DataError:
            raise
        except (AttributeError, ConfigError, TypeError, ValueError) as error:
            raise DataError(f"{where!r} is not an intact text classifier: {error}") from error
        fits = classifier.model.weights.shape[0] == len(classifier.bag.vocabulary)
        if not fits or classifier.model.classes != len(classifier.classes):
            raise DataError(
                f"{str(folder)!r} has weights of {classifier.model.weights.shape} for"
                f" {len(classifier.bag.vocabulary):,} words and {len(classifier.classes)} classes;"
                " its files are of different classifiers, so save it again"
            )
        return classifier


@checked
def train_text_classifier(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    rule: WordRule = _RULE,
    selection: VocabularyRule = _SELECTION,
    weighting: TfIdf = _WEIGHTING,
    l2: Positive = 1.0,
    max_steps: Count = 500,
    tolerance: NotNegative = 1e-4,
) -> TextClassifier:
    """Trains a linear classifier on the words of texts.

    Args:
        texts: documents.
        labels: the label of each document.
        rule: how a text becomes words.
        selection: which words are features.
        weighting: how counts become features.
        l2: weight of the penalty; scikit-learn's 1 / C.
        max_steps: of L-BFGS.
        tolerance: training ends where no part of the mean loss's gradient is larger.

    Raises:
        ConfigError: a number out of range.
        DataError: texts without words, or labels that are missing, empty, or all the same.
    """
    _check_labels(texts, labels)
    class_counts = Counter(labels)
    classes = sorted(class_counts)
    if len(classes) < 2:
        raise DataError(
            f"all {len(labels):,} labels are {classes[0]!r}; a classifier needs documents of at"
            " least two classes"
        )
    bag, counts = learn_bag_of_words(texts, rule, selection)
    number = {label: i for i, label in enumerate(classes)}
    model, training = train_linear(
        tfidf(counts, bag.vocabulary, weighting),
        np.array([number[label] for label in labels]),
        len(classes),
        l2=l2,
        max_steps=max_steps,
        tolerance=tolerance,
    )
    ordered = {label: class_counts[label] for label in classes}
    return TextClassifier(bag, weighting, model, ordered, training)


def _check_labels(texts: Sequence[str], labels: Sequence[str]) -> None:
    """Raises DataError unless there is one label, not empty, for every text."""
    for name, value in (("texts", texts), ("labels", labels)):
        if isinstance(value, str):
            raise DataError(f"{name} is one string; pass a list of strings, one for each document")
    if len(texts) != len(labels):
        raise DataError(
            f"there are {len(texts):,} texts and {len(labels):,} labels; give one label for each"
            " text"
        )
    if not len(labels):
        raise DataError("there are no texts and labels; pass at least one of each")
    for i, label in enumerate(labels):
        if not isinstance(label, str):
            raise DataError(
                f"label {i} is {label!r}, of type {type(label).__name__}; labels must be strings"
            )
        if not label.strip():
            raise DataError(f"label {i} is {label!r}, which is empty; leave such documents out")


def _listed(counts: Counter[str]) -> str:
    named = ", ".join(f"{label!r}: {n:,}" for label, n in counts.most_common(_NAMED))
    return f"{named}, …" if len(counts) > _NAMED else named


def _load_weights(path: Path) -> LinearModel:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            model = LinearModel(weights=arrays["weights"], bias=arrays["bias"])
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error})") from error
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{str(path)!r} is not a file of weights ({error})") from error
    if model.weights.ndim != 2 or model.bias.shape != model.weights.shape[1:]:
        raise DataError(
            f"{str(path)!r} has weights of shape {model.weights.shape} and a bias of shape"
            f" {model.bias.shape}, which do not belong together; save the classifier again"
        )
    return model
