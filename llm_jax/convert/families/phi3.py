"""Phi-3 and Phi-4: Llama with fused projections."""

from __future__ import annotations

from llm_jax.convert.families.llama import EMBEDDINGS, KEYS, LLAMA, NORMS, with_eps
from llm_jax.convert.families.rows import QKV_KERNELS
from llm_jax.convert.family import TensorMap
from llm_jax.convert.keys import windows
from llm_jax.convert.rope import rope

PHI3 = LLAMA._replace(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    keys=with_eps(KEYS, 1e-5),
    codecs=(rope(partial=1.0, original_length=4096), windows()),
    required_values={
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "lm_head_bias": (False,),
        "interpolate_factor": (1,),
        "full_attn_mod": (1,),
    },
    rows=(
        *EMBEDDINGS,
        *NORMS,
        TensorMap("model.layers.{l}.self_attn.qkv_proj.weight", QKV_KERNELS, "(n h) d -> d n h"),
        TensorMap(
            "model.layers.{l}.self_attn.o_proj.weight",
            "layers/attention/out/kernel",
            "d (n h) -> n h d",
        ),
        TensorMap(
            "model.layers.{l}.mlp.gate_up_proj.weight",
            ("layers/mlp/gate/kernel", "layers/mlp/up/kernel"),
            "f d -> d f",
        ),
        TensorMap("model.layers.{l}.mlp.down_proj.weight", "layers/mlp/down/kernel", "d f -> f d"),
    ),
)
