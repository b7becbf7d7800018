"""Parametrizations: how initial values and learning rates follow the width of a model.

The maximal update parametrization is that of Yang et al. 2022 ("Tensor Programs V"), with the
embedding and the output projection as in table 8, which tied embeddings need, and other matrices
as in table 3, which is the same for layers. What a parameter is follows from its ``ParamSpec`` and
from how much longer each of its axes is than in the base model: its *growth*, 1 for an axis that
has the same length in models of all widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from llm_jax.ranges import Count, Natural
from llm_jax.types import ParamSpec

# Logical axis -> its length over that in the base model; 1 for an axis that is not named.
Growth = Mapping[str, float]

# Roles of what multiplies activations. The others (embeddings, positions, norms, biases and the
# output projection, whose multiplier stands for it) have the same values and rates at all widths.
_SCALED = ("matrix", "router")


@dataclass(frozen=True)
class StandardConfig:
    """The same standard deviation and the same learning rate for all matrices, at every width."""

    kind: ClassVar[str] = "standard"


@dataclass(frozen=True)
class MupConfig:
    """The maximal update parametrization (Yang et al. 2022): learning rates that are good for a
    narrow model are good for a wide one. A model of the base width is as with standard.
    """

    kind: ClassVar[str] = "mup"

    base_width: Count = 256
    """Width D of the base model, at which learning rates and init_std are as they are set. Hidden
    units, and heads times their width, are taken to grow in proportion to D.
    """
    base_head_dim: Natural = 0
    """Width H of one head in the base model; 0 means that it is the same, and wider models have
    more heads. Where H grows, query·key is multiplied by 1/H in place of H**-0.5.
    """


def initial_scale(spec: ParamSpec, growth: Growth) -> float:
    """What multiplies the standard deviation of a parameter's initial values.

    That is 1/sqrt(fan_in) for matrices between widths that grow, and 1/fan_in where the outputs do
    not grow, such as a router's (Yang et al. 2022, table 3).

    Args:
        spec: of the parameter.
        growth: of the axes.
    """
    if spec.role not in _SCALED:
        return 1.0
    inputs = _product(spec, spec.contract, growth)
    outputs = _product(spec, spec.outputs, growth)
    return min(1.0, outputs / inputs) ** 0.5 / inputs**0.5


def adam_rate_scale(spec: ParamSpec, growth: Growth) -> float:
    """What multiplies the learning rate of a parameter whose updates do not depend on the size of
    its gradient, as in Adam: 1/fan_in for matrices (Yang et al. 2022, tables 3 and 8).

    Args:
        spec: of the parameter.
        growth: of the axes.
    """
    if spec.role not in _SCALED:
        return 1.0
    return 1 / _product(spec, spec.contract, growth)


def muon_rate_scale(spec: ParamSpec, growth: Growth) -> float:
    """What multiplies the learning rate of a parameter that Muon orthogonalizes.

    An update should have a spectral norm of sqrt(fan_out / fan_in) (Yang et al. 2023, "A Spectral
    Condition for Feature Learning"). Muon's has sqrt(max(1, fan_out / fan_in)), which is right but
    for matrices whose outputs do not grow with their inputs.

    Args:
        spec: of the parameter.
        growth: of the axes.
    """
    inputs = _product(spec, spec.contract, growth)
    outputs = _product(spec, spec.outputs, growth)
    return min(1.0, outputs / inputs) ** 0.5


def _product(spec: ParamSpec, dimensions: Sequence[int], growth: Growth) -> float:
    """Growth of some dimensions of a parameter together."""
    return math.prod(growth.get(spec.axes[i] or "", 1.0) for i in dimensions)
