"""Optimizers and schedules out of optax, from the config; which parameters decay is decided by name
and must be complete.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from llm_jax.config import OptimizerConfig
from llm_jax.types import ConfigError, Params

Schedule = Callable[[Array], Array]


def make_schedule(config: OptimizerConfig, steps: int, peak: float | None = None) -> Schedule:
    """Learning rate of optimizer step 0 … steps-1: linear warm-up to ``peak``, then the config's
    course to the last step.
    """
    peak = config.learning_rate if peak is None else peak
    warmup, last, final = config.warmup_steps, max(steps - 1, 1), config.final_ratio

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


def decay_mask(params: Params, decay: tuple[str, ...], no_decay: tuple[str, ...]) -> Params:
    """True for each parameter whose last name matches ``decay``. ConfigError unless each matches
    exactly one of the lists.
    """

    def one(path: tuple, _: Any) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaf = name.rsplit("/", 1)[-1]
        yes, no = (
            any(fnmatch.fnmatch(leaf, p) for p in patterns) for patterns in (decay, no_decay)
        )
        if yes == no:
            which = "both" if yes else "neither"
            raise ConfigError(
                f"parameter {name} matches {which} of optimizer.decay {decay} and"
                f" optimizer.no_decay {no_decay}; every parameter must match exactly one"
            )
        return yes

    return jax.tree_util.tree_map_with_path(one, params)


def make_optimizer(
    config: OptimizerConfig, steps: int, params: Params, axes: Params, balance_rate: float = 0.0
) -> optax.GradientTransformation:
    """Clipping, then the update rule with decoupled weight decay. ``params`` may be shapes;
    ``axes`` their logical axes.

    balance_rate: step of the biases of loss-free balance (``ModelConfig.balance``), which have a
    rule of their own.
    """
    c, rate = config, make_schedule(config, steps)
    learnt = of_the_loss(params)
    decay = (
        jax.tree.map(lambda _: False, learnt)
        if c.weight_decay == 0
        else decay_mask(learnt, c.decay, c.no_decay)
    )
    mask = _by_path(decay)
    if c.name == "adamw":
        rule = optax.adamw(rate, c.beta1, c.beta2, c.eps, weight_decay=c.weight_decay, mask=mask)
    elif c.name == "lion":
        rule = optax.lion(rate, c.beta1, c.beta2, weight_decay=c.weight_decay, mask=mask)
    elif c.name == "muon":
        rule = _muon(c, steps, mask, axes)
    else:
        base = (
            optax.scale_by_factored_rms()
            if c.name == "adafactor"
            else optax.trace(decay=c.momentum, nesterov=True)
        )
        clip = optax.clip_by_block_rms(1.0) if c.name == "adafactor" else optax.identity()
        rule = optax.chain(
            base,
            clip,
            optax.add_decayed_weights(c.weight_decay, mask),
            optax.scale_by_learning_rate(rate),
        )
    rule = optax.chain(optax.clip_by_global_norm(c.clip_norm), rule) if c.clip_norm > 0 else rule
    if jax.tree.structure(learnt) == jax.tree.structure(params):
        return rule

    def label(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "balance" if _is_balance(path) else "learnt", params
        )

    return optax.partition({"learnt": rule, "balance": _against_the_load(balance_rate)}, label)


def of_the_loss(params: Params) -> Params:
    """``params``, or gradients, less the biases of loss-free balance, whose gradients are no slopes
    of the loss.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: optax.MaskedNode() if _is_balance(path) else x, params
    )


def _is_balance(path: tuple) -> bool:
    return path[-1].key == "balance"


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
    known = {
        jax.tree_util.keystr(path): v for path, v in jax.tree_util.tree_flatten_with_path(values)[0]
    }
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: known[jax.tree_util.keystr(path)], params
    )


def _muon(
    c: OptimizerConfig, steps: int, mask: Callable, axes: Params
) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for the matrices of the layers, AdamW for embeddings, norms, biases and
    the output projection.
    """
    numbers = {
        jax.tree_util.keystr(path): _matrix_axes(a)
        for path, a in jax.tree_util.tree_flatten_with_path(
            axes, is_leaf=lambda a: isinstance(a, tuple)
        )[0]
    }

    def label(params: Params) -> Params:
        def name(path, _):
            return "muon" if numbers[jax.tree_util.keystr(path)] else "adam"

        return jax.tree_util.tree_map_with_path(name, params)

    def dimensions(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: numbers[jax.tree_util.keystr(path)], params
        )

    matrices = optax.contrib.muon(
        make_schedule(c, steps),
        beta=c.momentum,
        eps=c.eps,
        weight_decay=c.weight_decay,
        weight_decay_mask=mask,
        muon_weight_dimension_numbers=dimensions,
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


def _matrix_axes(axes: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of a stacked layer parameter its matrix product sums over, and which it makes;
    None if it is no matrix.
    """
    width = next((a for a in axes if a in ("embed", "expert_embed", "latent")), None)
    if axes[0] != "layers" or len(axes) < 3 or width is None:
        return None
    embed, rest = (
        axes.index(width),
        tuple(i for i, a in enumerate(axes) if a not in ("layers", "expert", width)),
    )
    if not rest:  # a bias of each expert
        return None
    reads = embed < min(rest)
    return optax.contrib.MuonDimensionNumbers(
        reduction_axis=(embed,) if reads else rest, output_axis=rest if reads else (embed,)
    )
