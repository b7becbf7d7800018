"""The feed-forward layer: an MLP, and experts that are MLPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from llm_jax.ranges import Count, Finite, Natural, NotNegative, Positive


@dataclass(frozen=True)
class _MlpConfig:
    """What every kind of MLP has."""

    hidden_dim: Count = 3072
    """Width F of the hidden layer."""
    activation: Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu"] = "silu"
    """Activation; gelu is the exact one, quick_gelu x·sigmoid(1.702x)."""
    bias: bool = False
    """Biases, of each expert too."""


@dataclass(frozen=True)
class GatedMlpConfig(_MlpConfig):
    """activation(x·gate)*(x·up) then down (SwiGLU with silu, GeGLU with gelu)."""

    kind: ClassVar[str] = "gated"

    clamp: NotNegative = 0.0
    """x·gate is at most this, and x·up between this and its negative; 0 is off."""
    up_offset: Finite = 0.0
    """Added to x·up."""


@dataclass(frozen=True)
class PlainMlpConfig(_MlpConfig):
    """activation(x·up) then down."""

    kind: ClassVar[str] = "plain"


@dataclass(frozen=True)
class ExpertGroupsConfig:
    """Groups of neighbouring experts, of which a token's experts are in the best."""

    count: Count = 2
    """Groups; 1 chooses among all experts."""
    per_token: Count = 1
    """Groups that each token's experts are of."""
    score: Literal["best", "best_two"] = "best"
    """What a group is chosen by: the score of its best expert, or the sum of its best two."""


@dataclass(frozen=True)
class BalanceLossConfig:
    """A loss on each row's use of the experts."""

    kind: ClassVar[str] = "loss"

    weight: NotNegative = 0.01
    """Weight of the balance loss of each layer."""


@dataclass(frozen=True)
class BalanceBiasConfig:
    """A bias for the choice of experts alone, which each optimizer step moves against what was
    overused (loss-free balancing).
    """

    kind: ClassVar[str] = "bias"

    rate: NotNegative = 0.001
    """How far a step moves each expert's bias."""


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts: each is an MLP as model.mlp describes, and each token takes a few."""

    count: Count = 8
    """Experts E of each layer."""
    per_token: Count = 2
    """Experts that each token goes through."""
    shared: Natural = 0
    """Experts that every token goes through besides: one MLP of this many times mlp.hidden_dim."""
    router: Literal["softmax", "sigmoid"] = "softmax"
    """Scores of experts: over all of them, or of each on its own."""
    router_bias: bool = False
    """A bias on the router's logits."""
    router_z_loss: NotNegative = 0.0
    """Weight of the squared log-normaliser of the router's logits, of each layer."""
    normalize: bool = True
    """The weights of a token's experts sum to scale; off, they are the scores times scale."""
    scale: Positive = 1.0
    """Multiplies the weights of a token's experts."""
    groups: ExpertGroupsConfig | None = None
    """Groups that a token's experts are chosen from; none chooses among all experts."""
    balance: BalanceLossConfig | BalanceBiasConfig | None = BalanceLossConfig()
    """What keeps experts evenly used: a loss, a bias for the choice, or none."""
