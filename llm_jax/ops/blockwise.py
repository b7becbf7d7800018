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
from jax.custom_derivatives import SymbolicZero

from llm_jax.ops.arguments import check_attention, head_bias
from llm_jax.ops.masks import Mask, as_mask, positions
from llm_jax.ops.meshes import explicit_spec, place_automatically, vary_like, vary_together
from llm_jax.ops.precision import accumulator
from llm_jax.ops.ring import attend_round
from llm_jax.ops.tiles import (
    Keys,
    Pairs,
    Rows,
    Static,
    capped_scores,
    forward_pass,
    meet,
    pair_tiles,
    product,
    row_tiles,
    seen,
    tiles,
    with_bias,
)


def blockwise_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask | Array | None = Mask(),  # noqa: B008 (frozen)
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Array | None = None,
    bias: Array | None = None,
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
        mask: which keys a query sees, as in ``ops.attention``. A ring needs a ``Mask`` with
            q_index and k_index, the positions in the whole row.
        scale: multiplies q·k; default H**-0.5.
        softcap: c·tanh(x/c) on the scores; 0 is none.
        sinks: [N] or None, as in ``ops.attention``.
        bias: as in ``ops.attention``. It exists as a whole; a ring takes none.
        block: queries, and keys, of a block; rows are padded to whole blocks.
        ring: inside ``shard_map``, the mesh axis over which rows are split. Keys and values then
            pass round it, so that every query meets every key of its row (Liu et al. 2023, Ring
            Attention). A ring has gradients of the first order alone: no forward mode.

    Returns:
        [B, T, N, H'] in q's dtype, 0 where a query sees no key.

    Raises:
        ValueError: shapes disagree, or a ring has no positions, a bias or an array as mask.
    """
    B, T, _, H = check_attention(q, k, v, sinks)
    mask = as_mask(mask, B, T, k.shape[1])
    check_attention(q, k, v, sinks, mask)
    if ring is not None:
        _check_ring(mask, bias)
    bias = head_bias(bias, q, k)
    static = Static(mask.causal, mask.window, H**-0.5 if scale is None else scale, softcap, ring)
    run = partial(_whole_rows, static=static, block=block)
    return place_automatically(run, explicit_spec(q, 3), q, k, v, mask, sinks, bias)


def _check_ring(mask: Mask, bias: Array | None) -> None:
    if mask.q_index is None or mask.k_index is None:
        raise ValueError(
            "attention round a ring of devices needs mask.q_index and mask.k_index, the positions"
            " in the whole row"
        )
    if bias is not None or mask.visible is not None:
        raise ValueError(
            "attention round a ring of devices takes no bias and no array as mask; use"
            " ops.attention on whole rows"
        )


def _whole_rows(
    q: Array,
    k: Array,
    v: Array,
    mask: Mask,
    sinks: Array | None,
    bias: Array | None,
    *,
    static: Static,
    block: int,
) -> Array:
    """``blockwise_attention`` of checked arguments."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    bq = min(T, block)
    bk = min(S, block)
    q_segments = mask.q_segments
    k_segments = mask.k_segments
    if (T % bq or S % bk) and (q_segments is None or k_segments is None):
        q_segments = jnp.zeros((B, T), jnp.int32)
        k_segments = jnp.zeros((B, S), jnp.int32)
    q_places, k_places = (jnp.broadcast_to(x, (B, x.shape[1])) for x in _places(mask, T, S))
    q_rows = row_tiles(q_places, q_segments, mask.q_mutual, bq)
    k_rows = row_tiles(k_places, k_segments, mask.k_mutual, bk)
    q_tiles = jnp.transpose(tiles(q.reshape(B, T, K, N // K, H), bq), (0, 1, 3, 4, 2, 5))
    k_tiles = jnp.swapaxes(tiles(k, bk), 2, 3)
    v_tiles = jnp.swapaxes(tiles(v, bk), 2, 3)
    # JAX moves what a scan over layers computes from positions alone out of the scan, and would
    # hold the masks of all blocks at once; the barrier ties them to q.
    q_tiles, q_rows, k_rows = jax.lax.optimization_barrier((q_tiles, q_rows, k_rows))
    if sinks is not None:
        sinks = sinks.astype(accumulator(sinks)).reshape(K, N // K)
    pairs = _pairs(mask, bias, K, bq, bk)
    floats = _Floats(q_tiles, k_tiles, v_tiles, sinks, pairs.bias)
    marks = _Marks(q_rows, k_rows, pairs.visible)
    floats, marks = vary_together((floats, marks))
    if static.ring is None:
        out = _attend(static, floats, marks)[0]
    else:
        keys = Keys(floats.k, floats.v, marks.k)
        out = attend_round(static, floats.q, marks.q, keys, floats.sinks)
    return jnp.transpose(out, (1, 0, 4, 2, 3, 5)).reshape(B, -1, N, v.shape[-1])[:, :T]


def _places(mask: Mask, T: int, S: int) -> tuple[Array, Array]:
    if not mask.causal and not mask.window:
        # Nothing reads them.
        return jnp.zeros((1, T), jnp.int32), jnp.zeros((1, S), jnp.int32)
    return positions(mask, T, S)


def _pairs(mask: Mask, bias: Array | None, K: int, bq: int, bk: int) -> Pairs:
    """The bias and the array of a mask in pairs of tiles."""
    visible = None
    if mask.visible is not None:
        visible = pair_tiles(mask.visible, bq, bk)
    if bias is None:
        return Pairs(None, visible)
    rows, heads, T, S = bias.shape
    groups = (1, 1) if heads == 1 else (K, heads // K)
    return Pairs(pair_tiles(bias.reshape(rows, *groups, T, S), bq, bk), visible)


class _Floats(NamedTuple):
    """What is differentiated.

    Attributes:
        q: [tiles, B, K, G, b, H].
        k: [tiles, B, K, b, H].
        v: [tiles, B, K, b, H'].
        sinks: [K, G] or None.
        bias: as ``Pairs.bias``, or None.
    """

    q: Any
    k: Any
    v: Any
    sinks: Any
    bias: Any


class _Marks(NamedTuple):
    """What the mask reads: rows of queries and keys, and ``Pairs.visible``."""

    q: Rows
    k: Rows
    visible: Array | None


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(static: Static, floats: _Floats, marks: _Marks) -> tuple[Array, Array]:
    """The output [tiles, B, K, G, b, H'] and the log normalizer [tiles, B, K, G, b]."""
    keys = Keys(floats.k, floats.v, marks.k)
    pairs = Pairs(floats.bias, marks.visible)
    return forward_pass(static, floats.q, marks.q, keys, floats.sinks, pairs)


@partial(_attend.defjvp, symbolic_zeros=True)
def _attend_forward_mode(static: Static, primals: tuple, tangents: tuple) -> tuple:
    """The derivative, written so that its transpose is FlashAttention-2's backward pass.

    With weights p, a change ds of the scores and dv of the values changes the log normalizer by
    c = Σ p·ds and the output by Σ p·(ds·v + dv) - c·output. Both sums are over pairs of tiles,
    whose scores are computed again from the normalizer.
    """
    floats, marks = primals
    out, normalizer = _attend(static, floats, marks)
    # A remat policy that keeps these names need not run the forward pass again.
    out = checkpoint_name(out, "attention_out")
    normalizer = checkpoint_name(normalizer, "attention_out")
    acc = normalizer.dtype
    changes = _Floats(*(_present(x, acc) for x in tangents[0]))
    moved, change = _moved(static, floats, marks, changes, normalizer)
    if changes.sinks is not None:
        share = jnp.exp(floats.sinks[None, None, :, :, None] - normalizer)
        change = change + share * changes.sinks[None, None, :, :, None]
    # A product, not a broadcast: XLA of jax 0.10 sums the transpose of that wrongly on a CPU where
    # the gradients of several outputs are mapped together.
    moved = moved - product("nbkgth,nbkgt->nbkgth", out.astype(acc), change)
    return (out, normalizer), (moved.astype(out.dtype), change)


def _present(tangent: Any, dtype: Any) -> Array | None:
    """A tangent in the dtype of sums, or None if it is zero."""
    if tangent is None or isinstance(tangent, SymbolicZero):
        return None
    return tangent.astype(dtype)


def _moved(
    static: Static, floats: _Floats, marks: _Marks, changes: _Floats, normalizer: Array
) -> tuple[Array, Array]:
    """Σ p·(ds·v + dv) and Σ p·ds of the keys: [tiles, B, K, G, b, H'] and [tiles, B, K, G, b]."""
    keys = (Keys(floats.k, floats.v, marks.k), changes.k, changes.v)
    zeros = vary_like(
        jnp.zeros((*normalizer.shape[1:], floats.v.shape[-1]), normalizer.dtype), floats.q
    )
    start = (zeros, zeros[..., 0])

    def query_tile(_: None, xs: tuple) -> tuple:
        query, q_rows, bias, visible = xs[0]

        @partial(jax.checkpoint, prevent_cse=False)
        def key_tile(sums: tuple, query: tuple, q_rows: Rows, key: tuple, pair: tuple) -> tuple:
            def work() -> tuple:
                added = _changes_of_pair(static, query, q_rows, key, pair)
                return jax.tree.map(jnp.add, sums, added)

            return jax.lax.cond(meet(static, q_rows, key[0].rows), work, lambda: sums)

        def step(sums: tuple, xs: tuple) -> tuple:
            key, pair = xs
            return key_tile(sums, query, q_rows, key, pair), None

        return None, jax.lax.scan(step, start, (keys, (bias, visible)))[0]

    query = (floats.q, normalizer, changes.q)
    pairs = ((floats.bias, changes.bias), marks.visible)
    xs = ((query, marks.q, *pairs),)
    return jax.lax.scan(query_tile, None, xs)[1]


def _changes_of_pair(
    static: Static, query: tuple, q_rows: Rows, keys: tuple, pair: tuple
) -> tuple[Array, Array]:
    """What the keys of one tile add to the two sums of ``_moved``."""
    q, normalizer, d_q = query
    key, d_k, d_v = keys
    (bias, d_bias), visible = pair
    capped = capped_scores(static, q, key.k)
    see = seen(static, q_rows, key.rows, visible)
    logs = with_bias(capped, bias) - normalizer[..., None]
    weights = jnp.where(see, jnp.exp(jnp.where(see, logs, 0.0)), 0.0)
    terms = []
    if d_q is not None:
        terms.append(product("bkgth,bksh->bkgts", d_q, key.k))
    if d_k is not None:
        terms.append(product("bkgth,bksh->bkgts", q, d_k))
    d_scores = sum(terms) * static.scale if terms else None
    if d_scores is not None and static.softcap:
        d_scores = d_scores * (1.0 - jnp.square(capped / static.softcap))
    if d_bias is not None:
        d_scores = d_bias if d_scores is None else d_scores + d_bias
    moved = jnp.zeros((*q.shape[:-1], key.v.shape[-1]), normalizer.dtype)
    change = jnp.zeros(q.shape[:-1], normalizer.dtype)
    if d_v is not None:
        moved = moved + product("bkgts,bksh->bkgth", weights.astype(key.v.dtype), d_v)
    if d_scores is not None:
        d_scores = weights * d_scores
        moved = moved + product("bkgts,bksh->bkgth", d_scores, key.v)
        change = change + jnp.sum(d_scores, axis=-1)
    return moved, change
