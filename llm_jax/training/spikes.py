"""Spikes of the loss or the gradient norm: a transformation around the optimizer finds them and
skips their update.

The rule is OLMo-core's (``SkipStepOptimizer``, https://github.com/allenai/OLMo-core): a step is a
spike if its loss or gradient norm exceeds its mean over the last steps by more than a given number
of standard deviations. The remedy of going back to a checkpoint and leaving out batches is PaLM's
(Chowdhery et al. 2022, section 5.1). The history is part of the optimizer's state, so every host
decides the same, and so does a run that resumes from a checkpoint.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from llm_jax.types import Params


class SpikeState(NamedTuple):
    """The history of a run, and the state of its optimizer.

    losses: float32 [window], of the last steps, newest last; nan where there was none.
    norms: float32 [window], the gradient norms of the same steps.
    skipped: int32 [], updates in a row up to this step that were not applied.
    offset: int32 [], batches left out so far: step n reads batch n + offset.
    rule: state of the optimizer.
    """

    losses: Array
    norms: Array
    skipped: Array
    offset: Array
    rule: Any


def skip_spikes(
    rule: optax.GradientTransformation, window: int, deviations: float
) -> optax.GradientTransformationExtraArgs:
    """``rule`` with zero updates and unchanged moments at a spike.

    ``update`` takes the step's ``loss`` and ``grad_norm``; a number that is not finite is a spike.
    Counters inside ``rule`` advance at a spike too, so that its schedule stays aligned with the
    data.

    Args:
        rule: the optimizer.
        window: steps of the history.
        deviations: standard deviations above the mean from which on a step is a spike.
    """

    def init(params: Params) -> SpikeState:
        empty = jnp.full((window,), jnp.nan, jnp.float32)
        zero = jnp.zeros((), jnp.int32)
        return SpikeState(empty, empty, zero, zero, rule.init(params))

    def update(
        grads: Params,
        state: SpikeState,
        params: Params | None = None,
        *,
        loss: Array,
        grad_norm: Array,
        **extra: Any,
    ) -> tuple[Params, SpikeState]:
        updates, after = optax.with_extra_args_support(rule).update(
            grads, state.rule, params, **extra
        )
        spike = ~(
            (loss <= limit(state.losses, deviations))
            & (grad_norm <= limit(state.norms, deviations))
        )
        # Adding -0.0 changes no bit of a parameter; adding 0.0 would turn -0.0 into 0.0.
        updates = jax.tree.map(lambda u: jnp.where(spike, jnp.full_like(u, -0.0), u), updates)

        def kept(old: Array, new: Array) -> Array:
            return jnp.where(spike, old, new) if jnp.issubdtype(new.dtype, jnp.floating) else new

        skipped = jnp.where(spike, state.skipped + 1, 0)
        return updates, SpikeState(
            losses=_append(state.losses, loss),
            norms=_append(state.norms, grad_norm),
            skipped=skipped,
            offset=state.offset,
            rule=jax.tree.map(kept, state.rule, after),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def limit(history: Array, deviations: float) -> Array:
    """The largest value that is not a spike, float32 []; the largest float while the history has
    fewer steps than ``needed``.
    """
    there = jnp.isfinite(history)
    count = jnp.sum(there)
    mean = jnp.sum(jnp.where(there, history, 0.0)) / jnp.maximum(count, 1)
    variance = jnp.sum(jnp.where(there, jnp.square(history - mean), 0.0)) / jnp.maximum(
        count - 1, 1
    )
    enough = count >= needed(history.shape[0])
    return jnp.where(enough, mean + deviations * jnp.sqrt(variance), jnp.finfo(jnp.float32).max)


def needed(window: int) -> int:
    """Steps that the history must have before one can be a spike."""
    return min(max(20, window // 2), window)


def _append(history: Array, value: Array) -> Array:
    """The history with a value, which is dropped if it is not finite."""
    return jnp.where(
        jnp.isfinite(value), jnp.append(history[1:], value.astype(history.dtype)), history
    )


class SpikeError(RuntimeError):
    """Spikes that do not end."""


class Spike(NamedTuple):
    """One spike.

    step: its number, from 1.
    batch: its index in the data.
    loss: of the step.
    grad_norm: of the step.
    limits: the largest loss and gradient norm that are not a spike.
    in_a_row: updates up to this one that were not applied.
    fingerprint: of the batch.
    """

    step: int
    batch: int
    loss: float
    grad_norm: float
    limits: tuple[float, float]
    in_a_row: int
    fingerprint: int

    def record(self, first_batch: int, action: str) -> dict[str, Any]:
        """A record for metrics.jsonl, with the range of batches left out. A number that is not
        finite is written as text, which JSON has no other way for.
        """
        numbers = {
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "loss_limit": self.limits[0],
            "grad_norm_limit": self.limits[1],
        }
        written = {k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}
        batches = {"batches": [first_batch, self.batch], "fingerprint": f"{self.fingerprint:016x}"}
        return {"action": action, "spike_step": self.step, **written, **batches}

    def __str__(self) -> str:
        return (
            f"step {self.step} is a spike: loss {self.loss:.4g} (at most {self.limits[0]:.4g}),"
            f" gradient norm {self.grad_norm:.4g} (at most {self.limits[1]:.4g}); batch"
            f" {self.batch}, fingerprint {self.fingerprint:016x}"
        )


class Rewind(Exception):
    """Tells the loop to go back to the newest checkpoint and to leave out the batches up to the
    spike's.
    """

    def __init__(self, spike: Spike) -> None:
        super().__init__(str(spike))
        self.spike = spike


def spike_metrics(before: Any, after: Any, deviations: float) -> dict[str, Array]:
    """Metrics of a step, empty without a policy for spikes.

    They are skipped, the updates in a row that were not applied (0 if this one was), and
    loss_limit and grad_norm_limit, the largest values that are not a spike.

    Args:
        before: the optimizer's state before the step.
        after: its state after the step.
        deviations: as in ``skip_spikes``.
    """
    if not isinstance(after, SpikeState):
        return {}
    return {
        "skipped": after.skipped,
        "loss_limit": limit(before.losses, deviations),
        "grad_norm_limit": limit(before.norms, deviations),
    }


def take_spike(values: dict[str, float], step: int, batch: int, fingerprint: int) -> Spike | None:
    """The spike of a step, None if it was not one; removes ``spike_metrics`` from its numbers."""
    in_a_row = int(values.pop("skipped", 0))
    limits = values.pop("loss_limit", math.inf), values.pop("grad_norm_limit", math.inf)
    if not in_a_row:
        return None
    return Spike(
        step=step,
        batch=batch,
        loss=values["loss"],
        grad_norm=values["grad_norm"],
        limits=limits,
        in_a_row=in_a_row,
        fingerprint=fingerprint,
    )


def offset_of(opt_state: Any) -> int:
    """Batches left out so far, by the optimizer's state."""
    return int(opt_state.offset) if isinstance(opt_state, SpikeState) else 0
