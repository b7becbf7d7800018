"""The optimizer: an update rule and the learning rate over the steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm_jax.config.sections import NONZERO, read_when
from llm_jax.ranges import Natural, NotNegative, Positive, PositiveShare, ShareBelowOne


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW (Loshchilov and Hutter 2019)."""

    kind: ClassVar[str] = "adamw"

    beta1: ShareBelowOne = 0.9
    """Decay of the first moment."""
    beta2: ShareBelowOne = 0.95
    """Decay of the second moment."""
    eps: NotNegative = 1e-8
    """Added to the root of the second moment."""


@dataclass(frozen=True)
class AdafactorConfig:
    """Adafactor (Shazeer and Stern 2018)."""

    kind: ClassVar[str] = "adafactor"


@dataclass(frozen=True)
class LionConfig:
    """Lion (Chen et al. 2023)."""

    kind: ClassVar[str] = "lion"

    beta1: ShareBelowOne = 0.9
    """Share of the momentum in the update."""
    beta2: ShareBelowOne = 0.95
    """Decay of the momentum."""


@dataclass(frozen=True)
class MuonConfig:
    """Muon for matrices (Jordan et al. 2024), AdamW for embeddings, norms and biases."""

    kind: ClassVar[str] = "muon"

    adam_learning_rate: Positive = 3e-4
    """Peak learning rate of the AdamW part; the same schedule."""
    momentum: ShareBelowOne = 0.95
    """Momentum (Nesterov)."""
    beta1: ShareBelowOne = 0.9
    """Decay of the first moment of the AdamW part."""
    beta2: ShareBelowOne = 0.95
    """Decay of the second moment of the AdamW part."""
    eps: NotNegative = 1e-8
    """Added to the root of the second moment."""


@dataclass(frozen=True)
class SgdConfig:
    """Stochastic gradient descent."""

    kind: ClassVar[str] = "sgd"

    momentum: ShareBelowOne = 0.95
    """Momentum (Nesterov)."""


@dataclass(frozen=True)
class CosineConfig:
    """Half a cosine from the peak to the last step."""

    kind: ClassVar[str] = "cosine"

    final_ratio: NotNegative = 0.1
    """Learning rate at the last step, as a share of the peak."""


@dataclass(frozen=True)
class LinearConfig:
    """A line from the peak to the last step."""

    kind: ClassVar[str] = "linear"

    final_ratio: NotNegative = 0.1
    """Learning rate at the last step, as a share of the peak."""


@dataclass(frozen=True)
class WsdConfig:
    """Warm-up, stable, decay: constant, then a line to the last step."""

    kind: ClassVar[str] = "wsd"

    final_ratio: NotNegative = 0.1
    """Learning rate at the last step, as a share of the peak."""
    decay_fraction: PositiveShare = 0.2
    """Share of the steps in the decay."""


@dataclass(frozen=True)
class RsqrtConfig:
    """One over the root of the step."""

    kind: ClassVar[str] = "rsqrt"


@dataclass(frozen=True)
class ConstantConfig:
    """The peak, from the warm-up on."""

    kind: ClassVar[str] = "constant"


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its learning rate."""

    update: AdamWConfig | AdafactorConfig | LionConfig | MuonConfig | SgdConfig = AdamWConfig()
    """Update rule; muon uses AdamW for embeddings, norms and biases."""
    learning_rate: Positive = 3e-4
    """Peak learning rate."""
    schedule: CosineConfig | LinearConfig | WsdConfig | RsqrtConfig | ConstantConfig = (
        CosineConfig()
    )
    """Course of the learning rate after warm-up; wsd is constant, then linear decay; rsqrt falls as
    one over the root of the step.
    """
    warmup_steps: Natural = 100
    """Steps of linear warm-up from 0."""
    weight_decay: NotNegative = 0.1
    """Decoupled decay, multiplied by the learning rate."""
    decay: tuple[str, ...] = read_when(
        ("role:matrix", "role:router", "role:head", "role:embedding"), "weight_decay", NONZERO
    )
    """Parameters that decay: role:NAME for a role (matrix, router, head, embedding, position, norm,
    bias, sink), or a pattern of whole paths as in fnmatch, such as layers/mlp/*. Others do not.
    """
    clip_norm: NotNegative = 1.0
    """Gradients are scaled down to this global norm; 0 is off."""
