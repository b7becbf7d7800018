"""What the layers of a model are given in a call, and what they return."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import Array

from llm_jax.config import ModelConfig
from llm_jax.models.row_layout import PositionAxes
from llm_jax.ops.cache import Chunk, LayerCache
from llm_jax.ops.masks import Mask

# Sine and cosine of a rotation, or None for layers without one.
Angles = tuple[Array, Array] | None

# Float32 sums over the tokens that count in the loss (``models.moe.balance_terms``), by name; {} of
# layers without experts.
Aux = dict[str, Array]


class Memory(NamedTuple):
    """The output of an encoder, which a decoder attends to.

    Attributes:
        hidden: [B, S, D], or None if its keys and values are in the cache.
        segments: int32 [B, S], or None if all tokens are of one segment.
    """

    hidden: Array | None
    segments: Array | None

    def mask(self, segments: Array) -> Mask:
        """The mask of queries with ``segments`` [B, T]: each sees all of its own segment."""
        return Mask(causal=False, q_segments=segments, k_segments=self.segments)


class LayerInput(NamedTuple):
    """What one layer is given besides the residual stream and its cache.

    Attributes:
        mask: of self-attention.
        angles: of the rotation of queries and keys.
        axes: logical axes of the positions.
        dropout_key: None without dropout.
        chunk: what the call appends to the cache; None without a cache.
        loss_weights: float32 [B, T], which tokens count in the loss; None with a cache, where
            experts have no balance to learn.
        bias: [B or 1, N, T, S] on the scores of self-attention, or None.
        memory: output of an encoder [B, S, D], or None.
        memory_mask: of attention to the encoder's tokens.
    """

    mask: Mask = Mask()
    angles: Angles = None
    axes: PositionAxes = PositionAxes()
    dropout_key: Array | None = None
    chunk: Chunk | None = None
    loss_weights: Array | None = None
    bias: Array | None = None
    memory: Array | None = None
    memory_mask: Mask = Mask()


class LayerOutput(NamedTuple):
    """What one layer returns.

    Attributes:
        hidden: residual stream [B, T, D] after the layer.
        cache: the layer's cache with the chunk written; None without a cache.
        aux: terms of its experts.
    """

    hidden: Array
    cache: LayerCache | None
    aux: Aux


class StackInput(NamedTuple):
    """What all layers of a call are given; the fields are those of ``LayerInput``, before a layer's
    own are chosen.

    Attributes:
        masks: by window width.
        angles: by kind of rotation (``ModelConfig.rope``).
        axes: logical axes of the positions.
        dropout_key: of which each layer's own is made.
        chunk: what the call appends to the cache.
        loss_weights: which tokens count in the loss.
        bias: by window width, or None.
        memory: output of an encoder, or None.
        memory_mask: of attention to the encoder's tokens.
    """

    masks: dict[int, Mask]
    angles: dict[str, Angles]
    axes: PositionAxes
    dropout_key: Array | None = None
    chunk: Chunk | None = None
    loss_weights: Array | None = None
    bias: dict[int, Array] | None = None
    memory: Memory | None = None
    memory_mask: Mask = Mask()

    def of_layer(self, config: ModelConfig, like: int, index: int | Array) -> LayerInput:
        """What one layer is given.

        Args:
            config: the model.
            like: static, a layer with the same window and rotation.
            index: the layer, counted from the first one of the model; dropout depends on it.
        """
        key = self.dropout_key
        window = config.window(like)
        return LayerInput(
            mask=self.masks[window],
            angles=self.angles[config.rotation(like)],
            axes=self.axes,
            dropout_key=None if key is None else jax.random.fold_in(key, index),
            chunk=self.chunk,
            loss_weights=self.loss_weights,
            bias=None if self.bias is None else self.bias[window],
            memory=None if self.memory is None else self.memory.hidden,
            memory_mask=self.memory_mask,
        )


class StackOutput(NamedTuple):
    """What a stack of layers returns.

    Attributes:
        hidden: residual stream [B, T, D] after the last layer.
        caches: the cache of each layer with the chunk written; None without a cache.
        aux: terms of the experts, [L, …] over the layers that have experts.
    """

    hidden: Array
    caches: tuple[LayerCache, ...] | None
    aux: Aux
