"""Spikes of the loss or the gradient: a transformation around the optimizer that finds them and
does not apply their update.

The rule is OLMo-core's (``SkipStepOptimizer``, https://github.com/allenai/OLMo-core): a spike is a
step whose loss or gradient norm lies more than so many standard deviations from its mean over the
last steps; here only above it. Going back to a checkpoint and leaving the batches out is PaLM's
remedy (Chowdhery et al. 2022, section 5.1). The history is part of the optimizer's state: every
host decides the same, and so does a run that goes on from a checkpoint.
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
    """losses, norms: float32 [window], those of the last steps, newest last, nan where there was
    none. skipped: int32 [], updates in a row that were not applied, up to this step. offset: int32
    [], batches left out so far, so that step n reads batch n + offset. rule: state of the optimizer
    inside.
    """

    losses: Array
    norms: Array
    skipped: Array
    offset: Array
    rule: Any


def skip_spikes(
    rule: optax.GradientTransformation, window: int, deviations: float
) -> optax.GradientTransformationExtraArgs:
    """``rule`` whose updates are zero, and whose moments stay, at a spike; ``update`` needs the
    step's ``loss`` and ``grad_norm``.

    Counters inside ``rule`` go on, so that its schedule stays that of the data. A number that is
    not finite is a spike.
    """

    def init(params: Params) -> SpikeState:
        empty, zero = jnp.full((window,), jnp.nan, jnp.float32), jnp.zeros((), jnp.int32)
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
        # Minus zero: it changes no bit of what it is added to.
        updates = jax.tree.map(lambda u: jnp.where(spike, jnp.full_like(u, -0.0), u), updates)

        def kept(old, new):
            return jnp.where(spike, old, new) if jnp.issubdtype(new.dtype, jnp.floating) else new

        skipped = jnp.where(spike, state.skipped + 1, 0)
        histories = _append(state.losses, loss), _append(state.norms, grad_norm)
        return updates, SpikeState(
            *histories, skipped, state.offset, jax.tree.map(kept, state.rule, after)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def limit(history: Array, deviations: float) -> Array:
    """The largest value that is no spike, float32 []: the largest float while less than half the
    history, or 20 steps, are there.
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
    """Steps that must be known before one can be a spike."""
    return min(max(20, window // 2), window)


def _append(history: Array, value: Array) -> Array:
    """A value that is not finite leaves the history as it is."""
    return jnp.where(
        jnp.isfinite(value), jnp.append(history[1:], value.astype(history.dtype)), history
    )


class SpikeError(RuntimeError):
    """Spikes that do not end."""


class Spike(NamedTuple):
    """What the step said of one. step: which, from 1. batch: its index in the data. limits: the
    largest loss and gradient norm that would have been none. in_a_row: updates not applied up to
    this one.
    """

    step: int
    batch: int
    loss: float
    grad_norm: float
    limits: tuple[float, float]
    in_a_row: int
    fingerprint: int

    def record(self, first_batch: int, action: str) -> dict[str, Any]:
        """For metrics.jsonl, with the batches left out. json has no numbers that are not finite;
        they go as text.
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
    """The run is to go back to its newest checkpoint and leave out the batches up to the
    spike's.
    """

    def __init__(self, spike: Spike) -> None:
        super().__init__(str(spike))
        self.spike = spike


def spike_metrics(before: Any, after: Any, deviations: float) -> dict[str, Array]:
    """Of a step that took the optimizer's state ``before`` to ``after``: skipped, the updates in a
    row not applied (0: this one was), and the limits. Empty where no policy is on.
    """
    if not isinstance(after, SpikeState):
        return {}
    limits = limit(before.losses, deviations), limit(before.norms, deviations)
    return {"skipped": after.skipped, "loss_limit": limits[0], "grad_norm_limit": limits[1]}


def take_spike(values: dict[str, float], step: int, batch: int, fingerprint: int) -> Spike | None:
    """Takes what ``spike_metrics`` gave out of a step's numbers: its spike, if it was one."""
    in_a_row, limits = (
        values.pop("skipped", 0),
        (values.pop("loss_limit", math.inf), values.pop("grad_norm_limit", math.inf)),
    )
    return (
        Spike(step, batch, values["loss"], values["grad_norm"], limits, int(in_a_row), fingerprint)
        if in_a_row
        else None
    )


def offset_of(opt_state: Any) -> int:
    """Batches left out so far."""
    return int(opt_state.offset) if isinstance(opt_state, SpikeState) else 0
