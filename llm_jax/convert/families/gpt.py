"""GPT-2, and GPT-NeoX with the Pythia models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.convert.families.llama import SIZES
from llm_jax.convert.families.rows import QKV_BIASES, QKV_KERNELS, affine, dense, reads_nothing
from llm_jax.convert.family import ConfigKey, ConfigTransform, Family, TensorMap
from llm_jax.convert.keys import ACTIVATIONS
from llm_jax.convert.rope import rope


def _inner_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    return {"mlp.hidden_dim": source.get("n_inner") or 4 * native["embed_dim"]}


def _inner_write(m: ModelConfig) -> dict[str, Any]:
    return {"n_inner": m.mlp.hidden_dim}


def _context_write(m: ModelConfig) -> dict[str, Any]:
    return {"n_ctx": m.max_length}


_INNER = ConfigTransform(("n_inner",), _inner_read, _inner_write)
# Published files have n_ctx beside n_positions. llama.cpp's converter needs it; transformers reads
# n_positions alone.
_CONTEXT = ConfigTransform(("n_ctx",), reads_nothing, _context_write)
AFFINE = {
    "norm": "layer",
    "norm.bias": True,
    "mlp": "plain",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
}
GPT2 = Family(
    "gpt2",
    "GPT2LMHeadModel",
    {**AFFINE, "positions": "learned"},
    (
        ConfigKey("vocab_size", "vocab_size"),
        ConfigKey("n_embd", "embed_dim"),
        ConfigKey("n_layer", "num_layers"),
        ConfigKey("n_head", "attention.num_heads"),
        ConfigKey("n_positions", "max_length"),
        ConfigKey("layer_norm_epsilon", "norm.eps", 1e-5),
        ConfigKey(
            "activation_function",
            "mlp.activation",
            "gelu_new",
            {"gelu_new": "gelu_tanh", **ACTIVATIONS},
        ),
        ConfigKey("tie_word_embeddings", "embedding.tied", True),
    ),
    (_INNER, _CONTEXT),
    (
        TensorMap("transformer.wte.weight", "embed/embedding", "v d -> v d"),
        TensorMap("transformer.wpe.weight", "positions/positions", "t d -> t d"),
        *affine("transformer.h.{l}.ln_1", "layers/attention_norm"),
        TensorMap("transformer.h.{l}.attn.c_attn.weight", QKV_KERNELS, "d (n h) -> d n h", axis=1),
        TensorMap("transformer.h.{l}.attn.c_attn.bias", QKV_BIASES, "(n h) -> n h"),
        TensorMap(
            "transformer.h.{l}.attn.c_proj.weight",
            "layers/attention/out/kernel",
            "(n h) d -> n h d",
        ),
        TensorMap("transformer.h.{l}.attn.c_proj.bias", "layers/attention/out/bias", "d -> d"),
        *affine("transformer.h.{l}.ln_2", "layers/mlp_norm"),
        TensorMap("transformer.h.{l}.mlp.c_fc.weight", "layers/mlp/up/kernel", "d f -> d f"),
        TensorMap("transformer.h.{l}.mlp.c_fc.bias", "layers/mlp/up/bias", "f -> f"),
        TensorMap("transformer.h.{l}.mlp.c_proj.weight", "layers/mlp/down/kernel", "f d -> f d"),
        TensorMap("transformer.h.{l}.mlp.c_proj.bias", "layers/mlp/down/bias", "d -> d"),
        *affine("transformer.ln_f", "final_norm"),
        TensorMap("lm_head.weight", "head/kernel", "v d -> d v"),
    ),
    required_values={
        "add_cross_attention": (False,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (True,),
        "reorder_and_upcast_attn": (False,),
    },
    prefix="transformer.",
    copies={"lm_head.weight": "transformer.wte.weight"},
    buffers=(".attn.bias", ".attn.masked_bias"),
)
_LAYER = "gpt_neox.layers.{l}."
GPT_NEOX = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    AFFINE,
    (
        *SIZES,
        ConfigKey("layer_norm_eps", "norm.eps", 1e-5),
        ConfigKey("hidden_act", "mlp.activation", "gelu", ACTIVATIONS),
        ConfigKey("use_parallel_residual", "parallel_residual", True),
        ConfigKey("attention_bias", "attention.qkv_bias", True),
        ConfigKey("attention_bias", "attention.out_bias", True),
        ConfigKey("tie_word_embeddings", "embedding.tied", False),
    ),
    (rope(theta_key="rotary_emb_base", partial=0.25, fraction_key="rotary_pct"),),
    (
        TensorMap("gpt_neox.embed_in.weight", "embed/embedding", "v d -> v d"),
        *affine(f"{_LAYER}input_layernorm", "layers/attention_norm"),
        TensorMap(
            f"{_LAYER}attention.query_key_value.weight", QKV_KERNELS, "(n h) d -> d n h", per="n"
        ),
        TensorMap(f"{_LAYER}attention.query_key_value.bias", QKV_BIASES, "(n h) -> n h", per="n"),
        TensorMap(
            f"{_LAYER}attention.dense.weight", "layers/attention/out/kernel", "d (n h) -> n h d"
        ),
        TensorMap(f"{_LAYER}attention.dense.bias", "layers/attention/out/bias", "d -> d"),
        *affine(f"{_LAYER}post_attention_layernorm", "layers/mlp_norm"),
        *dense(f"{_LAYER}mlp.dense_h_to_4h", "layers/mlp/up"),
        *dense(f"{_LAYER}mlp.dense_4h_to_h", "layers/mlp/down"),
        *affine("gpt_neox.final_layer_norm", "final_norm"),
        TensorMap("embed_out.weight", "head/kernel", "v d -> d v"),
    ),
    prefix="gpt_neox.",
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
    buffers=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
)
