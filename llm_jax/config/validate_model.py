"""Checks of an architecture: each raises ConfigError naming the key, its value and the fix."""

from __future__ import annotations

from llm_jax.config.attention import LatentAttentionConfig
from llm_jax.config.mlp import ExpertsConfig
from llm_jax.config.model import EncoderConfig, ModelConfig
from llm_jax.config.parametrization import MupConfig
from llm_jax.config.positions import (
    LongRopeScalingConfig,
    RelativePositionsConfig,
    RopeConfig,
    SinusoidalPositionsConfig,
)
from llm_jax.config.recurrent import LstmConfig
from llm_jax.config.sections import flatten
from llm_jax.ranges import check_fields
from llm_jax.types import ConfigError

# Of attention, MLPs and their blocks: what recurrent layers have no use for.
_NOT_RECURRENT = (
    "attention",
    "mlp",
    "experts",
    "positions",
    "encoder",
    "first_layers",
    "parallel_residual",
    "causal",
    "norm.attention",
)
# What layers that are not added to a residual stream have no use for.
_OF_RESIDUALS = ("norm.position", "residual_scale")


def require(ok: bool, message: str) -> None:
    """Raise ConfigError with the message unless ``ok``."""
    if not ok:
        raise ConfigError(message)


def validate_model(m: ModelConfig) -> None:
    """Raise ConfigError for an architecture that cannot be built."""
    check_fields(m, "model.")
    if m.recurrent:
        _check_recurrent(m, m.recurrent)
    else:
        _check_attention(m)
    if m.latent:
        _check_latents(m, m.latent)
    if m.rope:
        _check_rope(m, m.rope)
    if isinstance(m.positions, RelativePositionsConfig):
        _check_relative(m, m.positions)
    require(
        not isinstance(m.positions, SinusoidalPositionsConfig) or m.embed_dim % 2 == 0,
        f"sinusoidal positions need an even model.embed_dim; it is {m.embed_dim}",
    )
    if m.experts:
        _check_experts(m.experts)
    if m.encoder:
        _check_encoder(m, m.encoder)
    if isinstance(m.parametrization, MupConfig):
        _check_mup(m, m.parametrization)
    _check_first_layers(m)
    _check_pooler(m)


def _check_attention(m: ModelConfig) -> None:
    a = m.attention
    require(
        a.num_heads % a.kv_heads == 0,
        f"model.attention.num_kv_heads is {a.kv_heads}, which does not divide"
        f" model.attention.num_heads {a.num_heads}",
    )
    require(
        bool(a.head_dim) or m.embed_dim % a.num_heads == 0,
        f"model.embed_dim {m.embed_dim} is not a multiple of model.attention.num_heads"
        f" {a.num_heads}; set model.attention.head_dim",
    )
    require(
        len(a.window_pattern) > 0,
        "model.attention.window_pattern is empty; (0,) is full attention in every layer",
    )


def _check_recurrent(m: ModelConfig, recurrent: LstmConfig) -> None:
    """What a model of recurrent layers cannot have."""
    has = f"model.recurrent is {recurrent.kind!r}"
    _refuse_unread(m, _NOT_RECURRENT, has)
    if not recurrent.residual:
        _refuse_unread(m, _OF_RESIDUALS, "model.recurrent.residual is False")
    require(
        not isinstance(m.parametrization, MupConfig),
        f"model.parametrization is 'mup' and {has}, for which there are no such rates; set"
        " model.parametrization to standard",
    )


def _refuse_unread(m: ModelConfig, keys: tuple[str, ...], why: str) -> None:
    """Raise ConfigError for a setting of these sections, or one of these settings, that is not at
    its default.
    """
    defaults = flatten(ModelConfig())
    for key, value in flatten(m).items():
        unread = any(key == name or key.startswith(f"{name}.") for name in keys)
        if not unread or _has_a_reader(m, key, value) or value == defaults.get(key):
            continue
        raise ConfigError(
            f"model.{key} is {value!r} and {why}, with which nothing reads model.{key}; set it to"
            f" {defaults.get(key, 'its default')}, or leave it out"
        )


def _has_a_reader(m: ModelConfig, key: str, value: object) -> bool:
    """Whether a setting of attention or MLP says something of a model without them."""
    if key == "positions":
        return value == "none"
    # The transform before the output projection has an activation.
    return key == "mlp.activation" and m.head.transform is not None


def _check_latents(m: ModelConfig, latent: LatentAttentionConfig) -> None:
    require(
        0 < latent.rope_dim < m.head_dim,
        f"model.attention.rope_dim is {latent.rope_dim}; with latent attention it must be from 1 to"
        f" less than the model.attention.head_dim {m.head_dim}",
    )
    require(
        m.rope is None or m.rope.fraction == 1,
        f"model.positions.fraction is {m.rope and m.rope.fraction}; with latent attention"
        " model.attention.rope_dim sets the rotated part; set model.positions.fraction to 1",
    )


def _check_rope(m: ModelConfig, rope: RopeConfig) -> None:
    width = f"model.attention.head_dim {m.head_dim} times model.positions.fraction {rope.fraction}"
    if m.latent:
        width = "model.attention.rope_dim"
    require(
        m.rope_width % 2 == 0, f"rotary positions need an even width; {width} is {m.rope_width}"
    )
    require(
        len(rope.pattern) > 0,
        "model.positions.pattern is empty; (True,) rotates in every layer",
    )
    require(
        not rope.windowed_theta or any(m.attention.window_pattern),
        f"model.positions.windowed_theta is {rope.windowed_theta}, and no layer of"
        f" model.attention.window_pattern {m.attention.window_pattern} has a window; set it to 0",
    )
    if isinstance(rope.scaling, LongRopeScalingConfig):
        _check_longrope(m, rope.scaling)


def _check_longrope(m: ModelConfig, scaling: LongRopeScalingConfig) -> None:
    long = len(scaling.factors)
    short = len(scaling.short_factors)
    require(
        long == m.rope_width // 2,
        f"model.positions.scaling.factors has {long} numbers; longrope expects"
        f" {m.rope_width // 2}, one for each frequency",
    )
    if not short:
        return
    require(
        short == long,
        f"model.positions.scaling.short_factors has {short} numbers and"
        f" model.positions.scaling.factors {long}; give as many, or none for one list for all"
        " lengths",
    )
    require(
        not m.encoder,
        "model.encoder is 'on'; a model with an encoder has one list of factors for all lengths,"
        " leave model.positions.scaling.short_factors out",
    )


def _check_relative(m: ModelConfig, relative: RelativePositionsConfig) -> None:
    require(
        not m.latent,
        "model.positions is 'relative' and model.attention 'latent', which has no bias for"
        " distances; set one of the two",
    )
    both = 1 if m.causal and not m.encoder else 2
    require(
        relative.buckets >= 2 * both and relative.buckets % both == 0,
        f"model.positions.buckets is {relative.buckets}; it must be at least"
        f" {2 * both}{' and even' if both == 2 else ''}",
    )
    require(
        relative.max_distance > relative.buckets // 2,
        f"model.positions.max_distance is {relative.max_distance}; it must be more than half of the"
        f" {relative.buckets} buckets",
    )


def _check_experts(e: ExpertsConfig) -> None:
    require(
        1 <= e.per_token <= e.count,
        f"model.experts.per_token is {e.per_token}; it must be from 1 to model.experts.count,"
        f" {e.count}",
    )
    groups = e.groups
    if groups is None:
        return
    size = e.count // groups.count
    require(
        e.count % groups.count == 0,
        f"model.experts.groups.count is {groups.count}; it must divide model.experts.count,"
        f" {e.count}",
    )
    require(
        groups.per_token <= groups.count,
        f"model.experts.groups.per_token is {groups.per_token}; it must be from 1 to"
        f" model.experts.groups.count, {groups.count}",
    )
    require(
        e.per_token <= groups.per_token * size,
        f"model.experts.per_token is {e.per_token}, and model.experts.groups.per_token"
        f" {groups.per_token} groups have {groups.per_token * size} experts; raise"
        " model.experts.groups.per_token",
    )
    require(
        groups.score == "best" or size > 1,
        f"model.experts.groups.score is {groups.score!r}, and model.experts.groups.count"
        f" {groups.count} leaves one expert in a group; use 'best'",
    )


def _check_encoder(m: ModelConfig, encoder: EncoderConfig) -> None:
    """What a model of two stacks cannot have."""
    has = f"model.encoder.num_layers is {encoder.num_layers}"
    require(
        m.causal,
        f"{has} and model.causal False: a decoder that attends to an encoder writes tokens one by"
        " one; set model.causal to True, or model.encoder to none",
    )
    require(
        not m.parallel_residual,
        f"{has}, and model.parallel_residual has no place for attention to it; set it to False",
    )
    # Key -> (what only models of one stack have, the value that leaves it out).
    one_stack = {
        "model.experts": (m.experts, "none"),
        "model.attention": (m.latent, "multi_head"),
        "model.first_layers": (m.first_layers, "none"),
        "model.pooler": (m.pooler, "none"),
        "model.embedding.token_types": (m.embedding.token_types, "0"),
        "model.attention.value_dim": (m.attention.value_dim, "0"),
    }
    for key, (value, without) in one_stack.items():
        require(
            not value,
            f"{has}, and only models of one stack have {key}; set {key} to {without}, or"
            " model.encoder to none",
        )
    require(
        not m.vocab_size or encoder.start_token < m.vocab_size,
        f"model.encoder.start_token is {encoder.start_token}; it must be less than model.vocab_size"
        f" {m.vocab_size}",
    )


def _check_mup(m: ModelConfig, mup: MupConfig) -> None:
    """What grows with the width in a way that muP does not have."""
    require(
        not m.embedding.scale_by_width,
        "model.embedding.scale_by_width is True and model.parametrization 'mup', in which"
        " embeddings have the same size at every width; set it to False, and model.embedding.scale"
        f" to the factor of the base model, {mup.base_width**0.5:.6g}",
    )
    require(
        not (mup.base_head_dim and m.latent),
        f"model.parametrization.base_head_dim is {mup.base_head_dim} and model.attention 'latent',"
        " whose heads have parts of fixed width; set it to 0, and let wider models have more heads",
    )


def _check_first_layers(m: ModelConfig) -> None:
    first = m.first_layers
    if first is None:
        return
    require(
        first.count < m.num_layers,
        f"model.first_layers.count is {first.count}; it must be less than model.num_layers,"
        f" {m.num_layers}",
    )
    require(
        first.attention_norm or m.norm.position in ("pre", "sandwich"),
        f"model.first_layers.attention_norm is False and model.norm.position {m.norm.position!r},"
        " without a norm before attention; set it to True",
    )


def _check_pooler(m: ModelConfig) -> None:
    require(
        m.pooler is None or m.pooler.layer != "transform" or m.head.transform is not None,
        "model.pooler.layer is 'transform' and model.head.transform 'none', which is what would"
        " make vectors of rows; set it to on",
    )
