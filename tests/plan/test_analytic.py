"""What is planned without a compiler: state, FLOPs, bounds and cost, for machines of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_jax.commands.plan import plan
from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.plan.roofline import Seconds, least_link_seconds, least_sent, link_seconds
from llm_jax.plan.step import plan_step
from llm_jax.plan.topology import parse_topology
from llm_jax.training.flops import train_flops

SMALL = override(
    Config(),
    {
        "model.vocab_size": 512,
        "model.num_layers": 2,
        "model.embed_dim": 128,
        "model.attention.num_heads": 4,
        "model.mlp.hidden_dim": 256,
        "data.seq_length": 128,
        "data.batch_size": 64,
        "mesh.data": 1,
        "mesh.fsdp": -1,
    },
)


def test_bounds_by_hand():
    seconds = Seconds({"compute": 2.0, "links at best": 1.0, "links at worst": 4.0, "memory": 0.5})
    assert (seconds.at_best, seconds.serial, seconds.at_worst, seconds.bound) == (
        2.0,
        3.5,
        6.5,
        "compute",
    )
    assert Seconds({**seconds, "memory": 3.0}).bound == "memory"


def test_links_by_hand():
    v5e = parse_topology("v5e:2x4").chip
    assert link_seconds(v5e, 200e9) == {"links at best": 1.0, "links at worst": 4.0}
    # Each of 8 copies sums and hands out 7 eighths.
    assert least_sent(8e9, 8) == pytest.approx(2 * 7e9) and least_sent(8e9, 1) == 0
    # 4 copies on 8 chips: half of the weights on each.
    assert least_link_seconds(parse_topology("v5e:2x4"), 8e9, 4)["links at best"] == pytest.approx(
        2 * 0.75 * 4e9 / 200e9
    )


def test_what_leaves_a_node_of_gpus_goes_over_its_network():
    one, four = parse_topology("h100:8"), parse_topology("h100:8x4")
    assert least_link_seconds(one, 8e9, 8)["links at best"] == pytest.approx(14e9 / 450e9)
    # Inside, 2 x 7/8 of the weights at 450 GB/s; then each GPU has an eighth of its node's sum, and
    # 2 x 3/4 of it leaves at 50 GB/s.
    assert least_link_seconds(four, 8e9, 32)["links at best"] == pytest.approx(14e9 / 450e9)
    slower = four._replace(chip=four.chip._replace(node_rate=10e9))
    assert least_link_seconds(slower, 8e9, 32)["links at best"] == pytest.approx(
        2 * 0.75 * 1e9 / 10e9
    )
    # One copy of the model on all of them has nothing to sum.
    assert least_link_seconds(four, 8e9, 1) == {"links at best": 0.0, "links at worst": 0.0}


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("name", "devices"),
    [("v5e:2x4", 8), ("v7x:2x2x1", 8), ("h100:8", 8), ("h200:8x2", 16), ("cpu:4", 4)],
)
def test_a_step_without_a_compiler(name, devices):
    target = parse_topology(name, 0.1)
    p = plan_step(SMALL, target, analytic=True)
    assert p.analytic and p.mesh == {**p.mesh, "fsdp": devices} and not p.traffic
    # Norm scales (5 of 128) and AdamW's count live whole on every device.
    whole = 5 * 128
    share = 4 * ((p.parameters - whole) / devices + whole)
    assert p.memory["parameters"] == pytest.approx(share * target.chip.devices)
    assert p.memory["optimizer state"] == pytest.approx(2 * share * target.chip.devices, rel=1e-3)
    flops = train_flops(SMALL.model, 128).full * 64 * 128
    assert p.flops["model, full"] == pytest.approx(flops) and p.flops["traced"] >= flops
    assert p.seconds["compute"] == pytest.approx(
        p.flops["traced"] / target.chips / (target.chip.tflops * 1e12)
    )
    width = 4 if name.startswith("cpu") else 2
    sent = 2 * (devices - 1) / devices * p.parameters * width
    if name == "v5e:2x4":
        assert p.seconds["links at best"] == pytest.approx(sent / 200e9)


@pytest.mark.mesh
@pytest.mark.parametrize("settings", [{}, {"model.attention.softcap": 30.0}])
def test_a_gpu_multiplies_whole_rows_where_its_kernel_does(settings):
    """cuDNN's takes the mask of packed rows as an array; the reference, which soft-caps need,
    leaves out what nobody sees.
    """
    config = override(
        SMALL,
        {"data.seq_length": 512, "model.max_length": 512, "execution.remat": "none", **settings},
    )
    p = plan_step(config, parse_topology("h100:8", 0.1), analytic=True)
    attention = train_flops(config.model, 512).full - train_flops(config.model, 512).causal
    assert attention > 0
    share = (p.flops["traced"] - p.flops["model, causal"]) / (
        p.flops["model, full"] - p.flops["model, causal"]
    )
    assert share > 1 if not settings else share < 1


@pytest.mark.mesh
def test_a_state_that_cannot_fit_needs_no_compiler_to_be_refused():
    p = plan_step(
        override(SMALL, {"model.embed_dim": 16384, "model.mlp.hidden_dim": 65536}),
        parse_topology("v5e:2x2"),
        analytic=True,
    )
    assert (
        "parameters and optimizer state alone are" in p.refused and "of each chip's 16" in p.refused
    )


@pytest.mark.mesh
def test_the_command_says_what_it_could_not_know(tmp_path):
    out = tmp_path / "plan.json"
    text = plan(
        "configs/lm_125m.py", "h200:8x2", ("data.batch_size=256",), tokens=10**9, out=str(out)
    )
    assert (
        "analytic: there is no compiler for GPUs here; nothing was compiled" in text
        and "activations come on top" in text
    )
    p = json.loads(out.read_text())
    assert p["fits"] is None and p["analytic"] and p["cost"]["tokens"] == 10**9
    low, high = p["cost"]["usd"]
    assert (
        low
        == pytest.approx(10**9 / p["tokens_per_step"] * p["seconds"]["at best"] * 16 / 3600 * 7.912)
        and low < high
    )


@pytest.mark.mesh
def test_without_a_topology_the_slices_of_the_config_are_planned(tmp_path):
    two = tmp_path / "two.py"
    two.write_text(
        Path("configs/lm_125m.py")
        .read_text()
        .replace('SLICES = ("v5e:2x2",)', 'SLICES = ("v5e:2x2", "v6e:2x2")')
    )
    out = tmp_path / "plan.json"
    text = plan(str(two), analytic=True, out=str(out))
    assert "v5e:2x2: 4 chips" in text and "v6e:2x2: 4 chips" in text
    assert [p["topology"] for p in json.loads(out.read_text())] == ["v5e:2x2", "v6e:2x2"]
