"""Mixture of experts: routing, balance, and experts that may be on other devices.

No token is dropped, and every sum has a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.grouped import grouped_product
from llm_jax.ops.meshes import explicit_spec, place_automatically, vary_like, vary_together
from llm_jax.ops.nn import ACTIVATIONS, gated
from llm_jax.ops.platform import platform
from llm_jax.ops.precision import widened
from llm_jax.ops.transposes import with_transpose


class Routing(NamedTuple):
    """The experts of each token.

    Attributes:
        experts: int32 [..., k], best first.
        weights: float32 [..., k].
        scores: float32 [..., E], which sum to 1 for each token.
    """

    experts: Array
    weights: Array
    scores: Array


# The products with gate (or None) and up -> hidden units.
_Act = Callable[[Array | None, Array], Array]
# Name of the scope of experts' products, with the rows they have when evenly used.
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
    """The k experts of each token and their weights (Shazeer et al. 2017).

    Args:
        logits: float32 [..., E].
        k: experts of each token.
        router: softmax, or sigmoid (DeepSeek-V3, section 2.1.2).
        normalize: whether the k weights sum to ``scale``.
        scale: multiplies the weights.
        bias: float32 [E], added to the scores for the choice alone (loss-free balancing, Wang et
            al. 2024).
        groups: into which neighbouring experts are divided, and of which only the best are chosen
            from (``best_groups``); 0 is no groups.
        groups_per_token: how many groups are chosen from.
        group_score: of ``best_groups``.

    Raises:
        KeyError: the router is unknown.
    """
    scores = _ROUTERS[router](logits)
    chosen = scores if bias is None else scores + jnp.expand_dims(bias, range(scores.ndim - 1))
    chosen = jax.lax.stop_gradient(chosen)
    if groups:
        allowed = best_groups(chosen, groups, groups_per_token, group_score)
        chosen = jnp.where(allowed, chosen, -jnp.inf)
    experts = jax.lax.top_k(chosen, k)[1]
    # The gradient of a product with one-hot rows is a sum in order; a gather's would be a scatter.
    one_hot = jax.nn.one_hot(experts, logits.shape[-1], dtype=scores.dtype)
    weights = jnp.einsum("...e,...ke->...k", scores, one_hot)
    if normalize:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    scores = scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)
    return Routing(experts, weights * scale, scores)


def best_groups(scores: Array, groups: int, k: int, score: str) -> Array:
    """Which experts are in the k best of equal groups: bool [..., E].

    Args:
        scores: [..., E].
        groups: number of groups.
        k: how many groups are chosen.
        score: of a group: "best", its best expert's (DeepSeek-V2, section 2.2.2), or "best_two",
            the sum of its two best (DeepSeek-V3, section 2.1.2, which takes experts_per_token /
            groups_per_token of 2).
    """
    by_group = scores.reshape(*scores.shape[:-1], groups, -1)
    value = jnp.sum(jax.lax.top_k(by_group, {"best": 1, "best_two": 2}[score])[0], axis=-1)
    best = jax.lax.top_k(value, k)[1]
    chosen = jnp.any(jax.nn.one_hot(best, groups, dtype=bool), axis=-2)
    return jnp.broadcast_to(chosen[..., None], by_group.shape).reshape(scores.shape)


def row_loads(routing: Routing, counted: Array) -> Array:
    """How many of a row's counted tokens chose each expert: float32 [B, E].

    Args:
        routing: of [B, T, k] experts.
        counted: float32 [B, T].
    """
    chosen = jax.nn.one_hot(routing.experts, routing.scores.shape[-1], dtype=jnp.float32)
    return jnp.einsum("btke,bt->be", chosen, counted)


def balance_loss(routing: Routing, counted: Array) -> Array:
    """The load-balancing loss, float32 [].

    The sum over rows of (tokens of the row) · E/k · Σ_e f_e·P_e, with f_e the share of the row's
    tokens that chose expert e and P_e its mean score there (Switch, equations 4 to 6, by row as in
    DeepSeek-V3, equations 17 to 20). Even routing gives 1 a token. A sum over rows does not depend
    on how these are spread over devices and accumulation steps.

    Args:
        routing: of [B, T, k] experts.
        counted: float32 [B, T].
    """
    k = routing.experts.shape[-1]
    E = routing.scores.shape[-1]
    tokens = jnp.maximum(jnp.sum(counted, axis=1, keepdims=True), 1.0)
    share = row_loads(routing, counted) / tokens
    mean = jnp.einsum("bte,bt->be", routing.scores, counted) / tokens
    return jnp.sum(share * mean * tokens) * E / k


def load_gradient(bias: Array, loads: Array) -> Array:
    """0, whose gradient with respect to ``bias`` is ``loads`` less their mean, float32 [E].

    Loss-free balancing takes its steps against it.
    """
    return _load_gradient(*vary_together((bias, loads)))


@jax.custom_jvp
def _load_gradient(bias: Array, loads: Array) -> Array:
    return vary_like(jnp.zeros((), loads.dtype), loads)


@_load_gradient.defjvp
def _load_gradient_forward_mode(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    bias, loads = primals
    d_bias, _ = tangents
    slope = jnp.vdot(loads - jnp.mean(loads), d_bias.astype(loads.dtype))
    return _load_gradient(bias, loads), slope


class Experts(NamedTuple):
    """The experts' kernels and biases.

    Attributes:
        gate: [E, D, F]; None for a plain MLP.
        up: [E, D, F].
        down: [E, F, D].
        gate_bias: [E, F] or None.
        up_bias: [E, F] or None.
        down_bias: [E, D] or None.
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
    """The weighted sum of each token's k experts.

    Args:
        x: [n, D].
        routing: of [n, k] experts.
        experts: those of this device.
        activation: a key of ``nn.ACTIVATIONS``.
        clamp: as in ``nn.gated``.
        up_offset: as in ``nn.gated``.
        axis: inside ``shard_map``, the mesh axis over which experts are split. Tokens travel to
            their experts and back. Room is kept for the worst case, in which all tokens of all
            devices choose the experts of one device: none is dropped.

    Returns:
        [n, D] in x's dtype.
    """
    act = partial(_hidden, activation=activation, clamp=clamp, up_offset=up_offset)
    run = partial(_weighted_sum, act=act, axis=axis)
    if axis is not None:
        return run(x, routing, experts)
    # Rows are sorted, which no Explicit axis may split.
    return place_automatically(run, explicit_spec(x), x, routing, experts)


def _weighted_sum(
    x: Array, routing: Routing, experts: Experts, *, act: _Act, axis: str | None
) -> Array:
    """As ``apply_experts``, with ``act`` as in ``_grouped``."""
    n = x.shape[0]
    k = routing.experts.shape[1]
    E = experts.up.shape[0] * (1 if axis is None else jax.lax.axis_size(axis))
    flat = routing.experts.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    rows = _permuted(jnp.repeat(x, k, axis=0), order, jnp.argsort(order))
    counts = jnp.sum(jax.nn.one_hot(flat, E, dtype=jnp.int32), axis=0)
    if axis is None:
        out = _grouped(rows, counts, experts, act, n * k)
    else:
        room = jax.lax.axis_size(axis) * n * min(k, experts.up.shape[0])
        out = _travelling(rows, counts, experts, act, axis=axis, room=room)
    out = _permuted(out, jnp.argsort(order), order).reshape(n, k, -1)
    return jnp.einsum("nkd,nk->nd", widened(out), routing.weights).astype(x.dtype)


def _travelling(
    rows: Array, counts: Array, experts: Experts, act: _Act, *, axis: str, room: int
) -> Array:
    """Rows sorted by expert, sent to the devices of their experts and back: [n·k, D].

    Args:
        rows: [n·k, D].
        counts: int32 [E], rows of each expert.
        experts: those of this device.
        act: as in ``_grouped``.
        axis: the mesh axis over which experts are split.
        room: rows that this device can receive.
    """
    ways = jax.lax.axis_size(axis)
    local = experts.up.shape[0]
    by_sender = jax.lax.all_gather(counts, axis)  # [ways, E]
    sizes = jnp.sum(by_sender.reshape(ways, ways, local), axis=-1)  # [from, to]
    arrived = exchange(rows, sizes, room, axis)
    first = jax.lax.axis_index(axis) * local
    own = jax.lax.dynamic_slice_in_dim(by_sender, first, local, axis=1)  # [from, local]
    expert = jnp.repeat(
        jnp.tile(jnp.arange(local), ways), own.reshape(-1), total_repeat_length=room
    )
    expert = jnp.where(jnp.arange(room) < jnp.sum(own), expert, local)
    by_expert = jnp.argsort(expert, stable=True)
    back = jnp.argsort(by_expert)
    grouped = _permuted(arrived, by_expert, back)
    done = _grouped(grouped, jnp.sum(own, axis=0), experts, act, rows.shape[0])
    return exchange(_permuted(done, back, by_expert), sizes.T, rows.shape[0], axis)


def _hidden(
    gate: Array | None, up: Array, *, activation: str, clamp: float, up_offset: float
) -> Array:
    if gate is None:
        return ACTIVATIONS[activation](up)
    return gated(gate, up, activation=activation, clamp=clamp, up_offset=up_offset)


def _grouped(rows: Array, counts: Array, experts: Experts, act: _Act, even: int) -> Array:
    """Applies experts to rows sorted by expert; 0 for rows beyond the counted ones.

    Args:
        rows: [m, D].
        counts: int32 [E], rows of each expert.
        experts: their kernels.
        act: hidden units from the products with gate (or None) and up.
        even: rows there are when experts are evenly used.
    """
    # What a backend leaves in rows of no group is undefined, and must not reach a gradient.
    real = (jnp.arange(rows.shape[0]) < jnp.sum(counts))[:, None]

    # The name tells plan.trace how many of the rows are work; the others are spare room.
    scope = EVEN_ROWS.format(even)

    def dot(a: Array, w: Array) -> Array:
        return jnp.where(real, grouped_product(a, w, counts, scope=scope), 0)

    def dense(a: Array, w: Array, bias: Array | None) -> Array:
        if bias is None:
            return dot(a, w)
        # A bias is the kernel of an input of 1: its gradient then is a sum in order, where a
        # gather's would be a scatter.
        return dot(a, w) + dot(jnp.ones_like(a[:, :1]), bias[:, None])

    gate = None if experts.gate is None else dense(rows, experts.gate, experts.gate_bias)
    hidden = act(gate, dense(rows, experts.up, experts.up_bias))
    return dense(hidden, experts.down, experts.down_bias)


def _permuted(x: Array, order: Array, inverse: Array) -> Array:
    """Rows ``order`` of x. The gradient's are looked up too, and not added one by one."""
    return with_transpose(_rows_in_order, _rows_in_inverse_order, (order, inverse), x)


def _rows_in_order(order: Array, _: Array, x: Array) -> Array:
    return jnp.take(x, order, axis=0)


def _rows_in_inverse_order(_: Array, inverse: Array, x: Array) -> Array:
    return jnp.take(x, inverse, axis=0)


def exchange(rows: Array, sizes: Array, room: int, axis: str) -> Array:
    """All-to-all of parts of unequal size, inside ``shard_map``.

    Args:
        rows: [m, D], sorted by the device they go to.
        sizes: int32 [from, to], rows that each device sends to each.
        room: rows that this device can receive.
        axis: the mesh axis.

    Returns:
        [room, D]: the rows from device 0, 1, ... in turn, then zeros.
    """
    there = partial(_exchange, room=room, axis=axis)
    back = partial(_exchange_back, room=rows.shape[0], axis=axis)
    return with_transpose(there, back, (sizes,), rows)


def _exchange_back(sizes: Array, rows: Array, *, room: int, axis: str) -> Array:
    return _exchange(sizes.T, rows, room=room, axis=axis)


def _exchange(sizes: Array, rows: Array, *, room: int, axis: str) -> Array:
    me = jax.lax.axis_index(axis)
    m = rows.shape[0]
    # Where a sender's rows for a receiver start, and where they go there.
    starts = jnp.cumsum(sizes, axis=1) - sizes
    places = jnp.cumsum(sizes, axis=0) - sizes
    if platform() == "cpu":
        # The CPU compiler has no ragged all-to-all.
        everything = jax.lax.all_gather(rows, axis).reshape(-1, rows.shape[1])
        ends = jnp.cumsum(sizes[:, me])
        place = jnp.arange(room)
        sender = jnp.minimum(jnp.searchsorted(ends, place, side="right"), len(ends) - 1)
        source = sender * m + starts[sender, me] + place - places[sender, me]
        taken = jnp.take(everything, source, axis=0, mode="clip")
        return jnp.where((place < ends[-1])[:, None], taken, 0)
    out = jnp.zeros((room, rows.shape[1]), rows.dtype)
    return jax.lax.ragged_all_to_all(
        rows, out, starts[me], sizes[me], places[me], sizes[:, me], axis_name=axis
    )
