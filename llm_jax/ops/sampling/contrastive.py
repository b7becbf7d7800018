"""Contrastive search: a token that is likely, and unlike what the text has (Su et al. 2022)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.precision import accumulator
from llm_jax.ops.sampling.arguments import Setting, per_row


def contrastive_scores(
    probabilities: Array, candidates: Array, context: Array, mask: Array, alpha: Setting
) -> Array:
    """(1 - alpha) p - alpha max cos(h, c) of each candidate, over the tokens c of the text.

    The next token is the candidate with the largest score. At alpha 0 it is the most likely one.

    Args:
        probabilities: [B, k], of the k most likely tokens.
        candidates: [B, k, D], the hidden state of each, were it the next token.
        context: [B, S, D], the hidden states of the text.
        mask: bool [B, S], the places that hold a token.
        alpha: from 0 to 1, a number or [B].

    Returns:
        [B, k], at least float32. Where the text has no token, the maximum counts as 0; so does the
        cosine of a vector of zeros.

    Raises:
        ValueError: the shapes disagree.
    """
    B, k = probabilities.shape
    D = candidates.shape[-1]
    fits = candidates.shape == (B, k, D) and context.shape == (*mask.shape, D)
    if not fits or mask.shape[0] != B:
        raise ValueError(
            f"contrastive_scores got probabilities {probabilities.shape}, candidates"
            f" {candidates.shape}, context {context.shape} and mask {mask.shape}; expected [B, k],"
            " [B, k, D], [B, S, D] and [B, S]"
        )
    dtype = accumulator(probabilities, candidates, context)
    ours = _unit(candidates.astype(dtype))
    theirs = _unit(context.astype(dtype))
    cosines = jnp.einsum("bkd,bsd->bks", ours, theirs, precision="highest")
    seen = mask[:, None, :]
    nearest = jnp.max(jnp.where(seen, cosines, -1.0), axis=-1)
    nearest = jnp.where(jnp.any(seen, axis=-1), nearest, 0.0)
    weight = per_row("alpha", alpha, probabilities).astype(dtype)
    return (1 - weight) * probabilities.astype(dtype) - weight * nearest


def _unit(x: Array) -> Array:
    """Vectors [..., D] of length 1; those of zeros stay."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    is_zero = squared == 0
    return jnp.where(is_zero, 0.0, x / jnp.sqrt(jnp.where(is_zero, 1.0, squared)))
