"""Published speeds lie at or under the roofline, and the configs that searches found lie above what
was published.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_jax.config.saved import load_config
from llm_jax.plan.published import ROWS
from llm_jax.plan.report import mfu
from llm_jax.plan.step import plan_step
from llm_jax.plan.topology import parse_topology
from llm_jax.training.flops import train_flops

ROOT = Path(__file__).parents[2]


@pytest.mark.mesh
@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.model}-{r.topology}")
def test_what_was_measured_is_at_or_under_the_roofline(row):
    target = parse_topology(row.topology)
    # Everything is computed twice, as most who publish do: the bound of less is higher.
    p = plan_step(row.config("full"), target, analytic=True)
    assert row.speed <= p.tokens / p.seconds.at_best / target.chips
    assert 0 < mfu(p) < 1


def test_our_count_of_model_flops_is_theirs():
    """On v6e MaxText counts the whole attention matrix: its published MFU follows from its tokens/s
    by our count of it. The 65.4 % of Llama-2-70B on v5p lies between our 64.6 % (causal) and 67.0 %
    (full).
    """
    for row in (r for r in ROWS if r.topology.startswith("v6e")):
        peak = parse_topology(row.topology).chip.tflops * 1e12
        counted = train_flops(row.config().model, row.seq_length)
        if row.mfu:
            assert counted.full * row.speed / peak == pytest.approx(row.mfu, rel=0.005)
    older = next(r for r in ROWS if r.model == "Llama-2-70B")
    per_token = train_flops(older.config().model, older.seq_length)
    assert (
        per_token.causal * older.speed / 459e12,
        per_token.full * older.speed / 459e12,
    ) == pytest.approx((0.646, 0.670), abs=5e-4)
    # By the causal convention these are 40.4 % and 47.0 %.
    causal = {
        r.model: train_flops(r.config().model, r.seq_length).causal * r.speed / 918e12
        for r in ROWS
        if r.topology == "v6e:16x16"
    }
    assert causal == pytest.approx({"Llama-3.1-8B": 0.404, "Llama-3.1-70B": 0.470}, abs=5e-4)


SEARCHED = {"lm_8b.v6e-16x16.json": 0.404, "lm_70b.v5p-8x8x8.json": 0.654}


@pytest.mark.mesh
@pytest.mark.parametrize("name", SEARCHED)
def test_what_a_search_found_lies_above_what_was_published_and_computes_little_twice(name):
    """The FLOPs that its step computes bound it; see the slow test for what it sends and whether it
    fits.
    """
    config, target = found(name)
    p = plan_step(config, target, analytic=True)
    assert (
        not p.refused
        and p.flops["model, causal"]
        / (p.seconds["compute"] * target.chips * target.chip.tflops * 1e12)
        > SEARCHED[name]
    )
    assert p.flops["traced"] <= 1.35 * p.flops["model, causal"]


@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHED)
def test_what_a_search_found_compiles_and_fits(name):
    p = plan_step(*found(name))
    assert not p.refused and sum(p.memory.values()) < p.slice.chip.hbm and mfu(p) > SEARCHED[name]


def found(name):
    """The config that `llm-jax plan --search` wrote, and the slice it was for."""
    config = load_config(ROOT / "benchmarks/results" / name)
    chip, _, sides = name.split(".")[1].partition("-")
    return config, parse_topology(f"{chip}:{sides}")
