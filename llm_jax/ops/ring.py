"""Attention over tiles of keys that pass round a ring of devices (``ops.blockwise``).

Its gradient is written by hand, with the keys passing round once more: JAX's own would keep what
every device held in every turn, the keys of the whole row.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.ops.meshes import vary_like
from llm_jax.ops.precision import accumulator
from llm_jax.ops.tiles import (
    Keys,
    Pairs,
    Rows,
    Static,
    capped_scores,
    forward_pass,
    meet,
    product,
    rotate,
    seen,
    turns,
)


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
    rows: Rows
    g: Array
    normalizer: Array
    delta: Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend_round(static: Static, q: Array, q_rows: Rows, keys: Keys, sinks: Array | None) -> Array:
    """Attention of this device's queries over the keys of all devices: [tiles, B, K, G, b, H]."""
    return forward_pass(static, q, q_rows, keys, sinks, Pairs())[0]


def _forward(
    static: Static, q: Array, q_rows: Rows, keys: Keys, sinks: Array | None
) -> tuple[Array, tuple]:
    out, normalizer = forward_pass(static, q, q_rows, keys, sinks, Pairs())
    # A remat policy that keeps these names need not run the forward pass again.
    out = checkpoint_name(out, "attention_out")
    normalizer = checkpoint_name(normalizer, "attention_out")
    return out, (q, q_rows, keys, sinks, out, normalizer)


def _backward(static: Static, saved: tuple, g: Array) -> tuple:
    q, q_rows, keys, sinks, out, normalizer = saved
    acc = accumulator(q)
    delta = jnp.sum(g.astype(acc) * out.astype(acc), axis=-1)
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

                together = meet(static, query.rows, key.rows)
                d_q, d_k, d_v = jax.lax.cond(together, work, lambda: sums)
                return d_q, (d_k, d_v)

            d_q, d_keys = jax.lax.scan(key_tile, d_q, (keys, d_keys))
            return d_keys, d_q

        following = rotate(static, keys)
        d_keys, d_q = jax.lax.scan(query_tile, d_keys, (queries, d_q))
        # The gradients of keys travel with them, and are back on their device after a whole turn.
        return (following, rotate(static, d_keys), d_q), None

    def zeros(x: Array) -> Array:
        return vary_like(jnp.zeros(x.shape, acc), x)

    start = (keys, (zeros(keys.k), zeros(keys.v)), zeros(q))
    (_, (d_k, d_v), d_q), _ = jax.lax.scan(turn, start, None, length=turns(static))
    d_keys = Keys(d_k.astype(keys.k.dtype), d_v.astype(keys.v.dtype), None)  # type: ignore[arg-type]
    return d_q.astype(q.dtype), None, d_keys, d_sinks


def _add_gradients(static: Static, sums: tuple, query: _Queries, key: Keys) -> tuple:
    """Adds the gradients of one pair of tiles to (d_q, d_k, d_v)."""
    d_q, d_k, d_v = sums
    scores = capped_scores(static, query.q, key.k)
    see = seen(static, query.rows, key.rows, None)
    weights = jnp.where(see, jnp.exp(scores - query.normalizer[..., None]), 0.0)
    d_weights = product("bkgth,bksh->bkgts", query.g, key.v)
    d_scores = weights * (d_weights - query.delta[..., None])
    if static.softcap:
        d_scores *= 1.0 - jnp.square(scores / static.softcap)
    d_scores = (d_scores * static.scale).astype(query.q.dtype)
    d_v += product("bkgts,bkgth->bksh", weights.astype(query.g.dtype), query.g)
    d_k += product("bkgts,bkgth->bksh", d_scores, query.q)
    return d_q + product("bkgts,bksh->bkgth", d_scores, key.k), d_k, d_v


attend_round.defvjp(_forward, _backward)
