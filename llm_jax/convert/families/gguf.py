"""Architectures of GGUF files, by the value of ``general.architecture``."""

from __future__ import annotations

from llm_jax.convert.families.gguf_parts import (
    AFFINE_KEYS,
    AFFINE_ROWS,
    EXPERT_KEYS,
    EXPERTS,
    FUSED,
    HALVES,
    KEYS,
    LOGIT_DIVISOR,
    NEIGHBOURS,
    PHI3_ROPE,
    POST_NORMS,
    ROPE,
    ROWS,
    UNTRUNCATED_ROPE,
    UNUSED,
    B,
    gemma_scale,
    windows,
)
from llm_jax.convert.families.gpt import AFFINE
from llm_jax.convert.family import ConfigKey, Family, TensorMap

LLAMA = Family("llama", "llama", {}, KEYS, (ROPE, EXPERTS), (*ROWS, *NEIGHBOURS), unused=UNUSED)
SMOLLM3 = LLAMA._replace(
    model_type="smollm3", codecs=(ROPE,), fixed={"positions.pattern": (True, True, True, False)}
)
GRANITE = LLAMA._replace(
    model_type="granite",
    keys=(
        *KEYS,
        ConfigKey("attention.scale", "attention.scale", 0.0),
        ConfigKey("embedding_scale", "embedding.scale", 1.0),
        ConfigKey("residual_scale", "residual_scale", 1.0),
    ),
    codecs=(ROPE, LOGIT_DIVISOR),
)
QWEN2 = Family(
    "qwen2", "qwen2", {"attention.qkv_bias": True}, KEYS, (ROPE,), (*ROWS, *HALVES), unused=UNUSED
)
QWEN3 = QWEN2._replace(model_type="qwen3", fixed={"attention.qk_norm": "head"})
QWEN3_MOE = QWEN3._replace(
    model_type="qwen3moe",
    keys=EXPERT_KEYS,
    codecs=(ROPE, EXPERTS),
    unused=(*UNUSED, "feed_forward_length"),
)
OLMO2 = QWEN3._replace(
    model_type="olmo2",
    fixed={"attention.qk_norm": "all", "norm.position": "output"},
    rows=(*QWEN3.rows, *POST_NORMS),
)
_GEMMA = {"embedding.scale_by_width": True, "mlp.activation": "gelu_tanh"}
# GGUF files store the weights of Gemma's norms with their offset of one added.
GEMMA3 = QWEN3._replace(
    model_type="gemma3",
    fixed={**_GEMMA, "attention.qk_norm": "head", "norm.position": "sandwich"},
    codecs=(ROPE, windows((True,) * 5 + (False,), theta=10_000.0), gemma_scale(62)),
    rows=OLMO2.rows,
)
GEMMA = QWEN3._replace(model_type="gemma", fixed=_GEMMA)
GEMMA2 = GEMMA3._replace(
    model_type="gemma2",
    fixed={**_GEMMA, "norm.position": "sandwich"},
    keys=(
        *KEYS,
        ConfigKey("attn_logit_softcapping", "attention.softcap", 50.0),
        ConfigKey("final_logit_softcapping", "head.softcap", 30.0),
    ),
    codecs=(ROPE, windows((True, False), default_width=4096), gemma_scale(46)),
)
PHI3 = QWEN2._replace(
    model_type="phi3",
    fixed={},
    codecs=(PHI3_ROPE, windows((True,), default_width=0)),
    rows=(
        *(row for row in ROWS if "ffn_gate" not in row.source and "ffn_up" not in row.source),
        *FUSED,
        TensorMap(
            f"{B}ffn_up.weight", ("layers/mlp/gate/kernel", "layers/mlp/up/kernel"), "f d -> d f"
        ),
    ),
)
GPT2 = Family(
    "gpt2",
    "gpt2",
    {**AFFINE, "positions": "learned", "mlp.activation": "gelu_tanh"},
    AFFINE_KEYS,
    (),
    (*AFFINE_ROWS, TensorMap("position_embd.weight", "positions/positions", "t d -> t d")),
)
GPT_NEOX = Family(
    "gptneox",
    "gptneox",
    {**AFFINE, "mlp.activation": "gelu"},
    (*AFFINE_KEYS, ConfigKey("use_parallel_residual", "parallel_residual")),
    (ROPE,),
    AFFINE_ROWS,
)
_GPT_OSS_NORM = TensorMap(f"{B}post_attention_norm.weight", "layers/mlp_norm/scale", "d -> d")
GPT_OSS = QWEN3._replace(
    model_type="gpt-oss",
    fixed={
        "attention.sinks": True,
        "attention.qkv_bias": True,
        "attention.out_bias": True,
        "mlp.bias": True,
        "experts.router_bias": True,
        "mlp.activation": "quick_gelu",
        "mlp.clamp": 7.0,
        "mlp.up_offset": 1.0,
    },
    keys=EXPERT_KEYS,
    codecs=(UNTRUNCATED_ROPE, EXPERTS, windows((True, False))),
    unused=(*UNUSED, "feed_forward_length"),
    rows=(
        *(_GPT_OSS_NORM if row.native == _GPT_OSS_NORM.native else row for row in QWEN3.rows),
        TensorMap(f"{B}attn_sinks.weight", "layers/attention/sink/bias", "n -> n"),
    ),
)
ARCHITECTURES = {
    f.model_type: f
    for f in (
        LLAMA,
        QWEN2,
        QWEN3,
        QWEN3_MOE,
        SMOLLM3,
        GRANITE,
        OLMO2,
        GEMMA,
        GEMMA2,
        GEMMA3,
        PHI3,
        GPT2,
        GPT_NEOX,
        GPT_OSS,
    )
}
# In these architectures added tokens take the blanks after them, except for the tokens listed here.
# Files do not have this; llama.cpp decides by the architecture's name.
KEEPING_BLANKS = {"phi3": ("<unk>", "<s>", "<|endoftext|>")}
