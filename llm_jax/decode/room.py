"""How many tokens of a row decoding has room for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.decode.programs import BUCKET
from llm_jax.decode.prompts import prefill_batch
from llm_jax.models import Model
from llm_jax.types import Batch, ConfigError


def fit(prompt: int, new: int, make: Callable[[int], Any]) -> int:
    """A length for the prompt and the new tokens, rounded up where the context allows it.

    Args:
        prompt: tokens of the prompt.
        new: tokens to write.
        make: makes what has this length; raises ConfigError where the context is shorter.
    """
    needed = prompt + new
    problem = None
    for length in (-(-needed // BUCKET) * BUCKET, needed):
        try:
            jax.eval_shape(partial(make, length))
            return length
        except ConfigError as error:
            problem = error
    raise ConfigError(
        f"prompt of {prompt} tokens and max_new_tokens {new} do not fit the context: "
        f"{problem}; shorten the prompt or lower max_new_tokens"
    ) from problem


def begins(model: Model, length: int) -> Batch:
    """Shapes of the batch that decoding begins with, for prompts of ``length`` tokens."""
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(partial(prefill_batch, model.config), tokens, lengths)
