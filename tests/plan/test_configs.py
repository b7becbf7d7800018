"""Every config fits, and compiles for, the slices that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_jax.config.overrides import override
from llm_jax.config.saved import load_config
from llm_jax.plan.step import plan_step
from llm_jax.plan.topology import parse_topology, slices_of

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
NAMED = [(path, name) for path in CONFIGS for name in slices_of(path)]
TPU = [(path, name) for path, name in NAMED if parse_topology(name, 1.0).chip.platform == "tpu"]


def known(path: Path):
    config = load_config(path)
    return config if config.model.vocab_size else override(config, {"model.vocab_size": 32000})


def compiled(path: Path, name: str, least_effort: bool):
    p = plan_step(known(path), parse_topology(name), least_effort=least_effort)
    assert not p.refused and sum(p.memory.values()) < p.slice.chip.hbm
    # Gradients are summed over every axis that splits the batch.
    axes = {a for t in p.traffic for a in t.axes}
    assert {a for a in ("data", "fsdp") if p.mesh[a] > 1} <= axes
    assert 1 <= p.flops["traced"] / p.flops["model, full"] < 1.4
    return p


@pytest.mark.mesh
@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda x: getattr(x, "stem", x))
def test_every_config_has_room_for_its_state(path, name):
    p = plan_step(known(path), parse_topology(name, 0.1), analytic=True)
    assert (
        not p.refused
        and p.memory["parameters"] + p.memory["optimizer state"] < 0.5 * p.slice.chip.hbm
    )
    assert sum(p.memory.values()) < p.slice.chip.hbm


@pytest.mark.compiler
@pytest.mark.parametrize(("path", "name"), TPU, ids=lambda x: getattr(x, "stem", x))
def test_every_config_compiles_for_its_slices(path, name):
    compiled(path, name, least_effort=True)


@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize(("path", "name"), TPU, ids=lambda x: getattr(x, "stem", x))
def test_every_config_fits_its_slices_as_it_will_run(path, name):
    used = sum(compiled(path, name, least_effort=False).memory.values())
    said = re.search(r"\(([\d.]+) GiB of each", path.read_text())
    assert said and float(said[1]) == pytest.approx(used / 2**30, rel=0.1)
