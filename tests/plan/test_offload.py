"""execution.remat offload:…, through the TPU compiler: what is kept for the backward pass leaves
the device's memory.
"""

from __future__ import annotations

import jax
import pytest

from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.plan.compiled import compile_traced
from llm_jax.plan.topology import devices, parse_topology
from llm_jax.sharding import batch_sharding
from llm_jax.training.build import build
from llm_jax.training.step import abstract_batch, jit_train_step, make_train_step

pytestmark = pytest.mark.compiler
L, B, T, D, F = 8, 8, 512, 256, 1024


def memory(remat):
    config = override(
        Config(),
        {
            "model.vocab_size": 512,
            "model.num_layers": L,
            "model.embed_dim": D,
            "model.attention.num_heads": 2,
            "model.mlp.hidden_dim": F,
            "model.max_length": T,
            "data.seq_length": T,
            "data.batch_size": B,
            "mesh.data": 1,
            "mesh.fsdp": 4,
            "execution.layers": "scan",
            "execution.remat": remat,
        },
    )
    parts = build(config, devices(parse_topology("v5e:2x2")))
    step = jit_train_step(
        make_train_step(parts.loss, parts.optimizer, config, parts.model.specs),
        parts.model,
        parts.optimizer,
        parts.mesh,
    )
    with jax.set_mesh(parts.mesh):
        traced = step.trace(parts.abstract, abstract_batch(config, batch_sharding(parts.mesh, B)))
        return compile_traced(traced, parts.mesh, least_effort=True).memory


def test_what_is_offloaded_leaves_the_devices_memory():
    here, away = memory("names:mlp_hidden"), memory("offload:mlp_hidden")
    kept = L * B // 4 * T * F * 2  # bytes of bfloat16 on one device
    assert here.host_temp_size_in_bytes == 0 and away.host_temp_size_in_bytes >= kept
    assert here.peak_memory_in_bytes - away.peak_memory_in_bytes > 0.7 * kept
