"""Checkpoints of earlier versions load for ever: of 2026-11-25 a run (orbax) and a converted model
with the same parameters, small Qwen-like models with experts in all layers but the first; of
2026-11-30 a run.

They are never written again; a change that cannot read them breaks those of users.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.checkpoints.checkpoint import Checkpoints
from llm_jax.checkpoints.manifest import checksums
from llm_jax.checkpoints.open_run import open_run
from llm_jax.config import OptimizerConfig
from llm_jax.training.build import build
from llm_jax.training.state import to_saved
from llm_jax.types import Batch, Tokens

KEPT = Path(__file__).parent / "fixtures"
# What the model said on the day.
LOGITS = [-0.014419, 3.078938, -0.381973, 4.324180, -0.092789, -1.009419]


@pytest.mark.parametrize("kind", ["run", "model"])
def test_what_was_saved_is_read(kind):
    run = open_run(KEPT / kind)
    assert (
        run.config.model.first_layers.count == 1
        and run.config.model.experts.count == 4
        and run.config.model.attention.window_pattern == (4, 0)
    )
    ids = jnp.arange(8, dtype=jnp.int32)[None]
    batch = Batch(
        inputs=Tokens(ids, jnp.ones((1, 8), jnp.int32), ids),
        targets=ids,
        loss_mask=jnp.ones((1, 8), bool),
    )
    logits = run.model.logits(run.params, run.model.apply(run.params, batch).hidden)
    np.testing.assert_allclose(logits[0, -1, :6], LOGITS, atol=1e-5)


# A run of 2026-11-30, from before parameters had specs and a state had frozen parts: Muon, experts
# without a balance loss, dropout, learned positions. What the model said on the day.
LATER = "run_before_sections"
LATER_LOGITS = [0.014615, -0.011926, -0.085962, -0.115138, 0.089449, 0.027679]


def test_a_run_from_before_specs_is_read():
    run = open_run(KEPT / LATER)
    assert (
        run.config.optimizer.update.kind == "muon"
        and run.config.optimizer.decay == OptimizerConfig().decay
    )
    ids = jnp.arange(8, dtype=jnp.int32)[None]
    ones = jnp.ones((1, 8), jnp.int32)
    batch = Batch(Tokens(ids, ones, ids), targets=ids, loss_mask=ones.astype(bool))
    logits = run.model.logits(run.params, run.model.apply(run.params, batch).hidden)
    np.testing.assert_allclose(logits[0, -1, :6], LATER_LOGITS, atol=1e-5)


def test_a_run_from_before_specs_goes_on_with_its_optimizer():
    """Every slot has its place in today's state."""
    parts = build(open_run(KEPT / LATER).config, jax.devices()[:1])
    checkpoints = Checkpoints(KEPT / LATER / "checkpoints")
    try:
        state = checkpoints.restore(3, to_saved(parts.abstract))
    finally:
        checkpoints.close()
    assert int(state.step) == 3
    assert all(float(jnp.abs(a).sum()) > 0 for a in jax.tree.leaves(state.opt_state) if a.ndim > 1)


def test_both_hold_the_same_parameters():
    a, b = (jax.device_get(checksums(open_run(KEPT / kind).params)) for kind in ("run", "model"))
    assert a == b
