"""The public sizes of each family: architectures to build on, by name. Vocabularies are as
published, padding included.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.types import ConfigError

_GPT2: dict[str, Any] = {
    "vocab_size": 50257,
    "max_length": 1024,
    "norm": "layer",
    "norm_bias": True,
    "positions": "learned",
    "mlp": "plain",
    "activation": "gelu_tanh",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
}
_LLAMA2: dict[str, Any] = {"vocab_size": 32000, "max_length": 4096, "tied_embeddings": False}
_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256,
    "max_length": 8192,
    "rope_theta": 5e5,
    "num_kv_heads": 8,
    "tied_embeddings": False,
}
_LLAMA31: dict[str, Any] = _LLAMA3 | {
    "max_length": 131072,
    "rope_scaling": "llama3",
    "rope_factor": 8.0,
    "rope_original_length": 8192,
}
_LLAMA32: dict[str, Any] = _LLAMA31 | {"rope_factor": 32.0, "tied_embeddings": True}
_MISTRAL: dict[str, Any] = {"num_kv_heads": 8, "max_length": 32768, "tied_embeddings": False}
_QWEN2: dict[str, Any] = {
    "max_length": 32768,
    "rope_theta": 1e6,
    "norm_eps": 1e-6,
    "qkv_bias": True,
}
_QWEN3: dict[str, Any] = {
    "vocab_size": 151936,
    "max_length": 40960,
    "rope_theta": 1e6,
    "norm_eps": 1e-6,
    "qk_norm": True,
    "head_dim": 128,
    "num_kv_heads": 8,
}
_QWEN3_MOE: dict[str, Any] = _QWEN3 | {
    "num_experts": 128,
    "experts_per_token": 8,
    "num_kv_heads": 4,
    "tied_embeddings": False,
}
_GEMMA: dict[str, Any] = {
    "vocab_size": 256000,
    "max_length": 8192,
    "norm_eps": 1e-6,
    "norm_unit_offset": True,
    "scale_embeddings": True,
    "activation": "gelu_tanh",
    "head_dim": 256,
}
_GEMMA2: dict[str, Any] = _GEMMA | {
    "norm_position": "sandwich",
    "attention_softcap": 50.0,
    "logit_softcap": 30.0,
    "window_pattern": (4096, 0),
}
_GEMMA3: dict[str, Any] = _GEMMA | {
    "vocab_size": 262144,
    "max_length": 32768,
    "norm_position": "sandwich",
    "qk_norm": True,
    "rope_theta": 1e6,
    "rope_theta_windowed": 1e4,
    "window_pattern": (512,) * 5 + (0,),
    "attention_scale": 256**-0.5,
}
_PHI3: dict[str, Any] = {
    "vocab_size": 32064,
    "max_length": 4096,
    "tied_embeddings": False,
    "window_pattern": (2047,),
}
_OLMO2: dict[str, Any] = {
    "vocab_size": 100352,
    "max_length": 4096,
    "rope_theta": 5e5,
    "norm_eps": 1e-6,
    "qk_norm": True,
    "qk_norm_width": "all",
    "norm_position": "output",
    "tied_embeddings": False,
}
_SMOLLM2: dict[str, Any] = {"vocab_size": 49152, "max_length": 8192, "rope_theta": 1e5}
_PYTHIA: dict[str, Any] = {
    "max_length": 2048,
    "norm": "layer",
    "norm_bias": True,
    "mlp": "plain",
    "activation": "gelu",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "parallel_residual": True,
    "rope_fraction": 0.25,
    "tied_embeddings": False,
    "vocab_size": 50304,
}
_DEEPSEEK: dict[str, Any] = {
    "norm_eps": 1e-6,
    "head_dim": 192,
    "rope_dim": 64,
    "value_dim": 128,
    "kv_latent": 512,
    "tied_embeddings": False,
    "max_length": 4096,
}
_GPT_OSS: dict[str, Any] = {
    "vocab_size": 201088,
    "max_length": 131072,
    "embed_dim": 2880,
    "num_heads": 64,
    "num_kv_heads": 8,
    "head_dim": 64,
    "mlp_dim": 2880,
    "rope_theta": 150000.0,
    "rope_scaling": "yarn",
    "rope_factor": 32.0,
    "rope_original_length": 4096,
    "rope_truncate": False,
    "window_pattern": (128, 0),
    "attention_sinks": True,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "router_bias": True,
    "experts_per_token": 4,
    "activation": "quick_gelu",
    "mlp_clamp": 7.0,
    "mlp_up_offset": 1.0,
    "tied_embeddings": False,
}
# Encoders, with the head for masked tokens.
_BERT: dict[str, Any] = {
    "vocab_size": 30522,
    "max_length": 512,
    "causal": False,
    "norm": "layer",
    "norm_bias": True,
    "norm_eps": 1e-12,
    "norm_position": "post",
    "final_norm": False,
    "positions": "learned",
    "embedding_norm": True,
    "token_types": 2,
    "mlp": "plain",
    "activation": "gelu",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "head_transform": True,
    "head_transform_bias": True,
    "head_bias": True,
}
_ROBERTA: dict[str, Any] = _BERT | {
    "vocab_size": 50265,
    "norm_eps": 1e-5,
    "position_offset": 2,
    "token_types": 1,
}
_MODERNBERT: dict[str, Any] = {
    "vocab_size": 50368,
    "max_length": 8192,
    "causal": False,
    "norm": "layer",
    "embedding_norm": True,
    "first_layers": 1,
    "first_attention_norm": False,
    "activation": "gelu",
    "rope_theta": 160000.0,
    "rope_theta_windowed": 10000.0,
    "window_pattern": (0, 65, 65),
    "head_transform": True,
    "head_bias": True,
}
# Encoder–decoders.
_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "max_length": 512,
    "norm_eps": 1e-6,
    "positions": "relative",
    "attention_scale": 1.0,
    "head_dim": 64,
    "mlp": "plain",
    "activation": "relu",
}
_T5_V11: dict[str, Any] = _T5 | {
    "mlp": "gated",
    "activation": "gelu_tanh",
    "tied_embeddings": False,
}
_BART: dict[str, Any] = {
    "vocab_size": 50265,
    "start_token": 2,
    "max_length": 1024,
    "norm": "layer",
    "norm_bias": True,
    "norm_position": "post",
    "final_norm": False,
    "positions": "learned",
    "position_offset": 2,
    "embedding_norm": True,
    "mlp": "plain",
    "activation": "gelu",
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
    "head_bias": True,
}
_MARIAN: dict[str, Any] = _BART | {
    "max_length": 512,
    "positions": "sinusoidal",
    "position_offset": 0,
    "embedding_norm": False,
    "activation": "silu",
    "scale_embeddings": True,
}


def _of(
    family: dict[str, Any], layers: int, width: int, heads: int, mlp: int, **more: Any
) -> ModelConfig:
    sizes = {"num_layers": layers, "embed_dim": width, "num_heads": heads, "mlp_dim": mlp}
    return dataclasses.replace(ModelConfig(), **(family | sizes | more))


def _both(
    family: dict[str, Any], layers: int, width: int, heads: int, mlp: int, **more: Any
) -> ModelConfig:
    """An encoder and a decoder of as many layers each."""
    return _of(family, layers, width, heads, mlp, encoder_layers=layers, **more)


def _t5(layers: int, width: int, heads: int, mlp: int, **more: Any) -> ModelConfig:
    return _both(_T5, layers, width, heads, mlp, logit_scale=width**-0.5, **more)


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
    "llama-2-70b": _of(_LLAMA2, 80, 8192, 64, 28672, num_kv_heads=8),
    "llama-3-8b": _of(_LLAMA3, 32, 4096, 32, 14336),
    "llama-3-70b": _of(_LLAMA3, 80, 8192, 64, 28672),
    "llama-3.1-8b": _of(_LLAMA31, 32, 4096, 32, 14336),
    "llama-3.1-70b": _of(_LLAMA31, 80, 8192, 64, 28672),
    "llama-3.1-405b": _of(_LLAMA31, 126, 16384, 128, 53248),
    "llama-3.2-1b": _of(_LLAMA32, 16, 2048, 32, 8192, head_dim=64),
    "llama-3.2-3b": _of(_LLAMA32, 28, 3072, 24, 8192, head_dim=128),
    "mistral-7b-v0.1": _of(_MISTRAL, 32, 4096, 32, 14336, vocab_size=32000, window_pattern=(4096,)),
    "mistral-7b-v0.3": _of(_MISTRAL, 32, 4096, 32, 14336, vocab_size=32768, rope_theta=1e6),
    "mixtral-8x7b": _of(
        _MISTRAL, 32, 4096, 32, 14336, vocab_size=32000, rope_theta=1e6, num_experts=8
    ),
    "mixtral-8x22b": _of(
        _MISTRAL,
        56,
        6144,
        48,
        16384,
        vocab_size=32000,
        rope_theta=1e6,
        num_experts=8,
        max_length=65536,
    ),
    "qwen2.5-0.5b": _of(_QWEN2, 24, 896, 14, 4864, vocab_size=151936, num_kv_heads=2),
    "qwen2.5-1.5b": _of(_QWEN2, 28, 1536, 12, 8960, vocab_size=151936, num_kv_heads=2),
    "qwen2.5-3b": _of(_QWEN2, 36, 2048, 16, 11008, vocab_size=151936, num_kv_heads=2),
    "qwen2.5-7b": _of(
        _QWEN2, 28, 3584, 28, 18944, vocab_size=152064, num_kv_heads=4, tied_embeddings=False
    ),
    "qwen2.5-14b": _of(
        _QWEN2, 48, 5120, 40, 13824, vocab_size=152064, num_kv_heads=8, tied_embeddings=False
    ),
    "qwen2.5-32b": _of(
        _QWEN2, 64, 5120, 40, 27648, vocab_size=152064, num_kv_heads=8, tied_embeddings=False
    ),
    "qwen2.5-72b": _of(
        _QWEN2, 80, 8192, 64, 29568, vocab_size=152064, num_kv_heads=8, tied_embeddings=False
    ),
    "qwen3-0.6b": _of(_QWEN3, 28, 1024, 16, 3072),
    "qwen3-1.7b": _of(_QWEN3, 28, 2048, 16, 6144),
    "qwen3-4b": _of(_QWEN3, 36, 2560, 32, 9728),
    "qwen3-8b": _of(_QWEN3, 36, 4096, 32, 12288, tied_embeddings=False),
    "qwen3-14b": _of(_QWEN3, 40, 5120, 40, 17408, tied_embeddings=False),
    "qwen3-32b": _of(_QWEN3, 64, 5120, 64, 25600, tied_embeddings=False),
    "qwen3-30b-a3b": _of(_QWEN3_MOE, 48, 2048, 32, 768),
    "qwen3-235b-a22b": _of(_QWEN3_MOE, 94, 4096, 64, 1536),
    "gemma-2b": _of(_GEMMA, 18, 2048, 8, 16384, num_kv_heads=1),
    "gemma-7b": _of(_GEMMA, 28, 3072, 16, 24576),
    "gemma-2-2b": _of(_GEMMA2, 26, 2304, 8, 9216, num_kv_heads=4, attention_scale=256**-0.5),
    "gemma-2-9b": _of(_GEMMA2, 42, 3584, 16, 14336, num_kv_heads=8, attention_scale=256**-0.5),
    "gemma-2-27b": _of(
        _GEMMA2, 46, 4608, 32, 36864, num_kv_heads=16, head_dim=128, attention_scale=144**-0.5
    ),
    "gemma-3-270m": _of(_GEMMA3, 18, 640, 4, 2048, num_kv_heads=1),
    "gemma-3-1b": _of(_GEMMA3, 26, 1152, 4, 6912, num_kv_heads=1),
    "phi-3-mini-4k": _of(_PHI3, 32, 3072, 32, 8192),
    "phi-3-medium-4k": _of(_PHI3, 40, 5120, 40, 17920, num_kv_heads=10),
    "phi-4": _of(
        _PHI3,
        40,
        5120,
        40,
        17920,
        num_kv_heads=10,
        vocab_size=100352,
        max_length=16384,
        rope_theta=250000.0,
        window_pattern=(0,),
    ),
    "olmo-2-1b": _of(_OLMO2, 16, 2048, 16, 8192),
    "olmo-2-7b": _of(_OLMO2, 32, 4096, 32, 11008),
    "olmo-2-13b": _of(_OLMO2, 40, 5120, 40, 13824),
    "olmo-2-32b": _of(_OLMO2, 64, 5120, 40, 27648, num_kv_heads=8),
    "smollm2-135m": _of(_SMOLLM2, 30, 576, 9, 1536, num_kv_heads=3),
    "smollm2-360m": _of(_SMOLLM2, 32, 960, 15, 2560, num_kv_heads=5),
    "smollm2-1.7b": _of(_SMOLLM2, 24, 2048, 32, 8192, rope_theta=130000.0),
    "smollm3-3b": _of(
        {},
        36,
        2048,
        16,
        11008,
        vocab_size=128256,
        num_kv_heads=4,
        rope_theta=5e6,
        norm_eps=1e-6,
        max_length=65536,
        rope_pattern=(True, True, True, False),
    ),
    "granite-3.1-2b": _of(
        {},
        40,
        2048,
        32,
        8192,
        vocab_size=49155,
        num_kv_heads=8,
        rope_theta=5e6,
        max_length=131072,
        embedding_scale=12.0,
        residual_scale=0.22,
        attention_scale=0.015625,
        logit_scale=1 / 8,
    ),
    "granite-3.1-8b": _of(
        {},
        40,
        4096,
        32,
        12800,
        vocab_size=49155,
        num_kv_heads=8,
        rope_theta=5e6,
        max_length=131072,
        embedding_scale=12.0,
        residual_scale=0.22,
        attention_scale=0.0078125,
        logit_scale=1 / 16,
    ),
    "pythia-70m": _of(_PYTHIA, 6, 512, 8, 2048),
    "pythia-160m": _of(_PYTHIA, 12, 768, 12, 3072),
    "pythia-410m": _of(_PYTHIA, 24, 1024, 16, 4096),
    "pythia-1b": _of(_PYTHIA, 16, 2048, 8, 8192),
    "pythia-1.4b": _of(_PYTHIA, 24, 2048, 16, 8192),
    "pythia-2.8b": _of(_PYTHIA, 32, 2560, 32, 10240),
    "pythia-6.9b": _of(_PYTHIA, 32, 4096, 32, 16384, vocab_size=50432),
    "pythia-12b": _of(_PYTHIA, 36, 5120, 40, 20480, vocab_size=50688),
    "deepseek-v2-lite": _of(
        _DEEPSEEK,
        27,
        2048,
        16,
        1408,
        vocab_size=102400,
        num_experts=64,
        experts_per_token=6,
        shared_experts=2,
        router_normalize=False,
        first_layers=1,
        first_mlp_dim=10944,
    ),
    "deepseek-v2": _of(
        _DEEPSEEK,
        60,
        5120,
        128,
        1536,
        vocab_size=102400,
        q_latent=1536,
        num_experts=160,
        experts_per_token=6,
        shared_experts=2,
        router_normalize=False,
        router_scale=16.0,
        expert_groups=8,
        groups_per_token=3,
        first_layers=1,
        first_mlp_dim=12288,
    ),
    "deepseek-v3": _of(
        _DEEPSEEK,
        61,
        7168,
        128,
        2048,
        vocab_size=129280,
        q_latent=1536,
        num_experts=256,
        experts_per_token=8,
        shared_experts=1,
        router="sigmoid",
        balance="bias",
        router_scale=2.5,
        expert_groups=8,
        groups_per_token=4,
        group_score="best_two",
        first_layers=3,
        first_mlp_dim=18432,
    ),
    "gpt-oss-20b": dataclasses.replace(ModelConfig(), **_GPT_OSS, num_layers=24, num_experts=32),
    "gpt-oss-120b": dataclasses.replace(ModelConfig(), **_GPT_OSS, num_layers=36, num_experts=128),
    "bert-base-uncased": _of(_BERT, 12, 768, 12, 3072),
    "bert-base-cased": _of(_BERT, 12, 768, 12, 3072, vocab_size=28996),
    "bert-large-uncased": _of(_BERT, 24, 1024, 16, 4096),
    "bert-large-cased": _of(_BERT, 24, 1024, 16, 4096, vocab_size=28996),
    "roberta-base": _of(_ROBERTA, 12, 768, 12, 3072),
    "roberta-large": _of(_ROBERTA, 24, 1024, 16, 4096),
    "distilbert-base-uncased": _of(_BERT, 6, 768, 12, 3072, token_types=0),
    "distilbert-base-cased": _of(_BERT, 6, 768, 12, 3072, token_types=0, vocab_size=28996),
    "modernbert-base": _of(_MODERNBERT, 22, 768, 12, 1152),
    "modernbert-large": _of(_MODERNBERT, 28, 1024, 16, 2624),
    "t5-small": _t5(6, 512, 8, 2048),
    "t5-base": _t5(12, 768, 12, 3072),
    "t5-large": _t5(24, 1024, 16, 4096),
    "t5-3b": _t5(24, 1024, 32, 16384, head_dim=128),
    "t5-11b": _t5(24, 1024, 128, 65536, head_dim=128),
    # One architecture, trained twice.
    **{f"t5-v1.1-{size}": model for size, model in _T5_V11_SIZES.items()},
    **{f"flan-t5-{size}": model for size, model in _T5_V11_SIZES.items()},
    "bart-base": _both(_BART, 6, 768, 12, 3072),
    "bart-large": _both(_BART, 12, 1024, 16, 4096),
    "opus-mt-en-de": _both(_MARIAN, 6, 512, 8, 2048, vocab_size=58101, start_token=58100),
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
