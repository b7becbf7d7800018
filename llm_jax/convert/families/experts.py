"""Families with a mixture of experts in place of the MLP: Mixtral, Qwen 3 MoE."""

from __future__ import annotations

from llm_jax.convert.families.llama import (
    ATTENTION,
    BIASES,
    EMBEDDINGS,
    KEYS,
    LLAMA,
    NORMS,
    with_eps,
)
from llm_jax.convert.families.rows import changed
from llm_jax.convert.family import ConfigKey, TensorMap
from llm_jax.convert.keys import windows
from llm_jax.convert.rope import rope

_MOE = "model.layers.{l}.block_sparse_moe."
_EXPERT = "model.layers.{l}.mlp.experts.{e}."
MIXTRAL = LLAMA._replace(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    keys=(
        *with_eps(KEYS, 1e-5),
        ConfigKey("num_local_experts", "experts.count", 8),
        ConfigKey("num_experts_per_tok", "experts.per_token", 2),
    ),
    codecs=(rope(1_000_000.0), windows()),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION,
        TensorMap(f"{_MOE}gate.weight", "layers/mlp/router/kernel", "e d -> d e"),
        TensorMap(f"{_MOE}experts.{{e}}.w1.weight", "layers/mlp/gate/kernel", "f d -> d f"),
        TensorMap(f"{_MOE}experts.{{e}}.w3.weight", "layers/mlp/up/kernel", "f d -> d f"),
        TensorMap(f"{_MOE}experts.{{e}}.w2.weight", "layers/mlp/down/kernel", "d f -> f d"),
    ),
)
_KEYS = changed(KEYS, "mlp.hidden_dim", source="moe_intermediate_size")
QWEN3_MOE = LLAMA._replace(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fixed={"attention.qk_norm": "head"},
    keys=(
        *_KEYS,
        *BIASES,
        ConfigKey("num_experts", "experts.count", 128, also="num_local_experts"),
        ConfigKey("num_experts_per_tok", "experts.per_token", 8),
        ConfigKey("norm_topk_prob", "experts.normalize", False),
    ),
    codecs=(rope(), windows(width=4096, gated=True)),
    required_values={"decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
    # These are of layers without experts, which required_values refuses.
    unused=("intermediate_size", "max_window_layers"),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION,
        TensorMap("model.layers.{l}.mlp.gate.weight", "layers/mlp/router/kernel", "e d -> d e"),
        TensorMap(f"{_EXPERT}gate_proj.weight", "layers/mlp/gate/kernel", "f d -> d f"),
        TensorMap(f"{_EXPERT}up_proj.weight", "layers/mlp/up/kernel", "f d -> d f"),
        TensorMap(f"{_EXPERT}down_proj.weight", "layers/mlp/down/kernel", "d f -> f d"),
    ),
)
