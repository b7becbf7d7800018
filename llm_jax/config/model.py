"""The architecture of a model: every field and its default, once. Differences between families are
fields, never names.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from llm_jax.ranges import (
    Count,
    Finite,
    Natural,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    ShareBelowOne,
)

NONZERO = ("<non-zero>",)
_POOLERS = ("tanh", "relu", "transform")


def read_when(default: Any, sibling: str, values: tuple) -> Any:
    """A field that is read only when ``sibling`` (of the same section) is one of ``values``."""
    return field(default=default, metadata={"when": (sibling, values)})


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: together with the parameters it is the model. Saved and checked with every
    checkpoint.
    """

    vocab_size: Natural = 0
    """Number of token ids; 0 takes it from the tokenizer of data.path."""
    num_layers: Count = 12
    """Transformer blocks."""
    embed_dim: Count = 768
    """Width D of the residual stream."""
    num_heads: Count = 12
    """Query heads N."""
    num_kv_heads: Natural = 0
    """Key/value heads K: N is multi-head, 1 multi-query, between them grouped-query attention; 0
    means N.
    """
    head_dim: Natural = 0
    """Width H of one head; 0 means embed_dim / num_heads."""
    value_dim: Natural = 0
    """Width of the values of one head; 0 means H."""
    kv_latent: Natural = 0
    """Width C of the latent that the keys and values of a token are made of (multi-head latent
    attention), which is also what decoding caches; 0 makes them of the layer's input.
    """
    q_latent: Natural = read_when(0, "kv_latent", NONZERO)
    """Width of the latent that queries are made of; 0 makes them of the layer's input."""
    rope_dim: Natural = read_when(0, "kv_latent", NONZERO)
    """Width R of the leading part of each head that is rotated, in keys one for all heads, which is
    made of the layer's input.
    """
    mlp_dim: Count = 3072
    """Width F of the hidden layer of the MLP."""
    first_layers: Natural = 0
    """Leading layers that differ from the others as the fields first_… say, and are a stack of
    their own in the parameters.
    """
    first_mlp_dim: Natural = read_when(0, "first_layers", NONZERO)
    """Width of the one MLP that these layers have, without experts; 0 is as in the others."""
    first_attention_norm: bool = read_when(True, "first_layers", NONZERO)
    """These layers have the norm before attention that the others have."""
    max_length: Count = 1024
    """Longest context in tokens, at training and at decoding, and of an encoder."""
    causal: bool = True
    """Tokens see only those before them; off, all of their segment (an encoder)."""
    encoder_layers: Natural = 0
    """Blocks of an encoder, like the others but not causal, whose output all blocks attend to; 0 is
    none.
    """
    encoder_mlp_dim: Natural = read_when(0, "encoder_layers", NONZERO)
    """Width of the hidden layer of the MLPs there; 0 means mlp_dim."""
    start_token: Natural = read_when(0, "encoder_layers", NONZERO)
    """Token id that decoding begins with; prompts are what the encoder reads."""
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm or LayerNorm."""
    norm_eps: NotNegative = 1e-5
    """Added to the variance in every norm."""
    norm_bias: bool = read_when(False, "norm", ("layer",))
    """LayerNorm with a bias."""
    norm_unit_offset: bool = read_when(False, "norm", ("rms",))
    """RMSNorm multiplies by (1 + weight), with weight initialised to 0."""
    norm_position: Literal["pre", "post", "sandwich", "output"] = "pre"
    """Norm before each sub-layer, after its residual sum, before and after the sub-layer, or only
    after it.
    """
    attention_norm: bool = read_when(True, "norm_position", ("pre", "sandwich"))
    """Norm before attention; off, attention reads the residual stream as it is."""
    qk_norm: bool = False
    """RMSNorm of queries and keys, before the rotation."""
    qk_norm_width: Literal["head", "all"] = read_when("head", "qk_norm", (True,))
    """That norm goes over each head, or over all heads together."""
    positions: Literal["rope", "learned", "sinusoidal", "relative", "none"] = "rope"
    """Rotary positions in attention, an embedding added to the tokens', or relative: a bias for the
    distance of query and key, by heads and the same in all layers.
    """
    position_offset: Natural = read_when(0, "positions", ("learned",))
    """Row of the table that position 0 has; the table has max_length rows from there on."""
    relative_buckets: Count = read_when(32, "positions", ("relative",))
    """Ranges of distances that have a bias each; without causal, half of them are for keys after
    the query.
    """
    relative_max_distance: Count = read_when(128, "positions", ("relative",))
    """Distance from which on all share the last bucket."""
    rope_theta: Positive = read_when(10000.0, "positions", ("rope",))
    """Base wavelength of the rotation."""
    rope_theta_windowed: NotNegative = read_when(0.0, "positions", ("rope",))
    """Base wavelength in layers with a window, whose frequencies then are not scaled; 0 is as in
    the others.
    """
    rope_fraction: PositiveShare = read_when(1.0, "positions", ("rope",))
    """Leading share of each head that is rotated."""
    rope_pattern: tuple[bool, ...] = read_when((True,), "positions", ("rope",))
    """Whether a layer rotates, repeated over the layers."""
    rope_scaling: Literal["none", "linear", "ntk", "llama3", "yarn", "longrope"] = read_when(
        "none", "positions", ("rope",)
    )
    """Change of the rotation frequencies for contexts longer than trained."""
    rope_factor: Annotated[float, Range(1)] = read_when(
        1.0, "rope_scaling", ("linear", "ntk", "llama3", "yarn", "longrope")
    )
    """How many times longer the context becomes."""
    rope_original_length: Count = read_when(8192, "rope_scaling", ("llama3", "yarn", "longrope"))
    """Context length before scaling; with rope_short_factors the longest text that they
    hold for.
    """
    rope_factors: tuple[Positive, ...] = read_when((), "rope_scaling", ("longrope",))
    """Divisor of each frequency; with rope_short_factors those of texts longer than
    rope_original_length.
    """
    rope_short_factors: tuple[Positive, ...] = read_when((), "rope_scaling", ("longrope",))
    """Divisor of each frequency in texts of up to rope_original_length tokens, each sequence by its
    own length; empty is as in longer ones.
    """
    rope_attention_factor: NotNegative = read_when(0.0, "rope_scaling", ("yarn", "longrope"))
    """Multiplies sine and cosine; 0 is 0.1·ln(factor) + 1 for yarn, sqrt(1 + ln(factor) /
    ln(original_length)) for longrope.
    """
    rope_low_frequency: Positive = read_when(1.0, "rope_scaling", ("llama3",))
    """Wavelengths above original_length / this are divided by the factor."""
    rope_high_frequency: Positive = read_when(4.0, "rope_scaling", ("llama3",))
    """Wavelengths below original_length / this are kept."""
    rope_beta_fast: Positive = read_when(32.0, "rope_scaling", ("yarn",))
    """Rotations over the original context above which a frequency is kept."""
    rope_beta_slow: Positive = read_when(1.0, "rope_scaling", ("yarn",))
    """Rotations over the original context below which a frequency is interpolated."""
    rope_truncate: bool = read_when(True, "rope_scaling", ("yarn",))
    """Both bounds are rounded outwards to whole frequencies."""
    window_pattern: tuple[Natural, ...] = (0,)
    """Sliding-window width in tokens per layer, repeated over the layers; 0 is full attention."""
    attention_scale: NotNegative = 0.0
    """Multiplies query·key; 0 means H**-0.5."""
    attention_softcap: NotNegative = 0.0
    """c·tanh(x/c) on attention scores; 0 is off."""
    attention_sinks: bool = False
    """A learned logit of each head in the softmax of attention, which takes weight from the keys
    and has no value.
    """
    logit_softcap: NotNegative = 0.0
    """c·tanh(x/c) on the output logits; 0 is off."""
    mlp: Literal["gated", "plain"] = "gated"
    """activation(x·gate)*(x·up) then down (SwiGLU with silu, GeGLU with gelu), or activation(x·up)
    then down.
    """
    activation: Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu"] = "silu"
    """Activation of the MLP; gelu is the exact one, quick_gelu x·sigmoid(1.702x)."""
    mlp_clamp: NotNegative = read_when(0.0, "mlp", ("gated",))
    """x·gate is at most this, and x·up between this and its negative; 0 is off."""
    mlp_up_offset: Finite = read_when(0.0, "mlp", ("gated",))
    """Added to x·up."""
    qkv_bias: bool = False
    """Biases on the query, key and value projections; with kv_latent on those that read the layer's
    input, but for a query without q_latent.
    """
    out_bias: bool = False
    """Bias on the attention output projection."""
    mlp_bias: bool = False
    """Biases in the MLP, and in each expert."""
    num_experts: Natural = 0
    """Experts E of each layer, MLPs of width mlp_dim of which each token takes a few; 0 is one MLP
    for all.
    """
    experts_per_token: Count = read_when(2, "num_experts", NONZERO)
    """Experts that each token goes through."""
    shared_experts: Natural = read_when(0, "num_experts", NONZERO)
    """Experts that every token goes through besides: one MLP of this many times mlp_dim."""
    router: Literal["softmax", "sigmoid"] = read_when("softmax", "num_experts", NONZERO)
    """Scores of experts: over all of them, or of each on its own."""
    router_bias: bool = read_when(False, "num_experts", NONZERO)
    """A bias on the router's logits."""
    expert_groups: Natural = read_when(0, "num_experts", NONZERO)
    """Groups of neighbouring experts, of the best of which a token's experts are; 0 or 1 chooses
    among all.
    """
    groups_per_token: Count = read_when(1, "expert_groups", NONZERO)
    """Groups that each token's experts are of."""
    group_score: Literal["best", "best_two"] = read_when("best", "expert_groups", NONZERO)
    """What a group is chosen by: the score of its best expert, or the sum of its best two."""
    router_normalize: bool = read_when(True, "num_experts", NONZERO)
    """The weights of a token's experts sum to router_scale; off, they are the scores times
    router_scale.
    """
    router_scale: Positive = read_when(1.0, "num_experts", NONZERO)
    """Multiplies the weights of a token's experts."""
    balance: Literal["loss", "bias", "none"] = read_when("loss", "num_experts", NONZERO)
    """What keeps experts evenly used: a loss on each row's use of them, or a bias for the choice
    alone that each optimizer step moves against what was overused (loss-free balancing).
    """
    balance_weight: NotNegative = read_when(0.01, "balance", ("loss",))
    """Weight of the balance loss of each layer."""
    balance_rate: NotNegative = read_when(0.001, "balance", ("bias",))
    """How far a step moves each expert's bias."""
    router_z_loss: NotNegative = read_when(0.0, "num_experts", NONZERO)
    """Weight of the squared log-normaliser of the router's logits, of each layer."""
    parallel_residual: bool = False
    """Attention and MLP both read the block's input and are added together."""
    tied_embeddings: bool = True
    """The output projection is the token embedding transposed."""
    scale_embeddings: bool = False
    """Multiply token embeddings by sqrt(D)."""
    embedding_scale: Finite = 1.0
    """Multiplies token embeddings."""
    embedding_norm: bool = False
    """Norm of the sum of all embeddings."""
    token_types: Natural = 0
    """Types of tokens that have an embedding each, added to the token's; 0 is none."""
    residual_scale: Finite = 1.0
    """Multiplies what each sub-layer adds to the residual stream."""
    logit_scale: Finite = 1.0
    """Multiplies the output logits, before their soft-cap."""
    head_transform: bool = False
    """A dense layer, the activation and a norm before the output projection (masked-token head)."""
    head_transform_bias: bool = read_when(False, "head_transform", (True,))
    """Bias in that dense layer."""
    head_bias: bool = False
    """Bias on the output logits."""
    pooler: Literal["none", "tanh", "relu", "transform"] = "none"
    """What makes a row's vector: a dense layer with a bias and this activation, or head_transform;
    none is nothing.
    """
    pooling: Literal["first", "mean"] = read_when("first", "pooler", _POOLERS)
    """What that reads of a row: its first token, or the mean of its tokens."""
    num_classes: Natural = read_when(0, "pooler", _POOLERS)
    """Classes of rows: a projection with a bias from that vector; 0 is none."""
    final_norm: bool = True
    """Norm after the last block."""
    init_std: NotNegative = 0.02
    """Standard deviation of normal initialisation; projections into the residual stream divide it
    by sqrt(2L).
    """
    dropout: ShareBelowOne = 0.0
    """Dropped share of embeddings and of each sub-layer's output, in training."""

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def value_size(self) -> int:
        return self.value_dim or self.head_size

    @property
    def encoder_mlp_size(self) -> int:
        return self.encoder_mlp_dim or self.mlp_dim

    @property
    def rope_width(self) -> int:
        """Rotated numbers of each head."""
        return self.rope_dim if self.kv_latent else int(self.head_size * self.rope_fraction)

    @property
    def rope_switch(self) -> int:
        """Tokens of the longest text that has rope_short_factors; 0 where all texts have the same
        factors.
        """
        two = (
            self.positions == "rope" and self.rope_scaling == "longrope" and self.rope_short_factors
        )
        return self.rope_original_length if two else 0

    @property
    def stacks(self) -> tuple[tuple[str, ModelConfig, int], ...]:
        """Name in the parameters, architecture of a layer, and number of layers, of each stack from
        the first layer to the last.
        """
        rest = ("layers", self, self.num_layers - self.first_layers)
        if not self.first_layers:
            return (rest,)
        first = (
            dataclasses.replace(self, num_experts=0, mlp_dim=self.first_mlp_dim)
            if self.first_mlp_dim
            else self
        )
        first = (
            first if self.first_attention_norm else dataclasses.replace(first, attention_norm=False)
        )
        return ("first_layers", first, self.first_layers), rest

    def window(self, layer: int) -> int:
        """Sliding-window width of ``layer``; 0 is full attention."""
        return self.window_pattern[layer % len(self.window_pattern)]

    def rope(self, layer: int) -> Literal["none", "main", "windowed"]:
        """Which rotation ``layer`` has: none, that of ``rope_theta`` with its scaling, or that of
        ``rope_theta_windowed``.
        """
        if self.positions != "rope" or not self.rope_pattern[layer % len(self.rope_pattern)]:
            return "none"
        return "windowed" if self.rope_theta_windowed and self.window(layer) else "main"

    @property
    def period(self) -> int:
        """Layers after which windows and rotations repeat."""
        return math.lcm(len(self.window_pattern), len(self.rope_pattern))
