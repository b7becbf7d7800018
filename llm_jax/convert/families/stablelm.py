"""StableLM: Llama with LayerNorm and a partial rotation."""

from __future__ import annotations

from llm_jax.convert.families.llama import ATTENTION, EMBEDDINGS, LLAMA, MLP, NORMS, SIZES
from llm_jax.convert.family import ConfigKey, TensorMap
from llm_jax.convert.keys import ACTIVATIONS
from llm_jax.convert.rope import rope

STABLELM = LLAMA._replace(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    fixed={"norm": "layer", "norm.bias": True},
    keys=(
        *SIZES,
        ConfigKey("num_key_value_heads", "attention.num_kv_heads", 32),
        ConfigKey("layer_norm_eps", "norm.eps", 1e-5),
        ConfigKey("hidden_act", "mlp.activation", "silu", ACTIVATIONS),
        ConfigKey("use_qkv_bias", "attention.qkv_bias", False),
        ConfigKey("tie_word_embeddings", "embedding.tied", False),
    ),
    codecs=(rope(partial=0.25),),
    # The parallel blocks of StableLM 2 12B have one norm for attention and MLP, and its queries and
    # keys a LayerNorm for each head; no field says either.
    required_values={"use_parallel_residual": (False,), "qk_layernorm": (False,)},
    rows=(
        *EMBEDDINGS,
        TensorMap("model.norm.bias", "final_norm/bias", "d -> d"),
        *NORMS,
        TensorMap("model.layers.{l}.input_layernorm.bias", "layers/attention_norm/bias", "d -> d"),
        TensorMap(
            "model.layers.{l}.post_attention_layernorm.bias", "layers/mlp_norm/bias", "d -> d"
        ),
        *ATTENTION,
        *MLP,
    ),
)
