"""The linear classifier at its optimum, its scores by hand, what it refuses, and its files."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random_array

from llm_jax.classic import (
    TextClassifier,
    TfIdf,
    VocabularyRule,
    classification_scores,
    train_linear,
    train_text_classifier,
)
from llm_jax.types import ConfigError, DataError

TEXTS = [
    "um gol no último minuto",
    "o time venceu o jogo",
    "o jogo terminou sem gol",
    "a bolsa caiu hoje",
    "o banco subiu os juros",
    "juros e inflação na bolsa",
    "o filme estreou hoje",
]
LABELS = ["esporte", "esporte", "esporte", "economia", "economia", "economia", "cinema"]


@pytest.fixture(scope="module")
def classifier() -> TextClassifier:
    return train_text_classifier(TEXTS, LABELS, l2=0.1)


def sparse(documents: int, columns: int, seed: int) -> csr_matrix:
    rng = np.random.default_rng(seed)
    return csr_matrix(random_array((documents, columns), density=0.2, rng=rng))


def gradient_of(features: csr_matrix, labels: np.ndarray, model, l2: float) -> np.ndarray:
    """The gradient of the mean loss in float64, weights and then bias."""
    probabilities = model.probabilities(features)
    classes = np.eye(probabilities.shape[1])
    errors = (probabilities - classes[labels]) / len(labels)
    if len(model.bias) == 1:
        errors = errors[:, 1:]
    weights = features.T @ errors + l2 / len(labels) * model.weights
    return np.concatenate([weights.ravel(), errors.sum(axis=0)])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_the_gradient_is_zero_where_training_ends(classes, l2):
    features = sparse(60, 15, seed=classes)
    labels = np.random.default_rng(0).integers(0, classes, 60)
    model, convergence = train_linear(features, labels, classes, l2=l2)
    assert convergence.converged and convergence.gradient <= 1e-4
    assert model.weights.shape == (15, classes if classes > 2 else 1)
    largest = abs(gradient_of(features, labels, model, l2)).max()
    assert largest == pytest.approx(convergence.gradient, abs=2e-6)
    # The same input gives the same bits, whatever the layout of the matrix.
    again, _ = train_linear(features.tocsc(), labels, classes, l2=l2)
    assert (again.weights == model.weights).all() and (again.bias == model.bias).all()


def test_without_features_the_bias_alone_gives_the_shares_of_the_classes():
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    model, _ = train_linear(csr_matrix((10, 4)), labels, 3, tolerance=1e-6)
    assert model.probabilities(csr_matrix((1, 4)))[0] == pytest.approx([0.5, 0.3, 0.2], abs=1e-4)
    assert not model.weights.any()


def test_steps_that_run_out_are_said():
    features = sparse(60, 15, seed=2)
    labels = np.random.default_rng(0).integers(0, 2, 60)
    _, convergence = train_linear(features, labels, 2, l2=0.01, max_steps=1, tolerance=1e-6)
    assert convergence.steps == 1 and not convergence.converged


@pytest.mark.parametrize(
    ("features", "labels", "classes", "error", "message"),
    [
        (np.ones((2, 1)), [0, 1], 1, ConfigError, "classes is 1; a classifier needs at least 2"),
        (np.ones((0, 1)), [], 2, DataError, "features has no documents"),
        (np.ones((2, 1)), [0], 2, DataError, "it must be 2 whole numbers"),
        (np.ones((2, 1)), [0.0, 1.0], 2, DataError, "labels is an array of float64"),
        (np.ones((2, 1)), [0, 2], 2, DataError, "labels are from 0 to 2; with 2 classes"),
        (np.array([[np.nan], [1]]), [0, 1], 2, DataError, "NaN or infinite"),
    ],
)
def test_what_cannot_be_fitted_is_named(features, labels, classes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        train_linear(csr_matrix(features), np.array(labels), classes)


def test_settings_out_of_range_are_named():
    for setting in ("l2", "max_steps"):
        with pytest.raises(ConfigError, match=f"{setting} is 0"):
            train_text_classifier(TEXTS, LABELS, **{setting: 0})


def test_a_model_refuses_other_features(classifier):
    with pytest.raises(ConfigError, match="features has 3 columns and the model"):
        classifier.model.probabilities(csr_matrix((1, 3)))


def test_it_learns_its_own_texts_and_the_words_of_others(classifier):
    assert classifier.classes == ("cinema", "economia", "esporte")
    assert classifier.predict(TEXTS) == LABELS
    assert classifier.predict(["gol do time", "inflação e juros"]) == ["esporte", "economia"]
    probabilities = classifier.predict_proba(TEXTS)
    assert probabilities.shape == (7, 3)
    assert probabilities.sum(axis=1) == pytest.approx(1)


def test_a_text_without_known_words_has_the_probabilities_of_the_bias(classifier):
    nothing, unknown = classifier.predict_proba(["", "xyzzy"])
    assert (nothing == unknown).all()


def test_settings_reach_the_features():
    trained = train_text_classifier(
        TEXTS,
        LABELS,
        selection=VocabularyRule(min_documents=2),
        weighting=TfIdf(idf=False, norm="none"),
    )
    assert set(trained.bag.vocabulary.words) == {"gol", "o", "jogo", "bolsa", "hoje", "juros"}
    assert trained.features(["o jogo o"]).sum() == 3


def test_scores_by_hand():
    truth = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", "a", "d"]
    scores = classification_scores(truth, predicted)
    assert scores.accuracy == 0.5
    # Precision, recall, F1, how often each occurs and is predicted.
    assert scores.by_class == {
        "a": (2 / 3, 2 / 3, 2 / 3, 3, 3),
        "b": (0.5, 0.5, 0.5, 2, 2),
        "c": (None, 0.0, 0.0, 1, 0),
        "d": (0.0, None, 0.0, 0, 1),
    }
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 4)


def test_an_evaluation_stands_beside_the_majority(classifier):
    # Two of three texts are right: the last one has words of economia alone.
    texts = ["gol", "juros", "juros"]
    results = classifier.evaluate(texts, ["esporte", "economia", "esporte"])
    assert results["documents"] == 3 and results["accuracy"] == pytest.approx(2 / 3)
    # economia and esporte are as frequent in training: the first is the majority.
    assert results["majority"] == {
        "label": "economia",
        "accuracy": pytest.approx(1 / 3),
        "macro_f1": pytest.approx((2 * 1 / (1 + 3) + 0) / 2),
    }
    assert results["classes"]["esporte"] == {
        "documents": 2,
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
    }
    assert results["converged"] is True
    json.dumps(results)


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        ([], [], "there are no texts and labels"),
        (["a", "b"], ["x"], "there are 2 texts and 1 labels"),
        (["a", "b"], ["x", "x"], "all 2 labels are 'x'; a classifier needs documents of at least"),
        (["a", "b"], ["x", ""], "label 1 is '', which is empty"),
        (["a", "b"], ["x", " "], "label 1 is ' ', which is empty"),
        (["a", "b"], ["x", None], "label 1 is None, of type NoneType; labels must be strings"),
        (["a", "b"], ["x", 1], "label 1 is 1, of type int"),
        (["a", "b"], "xy", "labels is one string"),
        ("ab", ["x", "y"], "texts is one string"),
        (["", "!"], ["x", "y"], "the 2 texts have no word"),
        (["a", 3], ["x", "y"], "text 1 is of type int"),
    ],
)
def test_labels_and_texts_that_cannot_be_learned_are_named(texts, labels, message):
    with pytest.raises(DataError, match=re.escape(message)):
        train_text_classifier(texts, labels)


def test_labels_that_training_did_not_have_are_counted(classifier):
    with pytest.raises(DataError) as error:
        classifier.evaluate(["a", "b", "c", "d"], ["esporte", "moda", "moda", "clima"])
    assert "3 of 4 documents have labels that training did not have ('moda': 2, 'clima': 1)" in str(
        error.value
    )
    with pytest.raises(DataError, match="there are 1 texts and 2 labels"):
        classifier.evaluate(["a"], ["esporte", "esporte"])
    with pytest.raises(DataError, match="there are no labels to score"):
        classification_scores([], [])
    with pytest.raises(DataError, match="there are 1 labels and 2 predictions"):
        classification_scores(["a"], ["a", "b"])


def test_a_saved_classifier_predicts_the_same(classifier, tmp_path):
    folder = tmp_path / "new" / "topics"
    classifier.save(folder)
    loaded = TextClassifier.load(folder)
    assert (loaded.predict_proba(TEXTS) == classifier.predict_proba(TEXTS)).all()
    assert loaded.class_counts == classifier.class_counts
    assert loaded.training == classifier.training
    # It may be saved again in the same place.
    classifier.save(folder)
    assert {p.name for p in folder.iterdir()} == {"classifier.json", "weights.npz", "words.json"}


def test_folders_that_hold_something_else_are_left_alone(classifier, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        classifier.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_folders_that_are_no_classifier_are_named(classifier, tmp_path):
    with pytest.raises(DataError, match="classifier.json' cannot be read"):
        TextClassifier.load(tmp_path)
    classifier.save(tmp_path)
    whole = json.loads((tmp_path / "classifier.json").read_text())
    for change, message in [
        ({"format_version": 9}, "has the format 9"),
        ({"colour": 1}, "is not a saved text classifier"),
        ({"classes": 3}, "is not an intact text classifier"),
        ({"weighting": {"norm": "l7"}}, "norm is 'l7'"),
        ({"training": {}}, "is not an intact text classifier"),
        ({"classes": {"a": 1, "b": 2}}, "its files are of different classifiers"),
    ]:
        (tmp_path / "classifier.json").write_text(json.dumps(whole | change))
        with pytest.raises(DataError, match=re.escape(message)):
            TextClassifier.load(tmp_path)
    (tmp_path / "classifier.json").write_text(json.dumps(whole))
    for damaged in (b"", b"no zip", (tmp_path / "weights.npz").read_bytes()[:-40]):
        (tmp_path / "weights.npz").write_bytes(damaged)
        with pytest.raises(DataError, match="is not a file of weights"):
            TextClassifier.load(tmp_path)
    (tmp_path / "weights.npz").unlink()
    with pytest.raises(DataError, match="weights.npz' cannot be read"):
        TextClassifier.load(tmp_path)
