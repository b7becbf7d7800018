"""BART, and Marian with the translation models of OPUS-MT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.config.sections import value_of
from llm_jax.convert.families.rows import affine, attention, dense
from llm_jax.convert.family import ConfigKey, ConfigTransform, Family, TensorMap
from llm_jax.convert.keys import ACTIVATIONS, START, WRITING
from llm_jax.types import ConfigError

_FIXED = {
    "norm": "layer",
    "norm.bias": True,
    "norm.position": "post",
    "norm.final": False,
    "mlp": "plain",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
}
_KEYS = (
    ConfigKey("vocab_size", "vocab_size"),
    ConfigKey("d_model", "embed_dim"),
    ConfigKey("max_position_embeddings", "max_length", 1024),
    ConfigKey("encoder_layers", "encoder.num_layers"),
    ConfigKey("decoder_layers", "num_layers"),
    ConfigKey("encoder_ffn_dim", "encoder.mlp_dim"),
    ConfigKey("decoder_ffn_dim", "mlp.hidden_dim"),
    ConfigKey("encoder_attention_heads", "attention.num_heads"),
    ConfigKey("decoder_attention_heads", "attention.num_heads"),
    ConfigKey("activation_function", "mlp.activation", "gelu", ACTIVATIONS),
    ConfigKey("scale_embedding", "embedding.scale_by_width", False),
)
_STACKS = ("encoder", "decoder")
_NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")


def _stack(source: str, native: str) -> tuple[TensorMap, ...]:
    """Tensors of one stack, without its attention to the encoder."""
    layer = f"{source}.layers.{{l}}"
    return (
        TensorMap(f"{source}.embed_positions.weight", f"{native}positions/positions", "t d -> t d"),
        *affine(f"{source}.layernorm_embedding", f"{native}embedding_norm"),
        *attention(f"{layer}.self_attn", f"{native}layers/attention", _NAMES),
        *affine(f"{layer}.self_attn_layer_norm", f"{native}layers/attention_norm"),
        *dense(f"{layer}.fc1", f"{native}layers/mlp/up"),
        *dense(f"{layer}.fc2", f"{native}layers/mlp/down"),
        *affine(f"{layer}.final_layer_norm", f"{native}layers/mlp_norm"),
    )


BART = Family(
    "bart",
    "BartForConditionalGeneration",
    {**_FIXED, "positions": "learned", "positions.offset": 2, "embedding.norm": True},
    _KEYS,
    (START,),
    (
        TensorMap("model.shared.weight", "embed/embedding", "v d -> v d"),
        *_stack("model.encoder", "encoder/"),
        *_stack("model.decoder", ""),
        *attention("model.decoder.layers.{l}.encoder_attn", "layers/cross_attention", _NAMES),
        *affine("model.decoder.layers.{l}.encoder_attn_layer_norm", "layers/cross_attention_norm"),
        TensorMap("final_logits_bias", "head/bias", "1 v -> (1 v)"),
    ),
    required_values={
        "tie_word_embeddings": (True,),
        "normalize_before": (False,),
        "add_final_layer_norm": (False,),
        "normalize_embedding": (True,),
        "static_position_embeddings": (False,),
    },
    unused=(
        *WRITING,
        "encoder_layerdrop",
        "decoder_layerdrop",
        "num_hidden_layers",
        "classif_dropout",
        "add_bias_logits",
        "extra_pos_embeddings",
        "_num_labels",
    ),
    prefix="model.",
    heads={"BartForConditionalGeneration": {"head.bias": True}, "BartModel": {"head.bias": False}},
    bare="BartModel",
    copies=dict.fromkeys(
        (*(f"model.{s}.embed_tokens.weight" for s in _STACKS), "lm_head.weight"),
        "model.shared.weight",
    ),
    # A file may have it although its architecture has no head.
    buffers=("final_logits_bias",),
)


def _one_vocabulary(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    encoder_size = native["vocab_size"]
    decoder_size = source.get("decoder_vocab_size") or encoder_size
    if decoder_size != encoder_size:
        raise ConfigError(
            f"config.json: decoder_vocab_size is {decoder_size} and vocab_size is {encoder_size};"
            " only equal values can be represented"
        )
    return {}


def _vocabulary_write(m: ModelConfig) -> dict[str, Any]:
    # The vocabulary has no start token: decoding starts with the padding token.
    return {
        "decoder_vocab_size": m.vocab_size,
        "pad_token_id": value_of(m, "encoder.start_token") or 0,
    }


_VOCABULARY = ConfigTransform(("decoder_vocab_size",), _one_vocabulary, _vocabulary_write)
MARIAN = BART._replace(
    model_type="marian",
    architecture="MarianMTModel",
    fixed={**_FIXED, "positions": "sinusoidal"},
    codecs=(START, _VOCABULARY),
    required_values={
        **BART.required_values,
        "normalize_embedding": (False,),
        "static_position_embeddings": (True,),
        "share_encoder_decoder_embeddings": (True,),
    },
    heads={"MarianMTModel": {"head.bias": True}, "MarianModel": {"head.bias": False}},
    bare="MarianModel",
    # Sinusoidal positions are computed and not stored.
    buffers=(*BART.buffers, ".embed_positions.weight"),
)
