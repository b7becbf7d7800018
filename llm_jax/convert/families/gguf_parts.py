"""What the architectures of GGUF files share: metadata keys (without the architecture's name before
each), rotations, windows, and llama.cpp's names of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.convert.canonical import factors_in_use, shortest
from llm_jax.convert.families.rows import (
    QKV_BIASES,
    QKV_KERNELS,
    affine,
    attention,
    changed,
    dense,
)
from llm_jax.convert.family import ConfigKey, ConfigTransform, TensorMap
from llm_jax.convert.keys import typed
from llm_jax.types import ConfigError

KEYS = (
    ConfigKey("vocab_size", "vocab_size"),
    ConfigKey("embedding_length", "embed_dim"),
    ConfigKey("feed_forward_length", "mlp.hidden_dim"),
    ConfigKey("block_count", "num_layers"),
    ConfigKey("attention.head_count", "attention.num_heads"),
    ConfigKey("context_length", "max_length"),
    ConfigKey("attention.head_count_kv", "attention.num_kv_heads", 0),
    ConfigKey("attention.key_length", "attention.head_dim", 0),
    ConfigKey("attention.layer_norm_rms_epsilon", "norm.eps"),
    ConfigKey("tied", "embedding.tied"),
)
# Keys of architectures whose experts have a width of their own.
EXPERT_KEYS = changed(KEYS, "mlp.hidden_dim", source="expert_feed_forward_length")
AFFINE_KEYS = changed(KEYS, "norm.eps", source="attention.layer_norm_epsilon")
# Keys that repeat another key, or record how the file was made.
UNUSED = ("attention.value_length", "rope.scaling.finetuned")

_BETAS = {
    "rope.scaling.yarn_beta_fast": "positions.scaling.beta_fast",
    "rope.scaling.yarn_beta_slow": "positions.scaling.beta_slow",
}
_ATTENTION_FACTOR = "rope.scaling.attn_factor"
_ORIGINAL = "rope.scaling.original_context_length"


def _refuse_write(m: ModelConfig) -> dict[str, Any]:
    raise ConfigError(
        "GGUF files can be read and not written; export to transformers' format and convert that"
        " with llama.cpp"
    )


def _experts_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    count = typed(int, source.get("expert_count", 0), "expert_count")
    if not count:
        return {}
    used = typed(int, source.get("expert_used_count", 2), "expert_used_count")
    return {"experts.count": count, "experts.per_token": used}


EXPERTS = ConfigTransform(("expert_count", "expert_used_count"), _experts_read, _refuse_write)


def _rope_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    head = native["attention.head_dim"] or native["embed_dim"] // native["attention.num_heads"]
    out = {
        "positions.theta": float(source.get("rope.freq_base", 10000.0)),
        "positions.fraction": source.get("rope.dimension_count", head) / head,
    }
    kind = source.get("rope.scaling.type", "none")
    if kind == "yarn":
        betas = {field: float(source[key]) for key, field in _BETAS.items() if key in source}
        return out | {
            "positions.scaling": "yarn",
            "positions.scaling.factor": float(source["rope.scaling.factor"]),
            "positions.scaling.original_length": source[_ORIGINAL],
            **betas,
        }
    if kind == "linear":
        return out | {
            "positions.scaling": "linear",
            "positions.scaling.factor": float(source["rope.scaling.factor"]),
        }
    if kind != "none":
        raise ConfigError(
            f"rope.scaling.type is {kind!r}; supported are none, linear, yarn, and a tensor"
            " rope_freqs.weight"
        )
    if "rope_factors" in source:
        # The wavelengths of Llama 3's scaling, one factor each.
        out |= {
            "positions.scaling": "longrope",
            "positions.scaling.factors": tuple(source["rope_factors"]),
        }
    return out


ROPE = ConfigTransform(
    (
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        _ORIGINAL,
        "rope_factors",
        *_BETAS,
    ),
    _rope_read,
    _refuse_write,
)


def _phi3_rope_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """A rotation with two lists of factors, which are tensors of the file."""
    if not _has_both_lists(source):
        return _rope_read(source, native)
    base = {key: value for key, value in source.items() if key != "rope.scaling.type"}
    original = source[_ORIGINAL]
    factor = source["context_length"] / original
    long = tuple(source["rope_factors_long"])
    short = tuple(source["rope_factors_short"])
    out = _rope_read(base, native) | {
        "positions.scaling": "longrope",
        "positions.scaling.factor": factor,
        "positions.scaling.original_length": original,
        **factors_in_use(long, short, original, native["max_length"]),
    }
    given = _attention_factor(source)
    if given <= 0:
        raise ConfigError(f"{_ATTENTION_FACTOR} is {given}; it must be positive")
    implied = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original))
    # The file has the factor as float32.
    if abs(given - implied) >= 1e-6 * implied:
        out["positions.scaling.attention_factor"] = given
    return out


def _has_both_lists(source: Mapping[str, Any]) -> bool:
    """Whether the file has lists of factors. Raises ConfigError where it has only one, or where its
    metadata contradicts them.
    """
    lists = [name for name in ("rope_factors_long", "rope_factors_short") if name in source]
    kind = source.get("rope.scaling.type", "none")
    attention_factor = _attention_factor(source)
    if len(lists) == 1:
        raise ConfigError(
            f"the file has a tensor {lists[0]}.weight and not the other list of factors; convert"
            " the model to GGUF again"
        )
    if lists and kind not in ("none", "longrope"):
        raise ConfigError(
            f"rope.scaling.type is {kind!r}, and the file has tensors {' and '.join(lists)}; only"
            " one of these can hold"
        )
    if not lists and (kind == "longrope" or attention_factor != 1):
        raise ConfigError(
            f"rope.scaling.type is {kind!r} and {_ATTENTION_FACTOR} is {attention_factor}, and the"
            " file has no lists of factors for these; convert the model to GGUF again"
        )
    return bool(lists)


def _attention_factor(source: Mapping[str, Any]) -> float:
    return typed(float, source.get(_ATTENTION_FACTOR, 1.0), _ATTENTION_FACTOR)


def _untruncated_rope_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """A rotation whose yarn interpolates between frequencies that are not rounded (gpt-oss)."""
    out = _rope_read(source, native)
    if out.get("positions.scaling") == "yarn":
        out["positions.scaling.truncate"] = False
    return out


UNTRUNCATED_ROPE = ROPE._replace(read=_untruncated_rope_read)
PHI3_ROPE = ROPE._replace(
    keys=(*ROPE.keys, _ATTENTION_FACTOR, "rope_factors_long", "rope_factors_short"),
    read=_phi3_rope_read,
)


def windows(
    pattern: tuple[bool, ...], *, theta: float = 0.0, default_width: int | None = None
) -> ConfigTransform:
    """Layers with a window.

    Args:
        pattern: Whether a layer has a window, repeated over the layers. llama.cpp has it in its
            program and not in the file.
        theta: Default base of the rotation of layers with a window; 0 means that these layers have
            no base of their own.
        default_width: Width in tokens where a file does not give it (0: no window). None means
            that every file must have it.
    """
    width_key = "attention.sliding_window"
    theta_key = "rope.freq_base_swa"

    def read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
        if default_width is None:
            given = source[width_key]
        else:
            given = source.get(width_key, default_width)
        width = typed(int, given, width_key)
        layers = range(native["num_layers"])
        each = [width if pattern[l % len(pattern)] else 0 for l in layers]
        out: dict[str, Any] = {"attention.window_pattern": shortest(each)}
        base = float(source.get(theta_key, theta))
        if theta:
            out["positions.windowed_theta"] = base
        return out

    keys = (width_key, theta_key) if theta else (width_key,)
    return ConfigTransform(keys, read, _refuse_write)


def _logit_scale_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    return {"head.scale": 1 / float(source.get("logit_scale", 1.0))}


# Granite's divisor of logits.
LOGIT_DIVISOR = ConfigTransform(("logit_scale",), _logit_scale_read, _refuse_write)


def gemma_scale(largest: int) -> ConfigTransform:
    """The scale of Gemma's attention scores, which files do not have.

    Args:
        largest: Number of layers of the largest model, whose scale is that of heads of width
            ``embed_dim / num_heads`` and not of its own heads.
    """

    def read(_: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
        width = native["attention.head_dim"]
        if native["num_layers"] == largest or not width:
            width = native["embed_dim"] // native["attention.num_heads"]
        return {"attention.scale": width**-0.5}

    return ConfigTransform((), read, _refuse_write)


B = "blk.{l}."
ROWS = (
    TensorMap("token_embd.weight", "embed/embedding", "v d -> v d"),
    TensorMap("output_norm.weight", "final_norm/scale", "d -> d"),
    TensorMap("output.weight", "head/kernel", "v d -> d v"),
    TensorMap(f"{B}attn_norm.weight", "layers/attention_norm/scale", "d -> d"),
    TensorMap(f"{B}attn_q_norm.weight", "layers/attention/query_norm/scale", "h -> h"),
    TensorMap(f"{B}attn_k_norm.weight", "layers/attention/key_norm/scale", "h -> h"),
    TensorMap(f"{B}ffn_norm.weight", "layers/mlp_norm/scale", "d -> d"),
    *(
        row
        for name in ("gate", "up", "down")
        for row in dense(f"{B}ffn_{name}", f"layers/mlp/{name}")
    ),
    # Mixtures of experts: one tensor holds all experts of a layer.
    *dense(f"{B}ffn_gate_inp", "layers/mlp/router"),
    *(
        TensorMap(f"{B}ffn_{name}_exps.weight", f"layers/mlp/{name}/kernel", "e f d -> e d f")
        for name in ("gate", "up", "down")
    ),
    *(
        TensorMap(f"{B}ffn_{name}_exps.bias", f"layers/mlp/{name}/bias", "e f -> e f")
        for name in ("gate", "up", "down")
    ),
)
# Attention whose rotation pairs the two halves of a head, as in transformers.
HALVES = attention("blk.{l}", "layers/attention", ("attn_q", "attn_k", "attn_v", "attn_output"))
_ROTATED = {f"{B}attn_q.weight", f"{B}attn_k.weight"}
# llama.cpp's Llama pairs neighbours.
NEIGHBOURS = tuple(
    row._replace(layouts="(n r 2) d -> d n (2 r)") if row.source in _ROTATED else row
    for row in HALVES
)
# Attention with queries, keys and values in one tensor.
FUSED = (
    TensorMap(f"{B}attn_qkv.weight", QKV_KERNELS, "(n h) d -> d n h"),
    TensorMap(f"{B}attn_qkv.bias", QKV_BIASES, "(n h) -> n h"),
    *(row for row in HALVES if "attn_output" in row.source),
)
# Norms after attention and after the MLP.
POST_NORMS = tuple(
    TensorMap(f"{B}{name}.weight", f"layers/{norm}_post_norm/scale", "d -> d")
    for name, norm in (("post_attention_norm", "attention"), ("post_ffw_norm", "mlp"))
)
# Rows of architectures whose norms have biases.
AFFINE_ROWS = (
    *(row for row in ROWS if "norm" not in row.source),
    *FUSED,
    *affine("output_norm", "final_norm"),
    *affine(f"{B}attn_norm", "layers/attention_norm"),
    *affine(f"{B}ffn_norm", "layers/mlp_norm"),
)
