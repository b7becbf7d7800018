"""ModernBERT: an encoder with rotary positions, gated MLPs, and windows in two layers of three. It
has a masked-token head, a classifier, or no head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.convert.families.bert import CLASSES
from llm_jax.convert.families.llama import BIASES, SIZES
from llm_jax.convert.families.rows import affine, dense
from llm_jax.convert.family import ConfigKey, ConfigTransform, Family, TensorMap
from llm_jax.convert.keys import ACTIVATIONS, FULL, SLIDING, typed, windows
from llm_jax.convert.rope import rope
from llm_jax.types import ConfigError

_LISTED = windows(listed=True)


def _windows_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """``local_attention`` counts the tokens on both sides of a token; the native width counts the
    tokens on one side and the token itself.
    """
    period = typed(int, source.get("global_attn_every_n_layers", 3), "global_attn_every_n_layers")
    if period < 1:
        raise ConfigError(
            f"config.json: global_attn_every_n_layers is {period}; it must be at least 1"
        )
    kinds = source.get("layer_types")
    if not kinds:
        kinds = [SLIDING if l % period else FULL for l in range(native["num_layers"])]
    width = typed(int, source.get("local_attention", 128), "local_attention") // 2 + 1
    return _LISTED.read({"sliding_window": width, "layer_types": kinds}, native)


def _windows_write(m: ModelConfig) -> dict[str, Any]:
    out = _LISTED.write(m)
    return {
        "local_attention": 2 * ((out["sliding_window"] or 1) - 1),
        "layer_types": out["layer_types"],
    }


def _head_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    name = source.get("classifier_activation", "gelu")
    activation = native["mlp.activation"]
    if ACTIVATIONS.get(name) != activation:
        raise ConfigError(
            f"config.json: classifier_activation is {name!r}; only the activation of the layers,"
            f" {activation!r}, can be represented"
        )
    return {}


def _head_write(m: ModelConfig) -> dict[str, Any]:
    names = (source for source, native in ACTIVATIONS.items() if native == m.mlp.activation)
    return {"classifier_activation": next(names, m.mlp.activation)}


_READS = {"cls": "first", "mean": "mean"}


def _pooling_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """Files without a classifier have classifier_pooling too."""
    name = source.get("classifier_pooling", "cls")
    if name not in _READS:
        raise ConfigError(
            f"config.json: classifier_pooling is {name!r}; supported are {', '.join(_READS)}"
        )
    return {} if native.get("pooler") == "none" else {"pooler.reads": _READS[name]}


def _pooling_write(m: ModelConfig) -> dict[str, Any]:
    mean = m.pooler is not None and m.pooler.reads == "mean"
    return {"classifier_pooling": "mean" if mean else "cls"}


_POOLING = ConfigTransform(("classifier_pooling",), _pooling_read, _pooling_write)
_NO_CLASSES = {"pooler": "none"}
_NO_LOGITS = {"head.bias": False, "embedding.tied": True}
_HEADS: dict[str, dict[str, Any]] = {
    "ModernBertForMaskedLM": {**_NO_CLASSES, "head.transform": "on"},
    "ModernBertForSequenceClassification": {
        **_NO_LOGITS,
        "head.transform": "on",
        "pooler.layer": "transform",
        "pooler.num_classes": 2,
    },
    "ModernBertModel": {
        **_NO_CLASSES,
        **_NO_LOGITS,
        "head.transform": "none",
    },
}
_QKV = ("layers/attention/query", "layers/attention/key", "layers/attention/value")
_UP = ("layers/mlp/gate", "layers/mlp/up")
_L = "model.layers.{l}"
MODERNBERT = Family(
    "modernbert",
    "ModernBertForMaskedLM",
    {
        "causal": False,
        "norm": "layer",
        "embedding.norm": True,
        "first_layers.count": 1,
        "first_layers.attention_norm": False,
    },
    (
        *SIZES,
        ConfigKey("norm_eps", "norm.eps", 1e-5),
        ConfigKey("norm_bias", "norm.bias", False),
        *BIASES,
        ConfigKey("mlp_bias", "mlp.bias", False),
        ConfigKey("hidden_activation", "mlp.activation", "gelu", ACTIVATIONS),
        ConfigKey("decoder_bias", "head.bias", True),
        ConfigKey("classifier_bias", "head.transform.bias", False),
        ConfigKey("tie_word_embeddings", "embedding.tied", True),
    ),
    (
        ConfigTransform(
            ("local_attention", "global_attn_every_n_layers", "layer_types"),
            _windows_read,
            _windows_write,
        ),
        ConfigTransform(("classifier_activation",), _head_read, _head_write),
        CLASSES,
        _POOLING,
        rope(
            160_000.0,
            theta_key="global_rope_theta",
            windowed_theta=10_000.0,
            windowed_key="local_rope_theta",
            scaled=False,
        ),
    ),
    (
        TensorMap("model.embeddings.tok_embeddings.weight", "embed/embedding", "v d -> v d"),
        *affine("model.embeddings.norm", "embedding_norm"),
        *affine(f"{_L}.attn_norm", "layers/attention_norm"),
        TensorMap(f"{_L}.attn.Wqkv.weight", tuple(f"{p}/kernel" for p in _QKV), "(n h) d -> d n h"),
        TensorMap(f"{_L}.attn.Wqkv.bias", tuple(f"{p}/bias" for p in _QKV), "(n h) -> n h"),
        TensorMap(f"{_L}.attn.Wo.weight", "layers/attention/out/kernel", "d (n h) -> n h d"),
        TensorMap(f"{_L}.attn.Wo.bias", "layers/attention/out/bias", "d -> d"),
        *affine(f"{_L}.mlp_norm", "layers/mlp_norm"),
        TensorMap(f"{_L}.mlp.Wi.weight", tuple(f"{p}/kernel" for p in _UP), "f d -> d f"),
        TensorMap(f"{_L}.mlp.Wi.bias", tuple(f"{p}/bias" for p in _UP), "f -> f"),
        *dense(f"{_L}.mlp.Wo", "layers/mlp/down"),
        *affine("model.final_norm", "final_norm"),
        *dense("head.dense", "head_transform"),
        *affine("head.norm", "head_transform/norm"),
        TensorMap("decoder.weight", "head/kernel", "v d -> d v"),
        TensorMap("decoder.bias", "head/bias", "v -> v"),
        *dense("classifier", "classes"),
    ),
    unused=(
        "layer_norm_eps",
        "position_embedding_type",
        "initializer_cutoff_factor",
        "cls_token_id",
        "sep_token_id",
        "embedding_dropout",
        "mlp_dropout",
        "deterministic_flash_attn",
        "sparse_prediction",
        "sparse_pred_ignore_index",
        "reference_compile",
        "repad_logits_with_grad",
    ),
    prefix="model.",
    heads=_HEADS,
    bare="ModernBertModel",
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
