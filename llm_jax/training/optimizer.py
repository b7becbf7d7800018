"""Optimizers and schedules out of optax, from the config. What a parameter is, for weight decay,
Muon and loss-free balance, is read from its ``ParamSpec``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from llm_jax.config import OptimizerConfig
from llm_jax.config.optimizer import (
    AdafactorConfig,
    AdamWConfig,
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    LionConfig,
    MuonConfig,
    RsqrtConfig,
    WsdConfig,
)
from llm_jax.params.select import present, select, split
from llm_jax.types import Params, ParamSpec

Schedule = Callable[[Array], Array]


def make_schedule(config: OptimizerConfig, steps: int, peak: float | None = None) -> Schedule:
    """Learning rate of optimizer step 0 … steps-1: linear warm-up to ``peak``, then the config's
    course to the last step.
    """
    peak = config.learning_rate if peak is None else peak
    course = config.schedule
    warmup = config.warmup_steps
    last = max(steps - 1, 1)

    def schedule(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(last - warmup, 1), 0, 1)
        warm = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        if isinstance(course, RsqrtConfig):
            return peak * jnp.minimum(warm, jnp.sqrt(max(warmup, 1) / (step + 1)))
        return peak * warm * _after_warmup(course, progress)

    return schedule


def _after_warmup(
    course: CosineConfig | LinearConfig | WsdConfig | ConstantConfig, progress: Array
) -> Array:
    """The share of the peak at a ``progress`` from 0, after warm-up, to 1, the last step."""
    if isinstance(course, ConstantConfig):
        return jnp.ones_like(progress)
    final = course.final_ratio
    if isinstance(course, CosineConfig):
        return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    if isinstance(course, LinearConfig):
        return 1 - (1 - final) * progress
    fraction = course.decay_fraction
    return 1 - (1 - final) * jnp.clip((progress - 1 + fraction) / fraction, 0, 1)


# Kernels of layers that Muon orthogonalizes.
_MUON_ROLES = ("matrix", "router")


def make_optimizer(
    config: OptimizerConfig, steps: int, params: Params, specs: Params, balance_rate: float = 0.0
) -> optax.GradientTransformation:
    """Clipping, then the update rule with decoupled weight decay.

    Args:
        config: the settings of the rule.
        steps: optimizer steps of the run, for the schedule.
        params: the parameters that are trained, or their shapes.
        specs: the ``ParamSpec`` of each parameter, also of those that are not trained.
        balance_rate: step of the biases of loss-free balance (``BalanceBiasConfig``), which have
            a rule of their own.

    Raises:
        ConfigError: ``optimizer.decay`` names a role or a path that does not exist.
    """
    learnt = of_the_loss(params, specs)
    decay: tuple[str, ...] = config.decay if config.weight_decay else ()
    mask = _by_path(select(decay, specs, "optimizer.decay", absent_roles=True))
    rule = _update_rule(config, steps, mask, specs)
    if config.clip_norm > 0:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if jax.tree.structure(learnt) == jax.tree.structure(params):
        return rule

    label = _by_path(jax.tree.map(lambda s: "balance" if _is_balance(s) else "learnt", specs))
    return optax.partition({"learnt": rule, "balance": _against_the_load(balance_rate)}, label)


def _update_rule(
    config: OptimizerConfig, steps: int, mask: Callable, specs: Params
) -> optax.GradientTransformation:
    """The rule with decoupled weight decay of the parameters in ``mask``, without clipping."""
    update = config.update
    rate = make_schedule(config, steps)
    weight_decay = config.weight_decay
    if isinstance(update, AdamWConfig):
        return _adamw(update, rate, weight_decay, mask)
    if isinstance(update, LionConfig):
        return optax.lion(rate, update.beta1, update.beta2, weight_decay=weight_decay, mask=mask)
    if isinstance(update, MuonConfig):
        return _muon(config, update, steps, mask, specs)
    if isinstance(update, AdafactorConfig):
        scaled = optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)
    else:
        scaled = optax.trace(decay=update.momentum, nesterov=True), optax.identity()
    return optax.chain(
        *scaled,
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(rate),
    )


def _adamw(
    update: AdamWConfig | MuonConfig, rate: Schedule, weight_decay: float, mask: Callable
) -> optax.GradientTransformation:
    return optax.adamw(
        rate, update.beta1, update.beta2, update.eps, weight_decay=weight_decay, mask=mask
    )


def of_the_loss(params: Params, specs: Params) -> Params:
    """``params``, or gradients, less the biases of loss-free balance, whose gradients are no slopes
    of the loss. ``specs`` may be those of more parameters.
    """
    of_these, _ = split(specs, present(specs, params))
    return jax.tree.map(
        lambda x, spec: optax.MaskedNode() if _is_balance(spec) else x, params, of_these
    )


def _is_balance(spec: ParamSpec) -> bool:
    return spec.role == "balance"


def _against_the_load(rate: float) -> optax.GradientTransformation:
    """Each step moves a bias by ``rate`` against the sign of its expert's load less the mean (Wang
    et al. 2024, algorithm 1).
    """
    return optax.stateless(
        lambda loads, _: jax.tree.map(lambda load: -rate * jnp.sign(load), loads)
    )


def _by_path(values: Params) -> Callable[[Params], Params]:
    """A function of params that looks each leaf's value up by path: works on trees where optax has
    masked leaves out.
    """
    flat = jax.tree_util.tree_flatten_with_path(values, is_leaf=_is_dimensions)[0]
    known = {jax.tree_util.keystr(path): value for path, value in flat}
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: known[jax.tree_util.keystr(path)], params
    )


def _is_dimensions(x: Any) -> bool:
    return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)


def _muon(
    config: OptimizerConfig, update: MuonConfig, steps: int, mask: Callable, specs: Params
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices of the layers, AdamW for embeddings, norms, biases and
    the output projection.
    """
    label = _by_path(jax.tree.map(lambda s: "muon" if _for_muon(s) else "adam", specs))
    matrices = optax.contrib.muon(
        make_schedule(config, steps),
        beta=update.momentum,
        eps=update.eps,
        weight_decay=config.weight_decay,
        weight_decay_mask=mask,
        muon_weight_dimension_numbers=_by_path(jax.tree.map(_dimensions, specs)),
    )
    adam_rate = make_schedule(config, steps, update.adam_learning_rate)
    others = _adamw(update, adam_rate, config.weight_decay, mask)
    return optax.partition({"muon": matrices, "adam": others}, label)


def _for_muon(spec: ParamSpec) -> bool:
    return spec.role in _MUON_ROLES and spec.axes[0] == "layers"


def _dimensions(spec: ParamSpec) -> optax.contrib.MuonDimensionNumbers | None:
    if not _for_muon(spec):
        return None
    return optax.contrib.MuonDimensionNumbers(
        reduction_axis=spec.contract, output_axis=spec.outputs
    )
