"""DeepSeek V2 and V3: latent attention, first layers without experts, routing by expert groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.config.mlp import ExpertGroupsConfig
from llm_jax.config.model import FirstLayersConfig, ModelConfig
from llm_jax.convert.families.llama import BIASES, EMBEDDINGS, KEYS, LLAMA, MLP, NORMS
from llm_jax.convert.families.rows import changed
from llm_jax.convert.family import ConfigKey, ConfigTransform, TensorMap
from llm_jax.convert.keys import typed
from llm_jax.convert.rope import rope
from llm_jax.convert.rope_scaling import yarn_scale
from llm_jax.types import ConfigError


def _rotated_first(m: ModelConfig) -> np.ndarray:
    """Order of a query's rows in the file. Of each head, the file has the rotated rows last, as
    pairs of neighbours; the native layout has them first, as two halves.
    """
    head = m.head_dim
    unrotated = np.arange(head - m.rope_width)
    pairs = np.arange(head - m.rope_width, head).reshape(-1, 2)
    one_head = np.concatenate([pairs.T.reshape(-1), unrotated])
    return (np.arange(m.attention.num_heads)[:, None] * head + one_head).reshape(-1)


def _heads_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attention.head_dim": source["qk_nope_head_dim"] + source["qk_rope_head_dim"],
        "attention.rope_dim": source["qk_rope_head_dim"],
    }


def _heads_write(m: ModelConfig) -> dict[str, Any]:
    return {
        "qk_nope_head_dim": m.head_dim - m.rope_width,
        "qk_rope_head_dim": m.rope_width,
        "num_key_value_heads": m.attention.num_heads,
    }


_HEADS = ConfigTransform(
    ("qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim", "head_dim", "num_key_value_heads"),
    _heads_read,
    _heads_write,
)


def _first_layers_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The first layers, which have an MLP in place of experts."""
    count = min(source.get("first_k_dense_replace", 0), native["num_layers"])
    if not count:
        return {}
    return {"first_layers.count": count, "first_layers.mlp_dim": source["intermediate_size"]}


def _first_layers_write(m: ModelConfig) -> dict[str, Any]:
    first = m.first_layers or FirstLayersConfig(count=0)
    return {
        "first_k_dense_replace": first.count,
        "intermediate_size": first.mlp_dim or m.mlp.hidden_dim,
    }


_FIRST_LAYERS = ConfigTransform(
    ("first_k_dense_replace", "intermediate_size"), _first_layers_read, _first_layers_write
)


def _temperature_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The scale of attention scores, which has the square of yarn's scale in it (DeepSeek-V2's
    code; YaRN, section 3.4).
    """
    scale = native["attention.head_dim"] ** -0.5
    rotation = source.get("rope_scaling") or source.get("rope_parameters") or {}
    weight = rotation.get("mscale_all_dim") or 0
    if weight and native["positions.scaling"] != "none":
        scale *= yarn_scale(native["positions.scaling.factor"], weight) ** 2
    return {"attention.scale": scale}


def _write_nothing(m: ModelConfig) -> dict[str, Any]:
    return {}


_TEMPERATURE = ConfigTransform((), _temperature_read, _write_nothing)


def _groups(source_groups: Any, source_chosen: Any, score: str) -> dict[str, Any]:
    groups = typed(int, source_groups, "n_group")
    chosen = typed(int, source_chosen, "topk_group")
    if groups <= 1:
        # One group is the same as no groups.
        return {}
    return {
        "experts.groups.count": groups,
        "experts.groups.per_token": chosen,
        "experts.groups.score": score,
    }


def _groups_v2_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    method = source.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise ConfigError(
            f"config.json: topk_method is {method!r}; supported are greedy, group_limited_greedy"
        )
    if method == "greedy":
        return {}
    return _groups(source["n_group"], source["topk_group"], "best")


def _groups_v2_write(m: ModelConfig) -> dict[str, Any]:
    method = "group_limited_greedy" if m.experts and m.experts.groups else "greedy"
    return {"topk_method": method, **_groups_v3_write(m)}


def _groups_v3_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    return _groups(source.get("n_group", 8), source.get("topk_group", 4), "best_two")


def _groups_v3_write(m: ModelConfig) -> dict[str, Any]:
    groups = (m.experts and m.experts.groups) or ExpertGroupsConfig(count=1)
    return {"n_group": groups.count, "topk_group": groups.per_token}


_GROUPS_V2 = ConfigTransform(
    ("topk_method", "n_group", "topk_group"), _groups_v2_read, _groups_v2_write
)
_GROUPS_V3 = ConfigTransform(("n_group", "topk_group"), _groups_v3_read, _groups_v3_write)
# The program's norms of latents have this epsilon whatever the file says; natively all norms of a
# model share one.
_EPS = {1e-6: 1e-6}


def _keys() -> tuple[ConfigKey, ...]:
    keys = tuple(
        key for key in KEYS if key.native not in ("attention.num_kv_heads", "attention.head_dim")
    )
    keys = changed(keys, "mlp.hidden_dim", source="moe_intermediate_size")
    return changed(keys, "norm.eps", values=_EPS)


_KEYS = (
    *_keys(),
    *BIASES,
    ConfigKey("kv_lora_rank", "attention.kv_latent"),
    ConfigKey("q_lora_rank", "attention.q_latent", None, none=0),
    ConfigKey("v_head_dim", "attention.value_dim"),
    ConfigKey("n_routed_experts", "experts.count"),
    ConfigKey("num_experts_per_tok", "experts.per_token"),
    ConfigKey("n_shared_experts", "experts.shared", some=True),
    ConfigKey("routed_scaling_factor", "experts.scale", 1.0),
)
_A = "model.layers.{l}.self_attn."
_M = "model.layers.{l}.mlp."
_LATENT_AND_ROTATED = ("layers/attention/latent", "layers/attention/rotated")
_ROWS = (
    *EMBEDDINGS,
    *NORMS,
    *(r for r in MLP if r.source.endswith("weight")),
    TensorMap(
        f"{_A}q_proj.weight",
        "layers/attention/query/kernel",
        "(n h) d -> d n h",
        order=_rotated_first,
        when="not attention.q_latent",
    ),
    TensorMap(f"{_A}q_a_proj.weight", "layers/attention/query_latent/kernel", "q d -> d q"),
    TensorMap(f"{_A}q_a_proj.bias", "layers/attention/query_latent/bias", "q -> q"),
    TensorMap(f"{_A}q_a_layernorm.weight", "layers/attention/query_norm/scale", "q -> q"),
    TensorMap(
        f"{_A}q_b_proj.weight",
        "layers/attention/query/kernel",
        "(n h) q -> q n h",
        order=_rotated_first,
        when="attention.q_latent",
    ),
    TensorMap(
        f"{_A}kv_a_proj_with_mqa.weight",
        tuple(f"{p}/kernel" for p in _LATENT_AND_ROTATED),
        ("c d -> d c", "(r 2) d -> d (2 r)"),
    ),
    TensorMap(
        f"{_A}kv_a_proj_with_mqa.bias",
        tuple(f"{p}/bias" for p in _LATENT_AND_ROTATED),
        ("c -> c", "(r 2) -> (2 r)"),
    ),
    TensorMap(f"{_A}kv_a_layernorm.weight", "layers/attention/latent_norm/scale", "c -> c"),
    TensorMap(
        f"{_A}kv_b_proj.weight",
        ("layers/attention/key/kernel", "layers/attention/value/kernel"),
        "(n h) c -> c n h",
        per="n",
    ),
    TensorMap(f"{_A}o_proj.weight", "layers/attention/out/kernel", "d (n h) -> n h d"),
    TensorMap(f"{_A}o_proj.bias", "layers/attention/out/bias", "d -> d"),
    TensorMap(f"{_M}gate.weight", "layers/mlp/router/kernel", "e d -> d e"),
    TensorMap(f"{_M}gate.e_score_correction_bias", "layers/mlp/router/balance", "e -> e"),
    *(
        TensorMap(f"{_M}experts.{{e}}.{n}_proj.weight", f"layers/mlp/{n}/kernel", "f d -> d f")
        for n in ("gate", "up")
    ),
    TensorMap(f"{_M}experts.{{e}}.down_proj.weight", "layers/mlp/down/kernel", "d f -> f d"),
    *(
        TensorMap(
            f"{_M}shared_experts.{n}_proj.weight", f"layers/mlp/shared/{n}/kernel", "f d -> d f"
        )
        for n in ("gate", "up")
    ),
    TensorMap(
        f"{_M}shared_experts.down_proj.weight", "layers/mlp/shared/down/kernel", "d f -> f d"
    ),
)
# The program of V2 never normalizes the weights of experts, whatever norm_topk_prob is.
DEEPSEEK2 = LLAMA._replace(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    fixed={"attention": "latent", "experts.normalize": False},
    keys=_KEYS,
    codecs=(_HEADS, _FIRST_LAYERS, _GROUPS_V2, rope(), _TEMPERATURE),
    rows=_ROWS,
    required_values={
        "moe_layer_freq": (1,),
        "mlp_bias": (False,),
        "scoring_func": ("softmax",),
    },
    unused=("norm_topk_prob", "num_local_experts"),
)
DEEPSEEK3 = LLAMA._replace(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fixed={"attention": "latent", "experts.router": "sigmoid", "experts.balance": "bias"},
    keys=(*_KEYS, ConfigKey("norm_topk_prob", "experts.normalize", True)),
    codecs=(_HEADS, _FIRST_LAYERS, _GROUPS_V3, rope(), _TEMPERATURE),
    rows=_ROWS,
    required_values={
        "moe_layer_freq": (1,),
        "rope_interleave": (True,),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    },
    # The first two count layers for multi-token prediction, which only training uses.
    unused=("num_nextn_predict_layers", "num_mtp_layers", "num_local_experts"),
)
