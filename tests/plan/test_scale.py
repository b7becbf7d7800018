"""What docs/scale.md says: its tables are the script's, a million tokens fit, and depth costs no
program text.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from llm_jax.config import Config, MeshConfig
from llm_jax.config.overrides import override
from llm_jax.plan.memory import MARGIN
from llm_jax.plan.step import plan_step
from llm_jax.plan.topology import parse_topology, stand_ins
from llm_jax.sharding import make_mesh, row_sharding
from llm_jax.training.build import build
from llm_jax.training.step import jit_train_step, make_train_step
from llm_jax.types import Batch, ConfigError, Tokens

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale", ROOT / "benchmarks/scale.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.mesh
@pytest.mark.slow
def test_the_published_table_of_the_docs_is_what_the_script_prints(scale):
    assert scale.published() in (ROOT / "docs/scale.md").read_text()


@pytest.mark.mesh
def test_bytes_are_shown_for_8_to_8960_chips_with_the_same_rows_on_each(scale):
    slices = {name: parse_topology(name) for name in scale.TRAFFIC}
    assert [s.chips for s in slices.values()] == [8, 64, 256, 1024, 8960]
    for name, s in slices.items():
        config = scale.traffic_config(name)
        assert (
            config.mesh.data * config.mesh.fsdp * config.mesh.tensor == s.chips
            and config.data.batch_size == s.chips
        )
        assert len({d.id for d in make_mesh(config.mesh, stand_ins(s)).devices.flat}) == s.chips


def test_a_mesh_that_the_torus_cannot_have_is_named():
    with pytest.raises(
        ConfigError,
        match=(
            "mesh data=140 x fsdp=32 x tensor=2 cannot be laid along the network of these devices"
        ),
    ):
        make_mesh(
            MeshConfig(data=140, fsdp=32, tensor=2), stand_ins(parse_topology("v5p:16x20x28"))
        )


@pytest.mark.mesh
def test_a_million_tokens_fit_by_the_estimate(scale):
    p = plan_step(scale.long_config(), parse_topology("v5p:8x8x8"), analytic=True)
    assert p.tokens == 2 * 2**20 and not p.refused and p.mesh["context"] == 64
    assert MARGIN * sum(p.memory.values()) < p.slice.chip.hbm


@pytest.mark.compiler
@pytest.mark.slow
def test_a_million_tokens_compile_and_fit(scale):
    p = plan_step(scale.long_config(), parse_topology("v5p:8x8x8"))
    assert not p.refused and sum(p.memory.values()) < p.slice.chip.hbm
    # Keys and values go round the ring.
    assert any(t.kind == "collective-permute" and "context" in t.axes for t in p.traffic)


@pytest.mark.mesh
def test_a_step_of_80_layers_is_no_longer_a_program_than_one_of_16():
    def lines(layers: int) -> int:
        config = override(
            Config(),
            {
                "model.vocab_size": 512,
                "model.num_layers": layers,
                "model.embed_dim": 64,
                "model.attention.num_heads": 4,
                "model.mlp.hidden_dim": 128,
                "data.seq_length": 64,
                "data.batch_size": 16,
                "mesh.fsdp": 4,
                "mesh.data": 1,
                "mesh.tensor": 2,
                "execution.layers": "scan",
            },
        )
        parts = build(config)
        rows = row_sharding(parts.mesh)
        ids, mask = (jax.ShapeDtypeStruct((16, 64), d, sharding=rows) for d in (jnp.int32, bool))
        batch = Batch(Tokens(ids, ids, ids), ids, mask)
        step = jit_train_step(
            make_train_step(parts.loss, parts.optimizer, config, parts.model.specs),
            parts.model,
            parts.optimizer,
            parts.mesh,
        )
        with jax.set_mesh(parts.mesh):
            return len(step.lower(parts.abstract, batch).as_text().splitlines())

    assert lines(16) == lines(80)
