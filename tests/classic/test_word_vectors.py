"""Vectors of words: files, nearest words, analogies, evaluation and phrases."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from llm_jax.classic.occurrences import number_words
from llm_jax.classic.word2vec.phrases import PhraseRule, join_phrases
from llm_jax.classic.word2vec.vectors import Vectors
from llm_jax.classic.words import WordRule
from llm_jax.types import ConfigError, DataError

pytestmark = pytest.mark.unit
WORDS = ("rei", "rainha", "homem", "mulher", "pão", "à_vista")


@pytest.fixture(scope="module")
def vectors():
    values = [[1, 1, 0.1], [1, -1, 0.1], [0.2, 1, 0], [0.2, -1, 0], [0, 0.1, 1], [0.1, 0.3, 1 / 3]]
    return Vectors(WORDS, np.array(values, np.float32))


def test_text_is_read_back_equal_and_by_any_reader(vectors, tmp_path):
    vectors.save(tmp_path / "v.txt")
    again = Vectors.load(tmp_path / "v.txt")
    assert again.words == WORDS
    assert (again.values == vectors.values).all()
    header, *lines = (tmp_path / "v.txt").read_text(encoding="utf-8").splitlines()
    assert header == "6 3"
    read = {line.split(" ")[0]: [float(x) for x in line.split(" ")[1:]] for line in lines}
    assert np.float32(read["à_vista"][2]) == np.float32(1 / 3)


def test_binary_is_read_back_equal_and_by_any_reader(vectors, tmp_path):
    vectors.save(tmp_path / "v.bin", binary=True)
    again = Vectors.load(tmp_path / "v.bin")
    assert again.words == WORDS
    assert (again.values == vectors.values).all()
    data = (tmp_path / "v.bin").read_bytes()
    assert data.startswith(b"6 3\nrei " + struct.pack("<3f", 1, 1, 0.1))


def test_files_that_are_not_vectors_are_named(tmp_path, vectors):
    path = tmp_path / "v.txt"
    for text, why in (
        ("rei 1 2\n", "first line"),
        ("2 2\nrei 1 2\n", "1 words, not 2"),
        ("1 3\nrei 1 2\n", "line 2 has 2 numbers, not 3"),
        ("1 2\nrei 1 x\n", "could not convert"),
        ("2 1\nrei 1\nrei 2\n", "'rei' has two vectors"),
        ("1 1\nrei nan\n", "'rei' is not finite"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=why):
            Vectors.load(path)
    vectors.save(tmp_path / "v.bin", binary=True)
    (tmp_path / "v.bin").write_bytes((tmp_path / "v.bin").read_bytes()[:-6])
    with pytest.raises(DataError, match="ends in word 6 of 6"):
        Vectors.load(tmp_path / "v.bin")
    with pytest.raises(DataError, match="cannot be read"):
        Vectors.load(tmp_path / "absent.txt")
    for word in ("à vista", "", "a\u00a0b"):
        with pytest.raises(DataError, match="blank"):
            Vectors((word,), np.ones((1, 2), np.float32)).save(path)


def test_nearest_words_and_analogies(vectors):
    assert [word for word, _ in vectors.nearest("rei", 2)] == ["homem", "à_vista"]
    assert vectors.nearest("rei", 1)[0][1] == pytest.approx(1.2 / np.sqrt(2.01 * 1.04))
    assert vectors.analogy("homem", "rei", "mulher", 1)[0][0] == "rainha"
    assert len(vectors.nearest("rei", 50)) == len(WORDS) - 1
    rows = np.array([[vectors.row(w) for w in ("homem", "rei", "mulher")]])
    assert vectors.solve(rows).tolist() == [WORDS.index("rainha")]
    with pytest.raises(DataError, match=r"'rainho' has no vector among 6; did you mean 'rainha'"):
        vectors.nearest("rainho")
    with pytest.raises(ConfigError, match="count is 0"):
        vectors.nearest("rei", 0)


def test_phrases_by_hand():
    texts = ["new york a new york b new york", "york new c"]
    words, text = number_words(texts, WordRule())
    rule = PhraseRule(discount=1, threshold=1)
    # 11 words; new and york 4 times each; "new york" 3 times: (3 - 1) / 16 * 11 = 1.375.
    named, joined = join_phrases(words, text, rule)
    shown = [[named[i] for i in joined.ids[a:b]] for a, b in zip(joined.ends, joined.ends[1:])]
    assert shown == [["new_york", "a", "new_york", "b", "new_york"], ["york", "new", "c"]]
    same, _ = join_phrases(words, text, PhraseRule(discount=1, threshold=1.375))
    assert same == words


def test_a_pair_is_joined_once_and_passes_join_phrases():
    words, text = number_words(["a a a a a", "a"], WordRule())
    # "a a" 4 times of 6 words: 4 / 36 * 6 = 0.67.
    rule = PhraseRule(discount=0, threshold=0.5)
    named, joined = join_phrases(words, text, rule)
    assert [named[i] for i in joined.ids] == ["a_a", "a_a", "a", "a"]
    # "a_a a_a" once: 1 / 4 * 4 = 1, and "a_a a" once: 1 / 4 * 4 = 1.
    named, joined = join_phrases(words, text, PhraseRule(0, 0.5, passes=2))
    assert [named[i] for i in joined.ids] == ["a_a_a_a", "a", "a"]
    with pytest.raises(ConfigError, match="joiner is ' '"):
        PhraseRule(joiner=" ")
