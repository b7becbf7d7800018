"""Norms, dense layers and MLPs: Linen modules that own parameters. The maths is in ``ops``."""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.config import ModelConfig
from llm_jax.config.mlp import GatedMlpConfig
from llm_jax.config.model import LayerNormConfig, RMSNormConfig
from llm_jax.models.parameters import declared, parameter, weight
from llm_jax.ops.nn import ACTIVATIONS, gated, layer_norm, rms_norm
from llm_jax.ops.weights import Weight, matmul, matmul_group
from llm_jax.sharding import constrain
from llm_jax.types import Params


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last ``over`` axes, taken as one axis.

    Attributes:
        config: the model.
        kind: "rms" or "layer"; "" is ``config.norm``.
        over: number of axes.
    """

    config: ModelConfig
    kind: str = ""
    over: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        flat = x.reshape(*x.shape[: x.ndim - self.over], -1)
        return self._norm(flat).reshape(x.shape)

    def _norm(self, x: Array) -> Array:
        c = self.config
        shape = x.shape[-1:]
        ones = nn.initializers.ones
        zeros = nn.initializers.zeros
        if (self.kind or c.norm.kind) == "rms":
            unit_offset = isinstance(c.norm, RMSNormConfig) and c.norm.unit_offset
            first = zeros if unit_offset else ones
            scale = parameter(self, "scale", declared(first, ["norm"], "norm"), shape)
            return rms_norm(x, scale, eps=c.norm.eps, unit_offset=unit_offset)
        scale = parameter(self, "scale", declared(ones, ["norm"], "norm"), shape)
        bias = None
        if isinstance(c.norm, LayerNormConfig) and c.norm.bias:
            bias = parameter(self, "bias", declared(zeros, ["norm"], "bias"), shape)
        return layer_norm(x, scale, bias, eps=c.norm.eps)


# Logical axes with their sizes.
Sizes = tuple[tuple[str, int], ...]


class Dense(nn.Module):
    """The product of the last axes of x with a kernel [inputs, outputs], and a bias.

    The kernel may be any ``ops.weights.Weight``.

    Attributes:
        inputs: axes that the product sums over.
        outputs: axes that it makes.
        std: standard deviation of the initial kernel.
        use_bias: whether there is a bias [outputs].
        group_index: index of the layer among those of one call of ``products``; None for a layer
            that is called alone.
    """

    inputs: Sizes
    outputs: Sizes
    std: float
    use_bias: bool = False
    group_index: int | None = None

    def setup(self) -> None:
        axes, shape = zip(*self.inputs, *self.outputs)
        contract = range(len(self.inputs))
        normal = nn.initializers.normal(self.std)
        init = declared(normal, axes, "matrix", contract, self.group_index)
        self.kernel: Weight = weight(self, "kernel", init, shape)
        if self.use_bias:
            axes, shape = zip(*self.outputs)
            zeros = declared(nn.initializers.zeros, axes, "bias")
            self.bias: Array = parameter(self, "bias", zeros, shape)

    def __call__(self, x: Array) -> Array:
        return self.add_bias(matmul(x, self.kernel, len(self.inputs)))

    def add_bias(self, y: Array) -> Array:
        """y [..., outputs] of a product with the kernel, named for ``execution.remat``."""
        y = checkpoint_name(y, "dot")
        if not self.use_bias:
            return y
        return y + jnp.expand_dims(self.bias.astype(y.dtype), range(y.ndim - len(self.outputs)))


def products(x: Array, layers: list[Dense]) -> list[Array]:
    """The output of each layer for the same x. Each has one input axis, and their ``group_index``
    counts from 0.
    """
    ys = matmul_group(x, [layer.kernel for layer in layers])
    return [layer.add_bias(y) for layer, y in zip(layers, ys)]


class Kernel(nn.Module):
    """A parameter ``kernel`` for products other than those of ``Dense``, which sum over its first
    axis.
    """

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    std: float

    @nn.compact
    def __call__(self) -> Weight:
        normal = nn.initializers.normal(self.std)
        return weight(self, "kernel", declared(normal, self.axes, "matrix", [0]), self.shape)


class Mlp(nn.Module):
    """A gated or plain feed-forward layer of ``hidden`` units F."""

    config: ModelConfig
    hidden: int

    @nn.compact
    def __call__(self, x: Array, length: str | None) -> Array:
        """x [B, T, D] -> [B, T, D]. length: logical axis of T."""
        c = self.config
        embed = (("embed", c.embed_dim),)
        mlp = (("mlp", self.hidden),)
        up = Dense(embed, mlp, c.init_std, c.mlp.bias, name="up")(x)
        if isinstance(c.mlp, GatedMlpConfig):
            gate = Dense(embed, mlp, c.init_std, c.mlp.bias, name="gate")(x)
            hidden = gated(
                gate, up, activation=c.mlp.activation, clamp=c.mlp.clamp, up_offset=c.mlp.up_offset
            )
        else:
            hidden = ACTIVATIONS[c.mlp.activation](up)
        hidden = checkpoint_name(place(self, hidden, "batch", length, "act_mlp"), "mlp_hidden")
        return Dense(mlp, embed, residual_std(c), c.mlp.bias, name="down")(hidden)


def place(module: nn.Module, x: Array, *axes: str | None) -> Array:
    """``sharding.constrain``, except at init, where x is one token that no mesh could split."""
    return x if module.is_initializing() else constrain(x, *axes)


def run_module(module: nn.Module, params: Params, *inputs: object) -> Any:
    """The output of ``module`` with ``params`` as its own parameters."""
    # Without mutable collections ``apply`` returns the output alone, which its type does not say.
    return cast(Any, module.apply({"params": params}, *inputs))


def residual_std(c: ModelConfig) -> float:
    """Standard deviation of the initial kernel of a projection into the residual stream.

    It keeps the variance of the residual stream independent of depth (GPT-2, section 2.3).
    """
    return c.init_std / (2 * c.num_layers) ** 0.5
