"""Update rules as optax's ``GradientTransformation``, out of plain numbers.

``rate`` is a number or a schedule (``training.schedules``). Weight decay is decoupled: it is
multiplied by the learning rate and by nothing else. What a parameter is, for decay and for Muon, is
read from its ``ParamSpec``: ``specs`` is a tree of them of the structure of the parameters, such as
``Model.specs``, or written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax.config.parametrization import Growth, adam_rate_scale, muon_rate_scale
from llm_jax.params.select import select
from llm_jax.training.schedules import Schedule
from llm_jax.types import ConfigError, Params, ParamSpec

# A function of the parameters, or of updates, that gives a tree of the same structure.
ByParameter = Callable[[Params], Params]

# Roles of what decays: all that multiplies activations, and embeddings.
DECAYED = ("role:matrix", "role:router", "role:head", "role:embedding")
# Kernels of layers that Muon orthogonalizes.
_MUON_ROLES = ("matrix", "router")


def decay_mask(specs: Params, patterns: Sequence[str] = DECAYED) -> ByParameter:
    """Which parameters decay, as ``mask`` of the rules here and of optax's.

    Args:
        specs: the ``ParamSpec`` of each parameter.
        patterns: as in ``params.select.select``: ``role:NAME``, or a pattern of whole paths.

    Raises:
        ConfigError: a pattern matches nothing, or is a role that does not exist.
    """
    return by_path(select(patterns, specs, "patterns of weight decay", absent_roles=True))


def adamw(
    rate: float | Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    mask: ByParameter | Params | None = None,
    rate_scales: ByParameter | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019).

    Args:
        rate: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, multiplied by the learning rate.
        mask: which parameters decay, of ``decay_mask``; None is all.
        rate_scales: multiplies the learning rate of each parameter, but not its decay, of
            ``adam_rate_scales``; None is 1 for all.
    """
    direction = optax.scale_by_adam(beta1, beta2, eps)
    return _decoupled([direction], rate, weight_decay, mask, rate_scales)


def lion(
    rate: float | Schedule,
    *,
    beta1: float = 0.9,
    beta2: float = 0.95,
    weight_decay: float = 0.1,
    mask: ByParameter | Params | None = None,
    rate_scales: ByParameter | None = None,
) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023).

    Args:
        rate: learning rate.
        beta1: share of the momentum in the update.
        beta2: decay of the momentum.
        weight_decay: as in ``adamw``.
        mask: as in ``adamw``.
        rate_scales: as in ``adamw``.
    """
    return _decoupled([optax.scale_by_lion(beta1, beta2)], rate, weight_decay, mask, rate_scales)


def adafactor(
    rate: float | Schedule,
    *,
    weight_decay: float = 0.1,
    mask: ByParameter | Params | None = None,
    rate_scales: ByParameter | None = None,
) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018), with the learning rate as it is given: without the
    relative step size and without multiplying by the size of the parameter.

    Args:
        rate: learning rate.
        weight_decay: as in ``adamw``.
        mask: as in ``adamw``.
        rate_scales: as in ``adamw``.
    """
    parts = [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)]
    return _decoupled(parts, rate, weight_decay, mask, rate_scales)


def sgd(
    rate: float | Schedule,
    *,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    mask: ByParameter | Params | None = None,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with Nesterov momentum.

    Args:
        rate: learning rate.
        momentum: decay of the sum of gradients.
        weight_decay: as in ``adamw``.
        mask: as in ``adamw``.
    """
    # The names of saved optimizer states follow from the order of the parts, with identity.
    parts = [optax.trace(decay=momentum, nesterov=True), optax.identity()]
    return _decoupled(parts, rate, weight_decay, mask, None)


def is_layer_matrix(spec: ParamSpec) -> bool:
    """Whether a parameter is a matrix of the stacked layers, which Muon orthogonalizes."""
    return spec.role in _MUON_ROLES and spec.axes[0] == "layers"


def is_matrix(spec: ParamSpec) -> bool:
    """Whether a parameter is a matrix that is neither an embedding nor the output projection."""
    return spec.role in _MUON_ROLES


def muon(
    rate: float | Schedule,
    specs: Params,
    *,
    adam_rate: float | Schedule,
    momentum: float = 0.95,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    mask: ByParameter | Params | None = None,
    rate_scales: ByParameter | None = None,
    orthogonalized: Callable[[ParamSpec], bool] = is_layer_matrix,
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for matrices, AdamW for embeddings, norms, biases and the output
    projection.

    A kernel of several input or output axes is orthogonalized as one matrix, and each layer and
    each expert by itself.

    Args:
        rate: learning rate of Muon.
        specs: the ``ParamSpec`` of each parameter.
        adam_rate: learning rate of AdamW.
        momentum: of Muon (Nesterov).
        beta1: decay of the first moment of AdamW.
        beta2: decay of the second moment of AdamW.
        eps: added to the root of the second moment, and to norms in Muon.
        weight_decay: as in ``adamw``, of both.
        mask: as in ``adamw``.
        rate_scales: as in ``adamw``, of both; of ``muon_rate_scales``.
        orthogonalized: which parameters Muon trains: ``is_layer_matrix``, or ``is_matrix`` for
            models whose layers are not stacked.
    """
    adam = adamw(
        adam_rate,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        mask=mask,
        rate_scales=rate_scales,
    )
    dimensions = by_path(jax.tree.map(lambda spec: _dimensions(spec, orthogonalized), specs))
    if rate_scales is None:
        matrices = optax.contrib.muon(
            rate,
            beta=momentum,
            eps=eps,
            weight_decay=weight_decay,
            weight_decay_mask=mask,
            muon_weight_dimension_numbers=dimensions,
        )
    else:
        # A rate of 1 gives the direction, downhill.
        downhill = optax.contrib.muon(
            1.0, beta=momentum, eps=eps, muon_weight_dimension_numbers=dimensions
        )
        parts = [downhill, optax.scale(-1.0)]
        matrices = _decoupled(parts, rate, weight_decay, mask, rate_scales)
    label = by_path(jax.tree.map(lambda spec: "muon" if orthogonalized(spec) else "adam", specs))
    return optax.partition({"muon": matrices, "adam": adam}, label)


def adam_rate_scales(specs: Params, growth: Growth) -> ByParameter | None:
    """What multiplies the learning rate of each parameter in muP, for ``adamw``, ``lion`` and
    ``adafactor``.

    Args:
        specs: the ``ParamSpec`` of each parameter.
        growth: of the axes (``config.parametrization``); an empty one gives None, which is 1 for
            all.
    """
    if not growth:
        return None
    return by_path(jax.tree.map(lambda spec: adam_rate_scale(spec, growth), specs))


def muon_rate_scales(
    specs: Params,
    growth: Growth,
    orthogonalized: Callable[[ParamSpec], bool] = is_layer_matrix,
) -> ByParameter | None:
    """As ``adam_rate_scales``, for ``muon`` with the same ``orthogonalized``."""

    def one(spec: ParamSpec) -> float:
        scale = muon_rate_scale if orthogonalized(spec) else adam_rate_scale
        return scale(spec, growth)

    return by_path(jax.tree.map(one, specs)) if growth else None


def clipped(rule: optax.GradientTransformation, norm: float) -> optax.GradientTransformation:
    """``rule`` on gradients that are scaled down to this global norm; 0 is off."""
    return optax.chain(optax.clip_by_global_norm(norm), rule) if norm > 0 else rule


def by_path(values: Params) -> ByParameter:
    """A function of params that looks each leaf's value up by path: works on trees where optax has
    masked leaves out.
    """
    flat = jax.tree_util.tree_flatten_with_path(values, is_leaf=_is_dimensions)[0]
    known = {jax.tree_util.keystr(path): value for path, value in flat}

    def value_of(path: Any, _: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if name not in known:
            raise ConfigError(
                f"the parameter {name} has no spec; give specs of the structure of the parameters"
            )
        return known[name]

    return lambda params: jax.tree_util.tree_map_with_path(value_of, params)


def _is_dimensions(x: Any) -> bool:
    return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)


def _dimensions(
    spec: ParamSpec, orthogonalized: Callable[[ParamSpec], bool]
) -> optax.contrib.MuonDimensionNumbers | None:
    if not orthogonalized(spec):
        return None
    return optax.contrib.MuonDimensionNumbers(
        reduction_axis=spec.contract, output_axis=spec.outputs
    )


def _decoupled(
    parts: Sequence[optax.GradientTransformation],
    rate: float | Schedule,
    weight_decay: float,
    mask: ByParameter | Params | None,
    rate_scales: ByParameter | None,
) -> optax.GradientTransformation:
    """The direction that ``parts`` make, with weight decay and the learning rate."""
    scaled = [] if rate_scales is None else [_scale_each(rate_scales)]
    decayed = optax.add_decayed_weights(weight_decay, mask)
    return optax.chain(*parts, *scaled, decayed, optax.scale_by_learning_rate(rate))


def _scale_each(scales: ByParameter) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: jax.tree.map(
            lambda update, scale: update * jnp.asarray(scale, update.dtype),
            updates,
            scales(updates),
        )
    )
