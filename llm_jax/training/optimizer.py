"""Optimizers and schedules from the config. The rules themselves are in ``training.update_rules``
and ``training.schedules``; the biases of loss-free balance have one of their own here.
"""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llm_jax.config import OptimizerConfig
from llm_jax.config.optimizer import (
    ConstantConfig,
    CosineConfig,
    LinearConfig,
    MuonConfig,
    RsqrtConfig,
    SgdConfig,
)
from llm_jax.config.parametrization import Growth
from llm_jax.params.select import present, select, split
from llm_jax.training import schedules, update_rules
from llm_jax.training.schedules import Schedule
from llm_jax.training.update_rules import by_path
from llm_jax.types import ConfigError, Params, ParamSpec


def make_schedule(config: OptimizerConfig, steps: int, peak: float | None = None) -> Schedule:
    """Learning rate of optimizer step 0 … steps-1: linear warm-up to ``peak``, then the config's
    course to the last step.
    """
    peak = config.learning_rate if peak is None else peak
    warmup = config.warmup_steps
    course = config.schedule
    if isinstance(course, ConstantConfig):
        return schedules.constant(peak, warmup=warmup)
    if isinstance(course, RsqrtConfig):
        return schedules.rsqrt(peak, warmup=warmup)
    final = course.final_ratio
    if isinstance(course, CosineConfig):
        return schedules.cosine(peak, steps, warmup=warmup, final_ratio=final)
    if isinstance(course, LinearConfig):
        return schedules.linear(peak, steps, warmup=warmup, final_ratio=final)
    fraction = course.decay_fraction
    return schedules.wsd(peak, steps, warmup=warmup, final_ratio=final, decay_fraction=fraction)


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    params: Params,
    specs: Params,
    balance_rate: float = 0.0,
    *,
    growth: Growth = MappingProxyType({}),
) -> optax.GradientTransformation:
    """Clipping, then the update rule with decoupled weight decay.

    Args:
        config: the settings of the rule.
        steps: optimizer steps of the run, for the schedule.
        params: the parameters that are trained, or their shapes.
        specs: the ``ParamSpec`` of each parameter, also of those that are not trained.
        balance_rate: step of the biases of loss-free balance (``BalanceBiasConfig``), which have
            a rule of their own.
        growth: of the model's axes (``ModelConfig.growth``), which learning rates follow with muP.

    Raises:
        ConfigError: ``optimizer.decay`` names a role or a path that does not exist, or the rule has
            no learning rates for muP.
    """
    rule = update_rules.clipped(_update_rule(config, steps, specs, growth), config.clip_norm)
    if not any(map(_is_balance, jax.tree.leaves(_specs_of(params, specs)))):
        return rule
    label = by_path(jax.tree.map(lambda s: "balance" if _is_balance(s) else "learnt", specs))
    return optax.partition({"learnt": rule, "balance": _against_the_load(balance_rate)}, label)


def _update_rule(
    config: OptimizerConfig, steps: int, specs: Params, growth: Growth
) -> optax.GradientTransformation:
    """The rule of ``optimizer.update``, with weight decay and the schedule."""
    update = config.update
    rate = make_schedule(config, steps)
    patterns: tuple[str, ...] = config.decay if config.weight_decay else ()
    mask = by_path(select(patterns, specs, "optimizer.decay", absent_roles=True))
    decay: dict[str, Any] = {"weight_decay": config.weight_decay, "mask": mask}
    if isinstance(update, SgdConfig):
        if growth:
            raise ConfigError(
                "model.parametrization is 'mup', and optimizer.update sgd has no learning rates for"
                " it; use adamw, adafactor, lion or muon"
            )
        return update_rules.sgd(rate, momentum=update.momentum, **decay)
    settings = {**dataclasses.asdict(update), **decay}
    if isinstance(update, MuonConfig):
        peak = settings.pop("adam_learning_rate")
        adam_rate = make_schedule(config, steps, peak)
        return update_rules.muon(
            rate,
            specs,
            adam_rate=adam_rate,
            rate_scales=update_rules.muon_rate_scales(specs, growth),
            **settings,
        )
    rules = {"adamw": update_rules.adamw, "lion": update_rules.lion}
    rule = rules.get(update.kind, update_rules.adafactor)
    return rule(rate, rate_scales=update_rules.adam_rate_scales(specs, growth), **settings)


def of_the_loss(params: Params, specs: Params) -> Params:
    """``params``, or gradients, with the biases of loss-free balance masked out, since their
    gradients are not gradients of the loss. ``specs`` may be those of more parameters.
    """
    return jax.tree.map(
        lambda x, spec: optax.MaskedNode() if _is_balance(spec) else x,
        params,
        _specs_of(params, specs),
    )


def _specs_of(params: Params, specs: Params) -> Params:
    """The specs of ``params``, which may be a part of the parameters that ``specs`` describes."""
    described, _ = split(specs, present(specs, params))
    return described


def _is_balance(spec: ParamSpec) -> bool:
    return spec.role == "balance"


def _against_the_load(rate: float) -> optax.GradientTransformation:
    """Each step moves a bias by ``rate`` against the sign of its expert's load less the mean (Wang
    et al. 2024, algorithm 1).
    """
    return optax.stateless(
        lambda loads, _: jax.tree.map(lambda load: -rate * jnp.sign(load), loads)
    )
