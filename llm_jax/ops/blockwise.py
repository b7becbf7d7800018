"""Attention block by block, of which [T, S] never exists: the memory of one block, any mask, and
keys that may be on other devices.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.ops.masks import Mask, dense
from llm_jax.ops.nn import soft_cap

_LOW = float(jnp.finfo(jnp.float32).min)
_NOBODY = -1  # no token's segment


def blockwise_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    *,
    scale: float,
    softcap: float = 0.0,
    sinks: Array | None = None,
    block: int = 512,
    ring: str | None = None,
) -> Array:
    """Attention with an online softmax over blocks of keys, made again block by block in the
    backward pass (Dao 2023, FlashAttention-2).

    q: [B, T, N, H], k and v: [B, S, K, H] -> [B, T, N, H], 0 where a query sees no key; the values'
    H may be another. Pairs of blocks in which nobody sees anybody, by the range of their places and
    segments, are skipped.
    sinks: [N] or None, as in ``ops.attention``.
    block: queries, and keys, of a block; rows are filled up to whole blocks.
    ring: inside ``shard_map``, the mesh axis over which rows are split: keys and values go round
    it, so that every query meets every key of its row (Liu et al. 2023, Ring Attention). The mask
    then needs q_index and k_index, places in the whole row. Raises ValueError for a ring without
    them.
    """
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    if ring is not None and (mask.q_index is None or mask.k_index is None):
        raise ValueError(
            "attention round a ring of devices needs mask.q_index and mask.k_index, the places in"
            " the whole row"
        )
    static = _Static(mask.causal, mask.window, scale, softcap, ring)
    bq, bk = min(T, block), min(S, block)
    q_segments, k_segments = mask.q_segments, mask.k_segments
    if (T % bq or S % bk) and (q_segments is None or k_segments is None):
        q_segments, k_segments = jnp.zeros((B, T), jnp.int32), jnp.zeros((B, S), jnp.int32)
    q_rows = _rows(mask.q_index, q_segments, mask.q_prefix, B, T, bq)
    k_rows = _rows(mask.k_index, k_segments, mask.k_prefix, B, S, bk)
    q_tiles = jnp.transpose(_tiles(q.reshape(B, T, K, N // K, H), bq), (0, 1, 3, 4, 2, 5))
    k_tiles, v_tiles = (jnp.swapaxes(_tiles(x, bk), 2, 3) for x in (k, v))
    # Tied to q: what a scan over layers computes from places alone JAX takes out of it, and would
    # hold the masks of all blocks at once.
    q_tiles, q_rows, k_rows = jax.lax.optimization_barrier((q_tiles, q_rows, k_rows))
    sinks = None if sinks is None else sinks.astype(jnp.float32).reshape(K, N // K)
    out = _attend(static, q_tiles, k_tiles, v_tiles, q_rows, k_rows, sinks)
    return jnp.transpose(out, (1, 0, 4, 2, 3, 5)).reshape(B, -1, N, v.shape[-1])[:, :T]


class _Static(NamedTuple):
    causal: bool
    window: int
    scale: float
    softcap: float
    ring: str | None


class _Rows(NamedTuple):
    """What the mask needs to know of tokens: [tiles, B, b] each, or [B, b] of one tile."""

    places: Array
    segments: Array | None
    prefix: Array | None


def _rows(
    places: Array | None,
    segments: Array | None,
    prefix: Array | None,
    rows: int,
    length: int,
    size: int,
) -> _Rows:
    """In tiles. What fills the last one is of a segment of its own, and its place is the last
    token's, so as to widen no range.
    """
    places = (
        jnp.broadcast_to(jnp.arange(length)[None, :], (rows, length)) if places is None else places
    )
    tiles = [
        None if x is None else _tiles(jnp.asarray(x), size, fill)
        for x, fill in ((segments, _NOBODY), (prefix, False))
    ]
    return _Rows(_tiles(jnp.asarray(places), size, None), *tiles)


def _tiles(x: Array, size: int, fill: int | bool | None = 0) -> Array:
    """[B, T, …] -> [⌈T / size⌉, B, size, …], filled up with ``fill``, or where that is None with
    the last value of each row.
    """
    widths = ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2))
    x = (
        jnp.pad(x, widths, mode="edge")
        if fill is None
        else jnp.pad(x, widths, constant_values=fill)
    )
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _seen(static: _Static, q: _Rows, k: _Rows) -> Array:
    """bool [B or 1, 1, 1, b, b]"""
    mask = Mask(
        static.causal, static.window, q.segments, k.segments, q.prefix, k.prefix, q.places, k.places
    )
    seen = dense(mask, q.places.shape[1], k.places.shape[1])
    return jnp.ones((1, 1, 1, 1, 1), bool) if seen is None else seen[:, None, None]


def _meet(static: _Static, q: _Rows, k: _Rows) -> Array:
    """bool []: False only if no query of the tile sees any key of the other."""
    least, most = partial(jnp.min, axis=1), partial(jnp.max, axis=1)
    meet = jnp.ones(q.places.shape[0], bool)
    if static.causal and q.prefix is None:
        meet &= most(q.places) >= least(k.places)
    if static.window:
        meet &= (
            jnp.maximum(least(k.places) - most(q.places), least(q.places) - most(k.places))
            < static.window
        )
    if q.segments is not None and k.segments is not None:
        meet &= (least(q.segments) <= most(k.segments)) & (least(k.segments) <= most(q.segments))
    return jnp.any(meet)


def _scores(static: _Static, q: Array, k: Array) -> Array:
    return soft_cap(
        jnp.einsum("bkgth,bksh->bkgts", q, k, preferred_element_type=jnp.float32) * static.scale,
        static.softcap,
    )


def _rotate(static: _Static, tree: tuple) -> tuple:
    """Every device's arrays to its neighbour on the ring."""
    if static.ring is None:
        return tree
    n = jax.lax.axis_size(static.ring)
    return jax.tree.map(
        lambda x: jax.lax.ppermute(x, static.ring, [(i, (i + 1) % n) for i in range(n)]), tree
    )


def _turns(static: _Static) -> int:
    return 1 if static.ring is None else jax.lax.axis_size(static.ring)


def _forward_pass(
    static: _Static, q: Array, k: Array, v: Array, q_rows: _Rows, k_rows: _Rows, sinks: Array | None
) -> tuple[Array, Array]:
    """Output [tiles, B, K, G, b, H] in q's type, and the softmax's log normaliser [tiles, B, K, G,
    b], +inf where it is over nothing.
    """

    def absorb(state: tuple, q: Array, k: Array, v: Array, q_rows: _Rows, k_rows: _Rows) -> tuple:
        most, total, out = state
        seen = _seen(static, q_rows, k_rows)
        scores = jnp.where(seen, _scores(static, q, k), _LOW)
        new = jnp.maximum(most, jnp.max(scores, axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - new[..., None]), 0.0)
        shrink = jnp.exp(most - new)
        added = jnp.einsum(
            "bkgts,bksh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return new, total * shrink + jnp.sum(weights, axis=-1), out * shrink[..., None] + added

    def query_tile(keys: tuple, xs: tuple) -> tuple:
        q, q_rows, state = xs

        def key_tile(state: tuple, xs: tuple) -> tuple:
            k, v, k_rows = xs

            def work() -> tuple:
                return absorb(state, q, k, v, q_rows, k_rows)

            return jax.lax.cond(_meet(static, q_rows, k_rows), work, lambda: state), None

        return keys, jax.lax.scan(key_tile, state, keys)[0]

    def turn(carry: tuple, _: None) -> tuple:
        keys, state = carry
        following = _rotate(static, keys)
        return (following, jax.lax.scan(query_tile, keys, (q, q_rows, state))[1]), None

    rows = jnp.zeros(q.shape[:-1], jnp.float32)
    # A sink is a key that every query has met before the first, and that has no value.
    most, total = (
        (rows + _LOW, rows) if sinks is None else (rows + sinks[None, None, :, :, None], rows + 1.0)
    )
    state = (most, total, jnp.zeros((*q.shape[:-1], v.shape[-1]), jnp.float32))
    (_, (most, total, out)), _ = jax.lax.scan(
        turn, ((k, v, k_rows), state), None, length=_turns(static)
    )
    seen = total > 0
    normaliser = jnp.where(seen, most + jnp.log(jnp.where(seen, total, 1.0)), jnp.inf)
    return (out / jnp.where(seen, total, 1.0)[..., None]).astype(q.dtype), normaliser


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    static: _Static, q: Array, k: Array, v: Array, q_rows: _Rows, k_rows: _Rows, sinks: Array | None
) -> Array:
    return _forward_pass(static, q, k, v, q_rows, k_rows, sinks)[0]


def _attend_forward(
    static: _Static, q: Array, k: Array, v: Array, q_rows: _Rows, k_rows: _Rows, sinks: Array | None
) -> tuple:
    # Named, so that a remat policy that keeps attention_out need not run the forward pass again.
    out, normaliser = (
        checkpoint_name(x, "attention_out")
        for x in _forward_pass(static, q, k, v, q_rows, k_rows, sinks)
    )
    return out, (q, k, v, q_rows, k_rows, sinks, out, normaliser)


def _attend_backward(static: _Static, saved: tuple, g: Array) -> tuple:
    q, k, v, q_rows, k_rows, sinks, out, normaliser = saved
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    d_sinks = None
    if sinks is not None:
        d_sinks = -jnp.sum(
            jnp.exp(sinks[None, None, :, :, None] - normaliser) * delta, axis=(0, 1, 4)
        )

    def gradients(d_q: Array, d_k: Array, d_v: Array, query: tuple, key: tuple) -> tuple:
        (q, q_rows, g, normaliser, delta), (k, v, k_rows) = query, key
        scores = _scores(static, q, k)
        weights = jnp.where(
            _seen(static, q_rows, k_rows), jnp.exp(scores - normaliser[..., None]), 0.0
        )
        d_weights = jnp.einsum("bkgth,bksh->bkgts", g, v, preferred_element_type=jnp.float32)
        d_scores = weights * (d_weights - delta[..., None])
        if static.softcap:
            d_scores *= 1.0 - jnp.square(scores / static.softcap)
        d_scores = (d_scores * static.scale).astype(q.dtype)
        d_v += jnp.einsum(
            "bkgts,bkgth->bksh", weights.astype(g.dtype), g, preferred_element_type=jnp.float32
        )
        d_k += jnp.einsum("bkgts,bkgth->bksh", d_scores, q, preferred_element_type=jnp.float32)
        return (
            d_q + jnp.einsum("bkgts,bksh->bkgth", d_scores, k, preferred_element_type=jnp.float32),
            d_k,
            d_v,
        )

    def turn(carry: tuple, _: None) -> tuple:
        keys, d_keys, d_q = carry

        def query_tile(d_keys: tuple, xs: tuple) -> tuple:
            query, d_q = xs

            def key_tile(d_q: Array, xs: tuple) -> tuple:
                key, (d_k, d_v) = xs

                def work() -> tuple:
                    return gradients(d_q, d_k, d_v, query, key)

                d_q, d_k, d_v = jax.lax.cond(
                    _meet(static, query[1], key[2]), work, lambda: (d_q, d_k, d_v)
                )
                return d_q, (d_k, d_v)

            d_q, d_keys = jax.lax.scan(key_tile, d_q, (keys, d_keys))
            return d_keys, d_q

        following = _rotate(static, keys)
        d_keys, d_q = jax.lax.scan(query_tile, d_keys, ((q, q_rows, g, normaliser, delta), d_q))
        # What was found for these keys goes on with them; after a whole turn of the ring it is at
        # home.
        return (following, _rotate(static, d_keys), d_q), None

    def zeros(x: Array) -> Array:
        return jnp.zeros(x.shape, jnp.float32)

    start = ((k, v, k_rows), (zeros(k), zeros(v)), zeros(q))
    (_, (d_k, d_v), d_q), _ = jax.lax.scan(turn, start, None, length=_turns(static))
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None, None, d_sinks


_attend.defvjp(_attend_forward, _attend_backward)
