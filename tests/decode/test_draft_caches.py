"""Drafts with every kind of cache and with one shape: rejected tokens leave nothing behind."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from constrained_rows import few_processors
from pairwise import parametrize
from parameters import random_parameters
from speculative_models import CONFIGS, KINDS, draft_of, model_of

from llm_jax.config import CacheConfig, DecodeConfig, override
from llm_jax.config.draft import DraftConfig
from llm_jax.decode import Generator
from llm_jax.decode.drafts import Draft
from llm_jax.decode.fixed_shape import DecodeShape
from llm_jax.decode.loop import CHOOSE
from llm_jax.decode.programs import prefill
from llm_jax.decode.requests import Wanted
from llm_jax.models import build
from llm_jax.ops.cache import Quantized
from llm_jax.types import ConfigError

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [8, 10, 2], [4, 4]]
GREEDY = DecodeConfig(max_new_tokens=20, temperature=0.0)
DRAWN = DecodeConfig(max_new_tokens=20, temperature=0.8)
CACHES = {
    "int8": CacheConfig(dtype="int8"),
    "paged": CacheConfig(layout="paged", page=4),
    "paged int8": CacheConfig(layout="paged", page=4, dtype="int8"),
}


@pytest.fixture(autouse=True, scope="module")
def processors():
    with few_processors():
        yield


@parametrize(
    "kind, cache, name",
    itertools.product(KINDS, CACHES, CONFIGS),
    by_default=[("early_exit", "paged int8", "latents")],
)
def test_greedy_text_is_that_without_a_draft(kind, cache, name):
    model, params = model_of(name)
    plain = Generator(model, params, cache=CACHES[cache])
    drafting = Generator(model, params, cache=CACHES[cache], draft=draft_of(kind, name))
    found = [one for (one,) in drafting.complete(PROMPTS, GREEDY)]
    assert [one.ids for one in found] == plain.generate(PROMPTS, GREEDY)
    assert 0 < sum(one.accepted for one in found) < sum(one.drafted for one in found)


def vectors(layer, table, row: int, length: int) -> list[np.ndarray]:
    """Keys and values, or latents, of a row's tokens as floats [length, …]."""
    own = layer.own
    found = []
    for part in ("keys", "values", "pages", "latents", "rotated"):
        kept = getattr(own, part, None)
        if kept is None:
            continue
        floats = kept.floats(jnp.float32) if isinstance(kept, Quantized) else kept
        floats = np.asarray(floats)
        if table is not None:
            floats = np.concatenate(floats[np.asarray(table[row])])
        else:
            floats = np.moveaxis(floats[row], -2, 0)
        found.append(floats[:length])
    return found


@parametrize(
    "kind, cache, name",
    itertools.product(KINDS, CACHES, ["dense", "latents without windows"]),
    by_default=[("model", "paged int8", "dense")],
)
def test_caches_after_rejections_are_those_of_the_text_read_anew(kind, cache, name):
    if name == "dense":
        model, params = model_of(name)
    else:
        model = build(override(model_of("latents")[0].config, {"attention.window_pattern": (0,)}))
        params = random_parameters(model)
    generator = Generator(model, params, cache=CACHES[cache], draft=draft_of(kind, name))
    call = generator._calls.make(PROMPTS, DRAWN, Wanted(), seeds=[5, 6, 7, 8])
    inputs = (call.settings, call.stops)
    weights = generator._weights
    state = generator._steps.begin(weights, call.prompts, room=call.room, choosing=call.choosing)
    state = CHOOSE(state, *inputs, choosing=call.choosing)
    for _ in range(3):
        state = generator._steps.advance(weights, state, *inputs, choosing=call.choosing)
    assert (state.draft.accepted < state.draft.drafted).all()
    pair = generator._pair
    caches = [(pair.target, weights.target, state.cache)]
    if pair.drafter.has_cache:
        caches.append((pair.drafter.model, weights.draft, state.draft.cache))
    for reads, own, cached in caches:
        lengths = np.asarray(cached.length)
        tokens = jnp.asarray(state.history.ids)
        empty = reads.init_cache(len(PROMPTS), 64, rollback=generator._calls.rollback)
        run = jax.jit(lambda p, t, n, c, reads=reads: prefill(reads, p, t, n, c)[1])
        anew = run(own, tokens, jnp.asarray(lengths), empty)
        for layer, expected in zip(cached.layers, anew.layers, strict=True):
            for row, length in enumerate(lengths.tolist()):
                pairs = zip(
                    vectors(layer, cached.table, row, length),
                    vectors(expected, anew.table, row, length),
                    strict=True,
                )
                for one, other in pairs:
                    # A rounding may fall to either side where the floats differ in their last bit.
                    step = np.abs(other).max(axis=-1, keepdims=True) / 127 * 1.01 + 1e-5
                    assert np.all(np.abs(one - other) <= (step if "int8" in cache else 1e-5))
                    assert np.mean(np.abs(one - other) <= 1e-5) > 0.9


SHAPE = DecodeShape(rows=8, length=48, chunk=8)


@parametrize("kind, name", itertools.product(KINDS, CONFIGS), by_default=[("model", "windows")])
def test_a_request_is_the_same_to_the_bit_in_any_batch(kind, name):
    """Tokens, log-probabilities and counts, alone and among 2, 4, 7 and 9 rows of all kinds."""
    model, params = model_of(name)
    generator = Generator(model, params, draft=draft_of(kind, name), shape=SHAPE)
    wanted = Wanted(logprobs=2)
    for config in (DRAWN, GREEDY, dataclasses.replace(DRAWN, top_p=0.7)):
        ((alone,),) = generator.complete([PROMPTS[0]], config, wanted, seeds=[7])
        assert len(alone.scores) == 20 and alone.drafted > 0
        for rows in (2, 4, 7, 9):
            prompts = [PROMPTS[i % 4] for i in range(rows)]
            configs = [
                dataclasses.replace((GREEDY, DRAWN)[i % 2], max_new_tokens=1 + 5 * i % 19)
                for i in range(rows)
            ]
            prompts[rows - 1] = PROMPTS[0]
            configs[rows - 1] = config
            seeds = [*range(rows - 1), 7]
            found = generator.complete(prompts, configs, wanted, seeds=seeds)
            assert found[rows - 1] == [alone]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_shape_gives_the_text_of_no_draft(kind):
    model, params = model_of("windows")
    drafting = Generator(model, params, draft=draft_of(kind, "windows"), shape=SHAPE)
    plain = Generator(model, params, shape=SHAPE)
    assert drafting.generate(PROMPTS, GREEDY) == plain.generate(PROMPTS, GREEDY)
    streamed = list(drafting.stream(PROMPTS[0], GREEDY))
    assert streamed == plain.generate(PROMPTS[:1], GREEDY)[0]


def test_a_shape_longer_than_the_draft_s_model_is_refused_by_name():
    model, params = model_of("dense")
    small = build(override(model.config, {"max_length": 32}))
    draft = Draft(DraftConfig("model"), small, random_parameters(small))
    match = "shape.length is 48, and the max_length of the draft's model 32"
    with pytest.raises(ConfigError, match=match):
        Generator(model, params, draft=draft, shape=SHAPE)
