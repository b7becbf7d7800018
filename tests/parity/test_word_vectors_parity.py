"""gensim reads the files of word vectors, and llm_jax those of gensim."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.classic.word2vec.vectors import Vectors

models = pytest.importorskip("gensim.models", reason="needs gensim: pip install gensim==4.4.0")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def vectors():
    words = ("são_paulo", "coração", "猫", "naïve", "a", "b")
    return Vectors(words, np.random.default_rng(0).standard_normal((6, 7)).astype(np.float32))


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_files_go_both_ways(vectors, tmp_path, binary):
    path = str(tmp_path / "ours")
    vectors.save(path, binary=binary)
    theirs = models.KeyedVectors.load_word2vec_format(path, binary=binary)
    assert tuple(theirs.index_to_key) == vectors.words
    assert (theirs.vectors == vectors.values).all()
    theirs.save_word2vec_format(str(tmp_path / "theirs"), binary=binary)
    again = Vectors.load(tmp_path / "theirs", binary=binary)
    assert again.words == vectors.words
    np.testing.assert_allclose(again.values, vectors.values, rtol=1e-6)


def test_neighbours_and_analogies_are_the_same(vectors, tmp_path):
    vectors.save(tmp_path / "v.txt")
    theirs = models.KeyedVectors.load_word2vec_format(str(tmp_path / "v.txt"))
    expected = theirs.most_similar("coração", topn=4)
    found = vectors.nearest("coração", 4)
    assert [word for word, _ in found] == [word for word, _ in expected]
    np.testing.assert_allclose([c for _, c in found], [c for _, c in expected], rtol=1e-5)
    expected = theirs.most_similar(positive=["b", "猫"], negative=["a"], topn=3)
    found = vectors.analogy("a", "b", "猫", 3)
    assert [word for word, _ in found] == [word for word, _ in expected]
    np.testing.assert_allclose([c for _, c in found], [c for _, c in expected], rtol=1e-5)
