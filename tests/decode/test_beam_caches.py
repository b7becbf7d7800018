"""The cache of beams: gathered by rows it is what reading each text anew makes, in every family.

And the search on eight devices, which finds what one device finds.
"""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beam_reference import biases_only
from pairwise import parametrize
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import ExecutionConfig, MeshConfig, ModelConfig, override
from llm_jax.config.search import BeamConfig
from llm_jax.decode.beams import beam_search
from llm_jax.decode.beams.program import (
    BeamForm,
    BeamSettings,
    begin,
    choose,
    read_choice,
    reordered,
    searching,
)
from llm_jax.decode.placement import compute_params, compute_shardings, place_cache
from llm_jax.decode.programs import decode_step
from llm_jax.models import rows_of
from llm_jax.ops.sampling.settings import off
from llm_jax.sharding import make_mesh

V, STOP, NEW = 32, 3, 6
BASE = override(
    ModelConfig(),
    {
        "vocab_size": V,
        "num_layers": 2,
        "embed_dim": 32,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 48,
        "max_length": 128,
    },
)
SWITCH = 10
FAMILIES = {
    "windows and sinks": {"attention.window_pattern": (5, 0), "attention.sinks": True},
    "latents": {
        "attention.head_dim": 4,
        "attention.value_dim": 2,
        "attention": "latent",
        "attention.kv_latent": 16,
        "attention.rope_dim": 2,
    },
    "an encoder": {"encoder.num_layers": 1, "encoder.start_token": 5},
    "other rotations": {
        "positions.scaling": "longrope",
        "positions.scaling.factor": 8.0,
        "positions.scaling.original_length": SWITCH,
        "positions.scaling.factors": (1.0, 2.0, 4.0, 8.0),
        "positions.scaling.short_factors": (1.0, 1.05, 1.1, 1.2),
    },
}
# Eight, so that they divide over the devices.
PROMPTS = [np.random.default_rng(i).integers(0, V, 1 + i).tolist() for i in range(8)]


@pytest.fixture(scope="module", autouse=True)
def few_processors():
    with biases_only():
        yield


def stops(rows: int):
    """Settings that are off but for the stop id."""
    given = off(rows, V)
    stop_ids = given.rules.stop_ids.at[:, 0].set(STOP)
    return given._replace(rules=given.rules._replace(stop_ids=stop_ids))


def made(name: str, layers: str = "auto"):
    model = models.build(override(BASE, FAMILIES[name]), ExecutionConfig(layers=layers))
    return model, random_parameters(model, std=0.4)


@parametrize(
    "name",
    [("windows and sinks",), ("latents",), ("an encoder",)],
    by_default=[("windows and sinks",), ("an encoder",)],
)
def test_a_gathered_cache_is_to_the_bit_what_reading_each_text_makes(name):
    model, params = made(name)
    rows, beams = 3, 4
    form = BeamForm(beams, 1, sample=False, keeps=(), cache_length=64, max_new_tokens=12)
    of_search = BeamSettings(jnp.ones(rows), jnp.zeros(rows, jnp.int32), jnp.zeros(rows))

    def search(params):
        return searching(model, params, off(rows, V), of_search, form)

    @jax.jit
    def begun(params, tokens, lengths):
        return begin(search(params), tokens, lengths)

    @jax.jit
    def advanced(params, state):
        return choose(search(params), state)

    read = jax.jit(lambda params, state, choice: read_choice(search(params), state, choice))
    tokens = np.random.default_rng(1).integers(0, V, (rows, 9))
    first = begun(params, tokens, np.array([9, 2, 5]))
    state = first
    moved = 0
    for _ in range(NEW):
        state, choice = advanced(params, state)
        moved += int(np.sum(choice.parent != np.arange(rows * beams)))
        state = read(params, state, choice)
    assert moved > rows * beams, "beams were hardly gathered"

    texts = state.groups.running.tokens[0, :, :, :NEW].reshape(rows * beams, NEW)
    assert len(np.unique(texts, axis=0)) == rows * beams
    again = first.cache
    step = jax.jit(partial(decode_step, model))
    for token in texts.T:
        logits, again = step(params, token, again)
    np.testing.assert_array_equal(state.logits, logits)
    jax.tree.map(np.testing.assert_array_equal, state.cache, again)


@parametrize("name", [("an encoder",), ("other rotations",)], by_default=[("other rotations",)])
def test_scores_are_those_of_full_forward_passes(name):
    """Also where a text passes the length at which rotations change."""
    model, params = made(name)
    prompts = PROMPTS[:3] + [[*PROMPTS[7], 1]]
    found = beam_search(
        model, params, prompts, BeamConfig(3, 3), max_new_tokens=NEW, settings=stops(len(prompts))
    )
    log_probabilities = jax.jit(
        lambda params, batch: jax.nn.log_softmax(
            model.logits(params, model.apply(params, batch).hidden)
        )
    )
    for prompt, texts in zip(prompts, found):
        assert len(texts) == 3
        for text in texts:
            written = [*text.ids, STOP] if text.finish_reason == "stop" else text.ids
            said = full_log_probabilities(model, params, log_probabilities, prompt, written)
            expected = sum(said[range(len(written)), written]) / len(written)
            np.testing.assert_allclose(text.score, expected, rtol=0, atol=1e-5)
    reached = {
        len(prompt) + len(text.ids) for prompt, texts in zip(prompts, found) for text in texts
    }
    assert name == "an encoder" or max(reached) > SWITCH + 1


def full_log_probabilities(model, params, run, prompt, written):
    """float32 [n, V] of the next token before each of the n that were written."""
    out = []
    for n in range(len(written)):
        text = [*prompt, *written[:n]]
        if model.config.encoder:
            text = [model.config.start_token, *written[:n]]
        tokens = np.zeros((1, 24), np.int32)
        tokens[0, : len(text)] = text
        batch = rows_of(tokens, np.array([len(text)]))
        if model.config.encoder:
            source = np.zeros((1, 24), np.int32)
            source[0, : len(prompt)] = prompt
            batch = batch._replace(encoder=rows_of(source, np.array([len(prompt)])).inputs)
        out.append(np.asarray(run(params, batch))[0, len(text) - 1])
    return np.array(out)


MESHES = [{"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "tensor": 2}]
SEARCHES = {
    "plain": BeamConfig(4, 4),
    "groups": BeamConfig(4, 4, groups=2, diversity_penalty=0.5),
    "draws": BeamConfig(4, 4, sample=True),
    "phrases": BeamConfig(4, 4, required=(((7, 9),), ((1,), (2, 4)))),
}


@pytest.mark.mesh
@parametrize(
    "name, mesh, search",
    [(name, mesh, search) for name in FAMILIES for mesh in MESHES for search in SEARCHES],
    by_default=[("an encoder", MESHES[1], "phrases")],
)
def test_eight_devices_find_what_one_finds(name, mesh, search):
    model, params = made(name)
    run = partial(
        beam_search,
        model,
        prompts=PROMPTS,
        config=SEARCHES[search],
        max_new_tokens=NEW,
        settings=stops(len(PROMPTS)),
    )
    alone = run(params=params)
    mesh = make_mesh(MeshConfig(**mesh))
    shardings = compute_shardings(model, params, mesh, "split")
    placed = jax.jit(partial(compute_params, model, layout="split"), out_shardings=shardings)(
        params
    )
    with jax.set_mesh(mesh):
        split = run(params=placed)
    for one, other in zip(alone, split, strict=True):
        assert [text.ids for text in one] == [text.ids for text in other]
        assert [text.finish_reason for text in one] == [text.finish_reason for text in other]
        scores = [text.score for text in one], [text.score for text in other]
        np.testing.assert_allclose(*scores, rtol=1e-5)


@pytest.mark.mesh
def test_no_device_sends_its_cache():
    """All rows of a prompt are on one device."""
    model, _ = made("windows and sinks")
    rows = jnp.arange(32)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        cache = jax.jit(lambda: place_cache(model.init_cache(32, 64)))()
        text = jax.jit(reordered).lower(cache, rows).compile().as_text()
    assert "gather(" in text
    assert not re.findall("all-gather|all-reduce|all-to-all|collective-permute", text)
