"""Decoding on 8 simulated devices: the same tokens as on one, with parameters and cache where the
table says.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from pairwise import parametrize
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import DecodeConfig, ExecutionConfig, MeshConfig, ModelConfig, override
from llm_jax.decode import Generator
from llm_jax.decode.loop import CHOOSE, jit_steps
from llm_jax.decode.placement import cache_shardings
from llm_jax.decode.settings import no_stops, shared_settings
from llm_jax.decode.state import Choosing, Prompts, Room
from llm_jax.sharding import make_mesh
from llm_jax.types import ConfigError

pytestmark = pytest.mark.mesh

CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": 64,
        "num_layers": 2,
        "embed_dim": 32,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 48,
        "max_length": 128,
        "attention.window_pattern": (5, 0),
        "init_std": 0.3,
        "embedding.tied": False,
    },
)
MESHES = [{"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "tensor": 2}]
PROMPTS = [np.random.default_rng(i).integers(0, 64, 3 + 2 * i).tolist() for i in range(8)]


EXPERTS = override(CONFIG, {"experts.count": 8, "experts.per_token": 3, "experts.shared": 1})


def both(mesh, layers, config=CONFIG, attention="auto"):
    model = models.build(config, ExecutionConfig(layers=layers, attention=attention))
    params = random_parameters(model)
    return Generator(model, params), Generator(model, params, make_mesh(MeshConfig(**mesh)))


@parametrize(
    "mesh, layers",
    itertools.product(MESHES, ["unroll", "scan"]),
    by_default=[(MESHES[1], "scan")],
)
def test_the_same_tokens_as_on_one_device(mesh, layers):
    alone, split = both(mesh, layers)
    greedy = DecodeConfig(max_new_tokens=12, temperature=0.0)
    out = alone.generate(PROMPTS, greedy)
    assert len({tuple(row) for row in out}) > 4
    assert split.generate(PROMPTS, greedy) == out
    sampled = DecodeConfig(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=5)
    assert split.generate(PROMPTS, sampled) == alone.generate(PROMPTS, sampled)


@pytest.mark.slow
def test_prompts_go_through_a_kernel_of_one_device():
    """Of mesh.context every device has whole rows."""
    alone, split = both({"data": 2, "context": 2, "tensor": 2}, "unroll", attention="blockwise")
    greedy = DecodeConfig(max_new_tokens=12, temperature=0.0)
    out = alone.generate(PROMPTS, greedy)
    assert len({tuple(row) for row in out}) > 4 and split.generate(PROMPTS, greedy) == out


# Every run has experts over devices in test_stacks.
@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh, layers",
    [({"data": 2, "expert": 4}, "scan"), ({"data": 1, "expert": 4, "tensor": 2}, "unroll")],
)
def test_tokens_travel_to_their_experts(mesh, layers):
    alone, split = both(mesh, layers, EXPERTS)
    greedy = DecodeConfig(max_new_tokens=12, temperature=0.0)
    out = alone.generate(PROMPTS, greedy)
    assert len({tuple(row) for row in out}) > 4 and split.generate(PROMPTS, greedy) == out


@parametrize("layers", [["unroll"], ["scan"]], by_default=[["unroll"]])
def test_parameters_and_cache_are_split_and_stay_so(layers):
    _, split = both({"data": 2, "fsdp": 2, "tensor": 2}, layers)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    layer = split.params["layers"][0] if layers == "unroll" else split.params["layers"]
    up = layer["mlp"]["up"]["kernel"]
    assert up.sharding.shard_shape(up.shape)[-2:] == (16, 24)
    steps = jit_steps(split.model)
    vocab_size = split.model.config.vocab_size
    settings = shared_settings(DecodeConfig(temperature=0.0), 8, vocab_size)
    inputs = (settings, no_stops(8, vocab_size))
    with jax.set_mesh(mesh):
        prompts = Prompts(np.ones((8, 64), np.int32), np.full((8,), 3, np.int32))
        state = steps.begin(split.params, prompts, room=Room(128), choosing=Choosing())
        state = CHOOSE(state, *inputs, choosing=Choosing())
        for _ in range(2):
            wanted = PartitionSpec(("data", "fsdp"), "tensor", None, None)
            assert all(
                a.sharding.is_equivalent_to(jax.NamedSharding(mesh, wanted), 4)
                for a in jax.tree.leaves(state.cache.layers)
            )
            assert cache_shardings(state.cache, mesh).layers[0].own.keys.spec == wanted
            state = steps.advance(split.params, state, *inputs, choosing=Choosing())
    assert state.cache.length.tolist() == [5] * 8


def test_stream_on_a_mesh_of_heads():
    alone, split = both({"data": 1, "fsdp": 4, "tensor": 2}, "unroll")
    greedy = DecodeConfig(max_new_tokens=4, temperature=0.0)
    with pytest.raises(ConfigError, match="'batch' of size 1 does not divide over mesh fsdp = 4"):
        list(split.stream(PROMPTS[0], greedy))
    pair = make_mesh(MeshConfig(data=1, tensor=2), jax.devices()[:2])
    model = alone.model
    assert list(
        Generator(model, random_parameters(model), pair).stream(PROMPTS[0], greedy)
    ) == list(alone.stream(PROMPTS[0], greedy))
