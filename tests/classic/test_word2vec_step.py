"""Updates of word2vec against loops over pairs in numpy, over devices, and after a pause."""

from __future__ import annotations

import heapq
import itertools

import jax
import numpy as np
import pytest

from llm_jax.classic.occurrences import Occurrences
from llm_jax.classic.word2vec.batches import (
    Batches,
    alias_table,
    keep_probabilities,
    update_size,
)
from llm_jax.classic.word2vec.config import Word2VecConfig
from llm_jax.classic.word2vec.corpus import Corpus, WordCounts
from llm_jax.classic.word2vec.huffman import huffman_paths
from llm_jax.classic.word2vec.step import first_state, jit_step
from llm_jax.classic.word2vec.train import train_on_corpus, train_word2vec
from llm_jax.config import MeshConfig
from llm_jax.ops import word2vec as ops
from llm_jax.ops.word2vec import Centers, Paths, Tables
from llm_jax.sharding import make_mesh
from llm_jax.types import ConfigError, DataError

V = 11
D = 8
WINDOW = 2
LENGTH = 5
ROWS = 4
NEGATIVE = 3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(0)
    return Tables(*rng.standard_normal((2, V, D)).astype(np.float32))


@pytest.fixture(scope="module")
def words():
    rng = np.random.default_rng(1)
    left, right = rng.integers(0, WINDOW + 1, (2, ROWS, LENGTH)).astype(np.uint8)
    left[0, 1] = right[0, 1] = 0
    return Centers(
        ids=rng.integers(0, V, (ROWS, LENGTH + 2 * WINDOW)).astype(np.int32),
        left=left,
        right=right,
        negatives=rng.integers(0, V, (ROWS, 6)).astype(np.int32),
        rates=np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    )


@pytest.fixture(scope="module")
def paths():
    return huffman_paths(np.arange(1, V + 1) ** 2)


def contexts(words, row, center):
    """Places of the contexts of a center in its row."""
    place = center + WINDOW
    reach = range(place - words.left[row, center], place + words.right[row, center] + 1)
    return [other for other in reach if other != place]


def predictions(words, skip_gram):
    """(row, the words that predict, the predicted word) of every prediction."""
    for row, center in itertools.product(range(ROWS), range(LENGTH)):
        word = words.ids[row, center + WINDOW]
        near = [words.ids[row, place] for place in contexts(words, row, center)]
        if skip_gram:
            yield from ((row, [word], other) for other in near)
        elif near:
            yield row, near, word


def trials(words, paths, row, target):
    """(row of the output table, label, weight) of what a prediction is trained on."""
    if paths is not None:
        turns = zip(paths.nodes[target], paths.signs[target])
        return [(node, sign == 1, 1.0) for node, sign in turns if sign]
    weight = NEGATIVE / words.negatives.shape[1]
    false = [(other, False, weight) for other in words.negatives[row] if other != target]
    return [(target, True, 1.0), *false]


def loop(tables, words, skip_gram, paths):
    """The tables after one update, the loss and the number of predictions, pair by pair."""
    inputs, outputs = (np.array(table, np.float64) for table in tables)
    new_inputs, new_outputs = inputs.copy(), outputs.copy()
    loss = count = 0
    for row, sources, target in predictions(words, skip_gram):
        hidden = np.mean([inputs[source] for source in sources], axis=0)
        count += 1
        for node, label, weight in trials(words, paths, row, target):
            p = sigmoid(hidden @ outputs[node])
            loss -= weight * np.log(p if label else 1 - p)
            g = words.rates[row] * weight * (label - p)
            new_outputs[node] += g * hidden
            for source in sources:
                new_inputs[source] += g * outputs[node]
    return Tables(new_inputs, new_outputs), loss, count


@pytest.mark.unit
@pytest.mark.parametrize("skip_gram", [True, False], ids=["skip-gram", "cbow"])
@pytest.mark.parametrize("hierarchical", [False, True], ids=["negative", "hierarchical"])
def test_an_update_is_that_of_a_loop_over_pairs(tables, words, paths, skip_gram, hierarchical):
    if hierarchical:
        rule = ops.skip_gram_hierarchical if skip_gram else ops.cbow_hierarchical
        argument = Paths(*map(jax.numpy.asarray, paths))
    else:
        rule = ops.skip_gram_negative if skip_gram else ops.cbow_negative
        argument = NEGATIVE
    on_device = jax.tree.map(jax.numpy.asarray, (tables, words))
    update = rule(*on_device, argument)
    after = ops.apply(on_device[0], update)
    expected, loss, count = loop(tables, words, skip_gram, paths if hierarchical else None)
    np.testing.assert_allclose(after.inputs, expected.inputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after.outputs, expected.outputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(update.losses.sum(), loss, rtol=1e-5)
    assert update.predictions.sum() == count


@pytest.mark.unit
def test_codes_are_prefix_free_and_of_the_least_length():
    counts = np.array([40, 1, 7, 7, 3, 90, 2, 5])
    paths = huffman_paths(counts)
    codes = [tuple(signs[signs != 0]) for signs in paths.signs]
    for one, other in itertools.permutations(codes, 2):
        assert other[: len(one)] != one
    # Kraft's sum is 1: no code could be added.
    assert sum(2.0 ** -len(code) for code in codes) == 1
    # The least weighted length is the sum of the inner nodes' counts.
    heap = counts.tolist()
    heapq.heapify(heap)
    least = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        least += merged
        heapq.heappush(heap, merged)
    assert sum(len(code) * count for code, count in zip(codes, counts)) == least
    # Equal prefixes lead to equal nodes, different ones to different nodes.
    nodes = {}
    for code, path in zip(codes, paths.nodes):
        for depth, node in enumerate(path[: len(code)]):
            assert nodes.setdefault(code[:depth], node) == node
    assert sorted(nodes.values()) == list(range(len(counts) - 1))


@pytest.mark.unit
def test_negatives_are_drawn_by_the_power_of_the_counts():
    counts = np.array([1000, 300, 50, 20, 7, 1])
    weights = counts**0.75
    drawn = alias_table(weights).draw(np.random.default_rng(3), (100_000,))
    expected = 100_000 * weights / weights.sum()
    found = np.bincount(drawn, minlength=len(counts))
    # The 0.999 quantile of chi-square with 5 degrees of freedom.
    assert ((found - expected) ** 2 / expected).sum() < 20.5


@pytest.mark.unit
def test_frequent_words_are_left_out_by_the_formula_of_word2vec():
    kept = keep_probabilities(np.array([900_000, 99_000, 1_000]), 1e-3)
    # (sqrt(f / t) + 1) t / f with f = 900,000 of a million words and t = 0.001.
    np.testing.assert_allclose(kept[0], (np.sqrt(900) + 1) / 900, rtol=1e-6)
    np.testing.assert_allclose(kept[1], (np.sqrt(99) + 1) / 99, rtol=1e-6)
    assert kept[2] == 1
    assert (keep_probabilities(np.array([9, 1]), 0) == 1).all()


def test_a_text_of_few_words_has_small_updates():
    # A word is at most 8 times among the centers of an update: 8 / 0.25 = 32 and 8 / 0.5 = 16.
    for counts, size in (([5, 5, 5, 5], (1, 32)), ([10, 5, 5], (1, 16)), ([1] * 10_000, (8, 64))):
        assert update_size(np.array(counts), Word2VecConfig(sample=0)) == size
    given = Word2VecConfig(sample=0, rows=3, row_length=7)
    assert update_size(np.array([1, 1]), given) == (3, 7)
    # Without the bound the tables grow until nothing is left of what was learnt.
    text = "o rei mora no castelo com a rainha. o gato dorme no sofá com o cão. " * 200
    vectors = train_word2vec([text], Word2VecConfig(dimensions=8, sample=0, epochs=3))
    assert np.linalg.norm(vectors.values, axis=1).max() < 10
    assert vectors.similarity("gato", "cão") > vectors.similarity("gato", "castelo")


def corpus(texts):
    """Texts of ids below V."""
    ids = np.concatenate(texts).astype(np.int32)
    counts = np.maximum(np.bincount(ids, minlength=V), 1)
    names = tuple(f"w{i}" for i in range(V))
    ends = np.cumsum([0, *map(len, texts)])
    return Corpus(WordCounts(names, counts), Occurrences(ids, ends), len(ids))


SMALL = Word2VecConfig(
    dimensions=D,
    window=WINDOW,
    negative=NEGATIVE,
    row_length=4,
    shared_negatives=4,
    rows=8,
    epochs=2,
    sample=0.1,
)


@pytest.mark.unit
def test_every_word_is_a_center_once_and_no_context_leaves_its_text():
    texts = [np.array([1, 2, 3]), np.array([4, 5, 6, 7, 8, 9]), np.array([10])]
    batches = Batches(
        corpus(texts),
        Word2VecConfig(window=2, row_length=4, rows=2, epochs=1, sample=0, shared_negatives=3),
    )
    text_of = {int(word): i for i, text in enumerate(texts) for word in text}
    seen = []
    rates = []
    for step, (number, batch, _) in zip(range(batches.steps), batches.iterate(0)):
        assert step == number
        rates += batch.rates.tolist()
        for row, center in itertools.product(range(len(batch.ids)), range(4)):
            word = int(batch.centers[row, center])
            left, right = int(batch.left[row, center]), int(batch.right[row, center])
            near = batch.ids[row, center + 2 - left : center + 3 + right].tolist()
            if left + right:
                seen.append(word)
                place = texts[text_of[word]].tolist().index(word)
                assert near == texts[text_of[word]][place - left : place + right + 1].tolist()
                # The reduced window is cut at the ends of the text alone.
                lengths = {left, right}
                assert len(lengths) == 1 or place < 2 or place >= len(texts[text_of[word]]) - 2
    with pytest.raises(IndexError, match=f"step {batches.steps} of"):
        batches.batch(batches.steps)
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert rates[0] == np.float32(0.025)
    assert rates == sorted(rates, reverse=True)


@pytest.fixture(scope="module")
def long_corpus():
    rng = np.random.default_rng(5)
    return corpus([rng.integers(0, V, 70) for _ in range(6)])


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("architecture", "softmax"), [("skip-gram", "negative"), ("cbow", "hierarchical")]
)
@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "tensor": 4}], ids=["data", "both"])
def test_a_step_over_devices_is_that_of_one(long_corpus, architecture, softmax, axes):
    config = Word2VecConfig(**{**vars(SMALL), "architecture": architecture, "softmax": softmax})
    batches = Batches(long_corpus, config)
    batch = next(batches.iterate(0))[1]
    results = []
    for mesh in (
        make_mesh(MeshConfig(data=1), jax.devices()[:1]),
        make_mesh(MeshConfig(**axes)),
    ):
        with jax.set_mesh(mesh):
            state = first_state(config, long_corpus.vocabulary.counts, mesh)
            results.append(jax.device_get(jit_step(config, batches.updates, mesh)(state, batch)))
    (one, one_metrics), (many, many_metrics) = results
    assert np.abs(one.trainable["outputs"]).max() > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), one_metrics, many_metrics
    )


@pytest.mark.unit
def test_a_run_that_stopped_ends_as_one_that_did_not(long_corpus, tmp_path, monkeypatch):
    config = Word2VecConfig(**{**vars(SMALL), "epochs": 4})
    whole = train_on_corpus(long_corpus, config)
    steps = Batches(long_corpus, config).steps
    assert steps >= 4
    iterate = Batches.iterate

    def broken(self, first):
        for step, batch, check in iterate(self, first):
            if step == 3:
                raise DataError("the power went out")
            yield step, batch, check

    # A batch does not depend on those before it.
    alone = Batches(long_corpus, config).batch(2)
    after = list(zip(range(3), iterate(Batches(long_corpus, config), 0)))[2][1][1]
    jax.tree.map(np.testing.assert_array_equal, alone, after)
    monkeypatch.setattr(Batches, "iterate", broken)
    with pytest.raises(DataError, match="power"):
        train_on_corpus(long_corpus, config, out=tmp_path / "run", checkpoint_every=2)
    monkeypatch.setattr(Batches, "iterate", iterate)
    resumed = train_on_corpus(long_corpus, config, out=tmp_path / "run", checkpoint_every=2)
    assert (resumed.values == whole.values).all()
    with pytest.raises(ConfigError, match=r"run with epochs 4, and this one has 5"):
        train_on_corpus(
            long_corpus, Word2VecConfig(**{**vars(SMALL), "epochs": 5}), out=tmp_path / "run"
        )


@pytest.mark.unit
def test_bad_settings_and_texts_are_named():
    with pytest.raises(ConfigError, match="window is 0"):
        Word2VecConfig(window=0)
    with pytest.raises(ConfigError, match="architecture is 'glove'"):
        Word2VecConfig(architecture="glove")
    with pytest.raises(ConfigError, match="final_rate is 1"):
        Word2VecConfig(final_rate=1.0)
    with pytest.raises(DataError, match="texts have no word"):
        train_word2vec(["", "…"])
    with pytest.raises(DataError, match=r"none of 2 words occurs 5 times.*'a', occurs 2"):
        train_word2vec(["a b a"])
    with pytest.raises(DataError, match="no text has two"):
        train_word2vec(["a", "b"], Word2VecConfig(min_count=1))
    with pytest.raises(DataError, match="one string"):
        train_word2vec("a b a")
    with pytest.raises(ConfigError, match="dimensions is 6.*multiple of 8"):
        first_state(
            Word2VecConfig(dimensions=6), np.ones(4), make_mesh(MeshConfig(data=1, tensor=8))
        )
