"""Architectures of GGUF files: the metadata as a config (without the architecture's name before each key), and llama.cpp's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.convert.families.rows import attention, dense
from llm_jax.convert.family import Codec, Family, Key, Row
from llm_jax.model_config import ModelConfig
from llm_jax.types import ConfigError

_KEYS = (
    Key("vocab_size", "vocab_size"), Key("embedding_length", "embed_dim"), Key("feed_forward_length", "mlp_dim"),
    Key("block_count", "num_layers"), Key("attention.head_count", "num_heads"), Key("context_length", "max_length"),
    Key("attention.head_count_kv", "num_kv_heads", 0), Key("attention.key_length", "head_dim", 0),
    Key("attention.layer_norm_rms_epsilon", "norm_eps"), Key("tied", "tied_embeddings"),
)  # fmt: skip


def _rope_read(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    head = ours["head_dim"] or ours["embed_dim"] // ours["num_heads"]
    out = {"rope_theta": float(theirs.get("rope.freq_base", 10000.0)), "rope_fraction": theirs.get("rope.dimension_count", head) / head}
    kind = theirs.get("rope.scaling.type", "none")
    if kind == "linear":
        return out | {"rope_scaling": "linear", "rope_factor": float(theirs["rope.scaling.factor"])}
    if kind != "none":
        raise ConfigError(f"rope.scaling.type is {kind!r}; there are none and linear, or a tensor rope_freqs.weight")
    if "rope_factors" in theirs:
        # The wavelengths of Llama 3's scaling, each as a factor of its own.
        out |= {"rope_scaling": "longrope", "rope_factors": tuple(theirs["rope_factors"])}
    return out


def _only_read(m: ModelConfig) -> dict[str, Any]:
    raise ConfigError("GGUF files are read, not written; export to transformers' form and convert that with llama.cpp")


_ROPE = Codec(
    ("rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor", "rope_factors"), _rope_read, _only_read
)
_B = "blk.{l}."
_ROWS = (
    Row("token_embd.weight", "embed/embedding", "v d -> v d"),
    Row("output_norm.weight", "final_norm/scale", "d -> d"),
    Row("output.weight", "head/kernel", "v d -> d v"),
    Row(f"{_B}attn_norm.weight", "layers/attention_norm/scale", "d -> d"),
    Row(f"{_B}attn_q_norm.weight", "layers/attention/query_norm/scale", "h -> h"),
    Row(f"{_B}attn_k_norm.weight", "layers/attention/key_norm/scale", "h -> h"),
    Row(f"{_B}ffn_norm.weight", "layers/mlp_norm/scale", "d -> d"),
    *(row for name in ("gate", "up", "down") for row in dense(f"{_B}ffn_{name}", f"layers/mlp/{name}")),
)
_HALVES = attention("blk.{l}", "layers/attention", ("attn_q", "attn_k", "attn_v", "attn_output"))
# llama.cpp turns neighbours in its Llama, where transformers turns halves.
_TURNED = {f"{_B}attn_q.weight", f"{_B}attn_k.weight"}
_NEIGHBOURS = tuple(row._replace(layouts="(n r 2) d -> d n (2 r)") if row.theirs in _TURNED else row for row in _HALVES)
# Said twice, or of how the file came to be.
_UNUSED = ("attention.value_length", "rope.scaling.original_context_length", "rope.scaling.finetuned")
LLAMA = Family("llama", "llama", {}, _KEYS, (_ROPE,), (*_ROWS, *_NEIGHBOURS), unused=_UNUSED)
QWEN2 = Family("qwen2", "qwen2", {"qkv_bias": True}, _KEYS, (_ROPE,), (*_ROWS, *_HALVES), unused=_UNUSED)
QWEN3 = Family("qwen3", "qwen3", {"qk_norm": True}, _KEYS, (_ROPE,), (*_ROWS, *_HALVES), unused=_UNUSED)
ARCHITECTURES = {f.model_type: f for f in (LLAMA, QWEN2, QWEN3)}
