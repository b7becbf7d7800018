"""The mixture of experts in place of a block's MLP: the router, the experts over the mesh, and the
terms that balance them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from llm_jax.config import ModelConfig
from llm_jax.config.mlp import BalanceBiasConfig, BalanceLossConfig, ExpertsConfig, GatedMlpConfig
from llm_jax.models.layers import Mlp, place, residual_std
from llm_jax.models.parameters import declared, parameter, weight
from llm_jax.models.pipeline import on_devices
from llm_jax.models.row_layout import PositionAxes
from llm_jax.ops import moe
from llm_jax.ops.moe import Experts, Routing
from llm_jax.ops.weights import Weight, is_weight_leaf, to_array
from llm_jax.sharding import RULES, own_sizes, partition_spec

# Logical axes of the kernels and biases that read the residual stream (gate and up), and of those
# that write to it (down).
_READS = ("expert", "expert_embed", "mlp")
_WRITES = ("expert", "mlp", "expert_embed")
_READS_BIAS = ("expert", "mlp")
_WRITES_BIAS = ("expert", "expert_embed")
# In the order of the fields of ``Experts``.
_AXES = (_READS, _READS, _WRITES, _READS_BIAS, _READS_BIAS, _WRITES_BIAS)


class Router(nn.Module):
    """Chooses the experts of each token.

    It computes in float32, since small differences decide the choice (Switch, section 2.4).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, length: str | None) -> tuple[Routing, Array, Array | None]:
        """Routes x [B, T, D].

        Returns:
            The routing [B, T, k], the logits float32 [B, T, E], and the bias [E] of loss-free
            balance or None.
        """
        c = self.config
        e = experts_of(c)
        shape = (c.embed_dim, e.count)
        normal = nn.initializers.normal(c.init_std)
        zeros = nn.initializers.zeros
        kernel = weight(self, "kernel", declared(normal, ["embed", "router"], "router", [0]), shape)
        offset = None
        if e.router_bias:
            offset = parameter(self, "bias", declared(zeros, ["router"], "bias"), shape[1:])
        bias = None
        if isinstance(e.balance, BalanceBiasConfig):
            bias = parameter(self, "balance", declared(zeros, ["router"], "balance"), shape[1:])
        logits = jnp.einsum("btd,de->bte", x.astype(jnp.float32), to_array(kernel, jnp.float32))
        if offset is not None:
            logits = logits + offset[None, None]
        logits = place(self, logits, "batch", length, None)
        routing = moe.route(
            logits,
            e.per_token,
            router=e.router,
            normalize=e.normalize,
            scale=e.scale,
            bias=bias,
            **_group_limits(e),
        )
        return routing, logits, bias


def experts_of(config: ModelConfig) -> ExpertsConfig:
    """The experts of a model that has some."""
    assert config.experts is not None
    return config.experts


def _group_limits(experts: ExpertsConfig) -> dict[str, Any]:
    """Arguments of ``moe.route`` for experts in groups."""
    groups = experts.groups
    if groups is None:
        return {}
    return {
        "groups": groups.count,
        "groups_per_token": groups.per_token,
        "group_score": groups.score,
    }


class _Dense(nn.Module):
    """The kernel [E, inputs, outputs] of all experts, and their bias [E, outputs] or None."""

    config: ModelConfig
    axes: tuple[str, ...]
    bias_axes: tuple[str, ...]
    shape: tuple[int, int]
    std: float

    @nn.compact
    def __call__(self) -> tuple[Weight, Array | None]:
        E = experts_of(self.config).count
        normal = nn.initializers.normal(self.std)
        of_kernel = declared(normal, self.axes, "matrix", [1])
        kernel = weight(self, "kernel", of_kernel, (E, *self.shape))
        if not self.config.mlp.bias:
            return kernel, None
        of_bias = declared(nn.initializers.zeros, self.bias_axes, "bias")
        return kernel, parameter(self, "bias", of_bias, (E, self.shape[1]))


class ExpertMlp(nn.Module):
    """Each token through its experts, and through the shared ones."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Array, axes: PositionAxes, loss_weights: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """Applies the experts.

        Args:
            x: [B, T, D], positions split as ``axes.inside``.
            axes: logical axes of the positions.
            loss_weights: float32 [B, T], which tokens count in the loss, or None.

        Returns:
            [B, T, D], positions split as ``axes.between``, and ``balance_terms``, or {} without
            ``loss_weights``.
        """
        c = self.config
        routing, logits, bias = Router(c, name="router")(x, axes.inside)
        experts = self._experts(x.dtype)
        shared = None
        count = experts_of(c).shared
        if count:
            shared = Mlp(c, count * c.mlp.hidden_dim, name="shared")(x, axes.inside)
        # At init x is one token, which no mesh could split.
        if self.is_initializing():
            return x, {}
        y = through_experts(c, x, routing, experts, axes)
        if shared is not None:
            y = y + place(self, shared, "batch", axes.between, "act_embed")
        if loss_weights is None:
            return y, {}
        return y, balance_terms(c, routing, logits, bias, loss_weights)

    def _experts(self, dtype: Any) -> Experts:
        """Kernels and biases of all experts in ``dtype``."""
        c = self.config
        up, up_bias = self._reads("up")
        gate, gate_bias = self._reads("gate") if c.mlp.kind == "gated" else (None, None)
        writes = (c.mlp.hidden_dim, c.embed_dim)
        down, down_bias = _Dense(c, _WRITES, _WRITES_BIAS, writes, residual_std(c), name="down")()
        weights = (gate, up, down, gate_bias, up_bias, down_bias)
        arrays = jax.tree.map(lambda w: to_array(w, dtype), weights, is_leaf=is_weight_leaf)
        return Experts(*arrays)

    def _reads(self, name: str) -> tuple[Weight, Array | None]:
        """The kernel [E, D, F] and the bias [E, F] of the products with the layer's input."""
        c = self.config
        shape = (c.embed_dim, c.mlp.hidden_dim)
        return _Dense(c, _READS, _READS_BIAS, shape, c.init_std, name=name)()


def balance_terms(
    c: ModelConfig, routing: Routing, logits: Array, bias: Array | None, loss_weights: Array
) -> dict[str, Array]:
    """Float32 sums over the tokens that count in the loss, by name.

    ``load`` is [E], the number of tokens that chose each expert. The others are scalars to add to
    the loss: ``balance`` (for loss-free balance it is 0 and its gradient by the bias is the load
    less its mean) and ``router_z`` (ST-MoE, equation 5).
    """
    e = experts_of(c)
    load = jnp.sum(moe.row_loads(routing, loss_weights), axis=0)
    terms = {"load": load}
    if bias is not None:
        terms["balance"] = moe.load_gradient(bias, load)
    elif isinstance(e.balance, BalanceLossConfig):
        terms["balance"] = e.balance.weight * moe.balance_loss(routing, loss_weights)
    if e.router_z_loss:
        squares = jnp.square(jax.nn.logsumexp(logits, axis=-1))
        terms["router_z"] = e.router_z_loss * jnp.sum(squares * loss_weights)
    return terms


def through_experts(
    c: ModelConfig, x: Array, routing: Routing, experts: Experts, axes: PositionAxes
) -> Array:
    """``ops.moe.apply_experts`` on the current mesh.

    Experts are split over mesh.expert, to which the tokens travel, and their hidden units over
    mesh.tensor.

    Args:
        c: the model.
        x: [B, T, D], positions split as ``axes.inside``.
        routing: of each token.
        experts: their kernels and biases.
        axes: logical axes of the positions.

    Returns:
        [B, T, D], positions split as ``axes.between``.

    Raises:
        ConfigError: a dimension does not divide over its mesh axes.
    """
    sizes = own_sizes()
    if math.prod(sizes.values()) == 1:
        return _apply_experts(x, routing.experts, routing.weights, experts, c=c, axis=None)
    apply = partial(_apply_experts, c=c, axis="expert" if sizes["expert"] > 1 else None)

    def on_device(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
        y = apply(x, chosen, weights, _whole(experts, sizes))
        return _sum_over_tensor(y, sizes, axes)

    def spec(names: Sequence[str | None], a: Array, name: str) -> PartitionSpec:
        return partition_spec(names, a.shape, sizes, name)

    tokens = spec(("batch", axes.inside, None), x, "tokens")
    kernels = _map_experts(lambda w, names: spec(names, w, "experts"), experts)
    out = spec(("batch", axes.between, None), x, "tokens")
    # The policy excludes the named values and not the results of the gathers. With execution.remat
    # "none" these are kept for the backward pass, which is what plan.memory counts.
    policy = jax.checkpoint_policies.save_anything_except_these_names("gathered")
    run = on_devices(
        jax.checkpoint(on_device, policy=policy), (tokens, tokens, tokens, kernels), out
    )
    return run(x, routing.experts, routing.weights, experts)


def _apply_experts(
    x: Array,
    chosen: Array,
    weights: Array,
    experts: Experts,
    *,
    c: ModelConfig,
    axis: str | None,
) -> Array:
    """The experts on the tokens x [B, T, D] of one device. axis: mesh axis that experts are split
    over, or None.
    """
    flat = Routing(
        chosen.reshape(-1, chosen.shape[-1]), weights.reshape(-1, weights.shape[-1]), weights
    )
    options: dict[str, Any] = {"activation": c.mlp.activation, "axis": axis}
    if isinstance(c.mlp, GatedMlpConfig):
        options |= {"clamp": c.mlp.clamp, "up_offset": c.mlp.up_offset}
    y = moe.apply_experts(x.reshape(-1, x.shape[-1]), flat, experts, **options)
    return y.reshape(x.shape)


def _whole(experts: Experts, sizes: Mapping[str, int]) -> Experts:
    """The experts of one device with D whole, inside ``shard_map``."""
    whole = _map_experts(_gathered, experts)
    if whole.down_bias is None or sizes["tensor"] == 1:
        return whole
    # Devices with parts of the hidden units add up their outputs: one of them adds the bias.
    is_first = jax.lax.axis_index("tensor") == 0
    return whole._replace(down_bias=jnp.where(is_first, whole.down_bias, 0))


def _sum_over_tensor(y: Array, sizes: Mapping[str, int], axes: PositionAxes) -> Array:
    """The sum of y [B, T, D] over the devices that have parts of the hidden units, inside
    ``shard_map``.
    """
    if sizes["tensor"] == 1:
        return y
    if axes.between == axes.inside:
        return jax.lax.psum(y, "tensor")
    return jax.lax.psum_scatter(y, "tensor", scatter_dimension=1, tiled=True)


def _map_experts(f: Callable[[Array, tuple[str, ...]], Any], experts: Experts) -> Experts:
    """``f`` of each kernel and bias and its logical axes, in the place of the array."""
    fields: list[Any] = [None if w is None else f(w, names) for w, names in zip(experts, _AXES)]
    return Experts(*fields)


def _gathered(a: Array, names: tuple[str, ...]) -> Array:
    """An expert's kernel or bias whole in D, inside ``shard_map``."""
    split = tuple(name for name in RULES["expert_embed"] or () if jax.lax.axis_size(name) > 1)
    if not split or "expert_embed" not in names:
        return a
    whole = jax.lax.all_gather(a, split, axis=names.index("expert_embed"), tiled=True)
    return checkpoint_name(whole, "gathered")
