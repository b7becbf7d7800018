"""Models: the only floor that imports flax. ``build`` turns a config into a ``Model`` (see
``models.contract``).
"""

from __future__ import annotations

import dataclasses

import jax

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.config.positions import RelativePositionsConfig
from llm_jax.config.validate import remat_names
from llm_jax.models.contract import Head, Model, Output, rows_of
from llm_jax.models.decoder import decoder
from llm_jax.models.encoder import class_logits, pooled
from llm_jax.models.encoder_decoder import encoder_decoder
from llm_jax.models.pipeline import schedule
from llm_jax.ops.attention import check_backend
from llm_jax.types import ConfigError

__all__ = [
    "Head",
    "Model",
    "Output",
    "build",
    "class_logits",
    "pooled",
    "resolve_execution",
    "rows_of",
    "schedule",
]


def resolve_execution(
    execution: ExecutionConfig, model: ModelConfig, platform: str | None = None, context: int = 1
) -> ExecutionConfig:
    """``execution`` with every ``auto`` replaced by what suits ``platform`` (default: that of the
    devices there are) and a mesh with ``context`` shares of each row.

    Raises ValueError when a backend chosen by name cannot honour what the model needs.
    """
    remat_names(execution.remat)
    platform = platform or jax.default_backend()
    dtype = execution.compute_dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    layers = execution.layers
    if layers == "auto":
        layers = "unroll" if platform == "cpu" and model.num_layers <= 12 else "scan"
    attention, ring = execution.attention, context > 1 and execution.context == "ring"
    if attention == "auto":
        fits = (
            dtype == "bfloat16"
            and not model.attention.softcap
            and model.attention.head_dim % 8 == 0
            and model.attention.head_dim <= 256
        )
        fits = (
            fits
            and not model.attention.sinks
            and model.attention.value_dim == model.attention.head_dim
        )
        both_ways, bias = (
            not model.causal or model.encoder is not None,
            isinstance(model.positions, RelativePositionsConfig),
        )
        fused = {"tpu": "xla" if both_ways else "splash", "gpu": "cudnn" if fits else "xla"}.get(
            platform, "xla"
        )
        fused = "xla" if bias else fused
        attention = "blockwise" if ring else fused
    if context > 1 and model.encoder:
        raise ConfigError(
            "model.encoder is 'on': rows of an encoder and a decoder are not split over"
            f" mesh.context {context}; set it to 1, and use the other axes"
        )
    if context > 1 and isinstance(model.positions, RelativePositionsConfig):
        raise ConfigError(
            f"model.positions 'relative' is not split over mesh.context {context}; set it to 1, and"
            " use the other axes"
        )
    if ring and attention != "blockwise":
        raise ConfigError(
            f"execution.attention {attention!r} cannot go round the ring of mesh.context {context};"
            " use blockwise, or execution.context all_to_all"
        )
    # Over a cache the layers use "xla", so only the masks of whole rows are checked here.
    masks = frozenset({"segments"} | ({"window"} if any(model.attention.window_pattern) else set()))
    for causal in {model.causal, model.causal and not model.encoder}:
        check_backend(
            attention,
            masks | ({"causal"} if causal else set()),
            softcap=model.attention.softcap,
            dtype=dtype,
            platform=platform,
            sinks=model.attention.sinks,
            value_dim=model.attention.value_dim != model.attention.head_dim,
            bias=isinstance(model.positions, RelativePositionsConfig),
        )
    return dataclasses.replace(execution, compute_dtype=dtype, layers=layers, attention=attention)


def build(
    model: ModelConfig,
    execution: ExecutionConfig | None = None,
    platform: str | None = None,
    context: int = 1,
) -> Model:
    """The model of a config, as pure functions, for ``platform`` (default: that of the devices
    there are) and a mesh with ``context`` shares of each row.

    Raises ConfigError or ValueError for what cannot be built.
    """
    make = encoder_decoder if model.encoder else decoder
    return make(model, resolve_execution(execution or ExecutionConfig(), model, platform, context))
