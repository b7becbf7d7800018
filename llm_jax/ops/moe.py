"""Mixture of experts: routing, balance, and experts that may live on other devices. No token is
dropped, and every sum is ordered.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.nn import ACTIVATIONS, gated
from llm_jax.ops.platform import platform


class Routing(NamedTuple):
    """experts: int32 [..., k], most fitting first · weights: float32 [..., k] · scores: float32
    [..., E], each token's sum to 1.
    """

    experts: Array
    weights: Array
    scores: Array


EVEN_ROWS = "experts_{}_rows"

_ROUTERS: dict[str, Callable[[Array], Array]] = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
}


def route(
    logits: Array,
    k: int,
    *,
    router: str = "softmax",
    normalize: bool = True,
    scale: float = 1.0,
    bias: Array | None = None,
    groups: int = 0,
    groups_per_token: int = 1,
    group_score: str = "best",
) -> Routing:
    """The k experts of each token and what each counts (Shazeer et al. 2017; sigmoid: DeepSeek-V3,
    section 2.1.2).

    logits: float32 [..., E]. normalize: the k weights sum to ``scale``. bias: float32 [E], added to
    the scores for the choice alone (loss-free balancing, Wang et al. 2024). groups: of as many
    groups of neighbouring experts only the ``groups_per_token`` best are chosen from
    (``best_groups``); 0 is all. Raises KeyError for another router.
    """
    scores = _ROUTERS[router](logits)
    chosen = scores if bias is None else scores + jnp.expand_dims(bias, range(scores.ndim - 1))
    chosen = jax.lax.stop_gradient(chosen)
    if groups:
        chosen = jnp.where(
            best_groups(chosen, groups, groups_per_token, group_score), chosen, -jnp.inf
        )
    experts = jax.lax.top_k(chosen, k)[1]
    # A product with one-hot rows, whose gradient is a sum in order; a gather's would be a scatter.
    weights = jnp.einsum(
        "...e,...ke->...k", scores, jax.nn.one_hot(experts, logits.shape[-1], dtype=scores.dtype)
    )
    if normalize:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    return Routing(
        experts, weights * scale, scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)
    )


def best_groups(scores: Array, groups: int, k: int, score: str) -> Array:
    """bool [..., E]: which experts are of the k best of ``groups`` equal groups, by each one's
    "best" score (DeepSeek-V2, section 2.2.2) or the sum of its "best_two" (DeepSeek-V3, section
    2.1.2, with experts_per_token / groups_per_token of 2). scores: [..., E].
    """
    by_group = scores.reshape(*scores.shape[:-1], groups, -1)
    value = jnp.sum(jax.lax.top_k(by_group, {"best": 1, "best_two": 2}[score])[0], axis=-1)
    best = jax.lax.top_k(value, k)[1]
    chosen = jnp.any(jax.nn.one_hot(best, groups, dtype=bool), axis=-2)
    return jnp.broadcast_to(chosen[..., None], by_group.shape).reshape(scores.shape)


def row_loads(routing: Routing, counted: Array) -> Array:
    """float32 [B, E]: how many of a row's counted tokens chose each expert. experts: [B, T, k],
    counted: float32 [B, T].
    """
    chosen = jax.nn.one_hot(routing.experts, routing.scores.shape[-1], dtype=jnp.float32)
    return jnp.einsum("btke,bt->be", chosen, counted)


def balance_loss(routing: Routing, counted: Array) -> Array:
    """float32 []: sum over rows of (tokens of the row) · E/k · Σ_e f_e·P_e, with f_e the share of
    the row's tokens that chose expert e, P_e its mean score there (Switch, equations 4 to 6, by row
    as in DeepSeek-V3, equations 17 to 20). Even routing gives 1 a token.

    By row, so that it is a sum over rows however these are spread over devices and accumulation
    steps.
    """
    k, E = routing.experts.shape[-1], routing.scores.shape[-1]
    tokens = jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1.0)
    share = row_loads(routing, counted) / tokens
    mean = jnp.einsum("bte,bt->be", routing.scores, counted) / tokens
    return jnp.sum(share * mean * tokens) * E / k


@jax.custom_vjp
def load_gradient(bias: Array, loads: Array) -> Array:
    """0, whose gradient with respect to ``bias`` is ``loads`` less their mean, float32 [E]: what
    loss-free balancing steps against.
    """
    return jnp.zeros((), jnp.float32)


load_gradient.defvjp(
    lambda bias, loads: (load_gradient(bias, loads), loads),
    lambda loads, g: (g * (loads - jnp.mean(loads)), jnp.zeros_like(loads)),
)


class Experts(NamedTuple):
    """gate and up: [E, D, F] (gate None: a plain MLP), down: [E, F, D]; biases of these, [E, F] and
    [E, D], or None.
    """

    gate: Array | None
    up: Array
    down: Array
    gate_bias: Array | None = None
    up_bias: Array | None = None
    down_bias: Array | None = None


def apply_experts(
    x: Array,
    routing: Routing,
    experts: Experts,
    *,
    activation: str,
    clamp: float = 0.0,
    up_offset: float = 0.0,
    axis: str | None = None,
) -> Array:
    """Each token through its k experts, weighted. x: [n, D], routing: [n, k] -> [n, D] in x's type.
    clamp, up_offset: as in ``nn.gated``.

    axis: inside ``shard_map``, the mesh axis over which experts are split; tokens travel to theirs
    and back. Room is kept for the worst
    case, in which all tokens of all devices choose the experts of one: none is ever dropped.
    """
    (n, _), k, local = x.shape, routing.experts.shape[1], experts.up.shape[0]
    ways = 1 if axis is None else jax.lax.axis_size(axis)
    E, act = local * ways, partial(_hidden, activation=activation, clamp=clamp, up_offset=up_offset)
    flat = routing.experts.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    rows = _permuted(jnp.repeat(x, k, axis=0), order, jnp.argsort(order))
    counts = jnp.sum(jax.nn.one_hot(flat, E, dtype=jnp.int32), axis=0)
    if axis is None:
        out = _grouped(rows, counts, experts, act, n * k)
    else:
        by_sender = jax.lax.all_gather(counts, axis)  # [ways, E]
        sizes = jnp.sum(by_sender.reshape(ways, ways, local), axis=-1)  # [from, to]
        room = ways * n * min(k, local)
        arrived = exchange(rows, sizes, room, axis)
        mine = jax.lax.dynamic_slice_in_dim(
            by_sender, jax.lax.axis_index(axis) * local, local, axis=1
        )  # [from, local]
        which = jnp.repeat(
            jnp.tile(jnp.arange(local), ways), mine.reshape(-1), total_repeat_length=room
        )
        which = jnp.where(jnp.arange(room) < jnp.sum(mine), which, local)
        by_expert = jnp.argsort(which, stable=True)
        back = jnp.argsort(by_expert)
        done = _grouped(
            _permuted(arrived, by_expert, back), jnp.sum(mine, axis=0), experts, act, n * k
        )
        out = exchange(_permuted(done, back, by_expert), sizes.T, n * k, axis)
    out = _permuted(out, jnp.argsort(order), order).reshape(n, k, -1)
    return jnp.einsum("nkd,nk->nd", out.astype(jnp.float32), routing.weights).astype(x.dtype)


def _hidden(
    gate: Array | None, up: Array, *, activation: str, clamp: float, up_offset: float
) -> Array:
    if gate is None:
        return ACTIVATIONS[activation](up)
    return gated(gate, up, activation=activation, clamp=clamp, up_offset=up_offset)


def _grouped(
    rows: Array,
    counts: Array,
    experts: Experts,
    act: Callable[[Array | None, Array], Array],
    even: int,
) -> Array:
    """Rows [m, D] sorted by expert, ``counts`` [E] of each, through their experts; 0 for rows
    beyond. even: rows there are when experts are evenly used.
    """
    real = (jnp.arange(rows.shape[0]) < jnp.sum(counts))[:, None]
    # What a backend leaves in rows of no group is its own affair, and must not reach a gradient.

    def dot(a: Array, w: Array) -> Array:
        # Room for the worst case is no work: the name tells whoever counts FLOPs how many rows are
        # real (plan.trace).
        with jax.named_scope(EVEN_ROWS.format(even)):
            return jnp.where(real, jax.lax.ragged_dot(a, w, counts), 0)

    def dense(a: Array, w: Array, bias: Array | None) -> Array:
        # A bias is the kernel of an input of 1, so that its gradient too is a sum in order; a
        # gather's would be a scatter.
        return (
            dot(a, w) if bias is None else dot(a, w) + dot(jnp.ones_like(a[:, :1]), bias[:, None])
        )

    gate = None if experts.gate is None else dense(rows, experts.gate, experts.gate_bias)
    return dense(
        act(gate, dense(rows, experts.up, experts.up_bias)), experts.down, experts.down_bias
    )


@jax.custom_vjp
def _permuted(x: Array, order: Array, inverse: Array) -> Array:
    return jnp.take(x, order, axis=0)


_permuted.defvjp(
    lambda x, order, inverse: (_permuted(x, order, inverse), (order, inverse)),
    lambda saved, g: (jnp.take(g, saved[1], axis=0), None, None),
)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def exchange(rows: Array, sizes: Array, room: int, axis: str) -> Array:
    """All-to-all of parts of unequal size, inside ``shard_map``. rows: [m, D], sorted by the device
    they go to; sizes: int32 [from, to]; returns [room, D], what came from device 0, 1, … in turn,
    then zeros.
    """
    me, m = jax.lax.axis_index(axis), rows.shape[0]
    starts = jnp.cumsum(sizes, axis=1) - sizes  # where sender's rows for a receiver start
    places = jnp.cumsum(sizes, axis=0) - sizes  # where they go at the receiver
    if platform() == "cpu":  # whose compiler has no ragged all-to-all
        everything = jax.lax.all_gather(rows, axis).reshape(-1, rows.shape[1])
        ends = jnp.cumsum(sizes[:, me])
        place = jnp.arange(room)
        sender = jnp.minimum(jnp.searchsorted(ends, place, side="right"), len(ends) - 1)
        source = sender * m + starts[sender, me] + place - places[sender, me]
        return jnp.where(
            (place < ends[-1])[:, None], jnp.take(everything, source, axis=0, mode="clip"), 0
        )
    out = jnp.zeros((room, rows.shape[1]), rows.dtype)
    return jax.lax.ragged_all_to_all(
        rows, out, starts[me], sizes[me], places[me], sizes[:, me], axis_name=axis
    )


exchange.defvjp(
    lambda rows, sizes, room, axis: (exchange(rows, sizes, room, axis), (sizes, rows.shape[0])),
    lambda room, axis, saved, g: (exchange(g, saved[0].T, saved[1], axis), None),
)
