"""The temperature and all filters, in the order of a preset."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically, vary_together
from llm_jax.ops.precision import widened
from llm_jax.ops.sampling.arguments import Setting, per_row, whole_per_row
from llm_jax.ops.sampling.filters import (
    epsilon_cutoff,
    eta_cutoff,
    min_p,
    most_likely,
    top_h,
    top_k,
    top_p,
    typical_p,
)
from llm_jax.ops.sampling.settings import Filters
from llm_jax.ops.sampling.thresholds import largest

ORDERS = {
    "hf": ("top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon", "eta"),
    "vllm": ("min_p", "top_k", "top_p", "top_h", "typical_p", "epsilon", "eta"),
}
"""The filters of each order, after the temperature. vLLM has the first three of its own."""

# Filters work on this many tokens where none of the others is left by the first of them.
HEAD = 128


def filter_logits(
    logits: Array,
    temperature: Setting,
    k: Setting = 0,
    p: Setting = 1.0,
    smallest_p: Setting = 0.0,
    *,
    order: str = "hf",
) -> Array:
    """Logits after temperature, top-k, top-p and min-p; their softmax is the distribution to draw
    from. ``warp_logits`` has all filters.

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
    filters = filters_off(logits.shape[:-1])._replace(
        temperature=per_row("temperature", temperature, logits)[..., 0],
        top_k=whole_per_row("k", k, logits)[..., 0],
        top_p=per_row("p", p, logits)[..., 0],
        min_p=per_row("smallest_p", smallest_p, logits)[..., 0],
    )
    return warp_logits(logits, filters, order=order)


def warp_logits(logits: Array, filters: Filters, *, order: str = "hf", keep: int = 1) -> Array:
    """Logits after temperature and every filter; their softmax is the distribution to draw from.

    A filter that no row uses is skipped at run time.

    Args:
        logits: [..., V].
        filters: arrays [...].
        order: the order of the filters, a key of ``ORDERS``.
        keep: tokens that each filter leaves at least; for beams, two or more.

    Returns:
        [..., V] in float32, or in float64 for logits of float64.

    Raises:
        ValueError: the order is unknown, or a setting has another shape.
    """
    check_order(order)
    for name, value in filters._asdict().items():
        per_row(name, value, logits)

    def run(logits: Array, filters: Filters) -> Array:
        logits, filters = vary_together((widened(logits), filters))
        return only_best(filtered(logits, filters, order=order, keep=keep), filters, logits)

    return place_automatically(run, explicit_spec(logits), logits, filters)


def check_order(order: str) -> None:
    """Raises ValueError for an order that is no key of ``ORDERS``."""
    if order not in ORDERS:
        raise ValueError(f"unknown filter order {order!r}; use {' or '.join(ORDERS)}")


def filters_off(rows: tuple[int, ...]) -> Filters:
    """Filters [*rows] that are off, at temperature 1."""
    none = jnp.zeros(rows)
    one = jnp.ones(rows)
    return Filters(
        temperature=one,
        top_k=jnp.zeros(rows, jnp.int32),
        top_p=one,
        min_p=none,
        typical_p=one,
        epsilon=none,
        eta=none,
        top_h=one,
    )


def only_best(logits: Array, filters: Filters, scores: Array) -> Array:
    """The logits; of rows at temperature 0, those of the most likely token by ``scores`` alone."""
    is_greedy = (filters.temperature == 0)[..., None]
    return jnp.where(is_greedy & ~most_likely(scores, 1), -jnp.inf, logits)


def filtered(logits: Array, filters: Filters, *, order: str, keep: int) -> Array:
    """``warp_logits`` that leaves rows at temperature 0 as they are; in the logits' own dtype."""
    off = filters_off(filters.temperature.shape)
    is_greedy = filters.temperature == 0
    filters = Filters(*(jnp.where(is_greedy, a, b) for a, b in zip(off, filters)))

    def run(logits: Array, filters: Filters) -> Array:
        logits = _cooled(logits, filters.temperature[..., None].astype(logits.dtype))
        each = partial(_each_filter, ORDERS[order], keep)
        if logits.shape[-1] <= 2 * HEAD:
            return each(logits, filters)
        return _by_head(each, logits, filters, is_first=ORDERS[order][0], keep=keep)

    on = jnp.stack([jnp.any(a != b) for a, b in zip(off, filters)])
    return jax.lax.cond(jnp.any(on), run, lambda z, _: z, logits, filters)


def _cooled(logits: Array, temperature: Array) -> Array:
    """Logits divided by the temperature [..., 1]."""
    # A temperature so small that the logits would overflow divides differences, none above 0.
    largest = jnp.max(logits, axis=-1, keepdims=True)
    origin = jnp.where((temperature < 1e-3) & jnp.isfinite(largest), largest, 0.0)
    return (logits - origin) / temperature


def _each_filter(order: tuple[str, ...], keep: int, logits: Array, filters: Filters) -> Array:
    """The filters one after another, each skipped where no row uses it."""
    f = filters
    stages: dict[str, tuple[Array, Callable[[Array], Array]]] = {
        "top_h": (f.top_h < 1, lambda z: top_h(z, f.top_h)),
        "top_k": (f.top_k > 0, lambda z: top_k(z, f.top_k, keep=keep)),
        "top_p": (f.top_p < 1, lambda z: top_p(z, f.top_p, keep=keep)),
        "min_p": (f.min_p > 0, lambda z: min_p(z, f.min_p, keep=keep)),
        "typical_p": (f.typical_p < 1, lambda z: typical_p(z, f.typical_p, keep=keep)),
        "epsilon": (f.epsilon > 0, lambda z: epsilon_cutoff(z, f.epsilon, keep=keep)),
        "eta": (f.eta > 0, lambda z: eta_cutoff(z, f.eta, keep=keep)),
    }
    for name in order:
        used, run = stages[name]
        logits = jax.lax.cond(jnp.any(used), run, lambda z: z, logits)
    return logits


def _by_head(
    each: Callable[[Array, Filters], Array],
    logits: Array,
    filters: Filters,
    *,
    is_first: str,
    keep: int,
) -> Array:
    """``each(logits, filters)``, computed for the most likely tokens alone in rows of which only
    they can be left. So no row depends on what others ask for.
    """
    k = jnp.maximum(filters.top_k, keep)
    small = (filters.top_k > 0) & (k < HEAD)
    by_entropy = (filters.top_h < 1) & (is_first == "top_h")

    def of_head(logits: Array) -> tuple[Array, Array]:
        best, ids = largest(logits, HEAD)
        last = best[..., -1]
        kth = jnp.take_along_axis(best, jnp.minimum(k, HEAD)[..., None] - 1, axis=-1)[..., 0]
        # No token outside the head equals the k-th, or is left at all.
        fits = by_entropy | (small & ((kth > last) | (last == -jnp.inf)))
        none = jnp.zeros(logits.shape, bool)
        left = each(best, filters) > -jnp.inf
        kept = jnp.put_along_axis(none, ids, left, axis=-1, inplace=False)
        return fits, jnp.where(kept, logits, -jnp.inf)

    def without(logits: Array) -> tuple[Array, Array]:
        return jnp.zeros_like(small), logits

    fits, narrow = jax.lax.cond(jnp.any(small | by_entropy), of_head, without, logits)
    wide = jax.lax.cond(jnp.all(fits), lambda z, _: z, each, logits, filters)
    return jnp.where(fits[..., None], narrow, wide)
