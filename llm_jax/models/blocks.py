"""One transformer block."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models.attention import Attention
from llm_jax.models.cross import CrossAttention
from llm_jax.models.inputs import Aux, LayerInput, LayerOutput
from llm_jax.models.latent import LatentAttention
from llm_jax.models.layers import Mlp, Norm, place
from llm_jax.models.moe import ExpertMlp
from llm_jax.models.row_layout import PositionAxes
from llm_jax.ops.cache import CrossCache, LatentCache, LayerCache, RecurrentCache, SelfCache
from llm_jax.ops.nn import dropout
from llm_jax.sharding import constrain_with_grad

# In the order in which the layer's dropout key is split.
_SUB_LAYERS = ("attention", "mlp", "cross_attention")


class Block(nn.Module):
    """Self-attention, attention to an encoder's output if there is one, and an MLP or experts.

    Each sub-layer is added to the residual stream. ``model.norm.position`` says where its
    norms are: before it, after it, around it, or after the sum. With ``parallel_residual``
    attention and MLP read the same input.
    """

    config: ModelConfig
    execution: ExecutionConfig

    @nn.compact
    def __call__(self, x: Array, inputs: LayerInput, cache: LayerCache | None) -> LayerOutput:
        """The residual stream x [B, T, D] through the block."""
        keys = self._dropout_keys(inputs.dropout_key)
        own = None if cache is None else cache.own
        cross = None if cache is None else cache.cross
        attended, own = self._attention(x, inputs, keys["attention"], own)
        if self.config.parallel_residual:
            fed_forward, aux = self._mlp(x, inputs, keys["mlp"])
            x = self._post_norm("post_norm", x + attended + fed_forward)
        else:
            x = self._post_norm("attention_norm", x + attended)
            if self.config.encoder:
                attended, cross = self._cross_attention(x, inputs, keys["cross_attention"], cross)
                x = self._post_norm("cross_attention_norm", x + attended)
            fed_forward, aux = self._mlp(x, inputs, keys["mlp"])
            x = self._post_norm("mlp_norm", x + fed_forward)
        written = None if own is None else LayerCache(own, cross)
        return LayerOutput(x, written, aux)

    def _dropout_keys(self, key: Array | None) -> dict[str, Array | None]:
        """The dropout key of each sub-layer."""
        if key is None:
            return dict.fromkeys(_SUB_LAYERS)
        names = _SUB_LAYERS if self.config.encoder else _SUB_LAYERS[:2]
        return dict(zip(names, jax.random.split(key, len(names))))

    def _attention(
        self, x: Array, inputs: LayerInput, key: Array | None, cache: SelfCache | None
    ) -> tuple[Array, SelfCache | None]:
        """What self-attention adds to x, and its cache with the chunk written."""
        c = self.config
        h = self._input("attention", x, inputs.axes)
        y: Array
        if c.latent:
            assert cache is None or isinstance(cache, LatentCache)
            latent = LatentAttention(c, self.execution, name="attention")
            y, cache = latent(h, inputs, cache)
        else:
            assert not isinstance(cache, LatentCache | RecurrentCache)
            y, cache = Attention(c, self.execution, name="attention")(h, inputs, cache)
        return self._output("attention", y, inputs.axes, key), cache

    def _cross_attention(
        self, x: Array, inputs: LayerInput, key: Array | None, cache: CrossCache | None
    ) -> tuple[Array, CrossCache | None]:
        """What attention to the encoder adds to x, and its cache."""
        h = self._input("cross_attention", x, inputs.axes)
        layer = CrossAttention(self.config, self.execution, name="cross_attention")
        y, cache = layer(h, inputs, cache)
        return self._output("cross_attention", y, inputs.axes, key), cache

    def _mlp(self, x: Array, inputs: LayerInput, key: Array | None) -> tuple[Array, Aux]:
        """What the MLP or the experts add to x, and the terms of the experts."""
        c = self.config
        h = self._input("mlp", x, inputs.axes)
        aux: Aux = {}
        if c.experts:
            y, aux = ExpertMlp(c, name="mlp")(h, inputs.axes, inputs.loss_weights)
        else:
            y = Mlp(c, c.mlp.hidden_dim, name="mlp")(h, inputs.axes.inside)
        return self._output("mlp", y, inputs.axes, key), aux

    def _input(self, name: str, x: Array, axes: PositionAxes) -> Array:
        """What a sub-layer reads: x with the norm before it, positions split as it needs them."""
        c = self.config
        has_norm = c.norm.attention or name != "attention"
        if c.norm.position in ("pre", "sandwich") and has_norm:
            x = Norm(c, name=f"{name}_norm")(x)
        return self._gathered(x, axes)

    def _gathered(self, x: Array, axes: PositionAxes) -> Array:
        """x with positions split as a sub-layer needs them."""
        if axes.between == axes.inside or self.is_initializing():
            return x
        inside = ("batch", axes.inside, "act_embed")
        between = ("batch", axes.between, "act_embed")
        return constrain_with_grad(x, inside, between)

    def _output(self, name: str, y: Array, axes: PositionAxes, key: Array | None) -> Array:
        """What is added to the residual stream, given the output y [B, T, D] of a sub-layer:
        placed on the mesh, with the norm after it, scaled, and with dropout.
        """
        c = self.config
        y = place(self, y, "batch", axes.between, "act_embed")
        if name == "mlp":
            y = checkpoint_name(y, "mlp_out")
        if c.norm.position in ("sandwich", "output"):
            y = Norm(c, name=f"{name}_post_norm")(y)
        if c.residual_scale != 1:
            y = y * jnp.asarray(c.residual_scale, y.dtype)
        return dropout(y, c.dropout, key)

    def _post_norm(self, name: str, x: Array) -> Array:
        """The residual stream after a sub-layer, normalized if ``norm.position`` is "post"."""
        return Norm(self.config, name=name)(x) if self.config.norm.position == "post" else x
