"""Log-likelihoods of continuations: those of the full forward pass, whatever is scored beside."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize
from parameters import random_parameters
from small_models import made
from test_chunks import BASE, MODELS

from llm_jax.config import ExecutionConfig, MeshConfig, override
from llm_jax.decode.continuation_batches import Pair, pair_batches, prompt_batches, with_several
from llm_jax.decode.continuations import Continuations
from llm_jax.decode.placement import compute_params, compute_shardings, layout_of
from llm_jax.decode.prompts import prefill_batch
from llm_jax.models import build, rows_of
from llm_jax.sharding import make_mesh
from llm_jax.types import ConfigError, NonFiniteError

# Prompts of 1 to 30 tokens, each with continuations of 1 to 7; the last prompt has one only.
LENGTHS = {3: (1, 2, 4), 1: (7, 1), 30: (2, 2, 3, 1), 12: (5, 1), 19: (3,)}


def drawn(seed=0, vocabulary=32):
    rng = np.random.default_rng(seed)
    pairs = []
    for size, counts in LENGTHS.items():
        prompt = rng.integers(0, vocabulary, size).tolist()
        pairs += [Pair(prompt, rng.integers(0, vocabulary, n).tolist()) for n in counts]
    return pairs


PAIRS = drawn()


@functools.cache
def logits_of(config):
    model, params = made(config)
    return jax.jit(lambda batch: model.logits(params, model.apply(params, batch).hidden))


def by_definition(config, pair):
    """Log-probabilities of the continuation's tokens, and whether each is the most likely."""
    prompt, continuation = (np.asarray(ids) for ids in pair)
    if config.encoder is None:
        ids = np.concatenate([prompt, continuation])[:-1]
        begin = len(prompt) - 1
    else:
        ids = np.concatenate([[config.encoder.start_token], continuation])[:-1]
        begin = 0
    padded = jnp.asarray(np.pad(ids, (0, 64 - len(ids))))[None]
    batch = rows_of(padded, jnp.array([len(ids)]))
    if config.encoder is not None:
        row = jnp.asarray(np.pad(prompt, (0, 64 - len(prompt))))[None]
        encoder = prefill_batch(config, row, jnp.array([len(prompt)])).encoder
        batch = batch._replace(encoder=encoder)
    logits = np.asarray(logits_of(config)(batch)[0], np.float64)[begin : len(ids)]
    total = np.log(np.exp(logits).sum(-1))
    chosen = logits[np.arange(len(continuation)), continuation]
    return chosen - total, bool((logits.argmax(-1) == continuation).all())


def scorer(config, batch_size=4):
    model, params = made(config)
    return Continuations(model, params, vocab_size=config.vocab_size, batch_size=batch_size)


def assert_by_definition(config, pairs, found):
    for pair, score in zip(pairs, found, strict=True):
        expected, greedy = by_definition(config, pair)
        np.testing.assert_allclose(score.logprobs, expected, atol=1e-5, rtol=1e-5)
        assert score.greedy == greedy
        assert score.total == pytest.approx(expected.sum(), abs=1e-4)


EVERY_RUN = ("grouped queries", "two lists of rope factors", "an encoder and relative positions")


@parametrize("name", [(name,) for name in MODELS], by_default=[(name,) for name in EVERY_RUN])
def test_scores_are_those_of_the_full_forward_pass(name):
    config = MODELS[name]
    assert_by_definition(config, PAIRS, scorer(config).score(PAIRS))


def test_a_prompt_is_read_once_for_all_its_continuations(monkeypatch):
    run = scorer(BASE, batch_size=8)
    read = []
    shared = run._shared
    monkeypatch.setattr(
        run,
        "_shared",
        lambda *given, **more: (read.append(given[1].shape), shared(*given, **more))[1],
    )
    pairs = [Pair((n, n + 1), (choice,)) for n in range(8) for choice in range(4)]
    run.score(pairs + pairs)
    # Two prompts of four continuations at a time, and none for the pairs that come again.
    assert read == [(2, 32)] * 4


def test_the_order_and_the_batch_size_change_nothing_but_rounding():
    alone = scorer(BASE, 1).score(PAIRS)
    backwards = scorer(BASE, 5).score(PAIRS[::-1])[::-1]
    for other in (scorer(BASE, 16).score(PAIRS), backwards):
        for one, two in zip(alone, other, strict=True):
            np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-5)
            assert one.greedy == two.greedy


def test_the_most_likely_continuation_is_greedy():
    prompt = (3, 1, 4)
    each = scorer(BASE).score([Pair(prompt, (id,)) for id in range(BASE.vocab_size)])
    best = int(np.argmax([score.total for score in each]))
    assert [score.greedy for score in each] == [id == best for id in range(BASE.vocab_size)]
    assert np.exp([score.total for score in each]).sum() == pytest.approx(1, abs=1e-5)


@parametrize(
    "prompt, counts",
    [(60, (5, 5, 2)), (64, (1, 1)), (1, (64, 64)), (1, (64,))],
    by_default=[(60, (5, 5, 2)), (1, (64,))],
)
def test_a_row_may_fill_the_context(prompt, counts):
    rng = np.random.default_rng(7)
    ids = rng.integers(0, 32, prompt).tolist()
    pairs = [Pair(ids, rng.integers(0, 32, n).tolist()) for n in counts]
    assert_by_definition(BASE, pairs, scorer(BASE).score(pairs))


@pytest.mark.mesh
@parametrize(
    "shape",
    [({"data": 8},), ({"data": 2, "fsdp": 2, "tensor": 2},)],
    by_default=[({"data": 2, "fsdp": 2, "tensor": 2},)],
)
def test_eight_devices_give_the_scores_of_one(shape):
    mesh = make_mesh(MeshConfig(**shape))
    model = build(BASE, ExecutionConfig(layers="unroll", attention="xla"))
    params = random_parameters(model)
    layout = layout_of("auto", mesh)
    shardings = compute_shardings(model, params, mesh, layout)
    placed = jax.device_put(compute_params(model, params, layout), shardings)
    on_mesh = Continuations(model, placed, mesh, vocab_size=32, batch_size=4).score(PAIRS)
    alone = scorer(BASE).score(PAIRS)
    for one, two in zip(alone, on_mesh, strict=True):
        np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-5)
        assert one.greedy == two.greedy


@pytest.mark.parametrize(
    "pair, part",
    [
        (Pair((), (1,)), "prompt 1 is empty"),
        (Pair((1,), ()), "continuation 1 is empty"),
        (Pair((1,), (32,)), "continuation 1 has 32 at place 0"),
        (Pair((1,) * 60, (1,) * 6), "model.max_length 64"),
    ],
)
def test_a_pair_that_cannot_be_scored_is_named(pair, part):
    with pytest.raises(ConfigError, match=part):
        scorer(BASE).score([Pair((1,), (2,)), pair])


def test_a_model_of_masked_tokens_has_no_continuations():
    config = override(BASE, {"causal": False})
    with pytest.raises(ConfigError, match="predicts masked tokens"):
        Continuations(*made(config), vocab_size=32)


def test_nan_is_an_error():
    model, params = made(BASE)
    broken = jax.tree.map(lambda a: np.full_like(a, np.nan), params)
    with pytest.raises(NonFiniteError, match="is not finite"):
        Continuations(model, broken, vocab_size=32).score(PAIRS)


def test_batches_have_few_shapes():
    rng = np.random.default_rng(1)
    prompts = [(n, *[1] * int(rng.integers(0, 60))) for n in range(50)]
    pairs = [
        Pair(prompt, (c, *[2] * int(rng.integers(0, 8)))) for prompt in prompts for c in range(4)
    ]
    groups, alone = with_several(pairs, 16, 0)
    assert not alone
    batches = list(prompt_batches(groups, 16, 2, 64))
    shapes = {(b.prompt_rows, b.prompt_width, b.rows, b.width) for b in batches}
    assert shapes == {(4, width, 16, 8) for width in (32, 48, 64)}
    assert sorted(p for b in batches for g in b.groups for p in g) == sorted(pairs)
    assert len(batches) == 13


def test_continuations_beyond_a_batch_are_scored_in_several():
    pairs = [Pair((1,), (n,)) for n in range(11)]
    groups, alone = with_several(pairs, 4, 0)
    assert [len(group) for group in groups] == [4, 4, 3] and not alone
    assert with_several(pairs[:9], 4, 0)[1] == [pairs[8]]
    found = [p for batch in pair_batches(pairs, 4, 8, 64) for p in batch.pairs]
    assert sorted(found) == sorted(pairs)
