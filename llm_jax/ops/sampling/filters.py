"""Filters of logits [..., V]: temperature, top-k, top-p and min-p.

Edge cases follow Hugging Face: ties at the k-th logit are all kept; top-p keeps the smallest set of
most likely tokens whose mass reaches p, at least one; ties are ordered by token id; a filter that
is off changes nothing.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically, vary_together
from llm_jax.ops.precision import widened
from llm_jax.ops.sampling.draws import greedy

ORDERS = {"hf": ("top_k", "top_p", "min_p"), "vllm": ("min_p", "top_k", "top_p")}


# A setting of all rows, or one for each.
Setting = Array | float


def _setting(name: str, value: Setting, logits: Array) -> Array:
    """A setting as [..., 1], which broadcasts over logits [..., V].

    Raises:
        ValueError: it is neither one number nor one for each row.
    """
    array = jnp.asarray(value)
    rows = logits.shape[:-1]
    if array.shape not in ((), rows):
        raise ValueError(
            f"sampling setting {name} has shape {array.shape} for logits {logits.shape}; give one"
            f" number, or one for each row, {rows}"
        )
    return jnp.expand_dims(array, range(len(rows) + 1)) if array.ndim == 0 else array[..., None]


def top_k(logits: Array, k: Setting) -> Array:
    """-inf below each row's k-th largest logit.

    Args:
        logits: [..., V].
        k: int, or int [...] for each row; 0 or at least V is off.

    Raises:
        ValueError: k is not an integer, or of another shape.
    """
    V = logits.shape[-1]
    k = _setting("k", k, logits)
    if not jnp.issubdtype(k.dtype, jnp.integer):
        raise ValueError(f"sampling setting k is {k.dtype}; it must be an integer")

    def run(logits: Array, k: Array) -> Array:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        index = jnp.clip(jnp.where(k <= 0, V, k), 1, V) - 1
        index = jnp.broadcast_to(index, (*logits.shape[:-1], 1))
        threshold = jnp.take_along_axis(ordered, index, axis=-1)
        return jnp.where(logits >= threshold, logits, -jnp.inf)

    return place_automatically(run, explicit_spec(logits), logits, k)


def top_p(logits: Array, p: Setting) -> Array:
    """-inf outside the smallest set of likely tokens with mass >= p.

    Args:
        logits: [..., V].
        p: a number, or [...] for each row; 1 is off.
    """

    def run(logits: Array, p: Array) -> Array:
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        ordered = jnp.take_along_axis(logits, order, axis=-1)
        probabilities = jax.nn.softmax(widened(ordered), axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        keep = (before < p) | (p >= 1)
        keep = keep.at[..., 0].set(True)
        keep = jnp.put_along_axis(jnp.zeros_like(keep), order, keep, axis=-1, inplace=False)
        return jnp.where(keep, logits, -jnp.inf)

    return place_automatically(run, explicit_spec(logits), logits, _setting("p", p, logits))


def min_p(logits: Array, p: Setting) -> Array:
    """-inf for tokens less likely than p times the most likely one.

    Args:
        logits: [..., V].
        p: a number, or [...] for each row; 0 is off.
    """
    p = _setting("p", p, logits)
    probabilities = jax.nn.softmax(widened(logits), axis=-1)
    threshold = p * jnp.max(probabilities, axis=-1, keepdims=True)
    return jnp.where(probabilities >= threshold, logits, -jnp.inf)


def filter_logits(
    logits: Array,
    temperature: Setting,
    k: Setting = 0,
    p: Setting = 1.0,
    smallest_p: Setting = 0.0,
    *,
    order: str = "hf",
) -> Array:
    """Logits after temperature and every filter; their softmax is the distribution to draw from.

    Each setting is one number for all rows, or [...] with one for each row.

    Args:
        logits: [..., V].
        temperature: 0 keeps only the most likely token.
        k: as in ``top_k``.
        p: as in ``top_p``.
        smallest_p: the p of ``min_p``.
        order: the order of the filters, a key of ``ORDERS``.

    Returns:
        [..., V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the order is unknown, or a setting has another shape.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown filter order {order!r}; use {' or '.join(ORDERS)}")
    logits = widened(logits)
    temperature = _setting("temperature", temperature, logits).astype(logits.dtype)
    rows = logits.shape[:-1]
    given = {"k": k, "p": p, "smallest_p": smallest_p}
    settings = {
        name: jnp.broadcast_to(_setting(name, value, logits)[..., 0], rows)
        for name, value in given.items()
    }
    run = partial(_filtered, ORDERS[order])
    return place_automatically(run, explicit_spec(logits), logits, temperature, settings)


def _filtered(
    order: tuple[str, ...], logits: Array, temperature: Array, settings: dict[str, Array]
) -> Array:
    """``filter_logits`` of settings [...] and temperature [..., 1]."""
    is_greedy = temperature == 0
    ids = jnp.expand_dims(jnp.arange(logits.shape[-1]), range(logits.ndim - 1))
    best = ids == greedy(logits)[..., None]
    logits = logits / jnp.where(is_greedy, 1.0, temperature)
    logits, settings = vary_together((logits, settings))
    k = settings["k"]
    p = settings["p"]
    smallest_p = settings["smallest_p"]
    # A filter that is off in every row is skipped at run time, since sorting is expensive.
    filters = {
        "top_k": (jnp.any(k > 0), lambda z: top_k(z, k)),
        "top_p": (jnp.any(p < 1), lambda z: top_p(z, p)),
        "min_p": (jnp.any(smallest_p > 0), lambda z: min_p(z, smallest_p)),
    }
    for name in order:
        used, run = filters[name]
        logits = jax.lax.cond(used, run, lambda z: z, logits)
    return jnp.where(is_greedy & ~best, -jnp.inf, logits)
