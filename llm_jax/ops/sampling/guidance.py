"""Classifier-free guidance: logits of two contexts made one."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.sampling.arguments import Setting, per_row
from llm_jax.ops.sampling.sums import log_softmax


def guide(conditional: Array, unconditional: Array, scale: Setting) -> Array:
    """log p_u + scale (log p_c - log p_u), for p_c and p_u of two logits (Sanchez et al. 2023).

    Args:
        conditional: [..., V], the logits after the prompt.
        unconditional: [..., V], the logits without it, or after a negative prompt.
        scale: a number, or [...] for each row; 1 is the first logits' log-probabilities.

    Returns:
        [..., V] in float32, or in float64 for logits of float64. A token to which the first logits
        give -inf has -inf; one to which only the second do keeps log p_c.

    Raises:
        ValueError: the shapes disagree.
    """
    if conditional.shape != unconditional.shape:
        raise ValueError(
            f"guidance got logits {conditional.shape} and {unconditional.shape}; they must agree"
        )
    with_prompt = log_softmax(conditional)
    without = log_softmax(unconditional)
    comparable = jnp.isfinite(with_prompt) & jnp.isfinite(without)
    base = jnp.where(comparable, without, 0.0)
    difference = jnp.where(comparable, with_prompt - base, 0.0)
    guided = base + per_row("scale", scale, conditional) * difference
    return jnp.where(comparable, guided, with_prompt)
