"""Checks of a config that need no device: each raises ConfigError naming the key, its value and the
fix.
"""

from __future__ import annotations

import dataclasses
from typing import get_args, get_type_hints

from llm_jax.config import REMAT_NAMES, Config, DecodeConfig, ModelConfig
from llm_jax.ranges import check_fields
from llm_jax.types import ConfigError


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


def validate_model(m: ModelConfig) -> None:
    """Raise ConfigError for an architecture that cannot be built."""
    check_fields(m, "model.")
    _require(
        m.num_heads % m.kv_heads == 0,
        f"model.num_kv_heads is {m.kv_heads}, which does not divide model.num_heads {m.num_heads}",
    )
    _require(
        bool(m.head_dim) or m.embed_dim % m.num_heads == 0,
        f"model.embed_dim {m.embed_dim} is not a multiple of model.num_heads {m.num_heads}; set"
        " model.head_dim",
    )
    _require(
        m.positions != "rope" or m.rope_width % 2 == 0,
        (
            f"rotary positions need an even width; model.head_dim {m.head_size} times"
            f" model.rope_fraction {m.rope_fraction} is {m.rope_width}"
            if not m.kv_latent
            else f"rotary positions need an even width; model.rope_dim is {m.rope_dim}"
        ),
    )
    _check_latents(m)
    _require(
        0 <= m.first_layers < m.num_layers,
        f"model.first_layers is {m.first_layers}; it must be from 0 to less than model.num_layers,"
        f" {m.num_layers}",
    )
    _require(len(m.rope_pattern) > 0, "model.rope_pattern is empty; (True,) rotates in every layer")
    _require(
        m.rope_scaling != "longrope" or len(m.rope_factors) == m.rope_width // 2,
        f"model.rope_factors has {len(m.rope_factors)} numbers; longrope wants {m.rope_width // 2},"
        " one for each frequency",
    )
    _check_short_factors(m)
    _require(
        not m.rope_theta_windowed or any(m.window_pattern),
        f"model.rope_theta_windowed is {m.rope_theta_windowed}, and no layer of"
        f" model.window_pattern {m.window_pattern} has a window; set it to 0",
    )
    _require(
        m.positions != "sinusoidal" or m.embed_dim % 2 == 0,
        f"sinusoidal positions need an even model.embed_dim; it is {m.embed_dim}",
    )
    _require(
        len(m.window_pattern) > 0,
        "model.window_pattern is empty; (0,) is full attention in every layer",
    )
    _validate_encoder(m)
    if m.num_experts:
        _require(
            1 <= m.experts_per_token <= m.num_experts,
            f"model.experts_per_token is {m.experts_per_token}; it must be from 1 to"
            f" model.num_experts, {m.num_experts}",
        )
        _check_groups(m)


def _check_short_factors(m: ModelConfig) -> None:
    short, long = len(m.rope_short_factors), len(m.rope_factors)
    if m.rope_scaling != "longrope" or not short:
        return
    _require(
        short == long,
        f"model.rope_short_factors has {short} numbers and model.rope_factors {long}; give as many,"
        " or none for one list for all lengths",
    )
    _require(
        not m.encoder_layers,
        f"model.encoder_layers is {m.encoder_layers}; a model with an encoder has one list of"
        " factors for all lengths, leave model.rope_short_factors out",
    )


def _check_latents(m: ModelConfig) -> None:
    if not m.kv_latent:
        return
    _require(
        0 < m.rope_dim < m.head_size,
        f"model.rope_dim is {m.rope_dim}; with model.kv_latent it must be from 1 to less than the"
        f" model.head_dim {m.head_size}",
    )
    _require(
        m.kv_heads == m.num_heads,
        f"model.num_kv_heads is {m.num_kv_heads}; with model.kv_latent each of the {m.num_heads}"
        " heads has keys of its own, set it to 0",
    )
    _require(
        not m.qk_norm,
        "model.qk_norm is True; with model.kv_latent the latents are what has norms, set it to"
        " False",
    )
    _require(
        m.rope_fraction == 1,
        f"model.rope_fraction is {m.rope_fraction}; with model.kv_latent model.rope_dim says what"
        " is rotated, set it to 1",
    )


def _check_groups(m: ModelConfig) -> None:
    groups, most = m.expert_groups, m.groups_per_token
    if not groups:
        return
    size = m.num_experts // max(groups, 1)
    _require(
        groups > 0 and m.num_experts % groups == 0,
        f"model.expert_groups is {groups}; it must be positive and divide model.num_experts,"
        f" {m.num_experts}",
    )
    _require(
        1 <= most <= groups,
        f"model.groups_per_token is {most}; it must be from 1 to model.expert_groups, {groups}",
    )
    _require(
        m.experts_per_token <= most * size,
        f"model.experts_per_token is {m.experts_per_token}, and model.groups_per_token {most}"
        f" groups have {most * size} experts; raise model.groups_per_token",
    )
    _require(
        m.group_score == "best" or size > 1,
        f"model.group_score is {m.group_score!r}, and model.expert_groups {groups} leaves one"
        " expert in a group; use 'best'",
    )


def _validate_encoder(m: ModelConfig) -> None:
    """Encoders, encoder–decoders, relative positions, heads."""
    if m.encoder_layers:
        has = f"model.encoder_layers is {m.encoder_layers}"
        _require(
            m.causal,
            f"{has} and model.causal False: what attends to an encoder writes one by one; set one"
            " of the two",
        )
        _require(
            not m.parallel_residual,
            f"{has}, and model.parallel_residual has no place for attention to it; set it to False",
        )
        _require(
            not m.num_experts,
            f"{has} and model.num_experts {m.num_experts}: there are no experts beside an encoder;"
            " set it to 0",
        )
        _require(
            not m.token_types,
            f"{has} and model.token_types {m.token_types}: they are of models of one stack; set it"
            " to 0",
        )
        for name in ("kv_latent", "value_dim", "first_layers"):
            _require(
                not getattr(m, name),
                f"{has} and model.{name} {getattr(m, name)}: they are of models of one stack; set"
                " it to 0",
            )
        _require(
            m.pooler == "none",
            f"{has} and model.pooler {m.pooler!r}: it is of models of one stack; set it to none",
        )
        _require(
            not m.vocab_size or m.start_token < m.vocab_size,
            f"model.start_token is {m.start_token}; it must be less than model.vocab_size"
            f" {m.vocab_size}",
        )
    _require(
        m.pooler != "none" or not m.num_classes,
        f"model.num_classes is {m.num_classes} and model.pooler none: classes are of its vector;"
        " set it to tanh, relu or transform",
    )
    _require(
        m.pooler != "transform" or m.head_transform,
        "model.pooler is 'transform' and model.head_transform False, which is what would make"
        " vectors of rows; set it to True",
    )
    _require(
        m.first_attention_norm or m.norm_position in ("pre", "sandwich"),
        f"model.first_attention_norm is False and model.norm_position {m.norm_position!r}, without"
        " a norm before attention; set it to True",
    )
    if m.positions == "relative":
        _require(
            not m.kv_latent,
            f"model.positions 'relative' has no bias for model.kv_latent {m.kv_latent}; set it"
            " to 0",
        )
        both = 1 if m.causal and not m.encoder_layers else 2
        _require(
            m.relative_buckets >= 2 * both and m.relative_buckets % both == 0,
            f"model.relative_buckets is {m.relative_buckets}; it must be at least"
            f" {2 * both}{' and even' if both == 2 else ''}",
        )
        _require(
            m.relative_max_distance > m.relative_buckets // 2,
            f"model.relative_max_distance is {m.relative_max_distance}; it must be more than half"
            f" of the {m.relative_buckets} buckets",
        )


def remat_names(policy: str) -> tuple[str, ...]:
    """Names after ``names:`` or ``offload:`` in a remat policy; raises on a policy or a name that
    does not exist.
    """
    if policy in ("none", "full", "dots"):
        return ()
    prefix, _, rest = policy.partition(":")
    names = tuple(n.strip() for n in rest.split(",") if n.strip())
    unknown = [n for n in names if n not in REMAT_NAMES]
    if prefix not in ("names", "offload") or not names or unknown:
        raise ConfigError(
            f"execution.remat is {policy!r}; use none, full, dots, names:a,b or offload:a,b with"
            f" names out of {', '.join(REMAT_NAMES)}"
        )
    return names


def validate(config: Config) -> None:
    """Raise ConfigError, naming the key, its value and the fix, for a run that cannot start on any
    machine.
    """
    check_fields(config)
    validate_model(config.model)
    remat_names(config.execution.remat)
    d, t, o, m = config.data, config.train, config.optimizer, config.model
    check_objective(config)
    _require(
        bool(t.trainable),
        "train.trainable is empty, which trains nothing; ('*',) is all parameters",
    )
    _require(
        d.batch_size % t.accumulation == 0,
        f"data.batch_size {d.batch_size} does not divide by train.accumulation {t.accumulation}",
    )
    _require(
        d.seq_length <= m.max_length,
        f"data.seq_length {d.seq_length} is longer than model.max_length {m.max_length}; raise"
        " model.max_length",
    )
    profiled = t.profile_steps
    _require(
        not profiled or (len(profiled) == 2 and sum(profiled) - 1 <= t.steps),
        f"train.profile_steps is {profiled}; give the first step and the number of steps, within 1"
        f" to train.steps {t.steps}",
    )
    _require(
        o.warmup_steps < t.steps or o.warmup_steps == 0,
        f"optimizer.warmup_steps {o.warmup_steps} is not less than train.steps {t.steps}; lower it",
    )
    _require(
        config.mesh.expert in (1, -1) or m.num_experts > 0,
        f"mesh.expert is {config.mesh.expert} and model.num_experts 0: there are no experts to"
        " split; set mesh.expert to 1",
    )
    _check_folders(config)
    weights = d.weights
    _require(
        not weights or len(weights) == len(d.path),
        f"data.weights {weights} must be one for each of the {len(d.path)} folders of data.path",
    )
    chunk = config.execution.loss_chunk
    _require(
        not m.vocab_size or chunk <= m.vocab_size,
        f"execution.loss_chunk is {chunk}; it must be from 0 to the model.vocab_size"
        f" {m.vocab_size}",
    )
    axes = {f.name: getattr(config.mesh, f.name) for f in dataclasses.fields(config.mesh)}
    autos = [name for name, size in axes.items() if size == -1]
    _require(
        len(autos) <= 1,
        f"mesh axes {autos} are all -1; only one can take the devices that are left",
    )
    for name, size in axes.items():
        _require(size != 0, f"mesh.{name} is {size}; it must be at least 1, or -1 for the rest")


def check_objective(config: Config) -> None:
    """Raise ConfigError unless the objective is one that the architecture can learn and its lengths
    are there.
    """
    d, m = config.data, config.model
    has = f"model.encoder_layers is {m.encoder_layers} and model.causal {m.causal}"
    if m.encoder_layers:
        fitting: tuple[str, ...] = ("spans", "pairs")
    else:
        fitting = ("next_token",) if m.causal else ("masked",)
    _require(
        d.objective in fitting,
        f"data.objective is {d.objective!r}, and {has}; such a model learns from"
        f" {' or '.join(fitting)}",
    )
    if m.encoder_layers:
        _require(
            d.encoder_length >= 1,
            f"data.encoder_length is {d.encoder_length}; an encoder reads at least 1 token of"
            " a row",
        )
        _require(
            d.encoder_length <= m.max_length,
            f"data.encoder_length {d.encoder_length} is longer than model.max_length"
            f" {m.max_length}; raise model.max_length",
        )


# Dividing logits by less than this would make them infinite.
_LEAST_TEMPERATURE = 1e-6


def validate_decode(d: DecodeConfig) -> None:
    """Raise ConfigError for sampling settings outside their range."""
    check_fields(d)
    _require(
        d.temperature == 0 or d.temperature >= _LEAST_TEMPERATURE,
        f"temperature is {d.temperature}; it must be 0 (greedy) or at least {_LEAST_TEMPERATURE:g}",
    )
    orders = get_args(get_type_hints(DecodeConfig)["order"])
    _require(d.order in orders, f"order is {d.order!r}; use {' or '.join(orders)}")


def _check_folders(config: Config) -> None:
    # As a Path, gs://bucket/run is the folder gs:/bucket/run beside the others, and lost with the
    # machine.
    for key, folders in {"data.path": config.data.path, "train.out": (config.train.out,)}.items():
        for folder in folders:
            _require(
                "://" not in folder,
                f"{key} is {folder!r}, and only folders are read and written; mount the bucket"
                " (tpu_scripts/setup.sh does) and name its folder, such as"
                f" /mnt/bucket/{folder.partition('://')[2].partition('/')[2]}",
            )
