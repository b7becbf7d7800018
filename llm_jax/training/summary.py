"""The sizes of a run that follow from its config, as numbers and as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jax

from llm_jax import models
from llm_jax.training.build import Parts
from llm_jax.training.flops import flops_of, idle_parameters
from llm_jax.types import Params

if TYPE_CHECKING:
    from llm_jax.data.loading.loader import Loader


def run_summary(parts: Parts, loader: Loader | None = None) -> dict[str, Any]:
    """Parameters, tokens per step, FLOPs per token and bytes of state per device.

    Args:
        parts: of the run.
        loader: of the training data, for the number of epochs.
    """
    config = parts.config
    data = config.data
    flops = flops_of(config)
    tokens = data.batch_size * data.seq_length
    summary = _parameter_counts(parts)
    summary["mesh"] = dict(parts.mesh.shape)
    summary["global_tokens_per_step"] = tokens
    if config.model.encoder:
        summary["global_encoder_tokens_per_step"] = data.batch_size * data.encoder_length
    summary["total_tokens"] = tokens * config.train.steps
    summary["training_flops_per_token_causal"] = flops.causal
    summary["training_flops_per_token_full"] = flops.full
    summary["state_bytes_per_device"] = sum(map(_shard_bytes, jax.tree.leaves(parts.abstract)))
    summary |= _pipeline(parts)
    if loader:
        rows = loader.stored_rows
        summary["tokens_per_epoch"] = loader.epoch_tokens
        summary["rows_per_epoch"] = rows
        summary["epochs"] = data.batch_size * config.train.steps / rows
    return summary


def _parameter_counts(parts: Parts) -> dict[str, Any]:
    held = parts.abstract
    model = parts.config.model
    counts = {"parameters": _count(held.params)}
    if held.frozen:
        counts["parameters_trained"] = _count(held.trainable)
    if model.experts:
        counts["parameters_active_per_token"] = counts["parameters"] - idle_parameters(model)
    return counts


def _count(params: Params) -> int:
    return sum(math.prod(a.shape) for a in jax.tree.leaves(params))


def _shard_bytes(array: Any) -> int:
    """Bytes of one device's part of an abstract array."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def _pipeline(parts: Parts) -> dict[str, Any]:
    """Stages, microbatches and the idle share of a pipeline; empty without one."""
    config = parts.config
    stages = parts.mesh.shape["pipeline"]
    if stages == 1:
        return {}
    piece = config.data.batch_size // config.train.accumulation
    schedule = models.schedule(config.model, config.execution, parts.mesh.shape, piece)
    return {
        "pipeline_stages": stages,
        "pipeline_microbatches": schedule.microbatches,
        "pipeline_bubble_share": schedule.bubble,
    }


def format_summary(values: dict[str, Any]) -> str:
    """``run_summary`` as aligned lines."""
    return "\n".join(
        f"  {name.replace('_', ' '):34} {_shown(value)}" for name, value in values.items()
    )


def _shown(value: Any) -> str:
    if isinstance(value, float) and value < 1e4:
        return f"{value:,.2f}"
    if isinstance(value, int | float):
        return f"{value:,.0f}"
    return str(value)
