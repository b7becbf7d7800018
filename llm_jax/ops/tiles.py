"""Tiles of queries and keys, and attention's forward pass over them (``ops.blockwise``)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.masks import Mask, dense
from llm_jax.ops.meshes import vary_like
from llm_jax.ops.nn import soft_cap
from llm_jax.ops.precision import accumulator

# A segment that no token has.
NO_SEGMENT = -1


class Static(NamedTuple):
    """What is known when the program is compiled.

    Attributes:
        causal: of the mask.
        window: of the mask.
        scale: multiplies q·k.
        softcap: of the scores.
        ring: the mesh axis over which rows are split, or None.
    """

    causal: bool
    window: int
    scale: float
    softcap: float
    ring: str | None = None


class Rows(NamedTuple):
    """What the mask reads of tokens: [tiles, B, b] each, or [B, b] of one tile."""

    places: Array
    segments: Array | None
    mutual: Array | None


class Keys(NamedTuple):
    """Keys and values [tiles, B, K, b, H] and their rows, or those of one tile."""

    k: Array
    v: Array
    rows: Rows


class Pairs(NamedTuple):
    """What a query and a key have together: [query tiles, key tiles, …], or of fewer tiles.

    Attributes:
        bias: on the scores, [B or 1, K or 1, G or 1, b, b] of a pair of tiles, or None.
        visible: bool [B or 1, b, b] of a pair of tiles, or None.
    """

    bias: Array | None = None
    visible: Array | None = None


def tiles(x: Array, size: int, fill: int | bool | None = 0) -> Array:
    """[B, T, ...] -> [⌈T / size⌉, B, size, ...].

    The last tile is padded with ``fill``, or with each row's last value where ``fill`` is None.
    """
    widths = ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2))
    if fill is None:
        x = jnp.pad(x, widths, mode="edge")
    else:
        x = jnp.pad(x, widths, constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def row_tiles(places: Array, segments: Array | None, mutual: Array | None, size: int) -> Rows:
    """Tiles of ``size`` tokens.

    Padding has a segment of its own and the last token's position, so that it widens no range.
    """
    return Rows(
        tiles(jnp.asarray(places), size, None),
        None if segments is None else tiles(jnp.asarray(segments), size, NO_SEGMENT),
        None if mutual is None else tiles(jnp.asarray(mutual), size),
    )


def pair_tiles(x: Array, queries: int, keys: int) -> Array:
    """[..., T, S] -> [query tiles, key tiles, ..., queries, keys], padded with 0."""
    T, S = x.shape[-2:]
    x = jnp.pad(x, (*((0, 0),) * (x.ndim - 2), (0, -T % queries), (0, -S % keys)))
    x = x.reshape(*x.shape[:-2], -1, queries, x.shape[-1] // keys, keys)
    return jnp.moveaxis(x, (-4, -2), (0, 1))


def seen(static: Static, q: Rows, k: Rows, visible: Array | None) -> Array:
    """Which keys of a tile the queries of another see: bool [B or 1, 1, 1, b, b]."""
    mask = Mask(
        static.causal,
        static.window,
        q.segments,
        k.segments,
        q.mutual,
        k.mutual,
        q.places,
        k.places,
        visible,
    )
    found = dense(mask, q.places.shape[1], k.places.shape[1])
    return jnp.ones((1, 1, 1, 1, 1), bool) if found is None else found[:, None, None]


def meet(static: Static, q: Rows, k: Rows) -> Array:
    """bool []: False only if no query of the one tile sees any key of the other."""
    least = partial(jnp.min, axis=1)
    most = partial(jnp.max, axis=1)
    found = jnp.ones(q.places.shape[0], bool)
    if static.causal and q.mutual is None:
        found &= most(q.places) >= least(k.places)
    if static.window:
        after = least(k.places) - most(q.places)
        before = least(q.places) - most(k.places)
        found &= jnp.maximum(after, before) < static.window
    if q.segments is not None and k.segments is not None:
        found &= (least(q.segments) <= most(k.segments)) & (least(k.segments) <= most(q.segments))
    return vary_like(jnp.any(found), q.places)


def product(equation: str, a: Array, b: Array) -> Array:
    """An einsum that accumulates in float32, or in float64 where that is the arrays' own."""
    return jnp.einsum(equation, a, b, preferred_element_type=accumulator(a, b))


def capped_scores(static: Static, q: Array, k: Array) -> Array:
    """The scores of a pair of tiles after the soft-cap, [B, K, G, b, b]."""
    return soft_cap(product("bkgth,bksh->bkgts", q, k) * static.scale, static.softcap)


def with_bias(scores: Array, bias: Array | None) -> Array:
    return scores if bias is None else scores + bias.astype(scores.dtype)


def rotate(static: Static, tree: Any) -> Any:
    """Sends every device's arrays to its neighbour on the ring."""
    ring = static.ring
    if ring is None:
        return tree
    n = jax.lax.axis_size(ring)
    neighbours = [(i, (i + 1) % n) for i in range(n)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, ring, neighbours), tree)


def turns(static: Static) -> int:
    """Devices of the ring."""
    return 1 if static.ring is None else jax.lax.axis_size(static.ring)


def forward_pass(
    static: Static, q: Array, q_rows: Rows, keys: Keys, sinks: Array | None, pairs: Pairs
) -> tuple[Array, Array]:
    """The output and the log normalizer of the softmax, by an online softmax.

    Returns:
        [tiles, B, K, G, b, H] in q's dtype, and [tiles, B, K, G, b], +inf where a query sees no
        key.
    """
    acc = accumulator(q, keys.k, keys.v)
    low = jnp.finfo(acc).min

    def absorb(state: tuple, q: Array, q_rows: Rows, key: Keys, pair: Pairs) -> tuple:
        most, total, out = state
        see = seen(static, q_rows, key.rows, pair.visible)
        scores = with_bias(capped_scores(static, q, key.k), pair.bias)
        scores = jnp.where(see, scores, low)
        new = jnp.maximum(most, jnp.max(scores, axis=-1))
        weights = jnp.where(see, jnp.exp(scores - new[..., None]), 0.0)
        shrink = jnp.exp(most - new)
        added = product("bkgts,bksh->bkgth", weights.astype(key.v.dtype), key.v)
        return new, total * shrink + jnp.sum(weights, axis=-1), out * shrink[..., None] + added

    def query_tile(keys: Keys, xs: tuple) -> tuple:
        q, q_rows, pairs, state = xs

        def key_tile(state: tuple, xs: tuple) -> tuple:
            key, pair = xs

            def work() -> tuple:
                return absorb(state, q, q_rows, key, pair)

            return jax.lax.cond(meet(static, q_rows, key.rows), work, lambda: state), None

        return keys, jax.lax.scan(key_tile, state, (keys, pairs))[0]

    def turn(carry: tuple, _: None) -> tuple:
        keys, state = carry
        following = rotate(static, keys)
        return (following, jax.lax.scan(query_tile, keys, (q, q_rows, pairs, state))[1]), None

    most, total = _first_state(q, sinks, acc)
    zeros = vary_like(jnp.zeros((*q.shape[:-1], keys.v.shape[-1]), acc), q)
    state = (most, total, zeros)
    (_, (most, total, out)), _ = jax.lax.scan(turn, (keys, state), None, length=turns(static))
    any_seen = total > 0
    total = jnp.where(any_seen, total, 1.0)
    normalizer = jnp.where(any_seen, most + jnp.log(total), jnp.inf)
    return (out / total[..., None]).astype(q.dtype), normalizer


def _first_state(q: Array, sinks: Array | None, acc: Any) -> tuple[Array, Array]:
    """The maximum and the sum of the online softmax before the first key, [tiles, B, K, G, b]."""
    rows = vary_like(jnp.zeros(q.shape[:-1], acc), q)
    if sinks is None:
        return rows + jnp.finfo(acc).min, rows
    # A sink is a key without a value that every query sees before the first.
    return rows + sinks[None, None, :, :, None], rows + 1.0
