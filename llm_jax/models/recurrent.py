"""Recurrent layers: the modules. The maths is in ``ops.recurrent``."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.models.blocks import Block
from llm_jax.models.inputs import LayerInput, LayerOutput
from llm_jax.models.layers import Dense, Kernel, place, residual_std
from llm_jax.models.parameters import declared, parameter
from llm_jax.ops.cache import LayerCache, RecurrentCache
from llm_jax.ops.nn import dropout
from llm_jax.ops.recurrent import lstm, segment_begins
from llm_jax.ops.weights import Weight
from llm_jax.sharding import constrain_with_grad

# Input, forget, candidate and output; the bias of the second is ``model.recurrent.forget_bias``.
_GATES = 4
_FORGET = 1


class Lstm(nn.Module):
    """A layer of long short-term memory, and a projection where its state has another width."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Array, inputs: LayerInput, cache: RecurrentCache | None
    ) -> tuple[Array, RecurrentCache | None]:
        """x [B, T, D] -> [B, T, D], and the cache after the chunk."""
        c = self.config
        begins, real = _marks(inputs, x.shape[1])
        state = None
        if cache is not None and inputs.chunk is not None:
            state = cache.state(inputs.chunk)
        length = inputs.axes.inside
        gates = place(self, self._gates(x), "batch", length, None, "act_mlp")
        y, last = lstm(gates, self._recurrent(), state, begins=begins, real=real)
        y = place(self, y, "batch", length, "act_mlp")
        if c.state_dim != c.embed_dim:
            state_width = (("mlp", c.state_dim),)
            y = Dense(state_width, (("embed", c.embed_dim),), residual_std(c), name="out")(y)
        return y, None if cache is None else cache.written(last)

    def _gates(self, x: Array) -> Array:
        """What the input makes of each gate, with the bias: [B, T, 4, F]."""
        c = self.config
        outputs = (("gate", _GATES), ("mlp", c.state_dim))
        gates = Dense((("embed", c.embed_dim),), outputs, c.init_std, name="input")(x)
        assert c.recurrent is not None
        first = declared(_gate_bias(c.recurrent.forget_bias), ["gate", "mlp"], "bias")
        bias = parameter(self, "bias", first, (_GATES, c.state_dim))
        return gates + bias.astype(gates.dtype)[None, None]

    def _recurrent(self) -> Weight:
        """The kernel that multiplies the state, gathered once and not in every step."""
        c = self.config
        axes = ("state", "gate", "mlp")
        kernel = Kernel(axes, (c.state_dim, _GATES, c.state_dim), c.init_std, name="recurrent")()
        if self.is_initializing() or not isinstance(kernel, Array):
            return kernel
        return constrain_with_grad(kernel, (None, None, "act_mlp"), axes)


class RecurrentBlock(Block):
    """A recurrent layer, which ``model.recurrent.residual`` adds to the residual stream."""

    @nn.compact
    def __call__(self, x: Array, inputs: LayerInput, cache: LayerCache | None) -> LayerOutput:
        """The residual stream x [B, T, D], or the output of the layer before, through the layer."""
        c = self.config
        own = None
        if cache is not None:
            assert isinstance(cache.own, RecurrentCache)
            own = cache.own
        layer = Lstm(c, name="lstm")
        assert c.recurrent is not None
        if c.recurrent.residual:
            y, own = layer(self._input("lstm", x, inputs.axes), inputs, own)
            y = self._output("lstm", y, inputs.axes, inputs.dropout_key)
            x = self._post_norm("lstm_norm", x + y)
        else:
            y, own = layer(self._gathered(x, inputs.axes), inputs, own)
            y = place(self, y, "batch", inputs.axes.between, "act_embed")
            x = dropout(y, c.dropout, inputs.dropout_key)
        return LayerOutput(x, None if own is None else LayerCache(own), {})


def _gate_bias(forget: float) -> nn.initializers.Initializer:
    """An initializer of biases [4, F]: 0, and ``forget`` for the forget gate."""

    def bias(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jnp.zeros(shape, dtype).at[_FORGET].set(forget)

    return bias


def _marks(inputs: LayerInput, length: int) -> tuple[Array | None, Array | None]:
    """Which tokens begin a row anew, and which places are tokens, bool [B, T]; None for none and
    all.
    """
    if inputs.chunk is not None:
        at = jnp.arange(length)[None, :]
        return None, at < inputs.chunk.count[:, None]
    segments = inputs.mask.q_segments
    if segments is None:
        return None, None
    segments = jnp.asarray(segments)
    return segment_begins(segments), segments != 0
