"""Gemma, Gemma 2 and the text models of Gemma 3."""

from __future__ import annotations

from llm_jax.convert.families.llama import ATTENTION, BIASES, EMBEDDINGS, KEYS, LLAMA, MLP
from llm_jax.convert.family import ConfigKey, TensorMap
from llm_jax.convert.keys import through, windows
from llm_jax.convert.rope import rope

# The first published files say "gelu" and mean its tanh approximation.
_GELU = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"}
_FIXED = {"norm.unit_offset": True, "embedding.scale_by_width": True}
_SIZES = tuple(k for k in KEYS if k.native not in ("mlp.activation", "embedding.tied"))
_KEYS = (*_SIZES, *BIASES, ConfigKey("tie_word_embeddings", "embedding.tied", True))
_SANDWICH = (
    TensorMap("model.layers.{l}.input_layernorm.weight", "layers/attention_norm/scale", "d -> d"),
    TensorMap(
        "model.layers.{l}.post_attention_layernorm.weight",
        "layers/attention_post_norm/scale",
        "d -> d",
    ),
    TensorMap(
        "model.layers.{l}.pre_feedforward_layernorm.weight", "layers/mlp_norm/scale", "d -> d"
    ),
    TensorMap(
        "model.layers.{l}.post_feedforward_layernorm.weight", "layers/mlp_post_norm/scale", "d -> d"
    ),
)
_SCALE = through(
    "query_pre_attn_scalar",
    "attention.scale",
    to_native=lambda width: width**-0.5,
    to_source=lambda scale: scale**-2,
    default=256.0,
)
_CAUSAL = {"use_bidirectional_attention": (None, False)}

GEMMA = LLAMA._replace(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    fixed=_FIXED,
    keys=(*_KEYS, ConfigKey("hidden_act", "mlp.activation", "gelu_pytorch_tanh", _GELU)),
    required_values={**_CAUSAL, "hidden_activation": (None, "gelu_pytorch_tanh")},
)
GEMMA2 = LLAMA._replace(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    fixed={**_FIXED, "norm.position": "sandwich"},
    keys=(
        *_KEYS,
        ConfigKey("hidden_activation", "mlp.activation", "gelu_pytorch_tanh", _GELU),
        ConfigKey("attn_logit_softcapping", "attention.softcap", 50.0, none=0.0),
        ConfigKey("final_logit_softcapping", "head.softcap", 30.0, none=0.0),
    ),
    codecs=(
        rope(),
        windows(("sliding_attention", "full_attention"), width=4096, listed=True),
        _SCALE,
    ),
    required_values={**_CAUSAL, "hidden_act": ("gelu_pytorch_tanh",)},
    rows=(*EMBEDDINGS, *_SANDWICH, *ATTENTION, *MLP),
)
GEMMA3 = GEMMA2._replace(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    fixed={**GEMMA2.fixed, "attention.qk_norm": "head"},
    keys=tuple(k._replace(default=None) if "softcap" in k.native else k for k in GEMMA2.keys),
    codecs=(
        rope(1_000_000.0, windowed_theta=10_000.0),
        windows(("sliding_attention",) * 5 + ("full_attention",), width=4096, listed=True),
        _SCALE,
    ),
)
