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
from llm_jax.params.select import present, select, split
from llm_jax.types import Params, ParamSpec

Schedule = Callable[[Array], Array]


def make_schedule(config: OptimizerConfig, steps: int, peak: float | None = None) -> Schedule:
    """Learning rate of optimizer step 0 … steps-1: linear warm-up to ``peak``, then the config's
    course to the last step.
    """
    peak = config.learning_rate if peak is None else peak
    warmup = config.warmup_steps
    last = max(steps - 1, 1)
    final = config.final_ratio

    def course(progress: Array) -> Array:
        if config.schedule == "constant":
            return jnp.ones_like(progress)
        if config.schedule == "cosine":
            return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        if config.schedule == "linear":
            return 1 - (1 - final) * progress
        return 1 - (1 - final) * jnp.clip(
            (progress - 1 + config.decay_fraction) / config.decay_fraction, 0, 1
        )

    def schedule(step: Array) -> Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(last - warmup, 1), 0, 1)
        warm = jnp.minimum((step + 1) / max(warmup, 1), 1.0)
        if config.schedule == "rsqrt":
            return peak * jnp.minimum(warm, jnp.sqrt(max(warmup, 1) / (step + 1)))
        return peak * warm * course(progress)

    return schedule


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
        balance_rate: step of the biases of loss-free balance (``ModelConfig.balance``), which have
            a rule of their own.

    Raises:
        ConfigError: ``optimizer.decay`` names a role or a path that does not exist.
    """
    rule = _update_rule(config, steps, specs)
    if config.clip_norm > 0:
        rule = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if not any(map(_is_balance, jax.tree.leaves(_specs_of(params, specs)))):
        return rule
    label = _by_path(jax.tree.map(lambda s: "balance" if _is_balance(s) else "learnt", specs))
    return optax.partition({"learnt": rule, "balance": _against_the_load(balance_rate)}, label)


def _update_rule(
    config: OptimizerConfig, steps: int, specs: Params
) -> optax.GradientTransformation:
    """The rule that ``optimizer.name`` names, with weight decay and the schedule."""
    rate = make_schedule(config, steps)
    weight_decay = config.weight_decay
    decay: tuple[str, ...] = config.decay if weight_decay else ()
    mask = _by_path(select(decay, specs, "optimizer.decay", absent_roles=True))
    beta1 = config.beta1
    beta2 = config.beta2
    if config.name == "adamw":
        return optax.adamw(rate, beta1, beta2, config.eps, weight_decay=weight_decay, mask=mask)
    if config.name == "lion":
        return optax.lion(rate, beta1, beta2, weight_decay=weight_decay, mask=mask)
    if config.name == "muon":
        return _muon(config, steps, mask, specs)
    direction = optax.trace(decay=config.momentum, nesterov=True)
    clip = optax.identity()
    if config.name == "adafactor":
        direction = optax.scale_by_factored_rms()
        clip = optax.clip_by_block_rms(1.0)
    decayed = optax.add_decayed_weights(weight_decay, mask)
    # The names of saved optimizer states follow from this order, with identity.
    return optax.chain(direction, clip, decayed, optax.scale_by_learning_rate(rate))


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
    c: OptimizerConfig, steps: int, mask: Callable, specs: Params
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices of the layers, AdamW for embeddings, norms, biases and
    the output projection.
    """
    label = _by_path(jax.tree.map(lambda s: "muon" if _for_muon(s) else "adam", specs))
    matrices = optax.contrib.muon(
        make_schedule(c, steps),
        beta=c.momentum,
        eps=c.eps,
        weight_decay=c.weight_decay,
        weight_decay_mask=mask,
        muon_weight_dimension_numbers=_by_path(jax.tree.map(_dimensions, specs)),
    )
    others = optax.adamw(
        make_schedule(c, steps, c.adam_learning_rate),
        c.beta1,
        c.beta2,
        c.eps,
        weight_decay=c.weight_decay,
        mask=mask,
    )
    return optax.partition({"muon": matrices, "adam": others}, label)


def _for_muon(spec: ParamSpec) -> bool:
    return spec.role in _MUON_ROLES and spec.axes[0] == "layers"


def _dimensions(spec: ParamSpec) -> optax.contrib.MuonDimensionNumbers | None:
    if not _for_muon(spec):
        return None
    return optax.contrib.MuonDimensionNumbers(
        reduction_axis=spec.contract, output_axis=spec.outputs
    )
