"""The architecture of a model: every field and its default, once. Differences between families are
fields, never names.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from llm_jax.config.attention import AttentionConfig, LatentAttentionConfig
from llm_jax.config.mlp import (
    BalanceBiasConfig,
    ExpertsConfig,
    GatedMlpConfig,
    PlainMlpConfig,
)
from llm_jax.config.parametrization import Growth, MupConfig, StandardConfig
from llm_jax.config.positions import (
    LearnedPositionsConfig,
    LongRopeScalingConfig,
    RelativePositionsConfig,
    RopeConfig,
    SinusoidalPositionsConfig,
)
from llm_jax.config.recurrent import LstmConfig
from llm_jax.config.sections import read_when
from llm_jax.ranges import Count, Finite, Natural, NotNegative, ShareBelowOne


@dataclass(frozen=True)
class _NormConfig:
    """What every kind of norm has."""

    eps: NotNegative = 1e-5
    """Added to the variance in every norm."""
    position: Literal["pre", "post", "sandwich", "output"] = "pre"
    """Norm before each sub-layer, after its residual sum, before and after the sub-layer, or only
    after it.
    """
    attention: bool = read_when(True, "position", ("pre", "sandwich"))
    """Norm before attention; off, attention reads the residual stream as it is."""
    final: bool = True
    """Norm after the last block."""


@dataclass(frozen=True)
class RMSNormConfig(_NormConfig):
    """RMSNorm (Zhang and Sennrich 2019)."""

    kind: ClassVar[str] = "rms"

    unit_offset: bool = False
    """The norm multiplies by (1 + weight), with weight initialised to 0."""


@dataclass(frozen=True)
class LayerNormConfig(_NormConfig):
    """LayerNorm (Ba et al. 2016)."""

    kind: ClassVar[str] = "layer"

    bias: bool = False
    """LayerNorm with a bias."""


@dataclass(frozen=True)
class EmbeddingConfig:
    """The token embedding, and what is added to it."""

    tied: bool = True
    """The output projection is the token embedding transposed."""
    scale_by_width: bool = False
    """Multiply token embeddings by sqrt(D)."""
    scale: Finite = 1.0
    """Multiplies token embeddings."""
    norm: bool = False
    """Norm of the sum of all embeddings."""
    token_types: Natural = 0
    """Types of tokens that have an embedding each, added to the token's; 0 is none."""


@dataclass(frozen=True)
class HeadTransformConfig:
    """A dense layer, the activation and a norm before the output projection (masked-token head)."""

    bias: bool = False
    """Bias in that dense layer."""


@dataclass(frozen=True)
class HeadConfig:
    """The output logits."""

    scale: Finite = 1.0
    """Multiplies the output logits, before their soft-cap."""
    softcap: NotNegative = 0.0
    """c·tanh(x/c) on the output logits; 0 is off."""
    bias: bool = False
    """Bias on the output logits."""
    transform: HeadTransformConfig | None = None
    """A dense layer, the activation and a norm before the output projection (masked-token head)."""


@dataclass(frozen=True)
class PoolerConfig:
    """A vector for each row, and classes of rows."""

    layer: Literal["tanh", "relu", "transform", "identity"] = "tanh"
    """What makes the vector: a dense layer with a bias and this activation; head.transform; or no
    layer, what is read itself.
    """
    reads: Literal["first", "mean", "last", "each"] = "first"
    """What that layer reads of a row: its first token, the mean of its tokens, its last one; or
    each token, which then has a vector and classes of its own.
    """
    num_classes: Natural = 0
    """Classes of rows: a projection with a bias from that vector; 0 is none."""


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder: blocks like the others but not causal, whose output all blocks attend to."""

    num_layers: Count = 12
    """Blocks of the encoder."""
    mlp_dim: Natural = 0
    """Width of the hidden layer of the MLPs there; 0 means mlp.hidden_dim."""
    start_token: Natural = 0
    """Token id that decoding begins with; prompts are what the encoder reads."""


@dataclass(frozen=True)
class FirstLayersConfig:
    """Leading layers that differ from the others; they are a stack of their own in the
    parameters.
    """

    count: Count = 1
    """How many layers."""
    mlp_dim: Natural = 0
    """Width of the one MLP that these layers have, without experts; 0 means as in the others."""
    attention_norm: bool = True
    """These layers have the norm before attention that the others have."""


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: together with the parameters it is the model. Saved and checked with every
    checkpoint.
    """

    vocab_size: Natural = 0
    """Number of token ids; 0 takes it from the tokenizer of data.path."""
    num_layers: Count = 12
    """Transformer blocks, or recurrent layers."""
    embed_dim: Count = 768
    """Width D of the residual stream."""
    max_length: Count = 1024
    """Longest context in tokens, at training and at decoding, and of an encoder."""
    causal: bool = True
    """Tokens see only those before them; off, all of their segment (an encoder)."""
    attention: AttentionConfig | LatentAttentionConfig = AttentionConfig()
    """Multi-head attention (grouped-query and multi-query too), or multi-head latent attention."""
    mlp: GatedMlpConfig | PlainMlpConfig = GatedMlpConfig()
    """Gated, activation(x·gate)*(x·up) then down; or plain, activation(x·up) then down."""
    experts: ExpertsConfig | None = None
    """A mixture of experts, each an MLP as model.mlp describes; none is one MLP for all tokens."""
    norm: RMSNormConfig | LayerNormConfig = RMSNormConfig()
    """RMSNorm or LayerNorm."""
    positions: (
        RopeConfig
        | LearnedPositionsConfig
        | SinusoidalPositionsConfig
        | RelativePositionsConfig
        | None
    ) = RopeConfig()
    """Rotary positions in attention; an embedding added to the tokens'; or relative: a bias for the
    distance of query and key, by heads and the same in all layers.
    """
    embedding: EmbeddingConfig = EmbeddingConfig()
    head: HeadConfig = HeadConfig()
    pooler: PoolerConfig | None = None
    """A vector for each row, and classes of rows; none is nothing."""
    encoder: EncoderConfig | None = None
    """An encoder beside the decoder; none is a model of one stack."""
    first_layers: FirstLayersConfig | None = None
    """Leading layers that differ from the others; none is no such layers."""
    recurrent: LstmConfig | None = None
    """Recurrent layers in the place of attention and MLP; none is a transformer."""
    parallel_residual: bool = False
    """Attention and MLP both read the block's input, each through a norm of its own, and are added
    together.
    """
    residual_scale: Finite = 1.0
    """Multiplies what each sub-layer adds to the residual stream."""
    init_std: NotNegative = 0.02
    """Standard deviation of normal initialisation; projections into the residual stream divide it
    by sqrt(2L).
    """
    parametrization: StandardConfig | MupConfig = StandardConfig()
    """How initial values and learning rates follow the width: not at all, or so that the learning
    rates of a narrow model are good for a wide one (muP).
    """
    dropout: ShareBelowOne = 0.0
    """Dropped share of embeddings and of each sub-layer's output, in training."""

    @property
    def head_dim(self) -> int:
        """Width H of one head."""
        return self.attention.head_dim or self.embed_dim // self.attention.num_heads

    @property
    def value_dim(self) -> int:
        """Width of the values of one head."""
        return self.attention.value_dim or self.head_dim

    @property
    def attention_scale(self) -> float:
        """What multiplies query·key."""
        mup = self.parametrization
        if not isinstance(mup, MupConfig) or not mup.base_head_dim:
            return self.attention.scale or self.head_dim**-0.5
        base = mup.base_head_dim
        return (self.attention.scale or base**-0.5) * base / self.head_dim

    @property
    def logit_scale(self) -> float:
        """What multiplies the output logits, before their soft-cap."""
        return self.head.scale / self.growth.get("embed", 1.0)

    @property
    def growth(self) -> Growth:
        """How much longer axes are than in the base model of muP; empty where it is not used."""
        mup = self.parametrization
        if not isinstance(mup, MupConfig):
            return {}
        width = self.embed_dim / mup.base_width
        head_dim = self.head_dim / (mup.base_head_dim or self.head_dim)
        heads = width / head_dim
        return {
            "embed": width,
            "expert_embed": width,
            "transform": width,
            "mlp": width,
            "heads": heads,
            "kv_heads": heads,
            "head_dim": head_dim,
        }

    @property
    def latent(self) -> LatentAttentionConfig | None:
        """Latent attention; None of a model with another."""
        return self.attention if isinstance(self.attention, LatentAttentionConfig) else None

    @property
    def rope(self) -> RopeConfig | None:
        """Rotary positions; None of a model with others, or without attention."""
        if self.recurrent or not isinstance(self.positions, RopeConfig):
            return None
        return self.positions

    @property
    def state_dim(self) -> int:
        """Width F of the state of a recurrent layer."""
        assert self.recurrent is not None
        return self.recurrent.hidden_dim or self.embed_dim

    @property
    def rope_width(self) -> int:
        """Rotated numbers of each head."""
        if self.rope is None:
            return 0
        if self.latent:
            return self.latent.rope_dim
        return int(self.head_dim * self.rope.fraction)

    @property
    def rope_switch(self) -> int:
        """Tokens of the longest text that has short_factors; 0 where all texts have the same
        factors.

        A row of a cache that grows beyond it must be read again from its beginning, since its
        earlier hidden states change too.
        """
        scaling = self.rope.scaling if self.rope else None
        if not isinstance(scaling, LongRopeScalingConfig) or not scaling.short_factors:
            return 0
        return scaling.original_length

    @property
    def balance_rate(self) -> float:
        """How far a step moves the bias of each expert; 0 without loss-free balance."""
        balance = self.experts and self.experts.balance
        return balance.rate if isinstance(balance, BalanceBiasConfig) else 0.0

    @property
    def encoder_mlp_dim(self) -> int:
        """Width of the hidden layer of the encoder's MLPs."""
        assert self.encoder is not None
        return self.encoder.mlp_dim or self.mlp.hidden_dim

    @property
    def start_token(self) -> int:
        """Token id that decoding begins with where an encoder reads the prompt; 0 without one."""
        return self.encoder.start_token if self.encoder else 0

    @property
    def encoder_stack(self) -> ModelConfig:
        """The encoder as a model of one stack: the same settings, seen in both directions, without
        an output projection of its own.
        """
        assert self.encoder is not None
        return dataclasses.replace(
            self,
            num_layers=self.encoder.num_layers,
            causal=False,
            mlp=dataclasses.replace(self.mlp, hidden_dim=self.encoder_mlp_dim),
            embedding=dataclasses.replace(self.embedding, tied=True),
            head=dataclasses.replace(self.head, bias=False, transform=None),
            encoder=None,
        )

    @property
    def stacks(self) -> tuple[tuple[str, ModelConfig, int], ...]:
        """Name in the parameters, architecture of a layer, and number of layers, of each stack from
        the first layer to the last.
        """
        leading = self.first_layers
        if leading is None:
            return (("layers", self, self.num_layers),)
        first = self
        if leading.mlp_dim:
            mlp = dataclasses.replace(self.mlp, hidden_dim=leading.mlp_dim)
            first = dataclasses.replace(first, experts=None, mlp=mlp)
        if not leading.attention_norm:
            norm = dataclasses.replace(self.norm, attention=False)
            first = dataclasses.replace(first, norm=norm)
        return (
            ("first_layers", first, leading.count),
            ("layers", self, self.num_layers - leading.count),
        )

    def window(self, layer: int) -> int:
        """Sliding-window width of ``layer``; 0 is full attention."""
        pattern = self.attention.window_pattern
        return pattern[layer % len(pattern)]

    def rotation(self, layer: int) -> Literal["none", "main", "windowed"]:
        """Which rotation ``layer`` has: none, that of ``rope.theta`` with its scaling, or that of
        ``rope.windowed_theta``.
        """
        rope = self.rope
        if rope is None or not rope.pattern[layer % len(rope.pattern)]:
            return "none"
        return "windowed" if rope.windowed_theta and self.window(layer) else "main"

    @property
    def period(self) -> int:
        """Layers after which windows and rotations repeat."""
        rotations = len(self.rope.pattern) if self.rope else 1
        return math.lcm(len(self.attention.window_pattern), rotations)
