"""Blockwise attention: [T, S] is never materialized, with any mask and keys on other devices.

Its memory is that of one block of queries and one block of keys.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.ops.masks import Mask, dense
from llm_jax.ops.nn import soft_cap

_LOW = float(jnp.finfo(jnp.float32).min)
# A segment that no token has.
_NO_SEGMENT = -1


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
    """Attention with an online softmax over blocks of keys (Dao 2023, FlashAttention-2).

    The backward pass computes the scores again, block by block. Pairs of blocks in which no query
    sees a key, by the ranges of their positions and segments, are skipped.

    Args:
        q: [B, T, N, H].
        k: [B, S, K, H].
        v: [B, S, K, H'].
        mask: which keys a query sees. A ring needs its q_index and k_index, the positions in the
            whole row.
        scale: multiplies q·k.
        softcap: c·tanh(x/c) on the scores; 0 is none.
        sinks: [N] or None, as in ``ops.attention``.
        block: queries, and keys, of a block; rows are padded to whole blocks.
        ring: inside ``shard_map``, the mesh axis over which rows are split. Keys and values then
            pass round it, so that every query meets every key of its row (Liu et al. 2023, Ring
            Attention).

    Returns:
        [B, T, N, H'], 0 where a query sees no key.

    Raises:
        ValueError: a ring without q_index and k_index.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    if ring is not None and (mask.q_index is None or mask.k_index is None):
        raise ValueError(
            "attention round a ring of devices needs mask.q_index and mask.k_index, the positions"
            " in the whole row"
        )
    static = _Static(mask.causal, mask.window, scale, softcap, ring)
    bq = min(T, block)
    bk = min(S, block)
    q_segments = mask.q_segments
    k_segments = mask.k_segments
    if (T % bq or S % bk) and (q_segments is None or k_segments is None):
        q_segments = jnp.zeros((B, T), jnp.int32)
        k_segments = jnp.zeros((B, S), jnp.int32)
    q_rows = _rows(_positions(mask.q_index, B, T), q_segments, mask.q_mutual, bq)
    k_rows = _rows(_positions(mask.k_index, B, S), k_segments, mask.k_mutual, bk)
    q_tiles = jnp.transpose(_tiles(q.reshape(B, T, K, N // K, H), bq), (0, 1, 3, 4, 2, 5))
    k_tiles = jnp.swapaxes(_tiles(k, bk), 2, 3)
    v_tiles = jnp.swapaxes(_tiles(v, bk), 2, 3)
    # JAX moves what a scan over layers computes from positions alone out of the scan, and would
    # hold the masks of all blocks at once; the barrier ties them to q.
    q_tiles, q_rows, k_rows = jax.lax.optimization_barrier((q_tiles, q_rows, k_rows))
    sinks = None if sinks is None else sinks.astype(jnp.float32).reshape(K, N // K)
    out = _attend(static, q_tiles, q_rows, _Keys(k_tiles, v_tiles, k_rows), sinks)
    return jnp.transpose(out, (1, 0, 4, 2, 3, 5)).reshape(B, -1, N, v.shape[-1])[:, :T]


class _Static(NamedTuple):
    causal: bool
    window: int
    scale: float
    softcap: float
    ring: str | None


class _Rows(NamedTuple):
    """What the mask reads of tokens: [tiles, B, b] each, or [B, b] of one tile."""

    places: Array
    segments: Array | None
    mutual: Array | None


class _Keys(NamedTuple):
    """Keys and values [tiles, B, K, b, H] and their rows, or those of one tile."""

    k: Array
    v: Array
    rows: _Rows


class _Queries(NamedTuple):
    """What the backward pass reads of queries: all tiles, or those of one.

    Attributes:
        q: [tiles, B, K, G, b, H].
        rows: of the queries.
        g: gradient of the output, like q.
        normalizer: log normalizer of the softmax, [tiles, B, K, G, b].
        delta: the sum over H of output times its gradient, [tiles, B, K, G, b].
    """

    q: Array
    rows: _Rows
    g: Array
    normalizer: Array
    delta: Array


def _positions(index: Array | None, rows: int, length: int) -> Array:
    """The given positions, or 0, 1, 2, ... in each row: [rows, length]."""
    if index is None:
        return jnp.broadcast_to(jnp.arange(length)[None, :], (rows, length))
    return index


def _rows(places: Array, segments: Array | None, mutual: Array | None, size: int) -> _Rows:
    """Tiles of ``size`` tokens.

    Padding has a segment of its own and the last token's position, so that it widens no range.
    """
    return _Rows(
        _tiles(jnp.asarray(places), size, None),
        None if segments is None else _tiles(jnp.asarray(segments), size, _NO_SEGMENT),
        None if mutual is None else _tiles(jnp.asarray(mutual), size),
    )


def _tiles(x: Array, size: int, fill: int | bool | None = 0) -> Array:
    """[B, T, ...] -> [⌈T / size⌉, B, size, ...].

    The last tile is padded with ``fill``, or with each row's last value where ``fill`` is None.
    """
    widths = ((0, 0), (0, -x.shape[1] % size), *((0, 0),) * (x.ndim - 2))
    if fill is None:
        x = jnp.pad(x, widths, mode="edge")
    else:
        x = jnp.pad(x, widths, constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _seen(static: _Static, q: _Rows, k: _Rows) -> Array:
    """Which keys of a tile the queries of another see: bool [B or 1, 1, 1, b, b]."""
    mask = Mask(
        static.causal, static.window, q.segments, k.segments, q.mutual, k.mutual, q.places, k.places
    )
    seen = dense(mask, q.places.shape[1], k.places.shape[1])
    return jnp.ones((1, 1, 1, 1, 1), bool) if seen is None else seen[:, None, None]


def _meet(static: _Static, q: _Rows, k: _Rows) -> Array:
    """bool []: False only if no query of the one tile sees any key of the other."""
    least = partial(jnp.min, axis=1)
    most = partial(jnp.max, axis=1)
    meet = jnp.ones(q.places.shape[0], bool)
    if static.causal and q.mutual is None:
        meet &= most(q.places) >= least(k.places)
    if static.window:
        after = least(k.places) - most(q.places)
        before = least(q.places) - most(k.places)
        meet &= jnp.maximum(after, before) < static.window
    if q.segments is not None and k.segments is not None:
        meet &= (least(q.segments) <= most(k.segments)) & (least(k.segments) <= most(q.segments))
    return jnp.any(meet)


def _scores(static: _Static, q: Array, k: Array) -> Array:
    return soft_cap(_product("bkgth,bksh->bkgts", q, k) * static.scale, static.softcap)


def _rotate(static: _Static, tree: Any) -> Any:
    """Sends every device's arrays to its neighbour on the ring."""
    ring = static.ring
    if ring is None:
        return tree
    n = jax.lax.axis_size(ring)
    neighbours = [(i, (i + 1) % n) for i in range(n)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, ring, neighbours), tree)


def _turns(static: _Static) -> int:
    return 1 if static.ring is None else jax.lax.axis_size(static.ring)


def _forward_pass(
    static: _Static, q: Array, q_rows: _Rows, keys: _Keys, sinks: Array | None
) -> tuple[Array, Array]:
    """The output and the log normalizer of the softmax.

    Returns:
        [tiles, B, K, G, b, H] in q's dtype, and [tiles, B, K, G, b], +inf where a query sees no
        key.
    """

    def absorb(state: tuple, q: Array, q_rows: _Rows, key: _Keys) -> tuple:
        most, total, out = state
        seen = _seen(static, q_rows, key.rows)
        scores = jnp.where(seen, _scores(static, q, key.k), _LOW)
        new = jnp.maximum(most, jnp.max(scores, axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - new[..., None]), 0.0)
        shrink = jnp.exp(most - new)
        added = _product("bkgts,bksh->bkgth", weights.astype(key.v.dtype), key.v)
        return new, total * shrink + jnp.sum(weights, axis=-1), out * shrink[..., None] + added

    def query_tile(keys: _Keys, xs: tuple) -> tuple:
        q, q_rows, state = xs

        def key_tile(state: tuple, key: _Keys) -> tuple:
            def work() -> tuple:
                return absorb(state, q, q_rows, key)

            return jax.lax.cond(_meet(static, q_rows, key.rows), work, lambda: state), None

        return keys, jax.lax.scan(key_tile, state, keys)[0]

    def turn(carry: tuple, _: None) -> tuple:
        keys, state = carry
        following = _rotate(static, keys)
        return (following, jax.lax.scan(query_tile, keys, (q, q_rows, state))[1]), None

    most, total = _first_state(q, sinks)
    state = (most, total, jnp.zeros((*q.shape[:-1], keys.v.shape[-1]), jnp.float32))
    (_, (most, total, out)), _ = jax.lax.scan(turn, (keys, state), None, length=_turns(static))
    seen = total > 0
    normalizer = jnp.where(seen, most + jnp.log(jnp.where(seen, total, 1.0)), jnp.inf)
    return (out / jnp.where(seen, total, 1.0)[..., None]).astype(q.dtype), normalizer


def _first_state(q: Array, sinks: Array | None) -> tuple[Array, Array]:
    """The maximum and the sum of the online softmax before the first key, [tiles, B, K, G, b]."""
    rows = jnp.zeros(q.shape[:-1], jnp.float32)
    if sinks is None:
        return rows + _LOW, rows
    # A sink is a key without a value that every query sees before the first.
    return rows + sinks[None, None, :, :, None], rows + 1.0


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, q: Array, q_rows: _Rows, keys: _Keys, sinks: Array | None) -> Array:
    return _forward_pass(static, q, q_rows, keys, sinks)[0]


def _attend_forward(
    static: _Static, q: Array, q_rows: _Rows, keys: _Keys, sinks: Array | None
) -> tuple[Array, tuple]:
    out, normalizer = _forward_pass(static, q, q_rows, keys, sinks)
    # A remat policy that keeps these names need not run the forward pass again.
    out = checkpoint_name(out, "attention_out")
    normalizer = checkpoint_name(normalizer, "attention_out")
    return out, (q, q_rows, keys, sinks, out, normalizer)


def _attend_backward(static: _Static, saved: tuple, g: Array) -> tuple:
    q, q_rows, keys, sinks, out, normalizer = saved
    delta = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    d_sinks = None
    if sinks is not None:
        share = jnp.exp(sinks[None, None, :, :, None] - normalizer)
        d_sinks = -jnp.sum(share * delta, axis=(0, 1, 4))
    queries = _Queries(q, q_rows, g, normalizer, delta)

    def turn(carry: tuple, _: None) -> tuple:
        keys, d_keys, d_q = carry

        def query_tile(d_keys: tuple, xs: tuple) -> tuple:
            query, d_q = xs

            def key_tile(d_q: Array, xs: tuple) -> tuple:
                key, (d_k, d_v) = xs
                sums = (d_q, d_k, d_v)

                def work() -> tuple:
                    return _add_gradients(static, sums, query, key)

                meet = _meet(static, query.rows, key.rows)
                d_q, d_k, d_v = jax.lax.cond(meet, work, lambda: sums)
                return d_q, (d_k, d_v)

            d_q, d_keys = jax.lax.scan(key_tile, d_q, (keys, d_keys))
            return d_keys, d_q

        following = _rotate(static, keys)
        d_keys, d_q = jax.lax.scan(query_tile, d_keys, (queries, d_q))
        # The gradients of keys travel with them, and are back on their device after a whole turn.
        return (following, _rotate(static, d_keys), d_q), None

    start = (keys, (_zeros(keys.k), _zeros(keys.v)), _zeros(q))
    (_, (d_k, d_v), d_q), _ = jax.lax.scan(turn, start, None, length=_turns(static))
    d_keys = _Keys(d_k.astype(keys.k.dtype), d_v.astype(keys.v.dtype), None)  # type: ignore[arg-type]
    return d_q.astype(q.dtype), None, d_keys, d_sinks


def _zeros(x: Array) -> Array:
    return jnp.zeros(x.shape, jnp.float32)


def _add_gradients(static: _Static, sums: tuple, query: _Queries, key: _Keys) -> tuple:
    """Adds the gradients of one pair of tiles to (d_q, d_k, d_v)."""
    d_q, d_k, d_v = sums
    scores = _scores(static, query.q, key.k)
    seen = _seen(static, query.rows, key.rows)
    weights = jnp.where(seen, jnp.exp(scores - query.normalizer[..., None]), 0.0)
    d_weights = _product("bkgth,bksh->bkgts", query.g, key.v)
    d_scores = weights * (d_weights - query.delta[..., None])
    if static.softcap:
        d_scores *= 1.0 - jnp.square(scores / static.softcap)
    d_scores = (d_scores * static.scale).astype(query.q.dtype)
    d_v += _product("bkgts,bkgth->bksh", weights.astype(query.g.dtype), query.g)
    d_k += _product("bkgts,bkgth->bksh", d_scores, query.q)
    return d_q + _product("bkgts,bksh->bkgth", d_scores, key.k), d_k, d_v


def _product(equation: str, a: Array, b: Array) -> Array:
    """An einsum that accumulates in float32."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


_attend.defvjp(_attend_forward, _attend_backward)
