"""DeepSeek V2 and V3: latent attention, first layers without experts, experts chosen by group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_jax.config.model import ModelConfig
from llm_jax.convert.families.llama import BIASES, EMBEDDINGS, KEYS, LLAMA, MLP, NORMS
from llm_jax.convert.family import ConfigKey, ConfigTransform, TensorMap
from llm_jax.convert.keys import rope, typed
from llm_jax.types import ConfigError


def _rotated_first(m: ModelConfig) -> np.ndarray:
    """Of each head, our query has the rotated numbers first and turns halves; theirs has them last
    and turns neighbours.
    """
    head, turned = m.head_size, m.rope_dim
    one = np.concatenate(
        [np.arange(head - turned, head).reshape(-1, 2).T.reshape(-1), np.arange(head - turned)]
    )
    return (np.arange(m.num_heads)[:, None] * head + one).reshape(-1)


def _heads_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "head_dim": source["qk_nope_head_dim"] + source["qk_rope_head_dim"],
        "rope_dim": source["qk_rope_head_dim"],
    }


_HEADS = ConfigTransform(
    ("qk_nope_head_dim", "qk_rope_head_dim", "qk_head_dim", "head_dim", "num_key_value_heads"),
    _heads_read,
    lambda m: {
        "qk_nope_head_dim": m.head_size - m.rope_dim,
        "qk_rope_head_dim": m.rope_dim,
        "num_key_value_heads": m.num_heads,
    },
)


def _first_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    first = min(source.get("first_k_dense_replace", 0), native["num_layers"])
    return {"first_layers": first, "first_mlp_dim": source["intermediate_size"]} if first else {}


_FIRST = ConfigTransform(
    ("first_k_dense_replace", "intermediate_size"),
    _first_read,
    lambda m: {
        "first_k_dense_replace": m.first_layers,
        "intermediate_size": m.first_mlp_dim or m.mlp_dim,
    },
)


def _scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _temperature_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """yarn's scale of attention, squared, goes into the scores (DeepSeek-V2's code; YaRN, section
    3.4).
    """
    given = source.get("rope_scaling") or source.get("rope_parameters") or {}
    weight = given.get("mscale_all_dim") or 0
    scaled = (
        _scale(native["rope_factor"], weight) ** 2
        if weight and native["rope_scaling"] != "none"
        else 1.0
    )
    return {"attention_scale": native["head_dim"] ** -0.5 * scaled}


def _temperature_write(m: ModelConfig) -> dict[str, Any]:
    return {}


_TEMPERATURE = ConfigTransform((), _temperature_read, _temperature_write)


def _groups_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    how = source.get("topk_method", "greedy")
    if how not in ("greedy", "group_limited_greedy"):
        raise ConfigError(
            f"config.json: topk_method is {how!r}; there are greedy and group_limited_greedy"
        )
    return {} if how == "greedy" else _groups(source["n_group"], source["topk_group"])


def _groups(groups: Any, chosen: Any) -> dict[str, Any]:
    groups, chosen = typed(int, groups, "n_group"), typed(int, chosen, "topk_group")
    # One group is none.
    return {"expert_groups": groups, "groups_per_token": chosen} if groups > 1 else {}


_GROUPS = ConfigTransform(
    ("topk_method", "n_group", "topk_group"),
    _groups_read,
    lambda m: {
        "topk_method": "group_limited_greedy" if m.expert_groups else "greedy",
        "n_group": m.expert_groups or 1,
        "topk_group": m.groups_per_token,
    },
)
# Their norms of latents have it whatever the file says, ours have that of all norms.
_EPS = {1e-6: 1e-6}
_GROUPS3 = ConfigTransform(
    ("n_group", "topk_group"),
    lambda source, native: _groups(source.get("n_group", 8), source.get("topk_group", 4)),
    lambda m: {"n_group": m.expert_groups or 1, "topk_group": m.groups_per_token},
)
_KEYS = (
    *(
        (
            k._replace(source="moe_intermediate_size")
            if k.native == "mlp_dim"
            else k._replace(values=_EPS)
            if k.native == "norm_eps"
            else k
        )
        for k in KEYS
        if k.native not in ("num_kv_heads", "head_dim")
    ),
    *BIASES,
    ConfigKey("kv_lora_rank", "kv_latent"),
    ConfigKey("q_lora_rank", "q_latent", None, none=0),
    ConfigKey("v_head_dim", "value_dim"),
    ConfigKey("n_routed_experts", "num_experts"),
    ConfigKey("num_experts_per_tok", "experts_per_token"),
    ConfigKey("n_shared_experts", "shared_experts", some=True),
    ConfigKey("routed_scaling_factor", "router_scale", 1.0),
)
_A, _M = "model.layers.{l}.self_attn.", "model.layers.{l}.mlp."
_BOTH = ("layers/attention/latent", "layers/attention/rotated")
_ROWS = (
    *EMBEDDINGS,
    *NORMS,
    *(r for r in MLP if r.source.endswith("weight")),
    TensorMap(
        f"{_A}q_proj.weight",
        "layers/attention/query/kernel",
        "(n h) d -> d n h",
        order=_rotated_first,
        when="not q_latent",
    ),
    TensorMap(f"{_A}q_a_proj.weight", "layers/attention/query_latent/kernel", "q d -> d q"),
    TensorMap(f"{_A}q_a_proj.bias", "layers/attention/query_latent/bias", "q -> q"),
    TensorMap(f"{_A}q_a_layernorm.weight", "layers/attention/query_norm/scale", "q -> q"),
    TensorMap(
        f"{_A}q_b_proj.weight",
        "layers/attention/query/kernel",
        "(n h) q -> q n h",
        order=_rotated_first,
        when="q_latent",
    ),
    TensorMap(
        f"{_A}kv_a_proj_with_mqa.weight",
        tuple(f"{p}/kernel" for p in _BOTH),
        ("c d -> d c", "(r 2) d -> d (2 r)"),
    ),
    TensorMap(
        f"{_A}kv_a_proj_with_mqa.bias",
        tuple(f"{p}/bias" for p in _BOTH),
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
_SAME = {"moe_layer_freq": (1,), "mlp_bias": (False,)}
# V2's program never normalises, whatever its file says.
DEEPSEEK2 = LLAMA._replace(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    fixed={"router_normalize": False},
    keys=_KEYS,
    codecs=(_HEADS, _FIRST, _GROUPS, rope(), _TEMPERATURE),
    rows=_ROWS,
    required_values={**_SAME, "scoring_func": ("softmax",)},
    unused=("norm_topk_prob", "num_local_experts"),
)
DEEPSEEK3 = LLAMA._replace(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fixed={"router": "sigmoid", "balance": "bias", "group_score": "best_two"},
    keys=(*_KEYS, ConfigKey("norm_topk_prob", "router_normalize", True)),
    codecs=(_HEADS, _FIRST, _GROUPS3, rope(), _TEMPERATURE),
    rows=_ROWS,
    required_values={
        "moe_layer_freq": (1,),
        "rope_interleave": (True,),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    },
    # Of layers that only training has, which predict tokens further on.
    unused=("num_nextn_predict_layers", "num_mtp_layers", "num_local_experts"),
)
