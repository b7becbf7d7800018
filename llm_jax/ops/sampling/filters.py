"""Filters of logits [B, V]: temperature, top-k, top-p and min-p.

Edge cases follow Hugging Face: ties at the k-th logit are all kept; top-p keeps the smallest set of
most likely tokens whose mass reaches p, at least one; ties are ordered by token id; a filter that
is off changes nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.sampling.draws import greedy

ORDERS = {"hf": ("top_k", "top_p", "min_p"), "vllm": ("min_p", "top_k", "top_p")}


def top_k(logits: Array, k: Array) -> Array:
    """-inf below each row's k-th largest logit; k: int [B], 0 or at least V is off."""
    V = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    index = jnp.clip(jnp.where(k <= 0, V, k), 1, V) - 1
    threshold = jnp.take_along_axis(ordered, index[:, None], axis=-1)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def top_p(logits: Array, p: Array) -> Array:
    """-inf outside the smallest set of likely tokens with mass >= p; p: float [B], 1 is off."""
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    ordered = jnp.take_along_axis(logits, order, axis=-1)
    probabilities = jax.nn.softmax(ordered.astype(jnp.float32), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    keep = (before < p[:, None]) | (p[:, None] >= 1)
    keep = keep.at[:, 0].set(True)
    rows = jnp.arange(logits.shape[0])[:, None]
    return jnp.where(jnp.zeros(logits.shape, bool).at[rows, order].set(keep), logits, -jnp.inf)


def min_p(logits: Array, p: Array) -> Array:
    """-inf for tokens less likely than p times the most likely one; p: float [B], 0 is off."""
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    threshold = p[:, None] * jnp.max(probabilities, axis=-1, keepdims=True)
    return jnp.where(probabilities >= threshold, logits, -jnp.inf)


def filter_logits(
    logits: Array, temperature: Array, k: Array, p: Array, smallest_p: Array, *, order: str = "hf"
) -> Array:
    """Logits after temperature and every filter; their softmax is the distribution to draw from.

    Args:
        logits: [B, V].
        temperature: float [B]; rows with 0 keep only their most likely token.
        k: int [B], as in ``top_k``.
        p: float [B], as in ``top_p``.
        smallest_p: float [B], the p of ``min_p``.
        order: the order of the filters, a key of ``ORDERS``.

    Returns:
        float32 [B, V].

    Raises:
        ValueError: the order is unknown.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown filter order {order!r}; use {' or '.join(ORDERS)}")
    logits = logits.astype(jnp.float32)
    is_greedy = (temperature == 0)[:, None]
    best = jnp.arange(logits.shape[-1])[None, :] == greedy(logits)[:, None]
    logits = logits / jnp.where(is_greedy, 1.0, temperature[:, None])
    # A filter that is off in every row is skipped at run time, since sorting is expensive.
    filters = {
        "top_k": (jnp.any(k > 0), lambda z: top_k(z, k)),
        "top_p": (jnp.any(p < 1), lambda z: top_p(z, p)),
        "min_p": (jnp.any(smallest_p > 0), lambda z: min_p(z, smallest_p)),
    }
    for name in ORDERS[order]:
        used, run = filters[name]
        logits = jax.lax.cond(used, run, lambda z: z, logits)
    return jnp.where(is_greedy & ~best, -jnp.inf, logits)
