"""T5 and FLAN-T5: encoder–decoders with relative positions, and their encoders alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.convert.families.rows import attention, dense
from llm_jax.convert.family import Codec, Family, Key, Row
from llm_jax.convert.keys import ACTIVATIONS, START, WRITING, typed
from llm_jax.types import ConfigError


def _mlp_read(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    said = str(theirs.get("feed_forward_proj", "relu"))
    gated = said.startswith("gated-")
    # Their program takes "gated-gelu" for the approximation; what a file says of the activation
    # itself comes first.
    name = theirs.get("dense_act_fn") or (
        "gelu_new" if said == "gated-gelu" else said.removeprefix("gated-")
    )
    if str(name) not in ACTIVATIONS or theirs.get("is_gated_act", gated) != gated:
        known = ", ".join(ACTIVATIONS)
        raise ConfigError(
            f"config.json: feed_forward_proj is {said!r}, its activation {name!r}; there are"
            f" {known}, each also gated-…"
        )
    return {"mlp": "gated" if gated else "plain", "activation": ACTIVATIONS[name]}


def _mlp_write(m: ModelConfig) -> dict[str, Any]:
    gated = m.mlp == "gated"
    name = next((t for t, o in reversed(ACTIVATIONS.items()) if o == m.activation), m.activation)
    said = (
        "gated-gelu"
        if (gated, m.activation) == (True, "gelu_tanh")
        else f"gated-{name}"
        if gated
        else name
    )
    return {"feed_forward_proj": said, "dense_act_fn": name, "is_gated_act": gated}


def _depth_read(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    if not ours["causal"]:
        return {"num_layers": ours["encoder_layers"], "encoder_layers": 0}
    return {
        "num_layers": typed(
            int, theirs.get("num_decoder_layers") or ours["encoder_layers"], "num_decoder_layers"
        )
    }


def _scale_read(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The first T5's output is scaled and its embedding tied; in old files the one says
    the other.
    """
    scaled = ours["causal"] and theirs.get("scale_decoder_outputs", ours["tied_embeddings"])
    return {"logit_scale": ours["embed_dim"] ** -0.5 if scaled else 1.0}


_CODECS = (
    Codec(("feed_forward_proj", "dense_act_fn", "is_gated_act"), _mlp_read, _mlp_write),
    Codec(
        ("num_decoder_layers",),
        _depth_read,
        lambda m: {
            "num_layers": m.encoder_layers or m.num_layers,
            "num_decoder_layers": m.num_layers,
        },
    ),
    Codec(
        ("scale_decoder_outputs",),
        _scale_read,
        lambda m: {"scale_decoder_outputs": m.logit_scale != 1},
    ),
    START,
)
_NAMES = ("q", "k", "v", "o")


def _stack(theirs: str, ours: str, mlp: int, when: str) -> tuple[Row, ...]:
    """mlp: its number among the parts of a layer · when: of all rows, beside what they have of
    their own.
    """
    block = f"{theirs}.block.{{l}}.layer"
    rows = (
        Row(
            f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            f"{ours}relative/bias",
            "b n -> b n",
        ),
        *attention(f"{block}.0.SelfAttention", f"{ours}layers/attention", _NAMES),
        Row(f"{block}.0.layer_norm.weight", f"{ours}layers/attention_norm/scale", "d -> d"),
        Row(
            f"{block}.{mlp}.DenseReluDense.wi.weight",
            f"{ours}layers/mlp/up/kernel",
            "f d -> d f",
            when="mlp=plain",
        ),
        *dense(f"{block}.{mlp}.DenseReluDense.wi_0", f"{ours}layers/mlp/gate"),
        Row(
            f"{block}.{mlp}.DenseReluDense.wi_1.weight",
            f"{ours}layers/mlp/up/kernel",
            "f d -> d f",
            when="mlp=gated",
        ),
        *dense(f"{block}.{mlp}.DenseReluDense.wo", f"{ours}layers/mlp/down"),
        Row(f"{block}.{mlp}.layer_norm.weight", f"{ours}layers/mlp_norm/scale", "d -> d"),
        Row(f"{theirs}.final_layer_norm.weight", f"{ours}final_norm/scale", "d -> d"),
    )
    return tuple(r._replace(when=f"{when} and {r.when}" if r.when else when) for r in rows)


_BOTH, _ALONE = "encoder_layers", "not encoder_layers"


T5 = Family(
    "t5",
    "T5ForConditionalGeneration",
    {"positions": "relative", "attention_scale": 1.0},
    (
        Key("vocab_size", "vocab_size"),
        Key("d_model", "embed_dim"),
        Key("d_kv", "head_dim", write="head_size"),
        Key("d_ff", "mlp_dim"),
        Key("num_layers", "encoder_layers"),
        Key("num_heads", "num_heads"),
        Key("n_positions", "max_length", 512),
        Key("layer_norm_epsilon", "norm_eps", 1e-6),
        Key("relative_attention_num_buckets", "relative_buckets", 32),
        Key("relative_attention_max_distance", "relative_max_distance", 128),
        Key("tie_word_embeddings", "tied_embeddings", True),
    ),
    _CODECS,
    (
        Row("shared.weight", "embed/embedding", "v d -> v d"),
        *_stack("encoder", "encoder/", 1, _BOTH),
        *_stack("decoder", "", 2, _BOTH),
        *_stack("encoder", "", 1, _ALONE),
        *attention("decoder.block.{l}.layer.1.EncDecAttention", "layers/cross_attention", _NAMES),
        Row(
            "decoder.block.{l}.layer.1.layer_norm.weight",
            "layers/cross_attention_norm/scale",
            "d -> d",
        ),
        Row("lm_head.weight", "head/kernel", "v d -> d v"),
    ),
    unused=("output_past", *WRITING),
    # Without a head there is nothing that the embedding is not tied to.
    heads={
        "T5ForConditionalGeneration": {"causal": True},
        "T5Model": {"causal": True, "tied_embeddings": True},
        "T5EncoderModel": {"causal": False, "tied_embeddings": True},
    },
    copies=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
        "shared.weight",
    ),
    # Files of the first T5 have it, and their program does not read it.
    buffers=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
)
