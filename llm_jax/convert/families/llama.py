"""Llama and the families that differ from it in a few fields: Mistral, Qwen 2 and 3, SmolLM 3,
Granite, OLMo 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.convert.canonical import shortest
from llm_jax.convert.families.rows import attention, changed, dense
from llm_jax.convert.family import ConfigKey, ConfigTransform, Family, TensorMap
from llm_jax.convert.keys import ACTIVATIONS, through, windows
from llm_jax.convert.rope import rope

SIZES = (
    ConfigKey("vocab_size", "vocab_size"),
    ConfigKey("hidden_size", "embed_dim"),
    ConfigKey("intermediate_size", "mlp.hidden_dim"),
    ConfigKey("num_hidden_layers", "num_layers"),
    ConfigKey("num_attention_heads", "attention.num_heads"),
    ConfigKey("max_position_embeddings", "max_length"),
)
KEYS = (
    *SIZES,
    ConfigKey("num_key_value_heads", "attention.num_kv_heads", None, none=0),
    ConfigKey("head_dim", "attention.head_dim", None, none=0),
    ConfigKey("rms_norm_eps", "norm.eps", 1e-6),
    ConfigKey("hidden_act", "mlp.activation", "silu", ACTIVATIONS),
    ConfigKey("tie_word_embeddings", "embedding.tied", False),
)


def with_eps(keys: tuple[ConfigKey, ...], eps: float) -> tuple[ConfigKey, ...]:
    """``keys`` for a family whose norms have another default epsilon."""
    return changed(keys, "norm.eps", default=eps)


BIASES = (
    ConfigKey("attention_bias", "attention.qkv_bias", False),
    ConfigKey("attention_bias", "attention.out_bias", False),
)
EMBEDDINGS = (
    TensorMap("model.embed_tokens.weight", "embed/embedding", "v d -> v d"),
    TensorMap("model.norm.weight", "final_norm/scale", "d -> d"),
    TensorMap("lm_head.weight", "head/kernel", "v d -> d v"),
)
_A = "model.layers.{l}.self_attn"
_M = "model.layers.{l}.mlp"
ATTENTION = (
    *attention(_A, "layers/attention", ("q_proj", "k_proj", "v_proj", "o_proj")),
    TensorMap(f"{_A}.q_norm.weight", "layers/attention/query_norm/scale", "h -> h"),
    TensorMap(f"{_A}.k_norm.weight", "layers/attention/key_norm/scale", "h -> h"),
)
NORMS = (
    TensorMap("model.layers.{l}.input_layernorm.weight", "layers/attention_norm/scale", "d -> d"),
    TensorMap(
        "model.layers.{l}.post_attention_layernorm.weight", "layers/mlp_norm/scale", "d -> d"
    ),
)
MLP = tuple(
    row
    for name in ("gate", "up", "down")
    for row in dense(f"{_M}.{name}_proj", f"layers/mlp/{name}")
)


def _no_rope_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The layers that rotate: 1 in ``no_rope_layers``, in spite of its name."""
    interval = source.get("no_rope_layer_interval", 4)
    rotates = source.get("no_rope_layers")
    if not rotates:
        rotates = [(l + 1) % interval != 0 for l in range(native["num_layers"])]
    return {"positions.pattern": shortest([bool(r) for r in rotates])}


def _no_rope_write(m: ModelConfig) -> dict[str, Any]:
    return {"no_rope_layers": [int(m.rotation(l) != "none") for l in range(m.num_layers)]}


NO_ROPE = ConfigTransform(
    ("no_rope_layers", "no_rope_layer_interval"), _no_rope_read, _no_rope_write
)
LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    {},
    (*KEYS, *BIASES, ConfigKey("mlp_bias", "mlp.bias", False)),
    (rope(),),
    (*EMBEDDINGS, *NORMS, *ATTENTION, *MLP),
    prefix="model.",
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    buffers=(".rotary_emb.inv_freq",),
    required_values={"rope_interleaved": (False,)},
)
MISTRAL = LLAMA._replace(
    model_type="mistral",
    architecture="MistralForCausalLM",
    keys=KEYS,
    codecs=(rope(), windows(width=4096)),
)
QWEN2 = LLAMA._replace(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    keys=KEYS,
    fixed={"attention.qkv_bias": True},
    codecs=(rope(), windows(width=4096, listed=True, gated=True, first=28)),
    required_values={"use_mrope": (False,)},
)
QWEN3 = LLAMA._replace(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    keys=(*KEYS, *BIASES),
    fixed={"attention.qk_norm": "head"},
    codecs=(rope(), windows(width=4096, listed=True, gated=True, first=28)),
    required_values={"use_mrope": (False,)},
)
SMOLLM3 = LLAMA._replace(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    keys=changed(LLAMA.keys, "embedding.tied", default=True),
    codecs=(rope(2_000_000.0), NO_ROPE, windows(listed=True, gated=True, unrotated=True)),
    unused=("max_window_layers",),
)
GRANITE = LLAMA._replace(
    model_type="granite",
    architecture="GraniteForCausalLM",
    keys=(
        *LLAMA.keys,
        ConfigKey("embedding_multiplier", "embedding.scale", 1.0),
        ConfigKey("residual_multiplier", "residual_scale", 1.0),
        ConfigKey("attention_multiplier", "attention.scale", 1.0),
    ),
    codecs=(
        rope(),
        through(
            "logits_scaling",
            "head.scale",
            to_native=lambda divisor: 1 / divisor,
            to_source=lambda scale: 1 / scale,
            default=1.0,
        ),
    ),
)
OLMO2 = LLAMA._replace(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    keys=(*with_eps(KEYS, 1e-5), *BIASES),
    fixed={"attention.qk_norm": "all", "norm.position": "output"},
    rows=(
        *EMBEDDINGS,
        *ATTENTION,
        *MLP,
        TensorMap(
            "model.layers.{l}.post_attention_layernorm.weight",
            "layers/attention_post_norm/scale",
            "d -> d",
        ),
        TensorMap(
            "model.layers.{l}.post_feedforward_layernorm.weight",
            "layers/mlp_post_norm/scale",
            "d -> d",
        ),
    ),
)
