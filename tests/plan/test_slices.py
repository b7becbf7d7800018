"""Steps compiled for two TPU slices: what goes over the slow network between them."""

from __future__ import annotations

import pytest

from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.plan.report import figures, table
from llm_jax.plan.step import plan_step
from llm_jax.plan.topology import parse_topology
from llm_jax.types import ConfigError


def config(**mesh):
    sizes = {f"mesh.{name}": size for name, size in {"data": 1, **mesh}.items()}
    return override(
        Config(),
        {
            "model.vocab_size": 512,
            "model.num_layers": 4,
            "model.embed_dim": 256,
            "model.attention.num_heads": 2,
            "model.mlp.hidden_dim": 512,
            "model.max_length": 256,
            "data.seq_length": 256,
            "data.batch_size": 16,
            "execution.layers": "scan",
            **sizes,
        },
    )


@pytest.mark.compiler
def test_only_the_sum_of_gradients_goes_from_slice_to_slice():
    p = plan_step(config(data=2, fsdp=4), parse_topology("2xv5e:2x2"), least_effort=True)
    assert not p.refused and p.slice.chips == 8 and p.between_slices == "data"
    slow = [t for t in p.traffic if t.axes == ("slices",)]
    assert {t.axes for t in p.traffic} == {("slices",), ("fsdp",)} and {t.kind for t in slow} == {
        "all-reduce"
    }
    # Each device sums its quarter of the gradient, in bfloat16, with one other: it sends that
    # quarter once.
    assert sum(t.bytes for t in slow) == pytest.approx(2 * p.parameters / 4, rel=0.1)
    assert figures(p)["between_slices"] == {"axis": "data", "bytes": sum(t.bytes for t in slow)}
    assert "GB of it, of mesh.data" in table(p)


@pytest.mark.compiler
def test_stages_send_activations_from_slice_to_slice():
    p = plan_step(config(pipeline=2, fsdp=4), parse_topology("2xv5e:2x2"), least_effort=True)
    assert p.between_slices == "pipeline" and p.bubble == pytest.approx(1 / 3)
    [handed_on] = [t for t in p.traffic if t.axes == ("slices",) and t.kind == "collective-permute"]
    # Three steps forward and three back, each of a microbatch of 2 rows a device, bfloat16.
    assert (handed_on.count, handed_on.bytes) == (6, 6 * 2 * 256 * 256 * 2)


@pytest.mark.mesh
def test_slices_want_an_axis_that_goes_between_them():
    with pytest.raises(
        ConfigError,
        match="mesh.data is 1 and mesh.pipeline is 1; one of them .* a multiple of the 2 slices",
    ):
        plan_step(config(fsdp=8), parse_topology("2xv5e:2x2"), analytic=True)
    p = plan_step(config(data=2, fsdp=4), parse_topology("2xv5e:2x2"), analytic=True)
    assert p.between_slices == "data" and p.slice.chips == 8
