"""Positions: rotary with its scalings, learned, sinusoidal, relative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from llm_jax.ranges import Count, Natural, NotNegative, Positive, PositiveShare, Range

Factor = Annotated[float, Range(1)]


@dataclass(frozen=True)
class LinearScalingConfig:
    """Positions are divided by the factor."""

    kind: ClassVar[str] = "linear"

    factor: Factor = 1.0
    """How many times longer the context becomes."""


@dataclass(frozen=True)
class NtkScalingConfig:
    """The base is raised so that the longest wavelength grows by the factor."""

    kind: ClassVar[str] = "ntk"

    factor: Factor = 1.0
    """How many times longer the context becomes."""


@dataclass(frozen=True)
class Llama3ScalingConfig:
    """Long wavelengths are divided by the factor, short ones are kept (Llama 3.1)."""

    kind: ClassVar[str] = "llama3"

    factor: Factor = 1.0
    """How many times longer the context becomes."""
    original_length: Count = 8192
    """Context length before scaling."""
    low_frequency: Positive = 1.0
    """Wavelengths above original_length / low_frequency are divided by the factor."""
    high_frequency: Positive = 4.0
    """Wavelengths below original_length / high_frequency are kept."""


@dataclass(frozen=True)
class YarnScalingConfig:
    """Frequencies are interpolated by the rotations that they make over the context (YaRN, Peng et
    al. 2023).
    """

    kind: ClassVar[str] = "yarn"

    factor: Factor = 1.0
    """How many times longer the context becomes."""
    original_length: Count = 8192
    """Context length before scaling."""
    attention_factor: NotNegative = 0.0
    """Multiplies sine and cosine; 0 means 0.1·ln(factor) + 1."""
    beta_fast: Positive = 32.0
    """Rotations over the original context above which a frequency is kept."""
    beta_slow: Positive = 1.0
    """Rotations over the original context below which a frequency is interpolated."""
    truncate: bool = True
    """Both bounds are rounded outwards to whole frequencies."""


@dataclass(frozen=True)
class LongRopeScalingConfig:
    """Each frequency has a divisor of its own (LongRoPE, Ding et al. 2024)."""

    kind: ClassVar[str] = "longrope"

    factor: Factor = 1.0
    """How many times longer the context becomes."""
    original_length: Count = 8192
    """Context length before scaling; with short_factors the longest text that they hold for."""
    attention_factor: NotNegative = 0.0
    """Multiplies sine and cosine; 0 means sqrt(1 + ln(factor) / ln(original_length))."""
    factors: tuple[Positive, ...] = ()
    """Divisor of each frequency; with short_factors those of texts longer than original_length."""
    short_factors: tuple[Positive, ...] = ()
    """Divisor of each frequency in texts of up to original_length tokens, each sequence by its own
    length; empty means those of longer texts.
    """


RopeScaling = (
    LinearScalingConfig
    | NtkScalingConfig
    | Llama3ScalingConfig
    | YarnScalingConfig
    | LongRopeScalingConfig
)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary positions (Su et al. 2021)."""

    kind: ClassVar[str] = "rope"

    theta: Positive = 10000.0
    """Base wavelength of the rotation."""
    windowed_theta: NotNegative = 0.0
    """Base wavelength in layers with a window, whose frequencies then are not scaled; 0 means that
    of the other layers.
    """
    fraction: PositiveShare = 1.0
    """Leading share of each head that is rotated."""
    pattern: tuple[bool, ...] = (True,)
    """Whether a layer rotates, repeated over the layers."""
    scaling: RopeScaling | None = None
    """Change of the rotation frequencies for contexts longer than trained."""


@dataclass(frozen=True)
class LearnedPositionsConfig:
    """A learned embedding of the position, added to the token's."""

    kind: ClassVar[str] = "learned"

    offset: Natural = 0
    """Row of the table that position 0 has; the table has max_length rows from there on."""


@dataclass(frozen=True)
class SinusoidalPositionsConfig:
    """Sines and cosines of the position, added to the token's embedding (Vaswani et al. 2017)."""

    kind: ClassVar[str] = "sinusoidal"


@dataclass(frozen=True)
class RelativePositionsConfig:
    """A bias of attention scores for the distance of query and key, by heads and the same in all
    layers (T5).
    """

    kind: ClassVar[str] = "relative"

    buckets: Count = 32
    """Ranges of distances that have a bias each; where tokens see later ones too, half of them are
    for keys after the query.
    """
    max_distance: Count = 128
    """Distance from which on all share the last bucket."""
