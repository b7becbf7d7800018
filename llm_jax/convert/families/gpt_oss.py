"""gpt-oss: attention sinks, windows in every other layer, experts with biases and clamped gates."""

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
from llm_jax.convert.family import ConfigKey, TensorMap
from llm_jax.convert.keys import windows
from llm_jax.convert.rope import rope

_M = "model.layers.{l}.mlp."
_GATE_UP = ("layers/mlp/gate", "layers/mlp/up")
GPT_OSS = LLAMA._replace(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    fixed={
        "attention.sinks": True,
        "mlp.bias": True,
        "experts.router_bias": True,
        "mlp.activation": "quick_gelu",
        "mlp.up_offset": 1.0,
    },
    keys=(
        *(k for k in with_eps(KEYS, 1e-5) if k.native != "mlp.activation"),
        *(k._replace(default=True) for k in BIASES),
        ConfigKey("num_local_experts", "experts.count"),
        ConfigKey("num_experts_per_tok", "experts.per_token", also="experts_per_token"),
        ConfigKey("swiglu_limit", "mlp.clamp", 7.0, some=True),
    ),
    codecs=(
        rope(150_000.0),
        windows(("sliding_attention", "full_attention"), width=128, listed=True),
    ),
    # The activation is x * sigmoid(swiglu_alpha * x), which is quick_gelu for this alpha.
    required_values={"hidden_act": ("silu",), "swiglu_alpha": (1.702,)},
    unused=("initial_context_length",),
    rows=(
        *EMBEDDINGS,
        *NORMS,
        *ATTENTION,
        TensorMap("model.layers.{l}.self_attn.sinks", "layers/attention/sink/bias", "n -> n"),
        TensorMap(f"{_M}router.weight", "layers/mlp/router/kernel", "e d -> d e"),
        TensorMap(f"{_M}router.bias", "layers/mlp/router/bias", "e -> e"),
        # The columns of gate and up alternate.
        TensorMap(
            f"{_M}experts.gate_up_proj",
            tuple(f"{p}/kernel" for p in _GATE_UP),
            "e d f -> e d f",
            axis=2,
            per="f",
        ),
        TensorMap(
            f"{_M}experts.gate_up_proj_bias",
            tuple(f"{p}/bias" for p in _GATE_UP),
            "e f -> e f",
            axis=1,
            per="f",
        ),
        TensorMap(f"{_M}experts.down_proj", "layers/mlp/down/kernel", "e f d -> e f d"),
        TensorMap(f"{_M}experts.down_proj_bias", "layers/mlp/down/bias", "e d -> e d"),
    ),
)
