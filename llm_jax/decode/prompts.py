"""The batch that decoding begins with, as the architecture has it."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.models import check_encoder_length, rows_of
from llm_jax.types import Batch


def prefill_batch(config: ModelConfig, tokens: Array, lengths: Array) -> Batch:
    """The batch that decoding begins with.

    Args:
        config: the architecture.
        tokens: int [B, T], prompts, padded on the right.
        lengths: int [B], tokens of each prompt.

    Returns:
        The prompts; or, where an encoder reads the prompts, one start token in each row, with the
        prompts as ``encoder``.

    Raises:
        ConfigError: the prompts are too long for the encoder.
    """
    if config.encoder is None:
        return rows_of(tokens, lengths)
    check_encoder_length(config, tokens.shape[1])
    start = jnp.full((tokens.shape[0], 1), config.start_token, jnp.int32)
    batch = rows_of(start, jnp.ones_like(lengths))
    return batch._replace(encoder=rows_of(tokens, lengths).inputs)
