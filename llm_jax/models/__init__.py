"""Models. ``build`` turns a config into a ``Model`` (``models.contract``). No other folder imports
flax.
"""

from __future__ import annotations

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.contract import Head, Model, Output, rows_of
from llm_jax.models.encoder_decoder import check_encoder_length, encoder_decoder
from llm_jax.models.execution import inference_layers, resolve_execution
from llm_jax.models.explicit import takes_explicit_axes
from llm_jax.models.heads import class_logits, pooled, row_vectors
from llm_jax.models.pipeline import schedule
from llm_jax.models.row_layout import zigzag_order
from llm_jax.models.transformer import transformer

__all__ = [
    "Head",
    "Model",
    "Output",
    "build",
    "check_encoder_length",
    "class_logits",
    "inference_layers",
    "pooled",
    "resolve_execution",
    "row_vectors",
    "rows_of",
    "schedule",
    "zigzag_order",
]


def build(
    model: ModelConfig,
    execution: ExecutionConfig | None = None,
    platform: str | None = None,
    context: int = 1,
) -> Model:
    """The model of a config, as pure functions.

    Args:
        model: the architecture.
        execution: how it runs; None is the default.
        platform: cpu, gpu or tpu; None is that of the devices there are.
        context: devices that share a row, mesh.context.

    Raises:
        ConfigError: the model cannot be built.
        ValueError: an attention backend chosen by name does not support what the model needs.
    """
    make = encoder_decoder if model.encoder else transformer
    resolved = resolve_execution(execution or ExecutionConfig(), model, platform, context)
    return takes_explicit_axes(make(model, resolved))
