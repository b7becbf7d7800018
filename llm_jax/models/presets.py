"""The public sizes of each family: architectures to build on, by name. Vocabularies are as
published, padding included.
"""

from __future__ import annotations

import difflib
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.config.overrides import override
from llm_jax.types import ConfigError

_GPT2: dict[str, Any] = {
    "vocab_size": 50257,
    "max_length": 1024,
    "norm": "layer",
    "norm.bias": True,
    "positions": "learned",
    "mlp": "plain",
    "mlp.activation": "gelu_tanh",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
}
_LLAMA2: dict[str, Any] = {"vocab_size": 32000, "max_length": 4096, "embedding.tied": False}
_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "max_length": 8192,
    "positions.theta": 5e5,
    "attention.num_kv_heads": 8,
    "embedding.tied": False,
}
_LLAMA31: dict[str, Any] = _LLAMA3 | {
    "max_length": 131072,
    "positions.scaling": "llama3",
    "positions.scaling.factor": 8.0,
    "positions.scaling.original_length": 8192,
}
_LLAMA32: dict[str, Any] = _LLAMA31 | {"positions.scaling.factor": 32.0, "embedding.tied": True}
_MISTRAL: dict[str, Any] = {
    "attention.num_kv_heads": 8,
    "max_length": 32768,
    "embedding.tied": False,
}
_QWEN2: dict[str, Any] = {
    "max_length": 32768,
    "positions.theta": 1e6,
    "norm.eps": 1e-6,
    "attention.qkv_bias": True,
}
_QWEN3: dict[str, Any] = {
    "vocab_size": 151936,
    "max_length": 40960,
    "positions.theta": 1e6,
    "norm.eps": 1e-6,
    "attention.qk_norm": "head",
    "attention.head_dim": 128,
    "attention.num_kv_heads": 8,
}
_QWEN3_MOE: dict[str, Any] = _QWEN3 | {
    "experts.count": 128,
    "experts.per_token": 8,
    "attention.num_kv_heads": 4,
    "embedding.tied": False,
}
_GEMMA: dict[str, Any] = {
    "vocab_size": 256000,
    "max_length": 8192,
    "norm.eps": 1e-6,
    "norm.unit_offset": True,
    "embedding.scale_by_width": True,
    "mlp.activation": "gelu_tanh",
    "attention.head_dim": 256,
}
_GEMMA2: dict[str, Any] = _GEMMA | {
    "norm.position": "sandwich",
    "attention.softcap": 50.0,
    "head.softcap": 30.0,
    "attention.window_pattern": (4096, 0),
}
_GEMMA3: dict[str, Any] = _GEMMA | {
    "vocab_size": 262144,
    "max_length": 32768,
    "norm.position": "sandwich",
    "attention.qk_norm": "head",
    "positions.theta": 1e6,
    "positions.windowed_theta": 1e4,
    "attention.window_pattern": (512,) * 5 + (0,),
    "attention.scale": 256**-0.5,
}
_PHI3: dict[str, Any] = {
    "vocab_size": 32064,
    "max_length": 4096,
    "embedding.tied": False,
    "attention.window_pattern": (2047,),
}
_OLMO2: dict[str, Any] = {
    "vocab_size": 100352,
    "max_length": 4096,
    "positions.theta": 5e5,
    "norm.eps": 1e-6,
    "attention.qk_norm": "all",
    "norm.position": "output",
    "embedding.tied": False,
}
_SMOLLM2: dict[str, Any] = {"vocab_size": 49152, "max_length": 8192, "positions.theta": 1e5}
_PYTHIA: dict[str, Any] = {
    "max_length": 2048,
    "norm": "layer",
    "norm.bias": True,
    "mlp": "plain",
    "mlp.activation": "gelu",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
    "parallel_residual": True,
    "positions.fraction": 0.25,
    "embedding.tied": False,
    "vocab_size": 50304,
}
_STABLELM: dict[str, Any] = {
    "vocab_size": 50304,
    "max_length": 4096,
    "norm": "layer",
    "norm.bias": True,
    "positions.fraction": 0.25,
    "embedding.tied": False,
}
_DEEPSEEK: dict[str, Any] = {
    "norm.eps": 1e-6,
    "attention.head_dim": 192,
    "attention.rope_dim": 64,
    "attention.value_dim": 128,
    "attention": "latent",
    "attention.kv_latent": 512,
    "embedding.tied": False,
    "max_length": 4096,
}
_GPT_OSS: dict[str, Any] = {
    "vocab_size": 201088,
    "max_length": 131072,
    "embed_dim": 2880,
    "attention.num_heads": 64,
    "attention.num_kv_heads": 8,
    "attention.head_dim": 64,
    "mlp.hidden_dim": 2880,
    "positions.theta": 150000.0,
    "positions.scaling": "yarn",
    "positions.scaling.factor": 32.0,
    "positions.scaling.original_length": 4096,
    "positions.scaling.truncate": False,
    "attention.window_pattern": (128, 0),
    "attention.sinks": True,
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
    "experts.router_bias": True,
    "experts.per_token": 4,
    "mlp.activation": "quick_gelu",
    "mlp.clamp": 7.0,
    "mlp.up_offset": 1.0,
    "embedding.tied": False,
}
# Encoders, with the head for masked tokens.
_BERT: dict[str, Any] = {
    "vocab_size": 30522,
    "max_length": 512,
    "causal": False,
    "norm": "layer",
    "norm.bias": True,
    "norm.eps": 1e-12,
    "norm.position": "post",
    "norm.final": False,
    "positions": "learned",
    "embedding.norm": True,
    "embedding.token_types": 2,
    "mlp": "plain",
    "mlp.activation": "gelu",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
    "head.transform": "on",
    "head.transform.bias": True,
    "head.bias": True,
}
_ROBERTA: dict[str, Any] = _BERT | {
    "vocab_size": 50265,
    "norm.eps": 1e-5,
    "positions.offset": 2,
    "embedding.token_types": 1,
}
_MODERNBERT: dict[str, Any] = {
    "vocab_size": 50368,
    "max_length": 8192,
    "causal": False,
    "norm": "layer",
    "embedding.norm": True,
    "first_layers.count": 1,
    "first_layers.attention_norm": False,
    "mlp.activation": "gelu",
    "positions.theta": 160000.0,
    "positions.windowed_theta": 10000.0,
    "attention.window_pattern": (0, 65, 65),
    "head.transform": "on",
    "head.bias": True,
}
# Encoder–decoders.
_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "max_length": 512,
    "norm.eps": 1e-6,
    "positions": "relative",
    "attention.scale": 1.0,
    "attention.head_dim": 64,
    "mlp": "plain",
    "mlp.activation": "relu",
}
_T5_V11: dict[str, Any] = _T5 | {
    "mlp": "gated",
    "mlp.activation": "gelu_tanh",
    "embedding.tied": False,
}
_BART: dict[str, Any] = {
    "vocab_size": 50265,
    "encoder.start_token": 2,
    "max_length": 1024,
    "norm": "layer",
    "norm.bias": True,
    "norm.position": "post",
    "norm.final": False,
    "positions": "learned",
    "positions.offset": 2,
    "embedding.norm": True,
    "mlp": "plain",
    "mlp.activation": "gelu",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
    "head.bias": True,
}
_MARIAN: dict[str, Any] = {
    **{key: value for key, value in _BART.items() if not key.startswith("positions")},
    "max_length": 512,
    "positions": "sinusoidal",
    "embedding.norm": False,
    "mlp.activation": "silu",
    "embedding.scale_by_width": True,
}


def _of(
    family: dict[str, Any],
    layers: int,
    width: int,
    heads: int,
    mlp: int,
    more: dict[str, Any] | None = None,
) -> ModelConfig:
    sizes = {
        "num_layers": layers,
        "embed_dim": width,
        "attention.num_heads": heads,
        "mlp.hidden_dim": mlp,
    }
    return override(ModelConfig(), family | sizes | (more or {}), "preset")


def _both(
    family: dict[str, Any],
    layers: int,
    width: int,
    heads: int,
    mlp: int,
    more: dict[str, Any] | None = None,
) -> ModelConfig:
    """An encoder and a decoder of as many layers each."""
    return _of(family, layers, width, heads, mlp, {"encoder.num_layers": layers, **(more or {})})


def _t5(
    layers: int, width: int, heads: int, mlp: int, more: dict[str, Any] | None = None
) -> ModelConfig:
    return _both(_T5, layers, width, heads, mlp, {"head.scale": width**-0.5, **(more or {})})


_T5_V11_SIZES = {
    "small": _both(_T5_V11, 8, 512, 6, 1024),
    "base": _both(_T5_V11, 12, 768, 12, 2048),
    "large": _both(_T5_V11, 24, 1024, 16, 2816),
    "xl": _both(_T5_V11, 24, 2048, 32, 5120),
    "xxl": _both(_T5_V11, 24, 4096, 64, 10240),
}
PRESETS: dict[str, ModelConfig] = {
    "gpt2": _of(_GPT2, 12, 768, 12, 3072),
    "gpt2-medium": _of(_GPT2, 24, 1024, 16, 4096),
    "gpt2-large": _of(_GPT2, 36, 1280, 20, 5120),
    "gpt2-xl": _of(_GPT2, 48, 1600, 25, 6400),
    "llama-2-7b": _of(_LLAMA2, 32, 4096, 32, 11008),
    "llama-2-13b": _of(_LLAMA2, 40, 5120, 40, 13824),
    "llama-2-70b": _of(_LLAMA2, 80, 8192, 64, 28672, {"attention.num_kv_heads": 8}),
    "llama-3-8b": _of(_LLAMA3, 32, 4096, 32, 14336),
    "llama-3-70b": _of(_LLAMA3, 80, 8192, 64, 28672),
    "llama-3.1-8b": _of(_LLAMA31, 32, 4096, 32, 14336),
    "llama-3.1-70b": _of(_LLAMA31, 80, 8192, 64, 28672),
    "llama-3.1-405b": _of(_LLAMA31, 126, 16384, 128, 53248),
    "llama-3.2-1b": _of(_LLAMA32, 16, 2048, 32, 8192, {"attention.head_dim": 64}),
    "llama-3.2-3b": _of(_LLAMA32, 28, 3072, 24, 8192, {"attention.head_dim": 128}),
    "mistral-7b-v0.1": _of(
        _MISTRAL, 32, 4096, 32, 14336, {"vocab_size": 32000, "attention.window_pattern": (4096,)}
    ),
    "mistral-7b-v0.3": _of(
        _MISTRAL, 32, 4096, 32, 14336, {"vocab_size": 32768, "positions.theta": 1e6}
    ),
    "mixtral-8x7b": _of(
        _MISTRAL,
        32,
        4096,
        32,
        14336,
        {"vocab_size": 32000, "positions.theta": 1e6, "experts.count": 8},
    ),
    "mixtral-8x22b": _of(
        _MISTRAL,
        56,
        6144,
        48,
        16384,
        {"vocab_size": 32000, "positions.theta": 1e6, "experts.count": 8, "max_length": 65536},
    ),
    "qwen2.5-0.5b": _of(
        _QWEN2, 24, 896, 14, 4864, {"vocab_size": 151936, "attention.num_kv_heads": 2}
    ),
    "qwen2.5-1.5b": _of(
        _QWEN2, 28, 1536, 12, 8960, {"vocab_size": 151936, "attention.num_kv_heads": 2}
    ),
    "qwen2.5-3b": _of(
        _QWEN2, 36, 2048, 16, 11008, {"vocab_size": 151936, "attention.num_kv_heads": 2}
    ),
    "qwen2.5-7b": _of(
        _QWEN2,
        28,
        3584,
        28,
        18944,
        {"vocab_size": 152064, "attention.num_kv_heads": 4, "embedding.tied": False},
    ),
    "qwen2.5-14b": _of(
        _QWEN2,
        48,
        5120,
        40,
        13824,
        {"vocab_size": 152064, "attention.num_kv_heads": 8, "embedding.tied": False},
    ),
    "qwen2.5-32b": _of(
        _QWEN2,
        64,
        5120,
        40,
        27648,
        {"vocab_size": 152064, "attention.num_kv_heads": 8, "embedding.tied": False},
    ),
    "qwen2.5-72b": _of(
        _QWEN2,
        80,
        8192,
        64,
        29568,
        {"vocab_size": 152064, "attention.num_kv_heads": 8, "embedding.tied": False},
    ),
    "qwen3-0.6b": _of(_QWEN3, 28, 1024, 16, 3072),
    "qwen3-1.7b": _of(_QWEN3, 28, 2048, 16, 6144),
    "qwen3-4b": _of(_QWEN3, 36, 2560, 32, 9728),
    "qwen3-8b": _of(_QWEN3, 36, 4096, 32, 12288, {"embedding.tied": False}),
    "qwen3-14b": _of(_QWEN3, 40, 5120, 40, 17408, {"embedding.tied": False}),
    "qwen3-32b": _of(_QWEN3, 64, 5120, 64, 25600, {"embedding.tied": False}),
    "qwen3-30b-a3b": _of(_QWEN3_MOE, 48, 2048, 32, 768),
    "qwen3-235b-a22b": _of(_QWEN3_MOE, 94, 4096, 64, 1536),
    "gemma-2b": _of(_GEMMA, 18, 2048, 8, 16384, {"attention.num_kv_heads": 1}),
    "gemma-7b": _of(_GEMMA, 28, 3072, 16, 24576),
    "gemma-2-2b": _of(
        _GEMMA2, 26, 2304, 8, 9216, {"attention.num_kv_heads": 4, "attention.scale": 256**-0.5}
    ),
    "gemma-2-9b": _of(
        _GEMMA2, 42, 3584, 16, 14336, {"attention.num_kv_heads": 8, "attention.scale": 256**-0.5}
    ),
    "gemma-2-27b": _of(
        _GEMMA2,
        46,
        4608,
        32,
        36864,
        {"attention.num_kv_heads": 16, "attention.head_dim": 128, "attention.scale": 144**-0.5},
    ),
    "gemma-3-270m": _of(_GEMMA3, 18, 640, 4, 2048, {"attention.num_kv_heads": 1}),
    "gemma-3-1b": _of(_GEMMA3, 26, 1152, 4, 6912, {"attention.num_kv_heads": 1}),
    "phi-3-mini-4k": _of(_PHI3, 32, 3072, 32, 8192),
    "phi-3-medium-4k": _of(_PHI3, 40, 5120, 40, 17920, {"attention.num_kv_heads": 10}),
    "phi-4": _of(
        _PHI3,
        40,
        5120,
        40,
        17920,
        {
            "attention.num_kv_heads": 10,
            "vocab_size": 100352,
            "max_length": 16384,
            "positions.theta": 250000.0,
            "attention.window_pattern": (0,),
        },
    ),
    "olmo-2-1b": _of(_OLMO2, 16, 2048, 16, 8192),
    "olmo-2-7b": _of(_OLMO2, 32, 4096, 32, 11008),
    "olmo-2-13b": _of(_OLMO2, 40, 5120, 40, 13824),
    "olmo-2-32b": _of(_OLMO2, 64, 5120, 40, 27648, {"attention.num_kv_heads": 8}),
    "smollm2-135m": _of(_SMOLLM2, 30, 576, 9, 1536, {"attention.num_kv_heads": 3}),
    "smollm2-360m": _of(_SMOLLM2, 32, 960, 15, 2560, {"attention.num_kv_heads": 5}),
    "smollm2-1.7b": _of(_SMOLLM2, 24, 2048, 32, 8192, {"positions.theta": 130000.0}),
    "smollm3-3b": _of(
        {},
        36,
        2048,
        16,
        11008,
        {
            "vocab_size": 128256,
            "attention.num_kv_heads": 4,
            "positions.theta": 5e6,
            "norm.eps": 1e-6,
            "max_length": 65536,
            "positions.pattern": (True, True, True, False),
        },
    ),
    "granite-3.1-2b": _of(
        {},
        40,
        2048,
        32,
        8192,
        {
            "vocab_size": 49155,
            "attention.num_kv_heads": 8,
            "positions.theta": 5e6,
            "max_length": 131072,
            "embedding.scale": 12.0,
            "residual_scale": 0.22,
            "attention.scale": 0.015625,
            "head.scale": 1 / 8,
        },
    ),
    "granite-3.1-8b": _of(
        {},
        40,
        4096,
        32,
        12800,
        {
            "vocab_size": 49155,
            "attention.num_kv_heads": 8,
            "positions.theta": 5e6,
            "max_length": 131072,
            "embedding.scale": 12.0,
            "residual_scale": 0.22,
            "attention.scale": 0.0078125,
            "head.scale": 1 / 16,
        },
    ),
    "stablelm-3b-4e1t": _of(_STABLELM, 32, 2560, 32, 6912),
    "stablelm-2-1.6b": _of(
        _STABLELM, 24, 2048, 32, 5632, {"vocab_size": 100352, "attention.qkv_bias": True}
    ),
    "pythia-70m": _of(_PYTHIA, 6, 512, 8, 2048),
    "pythia-160m": _of(_PYTHIA, 12, 768, 12, 3072),
    "pythia-410m": _of(_PYTHIA, 24, 1024, 16, 4096),
    "pythia-1b": _of(_PYTHIA, 16, 2048, 8, 8192),
    "pythia-1.4b": _of(_PYTHIA, 24, 2048, 16, 8192),
    "pythia-2.8b": _of(_PYTHIA, 32, 2560, 32, 10240),
    "pythia-6.9b": _of(_PYTHIA, 32, 4096, 32, 16384, {"vocab_size": 50432}),
    "pythia-12b": _of(_PYTHIA, 36, 5120, 40, 20480, {"vocab_size": 50688}),
    "deepseek-v2-lite": _of(
        _DEEPSEEK,
        27,
        2048,
        16,
        1408,
        {
            "vocab_size": 102400,
            "experts.count": 64,
            "experts.per_token": 6,
            "experts.shared": 2,
            "experts.normalize": False,
            "first_layers.count": 1,
            "first_layers.mlp_dim": 10944,
        },
    ),
    "deepseek-v2": _of(
        _DEEPSEEK,
        60,
        5120,
        128,
        1536,
        {
            "vocab_size": 102400,
            "attention.q_latent": 1536,
            "experts.count": 160,
            "experts.per_token": 6,
            "experts.shared": 2,
            "experts.normalize": False,
            "experts.scale": 16.0,
            "experts.groups.count": 8,
            "experts.groups.per_token": 3,
            "first_layers.count": 1,
            "first_layers.mlp_dim": 12288,
        },
    ),
    "deepseek-v3": _of(
        _DEEPSEEK,
        61,
        7168,
        128,
        2048,
        {
            "vocab_size": 129280,
            "attention.q_latent": 1536,
            "experts.count": 256,
            "experts.per_token": 8,
            "experts.shared": 1,
            "experts.router": "sigmoid",
            "experts.balance": "bias",
            "experts.scale": 2.5,
            "experts.groups.count": 8,
            "experts.groups.per_token": 4,
            "experts.groups.score": "best_two",
            "first_layers.count": 3,
            "first_layers.mlp_dim": 18432,
        },
    ),
    "gpt-oss-20b": override(
        ModelConfig(), {**_GPT_OSS, "num_layers": 24, "experts.count": 32}, "preset"
    ),
    "gpt-oss-120b": override(
        ModelConfig(), {**_GPT_OSS, "num_layers": 36, "experts.count": 128}, "preset"
    ),
    "bert-base-uncased": _of(_BERT, 12, 768, 12, 3072),
    "bert-base-cased": _of(_BERT, 12, 768, 12, 3072, {"vocab_size": 28996}),
    "bert-large-uncased": _of(_BERT, 24, 1024, 16, 4096),
    "bert-large-cased": _of(_BERT, 24, 1024, 16, 4096, {"vocab_size": 28996}),
    "roberta-base": _of(_ROBERTA, 12, 768, 12, 3072),
    "roberta-large": _of(_ROBERTA, 24, 1024, 16, 4096),
    "distilbert-base-uncased": _of(_BERT, 6, 768, 12, 3072, {"embedding.token_types": 0}),
    "distilbert-base-cased": _of(
        _BERT, 6, 768, 12, 3072, {"embedding.token_types": 0, "vocab_size": 28996}
    ),
    "modernbert-base": _of(_MODERNBERT, 22, 768, 12, 1152),
    "modernbert-large": _of(_MODERNBERT, 28, 1024, 16, 2624),
    "t5-small": _t5(6, 512, 8, 2048),
    "t5-base": _t5(12, 768, 12, 3072),
    "t5-large": _t5(24, 1024, 16, 4096),
    "t5-3b": _t5(24, 1024, 32, 16384, {"attention.head_dim": 128}),
    "t5-11b": _t5(24, 1024, 128, 65536, {"attention.head_dim": 128}),
    # One architecture, trained twice.
    **{f"t5-v1.1-{size}": model for size, model in _T5_V11_SIZES.items()},
    **{f"flan-t5-{size}": model for size, model in _T5_V11_SIZES.items()},
    "bart-base": _both(_BART, 6, 768, 12, 3072),
    "bart-large": _both(_BART, 12, 1024, 16, 4096),
    "opus-mt-en-de": _both(
        _MARIAN, 6, 512, 8, 2048, {"vocab_size": 58101, "encoder.start_token": 58100}
    ),
}


def preset(name: str) -> ModelConfig:
    """The architecture of that name. ConfigError, with the nearest ones, for another name."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3) or sorted(PRESETS)
        raise ConfigError(
            f"unknown preset {name!r}; there are"
            f" {', '.join(near)}{', …' if len(near) < len(PRESETS) else ''}"
        )
    return PRESETS[name]
