"""Checkpoints written on 2026-11-25 load for ever: one of a run (orbax) and one converted model,
with the same parameters.

Small Qwen-like models with experts in all layers but the first. They are never written again; a
change that cannot read them breaks those of users.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.checkpoints.manifest import checksums
from llm_jax.checkpoints.open_run import open_run
from llm_jax.types import Batch, Tokens

KEPT = Path(__file__).parent / "fixtures"
# What the model said on the day.
LOGITS = [-0.014419, 3.078938, -0.381973, 4.324180, -0.092789, -1.009419]


@pytest.mark.parametrize("kind", ["run", "model"])
def test_what_was_saved_is_read(kind):
    run = open_run(KEPT / kind)
    assert (
        run.config.model.first_layers == 1
        and run.config.model.num_experts == 4
        and run.config.model.window_pattern == (4, 0)
    )
    ids = jnp.arange(8, dtype=jnp.int32)[None]
    batch = Batch(
        inputs=Tokens(ids, jnp.ones((1, 8), jnp.int32), ids),
        targets=ids,
        loss_mask=jnp.ones((1, 8), bool),
    )
    logits = run.model.logits(run.params, run.model.apply(run.params, batch).hidden)
    np.testing.assert_allclose(logits[0, -1, :6], LOGITS, atol=1e-5)


def test_both_hold_the_same_parameters():
    a, b = (jax.device_get(checksums(open_run(KEPT / kind).params)) for kind in ("run", "model"))
    assert a == b
