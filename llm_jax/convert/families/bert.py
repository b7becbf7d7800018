"""BERT and RoBERTa: encoders with a masked-token head, with a classifier, or without a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.config.sections import value_of
from llm_jax.convert.families.llama import SIZES
from llm_jax.convert.families.rows import affine, attention, dense
from llm_jax.convert.family import ConfigKey, ConfigTransform, Family, TensorMap
from llm_jax.convert.keys import ACTIVATIONS, typed

FIXED = {
    "causal": False,
    "norm": "layer",
    "norm.bias": True,
    "norm.position": "post",
    "norm.final": False,
    "positions": "learned",
    "mlp": "plain",
    "embedding.norm": True,
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
}
ACTIVATION = ConfigKey("hidden_act", "mlp.activation", "gelu", ACTIVATIONS)


def _classes_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    if not native.get("pooler.num_classes"):
        return {}
    labels = source.get("id2label")
    if isinstance(labels, dict):
        return {"pooler.num_classes": len(labels)}
    return {"pooler.num_classes": typed(int, source.get("num_labels", 2), "num_labels")}


def _classes_write(m: ModelConfig) -> dict[str, Any]:
    classes = m.pooler.num_classes if m.pooler else 0
    if not classes:
        return {}
    names = {str(i): f"LABEL_{i}" for i in range(classes)}
    return {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}


CLASSES = ConfigTransform(("id2label", "num_labels"), _classes_read, _classes_write)


def _offset_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """Positions start after the padding id, and the table of positions has rows for the ids before
    that start too.
    """
    start = typed(int, source.get("pad_token_id", 1), "pad_token_id") + 1
    return {"positions.offset": start, "max_length": native["max_length"] - start}


def _offset_write(m: ModelConfig) -> dict[str, Any]:
    offset = value_of(m, "positions.offset") or 0
    return {
        "pad_token_id": offset - 1,
        "max_position_embeddings": m.max_length + offset,
    }


_OFFSET = ConfigTransform(("pad_token_id",), _offset_read, _offset_write)


def heads(stem: str, pooler: str, classifier_pooler: str) -> dict[str, Mapping[str, Any]]:
    """The fields that each architecture sets.

    Args:
        stem: Beginning of the architectures' names.
        pooler: Pooler of the model without a head.
        classifier_pooler: Pooler of the model with a classifier. ``CLASSES`` reads its number of
            classes.
    """
    masked = {"head.transform": "on", "head.transform.bias": True, "head.bias": True}
    return {
        f"{stem}ForMaskedLM": masked,
        f"{stem}ForSequenceClassification": {
            **_pooler(classifier_pooler),
            "pooler.num_classes": 2,
            "embedding.tied": True,
        },
        f"{stem}Model": {**_pooler(pooler), "embedding.tied": True},
    }


def _pooler(layer: str) -> dict[str, Any]:
    """The fields of a pooler; none has only that it is not there."""
    return {"pooler": "none"} if layer == "none" else {"pooler.layer": layer}


def embeddings(source: str) -> tuple[TensorMap, ...]:
    """Tables of tokens, positions and token types, and the norm after them."""
    return (
        TensorMap(f"{source}.word_embeddings.weight", "embed/embedding", "v d -> v d"),
        TensorMap(f"{source}.position_embeddings.weight", "positions/positions", "t d -> t d"),
        TensorMap(f"{source}.token_type_embeddings.weight", "token_types/embedding", "t d -> t d"),
        *affine(f"{source}.LayerNorm", "embedding_norm"),
    )


def _body(source: str) -> tuple[TensorMap, ...]:
    """Every tensor but those of heads."""
    layer = f"{source}.encoder.layer.{{l}}"
    return (
        *embeddings(f"{source}.embeddings"),
        *attention(
            f"{layer}.attention",
            "layers/attention",
            ("self.query", "self.key", "self.value", "output.dense"),
        ),
        *affine(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *dense(f"{layer}.intermediate.dense", "layers/mlp/up"),
        *dense(f"{layer}.output.dense", "layers/mlp/down"),
        *affine(f"{layer}.output.LayerNorm", "layers/mlp_norm"),
    )


def _masked(transform: str, parts: tuple[str, str], head: str) -> tuple[TensorMap, ...]:
    """The masked-token head.

    Args:
        transform: Name of the layers before the output matrix.
        parts: Names of the dense layer and of the norm among these.
        head: Name of the output matrix and its bias.
    """
    return (
        *dense(f"{transform}.{parts[0]}", "head_transform"),
        *affine(f"{transform}.{parts[1]}", "head_transform/norm"),
        TensorMap(f"{head}.decoder.weight", "head/kernel", "v d -> d v"),
        TensorMap(f"{head}.bias", "head/bias", "v -> v"),
    )


_P = "cls.predictions"
# Tensors of heads, which a file may have although its architecture has no such head.
_NO_HEAD = (
    ".position_ids",
    ".pooler.dense.weight",
    ".pooler.dense.bias",
    ".seq_relationship.weight",
    ".seq_relationship.bias",
)
BERT = Family(
    "bert",
    "BertForMaskedLM",
    FIXED,
    (
        *SIZES,
        ConfigKey("layer_norm_eps", "norm.eps", 1e-12),
        ACTIVATION,
        ConfigKey("type_vocab_size", "embedding.token_types", 2),
        ConfigKey("tie_word_embeddings", "embedding.tied", True),
    ),
    (CLASSES,),
    (
        *_body("bert"),
        *_masked(f"{_P}.transform", ("dense", "LayerNorm"), _P),
        *dense("bert.pooler.dense", "pooler"),
        *dense("classifier", "classes"),
    ),
    required_values={
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    prefix="bert.",
    copies={f"{_P}.decoder.weight": "bert.embeddings.word_embeddings.weight"},
    # For an untied head, transformers 4 shares one tensor under both names, and transformers 5 adds
    # the decoder's bias to the other.
    duplicated_tensors={f"{_P}.decoder.bias": f"{_P}.bias"},
    # Only the first published files have these.
    unused=(
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ),
    buffers=_NO_HEAD,
    endings={".gamma": ".weight", ".beta": ".bias"},
    heads=heads("Bert", "tanh", "tanh"),
    bare="BertModel",
)
ROBERTA = BERT._replace(
    model_type="roberta",
    architecture="RobertaForMaskedLM",
    codecs=(CLASSES, _OFFSET),
    rows=(
        *_body("roberta"),
        *_masked("lm_head", ("dense", "layer_norm"), "lm_head"),
        *(
            r._replace(when="not pooler.num_classes")
            for r in dense("roberta.pooler.dense", "pooler")
        ),
        *(r._replace(when="pooler.num_classes") for r in dense("classifier.dense", "pooler")),
        *dense("classifier.out_proj", "classes"),
    ),
    prefix="roberta.",
    endings={},
    copies={"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight"},
    duplicated_tensors={"lm_head.decoder.bias": "lm_head.bias"},
    heads=heads("Roberta", "tanh", "tanh"),
    bare="RobertaModel",
)
