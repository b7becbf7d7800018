"""T5 and FLAN-T5: encoder–decoders with relative positions, and their encoders alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.mlp import GatedMlpConfig
from llm_jax.config.model import ModelConfig
from llm_jax.convert.families.rows import attention, dense
from llm_jax.convert.family import ConfigKey, ConfigTransform, Family, TensorMap
from llm_jax.convert.keys import ACTIVATIONS, START, WRITING, typed
from llm_jax.types import ConfigError


def _mlp_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    projection = str(source.get("feed_forward_proj", "relu"))
    gated = projection.startswith("gated-")
    # dense_act_fn comes first where a file has it.
    activation = source.get("dense_act_fn") or _activation_of(projection)
    if str(activation) not in ACTIVATIONS or source.get("is_gated_act", gated) != gated:
        raise ConfigError(
            f"config.json: feed_forward_proj is {projection!r} with the activation {activation!r};"
            f" supported are {', '.join(ACTIVATIONS)}, and gated- before each"
        )
    return {"mlp": "gated" if gated else "plain", "mlp.activation": ACTIVATIONS[activation]}


def _activation_of(projection: str) -> str:
    """The activation that a value of ``feed_forward_proj`` names."""
    if projection == "gated-gelu":
        # T5's program uses the tanh approximation for this name alone.
        return "gelu_new"
    return projection.removeprefix("gated-")


def _mlp_write(m: ModelConfig) -> dict[str, Any]:
    gated = isinstance(m.mlp, GatedMlpConfig)
    names = (
        source for source, native in reversed(ACTIVATIONS.items()) if native == m.mlp.activation
    )
    name = next(names, m.mlp.activation)
    projection = name
    if gated:
        projection = "gated-gelu" if m.mlp.activation == "gelu_tanh" else f"gated-{name}"
    return {"feed_forward_proj": projection, "dense_act_fn": name, "is_gated_act": gated}


def _depth_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    if not native["causal"]:
        # An encoder alone is the only stack of its model.
        return {}
    layers = source.get("num_decoder_layers") or native["num_layers"]
    return {
        "encoder.num_layers": native["num_layers"],
        "num_layers": typed(int, layers, "num_decoder_layers"),
    }


def _depth_write(m: ModelConfig) -> dict[str, Any]:
    return {
        "num_layers": m.encoder.num_layers if m.encoder else m.num_layers,
        "num_decoder_layers": m.num_layers,
    }


def _scale_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The scale of logits. The first T5 scales its output and ties its embedding, and old files
    have only the key for the second.
    """
    scaled = native["causal"] and source.get("scale_decoder_outputs", native["embedding.tied"])
    return {"head.scale": native["embed_dim"] ** -0.5 if scaled else 1.0}


def _scale_write(m: ModelConfig) -> dict[str, Any]:
    return {"scale_decoder_outputs": m.head.scale != 1}


_CODECS = (
    ConfigTransform(("feed_forward_proj", "dense_act_fn", "is_gated_act"), _mlp_read, _mlp_write),
    ConfigTransform(("num_decoder_layers",), _depth_read, _depth_write),
    ConfigTransform(("scale_decoder_outputs",), _scale_read, _scale_write),
    START,
)
_NAMES = ("q", "k", "v", "o")


def _stack(source: str, native: str, mlp: int, when: str) -> tuple[TensorMap, ...]:
    """Tensors of one stack, without its attention to the encoder.

    Args:
        source: Name of the stack in the file.
        native: Path of the stack.
        mlp: Index of the MLP among the parts of a layer.
        when: Condition for all rows, beside the conditions of some of them.
    """
    block = f"{source}.block.{{l}}.layer"
    rows = (
        TensorMap(
            f"{source}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            f"{native}relative/bias",
            "b n -> b n",
        ),
        *attention(f"{block}.0.SelfAttention", f"{native}layers/attention", _NAMES),
        TensorMap(f"{block}.0.layer_norm.weight", f"{native}layers/attention_norm/scale", "d -> d"),
        TensorMap(
            f"{block}.{mlp}.DenseReluDense.wi.weight",
            f"{native}layers/mlp/up/kernel",
            "f d -> d f",
            when="mlp=plain",
        ),
        *dense(f"{block}.{mlp}.DenseReluDense.wi_0", f"{native}layers/mlp/gate"),
        TensorMap(
            f"{block}.{mlp}.DenseReluDense.wi_1.weight",
            f"{native}layers/mlp/up/kernel",
            "f d -> d f",
            when="mlp=gated",
        ),
        *dense(f"{block}.{mlp}.DenseReluDense.wo", f"{native}layers/mlp/down"),
        TensorMap(f"{block}.{mlp}.layer_norm.weight", f"{native}layers/mlp_norm/scale", "d -> d"),
        TensorMap(f"{source}.final_layer_norm.weight", f"{native}final_norm/scale", "d -> d"),
    )
    return tuple(r._replace(when=f"{when} and {r.when}" if r.when else when) for r in rows)


# Conditions of an encoder with a decoder, and of an encoder alone.
_BOTH = "encoder=on"
_ALONE = "encoder=none"

T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    {"positions": "relative", "attention.scale": 1.0},
    (
        ConfigKey("vocab_size", "vocab_size"),
        ConfigKey("d_model", "embed_dim"),
        ConfigKey("d_kv", "attention.head_dim"),
        ConfigKey("d_ff", "mlp.hidden_dim"),
        ConfigKey("num_layers", "num_layers"),
        ConfigKey("num_heads", "attention.num_heads"),
        ConfigKey("n_positions", "max_length", 512),
        ConfigKey("layer_norm_epsilon", "norm.eps", 1e-6),
        ConfigKey("relative_attention_num_buckets", "positions.buckets", 32),
        ConfigKey("relative_attention_max_distance", "positions.max_distance", 128),
        ConfigKey("tie_word_embeddings", "embedding.tied", True),
    ),
    _CODECS,
    (
        TensorMap("shared.weight", "embed/embedding", "v d -> v d"),
        *_stack("encoder", "encoder/", 1, _BOTH),
        *_stack("decoder", "", 2, _BOTH),
        *_stack("encoder", "", 1, _ALONE),
        *attention("decoder.block.{l}.layer.1.EncDecAttention", "layers/cross_attention", _NAMES),
        TensorMap(
            "decoder.block.{l}.layer.1.layer_norm.weight",
            "layers/cross_attention_norm/scale",
            "d -> d",
        ),
        TensorMap("lm_head.weight", "head/kernel", "v d -> d v"),
    ),
    unused=("output_past", *WRITING),
    # Models without a head have no other output matrix than the embedding.
    heads={
        "T5ForConditionalGeneration": {"causal": True},
        "T5Model": {"causal": True, "embedding.tied": True},
        "T5EncoderModel": {"causal": False, "embedding.tied": True},
    },
    copies=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
        "shared.weight",
    ),
    # Files of the first T5 have this tensor, and its program does not read it.
    buffers=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)
