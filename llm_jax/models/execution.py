"""How a model runs on a platform: every ``auto`` of ``ExecutionConfig`` replaced, and checked."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.positions import RelativePositionsConfig
from llm_jax.config.support import refuse
from llm_jax.config.validate import remat_names
from llm_jax.ops.attention import check_backend
from llm_jax.ops.platform import platform as current_platform
from llm_jax.types import ConfigError

Layers = Literal["auto", "scan", "unroll"]
# On a CPU, models of up to this many layers are unrolled: the program is faster, and longer to
# compile.
_UNROLLED_LAYERS = 12


def resolve_execution(
    execution: ExecutionConfig, model: ModelConfig, platform: str | None = None, context: int = 1
) -> ExecutionConfig:
    """``execution`` with every ``auto`` replaced by what suits the platform.

    Args:
        execution: as configured. Without attention, its backend stays ``auto``.
        model: the model.
        platform: cpu, gpu or tpu; None is that of the devices there are.
        context: devices that share a row, mesh.context.

    Raises:
        ConfigError: the model cannot be split over such a mesh.
        ValueError: an attention backend chosen by name does not support what the model needs.
    """
    remat_names(execution.remat)
    platform = platform or jax.default_backend()
    execution = dataclasses.replace(
        execution,
        compute_dtype=_compute_dtype(execution, platform),
        layers=_layers(execution, model, platform),
    )
    if model.recurrent:
        _check_recurrent(execution, model, context)
        return execution
    attention = execution.attention
    if attention == "auto":
        attention = _attention(execution, model, platform, context)
    execution = dataclasses.replace(execution, attention=attention)
    if context > 1:
        _check_context(execution, model, context)
    _check_attention(execution, model, platform)
    return execution


def inference_layers(layers: Layers) -> Layers:
    """``ExecutionConfig.layers`` of a model that runs without a gradient.

    Args:
        layers: as configured.

    Returns:
        ``layers``, or for "auto": "unroll" on a CPU, however many layers there are. Without a
        gradient, unrolled layers compile as fast as a loop, and no layer's weights are copied out
        of the stack. "scan" on other platforms.
    """
    if layers != "auto":
        return layers
    return "unroll" if current_platform() == "cpu" else "scan"


def _compute_dtype(
    execution: ExecutionConfig, platform: str
) -> Literal["auto", "float32", "bfloat16"]:
    if execution.compute_dtype != "auto":
        return execution.compute_dtype
    return "float32" if platform == "cpu" else "bfloat16"


def _layers(execution: ExecutionConfig, model: ModelConfig, platform: str) -> Layers:
    if execution.layers != "auto":
        return execution.layers
    few = model.num_layers <= _UNROLLED_LAYERS
    return "unroll" if platform == "cpu" and few else "scan"


def _attention(
    execution: ExecutionConfig, model: ModelConfig, platform: str, context: int
) -> Literal["xla", "blockwise", "splash", "cudnn"]:
    """The fastest backend that supports the model."""
    if context > 1 and execution.context == "ring":
        return "blockwise"
    if isinstance(model.positions, RelativePositionsConfig):
        return "xla"
    sees_both_ways = not model.causal or model.encoder is not None
    if platform == "tpu" and not sees_both_ways:
        return "splash"
    if platform == "gpu" and _fits_cudnn(execution, model):
        return "cudnn"
    return "xla"


def _fits_cudnn(execution: ExecutionConfig, model: ModelConfig) -> bool:
    plain = not model.attention.softcap and not model.attention.sinks
    width = model.head_dim
    fits = width % 8 == 0 and width <= 256 and model.value_dim == width
    return execution.compute_dtype == "bfloat16" and plain and fits


def _check_recurrent(execution: ExecutionConfig, model: ModelConfig, context: int) -> None:
    """Raises ConfigError for what recurrent layers do not have."""
    if context > 1:
        refuse(model, "context", f"mesh.context {context}")
    if execution.attention != "auto":
        refuse(model, execution.attention, f"execution.attention {execution.attention!r}")
    names = remat_names(execution.remat)
    if names:
        raise ConfigError(
            f"execution.remat is {execution.remat!r}, and recurrent layers have no {names[0]}; use"
            " none, full or dots"
        )


def _check_context(execution: ExecutionConfig, model: ModelConfig, context: int) -> None:
    """Raises ConfigError for what cannot be split over mesh.context."""
    refuse(model, "context", f"mesh.context {context}")
    if execution.context == "ring" and execution.attention != "blockwise":
        raise ConfigError(
            f"execution.attention {execution.attention!r} cannot go round the ring of mesh.context"
            f" {context}; use blockwise, or execution.context all_to_all"
        )


def _check_attention(execution: ExecutionConfig, model: ModelConfig, platform: str) -> None:
    """Raises ValueError if the backend does not support a mask or an option of the model.

    Only masks of whole rows are checked: attention over a cache has the backend "xla".
    """
    backend = execution.attention
    refuse(model, backend, f"execution.attention {backend!r}")
    conditions = {"segments"}
    if any(model.attention.window_pattern):
        conditions.add("window")
    # A causal decoder's self-attention, and for an encoder attention in both directions.
    for causal in {model.causal, model.causal and model.encoder is None}:
        check_backend(
            execution.attention,
            frozenset(conditions | {"causal"} if causal else conditions),
            softcap=model.attention.softcap,
            dtype=execution.compute_dtype,
            platform=platform,
            sinks=model.attention.sinks,
            value_dim=model.value_dim != model.head_dim,
            bias=isinstance(model.positions, RelativePositionsConfig),
        )
