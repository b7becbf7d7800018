"""Architectures of GGUF files: the metadata as a config (without the architecture's name before
each key), and llama.cpp's names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.convert.families.gpt import AFFINE
from llm_jax.convert.families.rows import QKV_BIASES, QKV_KERNELS, affine, attention, dense
from llm_jax.convert.family import (
    ConfigKey,
    ConfigTransform,
    Family,
    TensorMap,
    factors_in_use,
    shortest,
)
from llm_jax.convert.keys import typed
from llm_jax.types import ConfigError

_KEYS = (
    ConfigKey("vocab_size", "vocab_size"),
    ConfigKey("embedding_length", "embed_dim"),
    ConfigKey("feed_forward_length", "mlp_dim"),
    ConfigKey("block_count", "num_layers"),
    ConfigKey("attention.head_count", "num_heads"),
    ConfigKey("context_length", "max_length"),
    ConfigKey("attention.head_count_kv", "num_kv_heads", 0),
    ConfigKey("attention.key_length", "head_dim", 0),
    ConfigKey("attention.layer_norm_rms_epsilon", "norm_eps"),
    ConfigKey("tied", "tied_embeddings"),
)


_BETAS = {
    "rope.scaling.yarn_beta_fast": "rope_beta_fast",
    "rope.scaling.yarn_beta_slow": "rope_beta_slow",
}


def _rope_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    head = native["head_dim"] or native["embed_dim"] // native["num_heads"]
    out = {
        "rope_theta": float(source.get("rope.freq_base", 10000.0)),
        "rope_fraction": source.get("rope.dimension_count", head) / head,
    }
    kind = source.get("rope.scaling.type", "none")
    if kind == "yarn":
        return out | {
            "rope_scaling": "yarn",
            "rope_factor": float(source["rope.scaling.factor"]),
            "rope_original_length": source["rope.scaling.original_context_length"],
            **{field: float(source[key]) for key, field in _BETAS.items() if key in source},
        }
    if kind == "linear":
        return out | {"rope_scaling": "linear", "rope_factor": float(source["rope.scaling.factor"])}
    if kind != "none":
        raise ConfigError(
            f"rope.scaling.type is {kind!r}; there are none, linear and yarn, or a tensor"
            " rope_freqs.weight"
        )
    if "rope_factors" in source:
        # The wavelengths of Llama 3's scaling, each as a factor of its own.
        out |= {"rope_scaling": "longrope", "rope_factors": tuple(source["rope_factors"])}
    return out


def _only_read(m: ModelConfig) -> dict[str, Any]:
    raise ConfigError(
        "GGUF files are read, not written; export to transformers' form and convert that with"
        " llama.cpp"
    )


_ROPE = ConfigTransform(
    (
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope_factors",
        *_BETAS,
    ),
    _rope_read,
    _only_read,
)
_B = "blk.{l}."
_ROWS = (
    TensorMap("token_embd.weight", "embed/embedding", "v d -> v d"),
    TensorMap("output_norm.weight", "final_norm/scale", "d -> d"),
    TensorMap("output.weight", "head/kernel", "v d -> d v"),
    TensorMap(f"{_B}attn_norm.weight", "layers/attention_norm/scale", "d -> d"),
    TensorMap(f"{_B}attn_q_norm.weight", "layers/attention/query_norm/scale", "h -> h"),
    TensorMap(f"{_B}attn_k_norm.weight", "layers/attention/key_norm/scale", "h -> h"),
    TensorMap(f"{_B}ffn_norm.weight", "layers/mlp_norm/scale", "d -> d"),
    *(
        row
        for name in ("gate", "up", "down")
        for row in dense(f"{_B}ffn_{name}", f"layers/mlp/{name}")
    ),
    # Of a mixture of experts, all of a layer in one tensor.
    *dense(f"{_B}ffn_gate_inp", "layers/mlp/router"),
    *(
        TensorMap(f"{_B}ffn_{name}_exps.weight", f"layers/mlp/{name}/kernel", "e f d -> e d f")
        for name in ("gate", "up", "down")
    ),
    *(
        TensorMap(f"{_B}ffn_{name}_exps.bias", f"layers/mlp/{name}/bias", "e f -> e f")
        for name in ("gate", "up", "down")
    ),
)
_HALVES = attention("blk.{l}", "layers/attention", ("attn_q", "attn_k", "attn_v", "attn_output"))
# llama.cpp turns neighbours in its Llama, where transformers turns halves.
_TURNED = {f"{_B}attn_q.weight", f"{_B}attn_k.weight"}
_NEIGHBOURS = tuple(
    row._replace(layouts="(n r 2) d -> d n (2 r)") if row.source in _TURNED else row
    for row in _HALVES
)
# Said twice, or of how the file came to be.
_UNUSED = ("attention.value_length", "rope.scaling.finetuned")
_EXPERTS = (
    ConfigKey("expert_count", "num_experts", 0),
    ConfigKey("expert_used_count", "experts_per_token", 2),
)
# Experts have a width of their own.
_EXPERT_KEYS = (
    *(
        k._replace(source="expert_feed_forward_length") if k.native == "mlp_dim" else k
        for k in _KEYS
    ),
    *_EXPERTS,
)


def _windows(
    pattern: tuple[bool, ...], theta: float = 0.0, usual: int | None = None
) -> ConfigTransform:
    """Layers with a window, in a pattern that llama.cpp has in its program. theta: of their
    rotation, usual: width of the window (0: none), where the file does not say it.
    """

    def read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
        width = (
            source["attention.sliding_window"]
            if usual is None
            else source.get("attention.sliding_window", usual)
        )
        width = typed(int, width, "attention.sliding_window")
        each = shortest(
            [width if pattern[l % len(pattern)] else 0 for l in range(native["num_layers"])]
        )
        base = float(source.get("rope.freq_base_swa", theta))
        return {"window_pattern": each, **({"rope_theta_windowed": base} if theta else {})}

    return ConfigTransform(
        ("attention.sliding_window", *(("rope.freq_base_swa",) if theta else ())), read, _only_read
    )


def _inverse(source: str, native: str) -> ConfigTransform:
    return ConfigTransform(
        (source,), lambda file, _: {native: 1 / float(file.get(source, 1.0))}, _only_read
    )


def _gemma_scale(largest: int) -> ConfigTransform:
    """The scale of scores. Files do not say it; the largest model, of that many layers, has that of
    heads as wide as it would give them.
    """

    def read(_: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
        given, even = native["head_dim"], native["embed_dim"] // native["num_heads"]
        width = even if native["num_layers"] == largest or not given else given
        return {"attention_scale": width**-0.5}

    return ConfigTransform((), read, _only_read)


_ATTENTION = "rope.scaling.attn_factor"


def _phi3_rope(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The two lists of factors, which are tensors of the file."""
    there = [name for name in ("rope_factors_long", "rope_factors_short") if name in source]
    kind, given = (
        source.get("rope.scaling.type", "none"),
        typed(float, source.get(_ATTENTION, 1.0), _ATTENTION),
    )
    if len(there) == 1:
        raise ConfigError(
            f"the file has a tensor {there[0]}.weight, and not the other list of factors"
        )
    if there and kind not in ("none", "longrope"):
        raise ConfigError(
            f"rope.scaling.type is {kind!r}, and the file has tensors {' and '.join(there)}; only"
            " one of them can hold"
        )
    if not there and (kind == "longrope" or given != 1):
        raise ConfigError(
            f"rope.scaling.type is {kind!r} and {_ATTENTION} {given}, for which the file has no"
            " lists of factors"
        )
    out = _rope_read(
        {k: v for k, v in source.items() if k != "rope.scaling.type" or not there}, native
    )
    if not there:
        return out
    original = source["rope.scaling.original_context_length"]
    factor = source["context_length"] / original
    long, short = tuple(source["rope_factors_long"]), tuple(source["rope_factors_short"])
    out |= {"rope_scaling": "longrope", "rope_factor": factor, "rope_original_length": original}
    out |= factors_in_use(long, short, original, native["max_length"])
    if given <= 0:
        raise ConfigError(f"{_ATTENTION} is {given}; it must be positive")
    implied = math.sqrt(1 + math.log(max(factor, 1.0)) / math.log(original))
    # The file has it in float32.
    return out if abs(given - implied) < 1e-6 * implied else out | {"rope_attention_factor": given}


LLAMA = Family(
    "llama", "llama", {}, (*_KEYS, *_EXPERTS), (_ROPE,), (*_ROWS, *_NEIGHBOURS), unused=_UNUSED
)
SMOLLM3 = LLAMA._replace(
    model_type="smollm3", keys=_KEYS, fixed={"rope_pattern": (True, True, True, False)}
)
GRANITE = LLAMA._replace(
    model_type="granite",
    keys=(
        *_KEYS,
        ConfigKey("attention.scale", "attention_scale", 0.0),
        ConfigKey("embedding_scale", "embedding_scale", 1.0),
        ConfigKey("residual_scale", "residual_scale", 1.0),
    ),
    codecs=(_ROPE, _inverse("logit_scale", "logit_scale")),
)
QWEN2 = Family(
    "qwen2", "qwen2", {"qkv_bias": True}, _KEYS, (_ROPE,), (*_ROWS, *_HALVES), unused=_UNUSED
)
QWEN3 = QWEN2._replace(model_type="qwen3", fixed={"qk_norm": True})
QWEN3_MOE = QWEN3._replace(
    model_type="qwen3moe", keys=_EXPERT_KEYS, unused=(*_UNUSED, "feed_forward_length")
)
_POST = tuple(
    TensorMap(f"{_B}{name}.weight", f"layers/{norm}_post_norm/scale", "d -> d")
    for name, norm in (("post_attention_norm", "attention"), ("post_ffw_norm", "mlp"))
)
OLMO2 = QWEN3._replace(
    model_type="olmo2",
    fixed={"qk_norm": True, "qk_norm_width": "all", "norm_position": "output"},
    rows=(*QWEN3.rows, *_POST),
)
_GEMMA = {"scale_embeddings": True, "activation": "gelu_tanh"}
# Their norms' weights have the one in them that is added to Gemma's.
GEMMA3 = QWEN3._replace(
    model_type="gemma3",
    fixed={**_GEMMA, "qk_norm": True, "norm_position": "sandwich"},
    codecs=(_ROPE, _windows((True,) * 5 + (False,), 10_000.0), _gemma_scale(62)),
    rows=OLMO2.rows,
)
GEMMA = QWEN3._replace(model_type="gemma", fixed=_GEMMA)
GEMMA2 = GEMMA3._replace(
    model_type="gemma2",
    fixed={**_GEMMA, "norm_position": "sandwich"},
    keys=(
        *_KEYS,
        ConfigKey("attn_logit_softcapping", "attention_softcap", 50.0),
        ConfigKey("final_logit_softcapping", "logit_softcap", 30.0),
    ),
    codecs=(_ROPE, _windows((True, False), usual=4096), _gemma_scale(46)),
)
# Queries, keys and values are one tensor.
_FUSED = (
    TensorMap(f"{_B}attn_qkv.weight", QKV_KERNELS, "(n h) d -> d n h"),
    TensorMap(f"{_B}attn_qkv.bias", QKV_BIASES, "(n h) -> n h"),
    *(row for row in _HALVES if "attn_output" in row.source),
)
PHI3 = QWEN2._replace(
    model_type="phi3",
    fixed={},
    codecs=(
        _ROPE._replace(
            keys=(*_ROPE.keys, _ATTENTION, "rope_factors_long", "rope_factors_short"),
            read=_phi3_rope,
        ),
        _windows((True,), usual=0),
    ),
    rows=(
        *(row for row in _ROWS if "ffn_gate" not in row.source and "ffn_up" not in row.source),
        *_FUSED,
        TensorMap(
            f"{_B}ffn_up.weight", ("layers/mlp/gate/kernel", "layers/mlp/up/kernel"), "f d -> d f"
        ),
    ),
)
_AFFINE_KEYS = tuple(
    k._replace(source="attention.layer_norm_epsilon") if k.native == "norm_eps" else k
    for k in _KEYS
)
_AFFINE_ROWS = (
    *(row for row in _ROWS if "norm" not in row.source),
    *_FUSED,
    *affine("output_norm", "final_norm"),
    *affine(f"{_B}attn_norm", "layers/attention_norm"),
    *affine(f"{_B}ffn_norm", "layers/mlp_norm"),
)
GPT2 = Family(
    "gpt2",
    "gpt2",
    {**AFFINE, "positions": "learned", "activation": "gelu_tanh"},
    _AFFINE_KEYS,
    (),
    (*_AFFINE_ROWS, TensorMap("position_embd.weight", "positions/positions", "t d -> t d")),
)
GPT_NEOX = Family(
    "gptneox",
    "gptneox",
    {**AFFINE, "activation": "gelu"},
    (*_AFFINE_KEYS, ConfigKey("use_parallel_residual", "parallel_residual")),
    (_ROPE,),
    _AFFINE_ROWS,
)
GPT_OSS = QWEN3._replace(
    model_type="gpt-oss",
    fixed={
        "attention_sinks": True,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "router_bias": True,
        "activation": "quick_gelu",
        "mlp_clamp": 7.0,
        "mlp_up_offset": 1.0,
        "rope_truncate": False,
    },
    keys=_EXPERT_KEYS,
    codecs=(_ROPE, _windows((True, False))),
    unused=(*_UNUSED, "feed_forward_length"),
    rows=(
        *(
            (
                r._replace(source=f"{_B}post_attention_norm.weight")
                if r.source == f"{_B}ffn_norm.weight"
                else r
            )
            for r in QWEN3.rows
        ),
        TensorMap(f"{_B}attn_sinks.weight", "layers/attention/sink/bias", "n -> n"),
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
# Added tokens of these take the blanks after them, but for the ones here. Files do not say so;
# llama.cpp goes by what a model is called.
KEEPING_BLANKS = {"phi3": ("<unk>", "<s>", "<|endoftext|>")}
