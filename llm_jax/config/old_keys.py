"""Settings of earlier versions, in saved configs and overrides: each is read as its setting of
today.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from llm_jax.config.optimizer import OptimizerConfig
from llm_jax.config.sections import NONE, ON
from llm_jax.progress import note

# Before settings were in nested sections: old key -> key of today.
RENAMED = {
    f"model.{old}": f"model.{new}"
    for old, new in {
        "num_heads": "attention.num_heads",
        "num_kv_heads": "attention.num_kv_heads",
        "head_dim": "attention.head_dim",
        "value_dim": "attention.value_dim",
        "q_latent": "attention.q_latent",
        "rope_dim": "attention.rope_dim",
        "window_pattern": "attention.window_pattern",
        "attention_scale": "attention.scale",
        "attention_softcap": "attention.softcap",
        "attention_sinks": "attention.sinks",
        "qkv_bias": "attention.qkv_bias",
        "out_bias": "attention.out_bias",
        "mlp_dim": "mlp.hidden_dim",
        "activation": "mlp.activation",
        "mlp_bias": "mlp.bias",
        "mlp_clamp": "mlp.clamp",
        "mlp_up_offset": "mlp.up_offset",
        "first_mlp_dim": "first_layers.mlp_dim",
        "first_attention_norm": "first_layers.attention_norm",
        "encoder_mlp_dim": "encoder.mlp_dim",
        "start_token": "encoder.start_token",
        "norm_eps": "norm.eps",
        "norm_bias": "norm.bias",
        "norm_unit_offset": "norm.unit_offset",
        "norm_position": "norm.position",
        "attention_norm": "norm.attention",
        "final_norm": "norm.final",
        "position_offset": "positions.offset",
        "relative_buckets": "positions.buckets",
        "relative_max_distance": "positions.max_distance",
        "rope_theta": "positions.theta",
        "rope_theta_windowed": "positions.windowed_theta",
        "rope_fraction": "positions.fraction",
        "rope_pattern": "positions.pattern",
        "rope_scaling": "positions.scaling",
        "rope_factor": "positions.scaling.factor",
        "rope_original_length": "positions.scaling.original_length",
        "rope_factors": "positions.scaling.factors",
        "rope_short_factors": "positions.scaling.short_factors",
        "rope_attention_factor": "positions.scaling.attention_factor",
        "rope_low_frequency": "positions.scaling.low_frequency",
        "rope_high_frequency": "positions.scaling.high_frequency",
        "rope_beta_fast": "positions.scaling.beta_fast",
        "rope_beta_slow": "positions.scaling.beta_slow",
        "rope_truncate": "positions.scaling.truncate",
        "experts_per_token": "experts.per_token",
        "shared_experts": "experts.shared",
        "router": "experts.router",
        "router_bias": "experts.router_bias",
        "router_normalize": "experts.normalize",
        "router_scale": "experts.scale",
        "router_z_loss": "experts.router_z_loss",
        "groups_per_token": "experts.groups.per_token",
        "group_score": "experts.groups.score",
        "balance": "experts.balance",
        "balance_weight": "experts.balance.weight",
        "balance_rate": "experts.balance.rate",
        "tied_embeddings": "embedding.tied",
        "scale_embeddings": "embedding.scale_by_width",
        "embedding_scale": "embedding.scale",
        "embedding_norm": "embedding.norm",
        "token_types": "embedding.token_types",
        "logit_scale": "head.scale",
        "logit_softcap": "head.softcap",
        "head_bias": "head.bias",
        "head_transform_bias": "head.transform.bias",
        "pooling": "pooler.reads",
        "num_classes": "pooler.num_classes",
    }.items()
} | {
    "optimizer.name": "optimizer.update",
    "optimizer.adam_learning_rate": "optimizer.update.adam_learning_rate",
    "optimizer.beta1": "optimizer.update.beta1",
    "optimizer.beta2": "optimizer.update.beta2",
    "optimizer.eps": "optimizer.update.eps",
    "optimizer.momentum": "optimizer.update.momentum",
    "optimizer.final_ratio": "optimizer.schedule.final_ratio",
    "optimizer.decay_fraction": "optimizer.schedule.decay_fraction",
    "data.mask_rate": "data.objective.mask_rate",
    "data.span_length": "data.objective.span_length",
    "data.encoder_length": "data.objective.encoder_length",
    "train.spike_deviations": "train.spike.deviations",
    "train.spike_window": "train.spike.window",
    "train.host_check_every": "train.hosts.check_every",
    "train.host_silent": "train.hosts.silent",
    "train.host_stuck": "train.hosts.stuck",
}


def _section(section: str, field: str) -> Callable[[Any], dict[str, Any]]:
    """A number that was 0 where there was no such section."""

    def settings_of(value: Any) -> dict[str, Any]:
        if value == 0:
            return {section: NONE}
        return {section: ON, f"{section}.{field}": value}

    return settings_of


def _latent(value: Any) -> dict[str, Any]:
    if value == 0:
        return {"model.attention": "multi_head"}
    return {"model.attention": "latent", "model.attention.kv_latent": value}


def _pooler(value: Any) -> dict[str, Any]:
    if value == NONE:
        return {"model.pooler": NONE}
    return {"model.pooler": ON, "model.pooler.layer": value}


def _decay(patterns: Any) -> dict[str, Any]:
    """Patterns were of the last name of a path, and this list and ``no_decay`` had to cover all."""
    if not isinstance(patterns, list | tuple):
        return {"optimizer.decay": patterns}
    if tuple(patterns) == ("kernel", "embedding"):
        return {"optimizer.decay": OptimizerConfig().decay}
    return {"optimizer.decay": tuple(p if ":" in p or "/" in p else f"*/{p}" for p in patterns)}


# Old key and its value -> settings of today.
CONVERTED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "model.kv_latent": _latent,
    "model.qk_norm": lambda on: {"model.attention.qk_norm": "head" if on is True else "none"},
    "model.num_experts": _section("model.experts", "count"),
    "model.expert_groups": _section("model.experts.groups", "count"),
    "model.encoder_layers": _section("model.encoder", "num_layers"),
    "model.first_layers": _section("model.first_layers", "count"),
    "model.head_transform": lambda on: {"model.head.transform": ON if on is True else NONE},
    "model.pooler": _pooler,
    "train.spike": lambda kind: {"train.spike": NONE if kind == "off" else kind},
    "optimizer.decay": _decay,
    "optimizer.no_decay": lambda _: {},
}


class Translated(NamedTuple):
    """Settings of today, and what was read as what.

    Attributes:
        values: settings by dotted keys of today.
        renamed: old key -> keys of today.
    """

    values: dict[str, Any]
    renamed: dict[str, tuple[str, ...]]


def translate(values: Mapping[str, Any], prefix: str = "") -> Translated:
    """Dotted keys and values with the settings of today in the place of old ones.

    Args:
        values: settings by dotted keys.
        prefix: what the keys lack before them: ``model.`` for those of a ``ModelConfig``.
    """
    whole = {prefix + key: value for key, value in values.items()}
    out: dict[str, Any] = {}
    renamed = {}
    for key, value in _with_one_qk_norm(whole).items():
        new = {key: value}
        if _is_old(key, value, whole):
            new = CONVERTED[key](value) if key in CONVERTED else {RENAMED[key]: value}
            renamed[key.removeprefix(prefix)] = tuple(n.removeprefix(prefix) for n in new)
        out |= {name.removeprefix(prefix): v for name, v in new.items()}
    return Translated(out, renamed)


def _with_one_qk_norm(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with the norm of queries and keys in one setting: its width was another one."""
    out = dict(values)
    width = out.pop("model.qk_norm_width", None)
    if width is not None and out.pop("model.qk_norm", True):
        out["model.attention.qk_norm"] = width
    return out


def _is_old(key: str, value: Any, values: Mapping[str, Any]) -> bool:
    # These are settings of today too, with other values.
    if key == "model.first_layers":
        return not isinstance(value, str)
    if key == "model.pooler":
        return value not in (ON, NONE)
    if key == "train.spike":
        return value == "off"
    if key == "optimizer.decay":
        return "optimizer.no_decay" in values
    return key in CONVERTED or key in RENAMED


@functools.cache
def tell(renamed: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    """Tells the user, once, the keys of today."""
    for old, new in renamed:
        note(f"note: the setting {old} is now {' and '.join(new) or 'not read'}")


@functools.cache
def tell_of_file(source: str, count: int) -> None:
    """Tells the user, once for each file, that its settings have names of before."""
    note(
        f"note: {source} has {count} settings under earlier names, which are read as those of today"
        " (such as model.attention.num_heads for model.num_heads)"
    )
