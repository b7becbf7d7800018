"""Attention: multi-head (or grouped-query, or multi-query) and multi-head latent attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm_jax.ranges import Count, Natural, NotNegative


@dataclass(frozen=True)
class _HeadsConfig:
    """What every kind of attention has."""

    num_heads: Count = 12
    """Query heads N."""
    head_dim: Natural = 0
    """Width H of one head; 0 means embed_dim / num_heads."""
    value_dim: Natural = 0
    """Width of the values of one head; 0 means H."""
    window_pattern: tuple[Natural, ...] = (0,)
    """Sliding-window width in tokens per layer, repeated over the layers; 0 is full attention."""
    scale: NotNegative = 0.0
    """Multiplies query·key; 0 means H**-0.5."""
    softcap: NotNegative = 0.0
    """c·tanh(x/c) on attention scores; 0 is off."""
    sinks: bool = False
    """A learned logit of each head in the softmax of attention, which takes weight from the keys
    and has no value.
    """
    qkv_bias: bool = False
    """Biases on the query, key and value projections; in latent attention on the projections that
    read the layer's input, except that of a query without q_latent.
    """
    out_bias: bool = False
    """Bias on the output projection."""

    @property
    def kv_heads(self) -> int:
        """Key/value heads K."""
        return self.num_heads

    @property
    def normalized_axes(self) -> int:
        """Trailing axes of queries and keys [..., heads, H] that a norm goes over; 0 is no norm."""
        return 0


@dataclass(frozen=True)
class AttentionConfig(_HeadsConfig):
    """Multi-head attention whose keys and values are made of the layer's input."""

    kind: ClassVar[str] = "multi_head"

    num_kv_heads: Natural = 0
    """Key/value heads K: N is multi-head, 1 multi-query, between them grouped-query attention; 0
    means N.
    """
    qk_norm: Literal["none", "head", "all"] = "none"
    """RMSNorm of queries and keys before the rotation: none, over each head (one scale of width H
    for all), or over all heads together.
    """

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def normalized_axes(self) -> int:
        return {"none": 0, "head": 1, "all": 2}[self.qk_norm]


@dataclass(frozen=True)
class LatentAttentionConfig(_HeadsConfig):
    """Multi-head latent attention: keys and values are made of a latent, which is what decoding
    caches.
    """

    kind: ClassVar[str] = "latent"

    kv_latent: Count = 512
    """Width C of the latent that the keys and values of a token are made of."""
    q_latent: Natural = 0
    """Width of the latent that queries are made of; 0 makes them of the layer's input."""
    rope_dim: Natural = 0
    """Width R of the leading part of each head that is rotated. In keys it is one for all heads,
    and is made of the layer's input.
    """
