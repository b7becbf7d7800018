"""The mixture of experts in place of a block's MLP: the router, experts over the mesh, and what
keeps them evenly used.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.config import ModelConfig
from llm_jax.config.mlp import BalanceBiasConfig, BalanceLossConfig, ExpertsConfig, GatedMlpConfig
from llm_jax.models.layers import Mlp, place, residual_std
from llm_jax.models.parameters import declared, weight
from llm_jax.models.pipeline import on_devices
from llm_jax.ops import moe
from llm_jax.ops.moe import Experts, Routing
from llm_jax.ops.weights import Weight, is_weight_leaf, to_array
from llm_jax.sharding import RULES, partition_spec

_READS, _WRITES = ("expert", "expert_embed", "mlp"), ("expert", "mlp", "expert_embed")
_READS_BIAS, _WRITES_BIAS = ("expert", "mlp"), ("expert", "expert_embed")
_AXES = Experts(_READS, _READS, _WRITES, _READS_BIAS, _READS_BIAS, _WRITES_BIAS)  # type: ignore[arg-type]


class Router(nn.Module):
    """Which experts a token goes to. In float32, as the choice hangs on small differences (Switch,
    section 2.4).
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Array, length: str | None) -> tuple[Routing, Array, Array | None]:
        """x: [B, T, D] -> routing [B, T, k], logits float32 [B, T, E], and the bias [E] of
        loss-free balance.
        """
        c = self.config
        e = experts_of(c)
        shape = (c.embed_dim, e.count)
        normal, zeros = nn.initializers.normal(c.init_std), nn.initializers.zeros
        kernel = weight(self, "kernel", declared(normal, ["embed", "router"], "router", [0]), shape)
        offset, bias = None, None
        if e.router_bias:
            offset = self.param("bias", declared(zeros, ["router"], "bias"), shape[1:])
        if isinstance(e.balance, BalanceBiasConfig):
            bias = self.param("balance", declared(zeros, ["router"], "balance"), shape[1:])
        logits = jnp.einsum("btd,de->bte", x.astype(jnp.float32), to_array(kernel, jnp.float32))
        logits = place(
            self, logits if offset is None else logits + offset[None, None], "batch", length, None
        )
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
    """The kernel [E, inputs, outputs] of all experts, and with ``mlp.bias`` the bias [E,
    outputs].
    """

    config: ModelConfig
    axes: tuple[str, ...]
    bias_axes: tuple[str, ...]
    shape: tuple[int, int]
    std: float

    @nn.compact
    def __call__(self) -> tuple[Weight, Array | None]:
        E = experts_of(self.config).count
        normal, zeros = nn.initializers.normal(self.std), nn.initializers.zeros
        of_kernel = declared(normal, self.axes, "matrix", [1])
        kernel = weight(self, "kernel", of_kernel, (E, *self.shape))
        if not self.config.mlp.bias:
            return kernel, None
        of_bias = declared(zeros, self.bias_axes, "bias")
        return kernel, self.param("bias", of_bias, (E, self.shape[1]))


class ExpertMlp(nn.Module):
    """Each token through its experts, and through the shared ones."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Array, length: str | None, between: str | None, loss_weights: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """x: [B, T, D], positions split as ``length``, -> [B, T, D], split as ``between``; and,
        where ``loss_weights`` (float32 [B, T], which tokens count in the loss) is given,
        ``balance_terms``.
        """
        c = self.config
        D, F = c.embed_dim, c.mlp.hidden_dim
        routing, logits, bias = Router(c, name="router")(x, length)

        def reads(name):
            return _Dense(c, _READS, _READS_BIAS, (D, F), c.init_std, name=name)()

        up, up_bias = reads("up")
        gate, gate_bias = reads("gate") if c.mlp.kind == "gated" else (None, None)
        down, down_bias = _Dense(c, _WRITES, _WRITES_BIAS, (F, D), residual_std(c), name="down")()
        experts = jax.tree.map(
            lambda w: to_array(w, x.dtype),
            Experts(gate, up, down, gate_bias, up_bias, down_bias),
            is_leaf=is_weight_leaf,
        )
        shared_count = experts_of(c).shared
        shared = Mlp(c, shared_count * F, name="shared")(x, length) if shared_count else None
        # At init the batch is a stand-in of one token, which no mesh could split.
        if self.is_initializing():
            return x, {}
        y = through_experts(c, x, routing, experts, length, between)
        if shared is not None:
            y = y + place(self, shared, "batch", between, "act_embed")
        return y, {} if loss_weights is None else balance_terms(
            c, routing, logits, bias, loss_weights
        )


def balance_terms(
    c: ModelConfig, routing: Routing, logits: Array, bias: Array | None, loss_weights: Array
) -> dict[str, Array]:
    """Float32 sums over counted tokens. load: [E], tokens that chose each expert; the rest are
    scalars for the loss: balance (0 for loss-free balance, whose gradient by the bias is the load
    less its mean) and router_z (ST-MoE, equation 5).
    """
    e = experts_of(c)
    load = jnp.sum(moe.row_loads(routing, loss_weights), axis=0)
    terms = {"load": load}
    if bias is not None:
        terms["balance"] = moe.load_gradient(bias, load)
    elif isinstance(e.balance, BalanceLossConfig):
        terms["balance"] = e.balance.weight * moe.balance_loss(routing, loss_weights)
    if e.router_z_loss:
        terms["router_z"] = e.router_z_loss * jnp.sum(
            jnp.square(jax.nn.logsumexp(logits, axis=-1)) * loss_weights
        )
    return terms


def through_experts(
    c: ModelConfig,
    x: Array,
    routing: Routing,
    experts: Experts,
    length: str | None,
    between: str | None,
) -> Array:
    """``ops.moe.apply_experts`` of x: [B, T, D], whose positions are split as ``length``, on the
    current mesh -> [B, T, D], positions split as ``between``. Experts are split over mesh.expert,
    to which tokens travel, and their hidden units over mesh.tensor.

    Raises ConfigError for a dimension that does not divide.
    """

    def alone(
        x: Array, chosen: Array, weights: Array, experts: Experts, axis: str | None = None
    ) -> Array:
        flat = Routing(
            chosen.reshape(-1, chosen.shape[-1]), weights.reshape(-1, weights.shape[-1]), weights
        )
        how: dict[str, Any] = {"activation": c.mlp.activation, "axis": axis}
        if isinstance(c.mlp, GatedMlpConfig):
            how |= {"clamp": c.mlp.clamp, "up_offset": c.mlp.up_offset}
        return moe.apply_experts(x.reshape(-1, x.shape[-1]), flat, experts, **how).reshape(x.shape)

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape.values()) == 1:
        return alone(x, routing.experts, routing.weights, experts)

    def on_device(x: Array, chosen: Array, weights: Array, experts: Experts) -> Array:
        whole = Experts(
            *(w if w is None else _gathered(w, axes) for w, axes in zip(experts, _AXES))
        )
        if whole.down_bias is not None and mesh.shape["tensor"] > 1:
            # Devices that have parts of the hidden units add their sums up, in which a bias is
            # once.
            whole = whole._replace(
                down_bias=jnp.where(jax.lax.axis_index("tensor") == 0, whole.down_bias, 0)
            )
        y = alone(x, chosen, weights, whole, "expert" if mesh.shape["expert"] > 1 else None)
        if mesh.shape["tensor"] == 1:
            return y
        if between == length:
            return jax.lax.psum(y, "tensor")
        return jax.lax.psum_scatter(y, "tensor", scatter_dimension=1, tiled=True)

    # This leaves out the name and not what the gather itself gives, so that with remat none
    # gathered kernels are kept for the backward pass; memory is estimated so (plan.memory).
    policy = jax.checkpoint_policies.save_anything_except_these_names("gathered")

    def spec(axes, a, name):
        return partition_spec(axes, a.shape, mesh.shape, name)

    rows = spec(("batch", length, None), x, "tokens")
    weights = Experts(
        *(w if w is None else spec(axes, w, "experts") for w, axes in zip(experts, _AXES))
    )
    out = spec(("batch", between, None), x, "tokens")
    run = on_devices(jax.checkpoint(on_device, policy=policy), (rows, rows, rows, weights), out)
    return run(x, routing.experts, routing.weights, experts)


def _gathered(a: Array, axes: tuple[str, ...]) -> Array:
    """An expert's kernel or bias whole in D, inside ``shard_map``."""
    split = tuple(name for name in RULES["expert_embed"] or () if jax.lax.axis_size(name) > 1)
    if not split or "expert_embed" not in axes:
        return a
    return checkpoint_name(
        jax.lax.all_gather(a, split, axis=axes.index("expert_embed"), tiled=True), "gathered"
    )
