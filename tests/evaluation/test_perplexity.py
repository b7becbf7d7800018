"""Perplexity by its definitions: golden values, windows that score every token once, and no leak
between packed windows.
"""

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax import models, sharding
from llm_jax.config import MeshConfig, ModelConfig, override
from llm_jax.evaluation.perplexity import Perplexity, perplexity, windows
from llm_jax.objectives.token_batches import pack_windows
from llm_jax.types import Batch, ConfigError, Tokens

CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": 17,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 64,
        "init_std": 0.4,
    },
)
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def model():
    built = models.build(CONFIG)
    return (
        built,
        jax.jit(built.init)(jax.random.key(0)),
        sharding.make_mesh(MeshConfig(), jax.devices()[:1]),
    )


def documents(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        np.concatenate([[BOS], rng.integers(3, 17, n), [EOS]]).astype(np.int32) for n in lengths
    ]


def score(model, docs, *, context=16, stride=8, batch_size=4):
    built, params, mesh = model
    return perplexity(
        built,
        params,
        mesh,
        docs,
        words=10,
        text_bytes=100,
        context=context,
        stride=stride,
        batch_size=batch_size,
        vocab_size=17,
        bos=True,
        eos_id=EOS,
    )


COMPILED: dict = {}


def log_probabilities(built):
    if id(built) not in COMPILED:
        COMPILED[id(built)] = jax.jit(
            lambda p, b: jax.nn.log_softmax(built.logits(p, built.apply(p, b).hidden))
        )
    return COMPILED[id(built)]


def token_nll(model, row: np.ndarray) -> np.ndarray:
    built, params, _ = model
    n, T = len(row), 64
    tokens = np.zeros((1, T), np.int32)
    tokens[0, :n] = row
    real = (np.arange(T) < n)[None]
    batch = Batch(
        inputs=Tokens(tokens, real.astype(np.int32), np.arange(T, dtype=np.int32)[None]),
        targets=tokens,
        loss_mask=real,
    )
    logp = log_probabilities(built)(params, batch)[0]
    return -np.asarray(logp)[np.arange(n - 1), row[1:]]


def test_golden_values():
    s = Perplexity(
        nll=100.0, tokens=20, words=15, bytes=80, context=8, stride=4, bos=True
    ).summary()
    assert s["perplexity"] == pytest.approx(148.413, rel=1e-5)
    assert s["word_perplexity"] == pytest.approx(785.77, rel=1e-5)
    assert s["byte_perplexity"] == pytest.approx(3.4903, rel=1e-4)
    assert s["bits_per_byte"] == pytest.approx(1.8034, rel=1e-4)


def test_windows_written_out():
    d = np.arange(10)
    got = [(w.tokens.tolist(), w.scored) for w in windows(d, context=4, stride=2)]
    assert got == [
        ([0, 1, 2, 3, 4], 4),
        ([2, 3, 4, 5, 6], 2),
        ([4, 5, 6, 7, 8], 2),
        ([5, 6, 7, 8, 9], 1),
    ]


@given(st.integers(0, 70), st.integers(1, 20), st.data())
def test_every_token_is_scored_once_with_enough_context(n, context, data):
    stride = data.draw(st.integers(1, context))
    scored = []
    for w in windows(np.arange(n), context, stride):
        assert 1 <= len(w.tokens) - 1 <= context
        new = w.tokens[len(w.tokens) - w.scored :]
        for token in new:
            seen = token - w.tokens[0]
            assert seen >= min(token, context - stride if token > context else 1)
        scored += new.tolist()
    assert scored == list(range(1, n))


def test_a_model_that_knows_nothing_scores_the_vocabulary_size(model):
    built, params, mesh = model
    nothing = jax.tree.map(lambda x: x * 0, params)
    result = score((built, nothing, mesh), documents(30, 5, 12))
    assert result.tokens == 47
    assert result.summary()["perplexity"] == pytest.approx(17.0, rel=1e-5)
    assert result.nll == pytest.approx(47 * math.log(17), rel=1e-5)


def test_short_documents_score_as_if_alone(model):
    docs = documents(7, 3, 12, 1, 9)
    expected = sum(token_nll(model, d[:-1]).sum() for d in docs)
    assert score(model, docs).nll == pytest.approx(float(expected), rel=1e-5)


def test_stride_one_scores_each_token_from_a_full_context(model):
    (doc,) = documents(40)
    text, context = doc[:-1], 8
    expected = sum(
        token_nll(model, text[max(0, t - context) : t + 1])[-1] for t in range(1, len(text))
    )
    assert score(model, [doc], context=context, stride=1).nll == pytest.approx(
        float(expected), rel=1e-5
    )


def test_batch_size_and_order_do_not_matter(model):
    docs = documents(33, 2, 18, 7)
    results = [
        score(model, docs, batch_size=1),
        score(model, docs, batch_size=8),
        score(model, docs[::-1], batch_size=3),
    ]
    assert len({r.tokens for r in results}) == 1
    assert results[1].nll == pytest.approx(results[0].nll, rel=1e-6) == results[2].nll


def test_eos_is_not_scored_and_empty_documents_count_nothing(model):
    with_eos, without = documents(9), [documents(9)[0][:-1]]
    assert score(model, with_eos).nll == pytest.approx(score(model, without).nll, rel=1e-6)
    assert score(model, [*with_eos, np.array([BOS, EOS], np.int32)]).tokens == 9


def test_packing_keeps_windows_apart():
    (batch,) = pack_windows(windows(np.arange(1, 6), 6, 6), 6, 2)
    assert batch.inputs.ids.tolist() == [[1, 2, 3, 4, 0, 0], [0] * 6]
    two = [w for d in (np.arange(1, 4), np.arange(7, 10)) for w in windows(d, 6, 6)]
    (batch,) = pack_windows(two, 6, 1)
    assert batch.inputs.ids.tolist() == [[1, 2, 7, 8, 0, 0]]
    assert batch.targets.tolist() == [[2, 3, 8, 9, 0, 0]]
    assert batch.inputs.segment_ids.tolist() == [[1, 1, 2, 2, 0, 0]]
    assert batch.inputs.positions.tolist() == [[0, 1, 0, 1, 0, 0]]


def test_bad_stride_and_nothing_to_score(model):
    with pytest.raises(ConfigError, match="stride is 17; it must be from 1 to the context, 16"):
        score(model, documents(5), stride=17)
    with pytest.raises(ConfigError, match="no tokens to score"):
        score(model, [np.array([BOS, EOS], np.int32)])
