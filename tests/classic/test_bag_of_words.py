"""Bags of words by hand: vocabulary, counts, weights, hashes, files."""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import numpy as np
import pytest

from llm_jax.classic import (
    BagOfWords,
    TfIdf,
    Vocabulary,
    VocabularyRule,
    WordRule,
    hash_words,
    learn_bag_of_words,
    tfidf,
)
from llm_jax.classic.hashing import murmur3
from llm_jax.classic.tf_idf import normalized_rows
from llm_jax.types import ConfigError, DataError

TEXTS = ["essa casa é bonita", "o carro é rápido"]
WORDS = ("essa", "casa", "é", "bonita", "o", "carro", "rápido")
# a in 3 texts 5 times, b in 2 texts 2 times, c in 1 text 3 times, d in 1 text once.
LETTERS = ["a a b", "c c c b a", "d a a", ""]


def words_of(texts: list[str], **rule) -> tuple[str, ...]:
    return learn_bag_of_words(texts, selection=VocabularyRule(**rule))[0].vocabulary.words


def test_two_sentences_by_hand():
    bag, counts = learn_bag_of_words(TEXTS)
    assert bag.vocabulary.words == WORDS
    assert counts.toarray().tolist() == [[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 1, 1, 1]]
    assert bag.vocabulary.document_counts.tolist() == [1, 1, 2, 1, 1, 1, 1]
    assert bag.vocabulary.documents == 2


def test_other_texts_are_counted_with_the_same_words_and_new_words_ignored():
    bag, _ = learn_bag_of_words(TEXTS)
    counts = bag.counts(["casa casa nova é", "", "nova"])
    assert counts.toarray().tolist() == [[0, 2, 1, 0, 0, 0, 0], [0] * 7, [0] * 7]
    assert counts.has_canonical_format
    assert bag.counts(["casa casa"], binary=True).toarray().tolist() == [[0, 1, 0, 0, 0, 0, 0]]


def test_counts_are_those_of_a_counter():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), rng.integers(0, 30))) for _ in range(50)]
    rule = WordRule(ngrams=(1, 2))
    bag, counts = learn_bag_of_words(texts, rule)
    analyze = rule.analyzer()
    for text, row in zip(texts, counts.toarray()):
        found = {word: n for word, n in zip(bag.vocabulary.words, row) if n}
        assert found == Counter(analyze(text))
    assert (bag.counts(texts) != counts).nnz == 0


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({}, "abcd"),
        ({"order": "frequency"}, "acbd"),
        ({"order": "alphabetical"}, "abcd"),
        ({"min_documents": 2}, "ab"),
        ({"min_documents": 0.5}, "ab"),
        ({"max_documents": 1}, "cd"),
        ({"max_documents": 0.5}, "bcd"),
        ({"min_documents": 2, "max_documents": 2}, "b"),
        ({"max_size": 2}, "ac"),
        ({"max_size": 3, "order": "frequency"}, "acb"),
        ({"max_size": 9}, "abcd"),
    ],
)
def test_which_words_are_kept(rule, words):
    assert "".join(words_of(LETTERS, **rule)) == words


def test_columns_follow_the_order_of_the_words():
    bag, counts = learn_bag_of_words(
        LETTERS, selection=VocabularyRule(order="frequency", max_size=3)
    )
    assert counts.toarray().tolist() == [[2, 0, 1], [1, 3, 1], [2, 0, 0], [0, 0, 0]]
    assert bag.vocabulary.document_counts.tolist() == [3, 1, 2]
    _, present = learn_bag_of_words(LETTERS, binary=True)
    assert present.toarray().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1], [0] * 4]


def test_alphabetical_is_by_code_point():
    assert words_of(["z é a B"], order="alphabetical") == ("a", "b", "z", "é")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"order": "random"}, "order is 'random'"),
        ({"min_documents": 0}, "min_documents is 0"),
        ({"min_documents": 1.5}, "min_documents is 1.5"),
        ({"max_documents": True}, "max_documents is True"),
        ({"max_documents": math.nan}, "max_documents is nan"),
        ({"max_size": 0}, "max_size is 0; it must be at least 1"),
        ({"min_documents": 3, "max_documents": 2}, "min_documents 3 is 3 of 4 documents"),
    ],
)
def test_bad_limits_are_named(rule, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        words_of(LETTERS, **rule)


@pytest.mark.parametrize(
    ("texts", "rule", "message"),
    [
        ([], {}, "texts is empty"),
        (["", " !"], {}, "the 2 texts have no word"),
        (["a", "b"], {"min_documents": 2}, "none of 2 words is in 2 to 2 of 2 documents"),
        ("a text", {}, "texts is one string"),
        (["a", None], {}, "text 1 is of type NoneType"),
    ],
)
def test_texts_without_words_are_named(texts, rule, message):
    with pytest.raises(DataError, match=re.escape(message)):
        words_of(texts, **rule)


def test_tfidf_by_hand():
    bag, counts = learn_bag_of_words(TEXTS)
    plain = tfidf(counts, bag.vocabulary, TfIdf(smooth=False, norm="none"))
    # "é" is in both of two texts, ln(2 / 2) + 1; the others in one, ln(2 / 1) + 1.
    assert plain.toarray()[0] == pytest.approx(
        [*[1 + math.log(2)] * 2, 1, 1 + math.log(2), 0, 0, 0]
    )
    smooth = tfidf(counts, bag.vocabulary, TfIdf(norm="none"))
    assert smooth.toarray()[1, 3:] == pytest.approx([0, *[1 + math.log(3 / 2)] * 3])
    rows = tfidf(counts, bag.vocabulary).toarray()
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1])
    assert tfidf(counts, bag.vocabulary, TfIdf(norm="l1")).sum(axis=1) == pytest.approx(1)


def test_sublinear_counts_and_no_idf():
    bag, counts = learn_bag_of_words(["a a a b"])
    weights = tfidf(counts, bag.vocabulary, TfIdf(idf=False, sublinear=True, norm="none"))
    assert weights.toarray()[0] == pytest.approx([1 + math.log(3), 1])
    # The counts stay what they were.
    assert counts.toarray().tolist() == [[3, 1]]


def test_rows_of_zeros_have_no_length():
    bag, _ = learn_bag_of_words(["a b"])
    weights = tfidf(bag.counts(["c", "a"]), bag.vocabulary)
    assert weights.toarray().tolist() == [[0, 0], [1, 0]]


def test_weights_that_do_not_fit_are_named():
    unseen = Vocabulary(("a", "b"), np.array([2, 0]), 2)
    bag = BagOfWords(WordRule(), unseen)
    with pytest.raises(ConfigError, match="'b' is in no document and has no idf; set smooth=True"):
        tfidf(bag.counts(["a"]), unseen, TfIdf(smooth=False))
    other, _ = learn_bag_of_words(["a b c"])
    with pytest.raises(ConfigError, match="counts has 2 columns and the vocabulary 3 words"):
        tfidf(bag.counts(["a"]), other.vocabulary)
    with pytest.raises(ConfigError, match="norm is 'l3'"):
        TfIdf(norm="l3")
    with pytest.raises(ConfigError, match="norm is 'max'"):
        normalized_rows(bag.counts(["a"]), "max")


# From the reference implementation's SMHasher and published tables of test vectors.
@pytest.mark.parametrize(
    ("key", "seed", "value"),
    [
        (b"", 0, 0),
        (b"", 1, 0x514E28B7),
        (b"", 0xFFFFFFFF, 0x81F16F39),
        (b"\x00\x00\x00\x00", 0, 0x2362F9DE),
        (b"aaaa", 0x9747B28C, 0x5A97808A),
        (b"abc", 0x9747B28C, 0xC84A62DD),
        (b"Hello, world!", 0x9747B28C, 0x24884CBA),
        (b"The quick brown fox jumps over the lazy dog", 0x9747B28C, 0x2FA826CD),
    ],
)
def test_murmur3_test_vectors(key, seed, value):
    assert int(murmur3([key], seed).view(np.uint32)[0]) == value


def test_murmur3_of_many_is_that_of_each():
    rng = np.random.default_rng(0)
    keys = [rng.bytes(int(n)) for n in rng.integers(0, 40, 200)]
    assert murmur3(keys).tolist() == [int(murmur3([key])[0]) for key in keys]


def test_hashed_words_fall_into_the_columns_of_their_hashes():
    hashes = murmur3([word.encode() for word in ("casa", "é")])
    counts = hash_words(["casa é casa", ""], columns=1000).toarray()
    expected = np.zeros((2, 1000))
    for value, times in zip(hashes.tolist(), (2, 1)):
        expected[0, abs(value) % 1000] += times if value >= 0 else -times
    assert (counts == expected).all()
    unsigned = hash_words(["casa é casa"], columns=1000, signed=False)
    assert unsigned.sum() == 3
    assert hash_words(["casa é casa"], columns=1, binary=True).toarray().tolist() == [[1]]


def test_hashes_do_not_depend_on_how_many_texts_are_read_at_once(monkeypatch):
    texts = ["a b", "b c c", "", "d a", "e"]
    whole = hash_words(texts, columns=64)
    monkeypatch.setattr("llm_jax.classic.hashing._DOCUMENTS", 2)
    assert (hash_words(iter(texts), columns=64) != whole).nnz == 0
    with pytest.raises(DataError, match="texts is empty"):
        hash_words([])
    with pytest.raises(ConfigError, match="columns is 0"):
        hash_words(texts, columns=0)


def test_a_saved_bag_counts_the_same(tmp_path):
    rule = WordRule(ngrams=(1, 2), stop_words=("a",), strip_accents=True)
    bag, counts = learn_bag_of_words([*TEXTS, "a \ud800 ß"], rule)
    bag.save(tmp_path / "words.json")
    loaded = BagOfWords.load(tmp_path / "words.json")
    assert loaded.rule == rule and loaded.vocabulary.words == bag.vocabulary.words
    assert loaded.vocabulary.documents == 3
    assert (loaded.vocabulary.document_counts == bag.vocabulary.document_counts).all()
    assert (loaded.counts([*TEXTS, "a \ud800 ß"]) != counts).nnz == 0


def test_files_that_are_no_bag_are_named(tmp_path):
    path = tmp_path / "words.json"
    with pytest.raises(DataError, match="cannot be read"):
        BagOfWords.load(path)
    path.write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        BagOfWords.load(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="is not a saved bag of words"):
        BagOfWords.load(path)
    bag, _ = learn_bag_of_words(TEXTS)
    bag.save(path)
    value = json.loads(path.read_text())
    for change, message in [
        ({"format_version": 2}, "has the format 2; this version reads 1"),
        ({"words": ["essa"] * 7}, "'essa' is in the vocabulary twice"),
        ({"words": ["essa"]}, "give one count for each word"),
        ({"rule": value["rule"] | {"colour": 1}}, "colour"),
        ({"rule": 3}, "is not an intact bag of words"),
        ({"document_counts": "x"}, "is not an intact bag of words"),
    ]:
        path.write_text(json.dumps(value | change))
        with pytest.raises(DataError, match=re.escape(message)):
            BagOfWords.load(path)
