"""Multi-head latent attention, first dense layers and group-limited routing against transformers' DeepSeek-V2 and DeepSeek-V3."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need the extra: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra: pip install -e '.[parity]'")

from mapped import NORMS, TOP, Rows, as_is, into_heads, mapped, out_of_heads, transposed  # noqa: E402
from test_transformers import VOCAB, assert_same_greedy, assert_same_logits, random_tokens, randomise  # noqa: E402

from llm_jax.config import ModelConfig  # noqa: E402

pytestmark = pytest.mark.parity

D, N, P, R, V, C, Q = 48, 4, 10, 6, 8, 20, 28
F, DENSE, EXPERTS, PER_TOKEN, LAYERS = 24, 72, 8, 3, 3
FACTOR, MSCALE = 8.0, 0.7
YARN = {
    "rope_type": "yarn", "factor": FACTOR, "original_max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": MSCALE,
}  # fmt: skip


def mscale(weight: float) -> float:
    return 0.1 * weight * math.log(FACTOR) + 1


OUR_YARN = {
    "rope_scaling": "yarn", "rope_factor": FACTOR, "rope_original_length": 128, "rope_attention_factor": mscale(1.0) / mscale(MSCALE),
    "attention_scale": (P + R) ** -0.5 * mscale(MSCALE) ** 2,
}  # fmt: skip
COMMON = {
    "vocab_size": VOCAB, "hidden_size": D, "intermediate_size": DENSE, "moe_intermediate_size": F, "num_hidden_layers": LAYERS,
    "num_attention_heads": N, "num_key_value_heads": N, "n_routed_experts": EXPERTS, "num_experts_per_tok": PER_TOKEN,
    "kv_lora_rank": C, "qk_rope_head_dim": R, "qk_nope_head_dim": P, "v_head_dim": V, "max_position_embeddings": 1024,
    "tie_word_embeddings": False, "attn_implementation": "eager", "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
OURS = ModelConfig(
    vocab_size=VOCAB, num_layers=LAYERS, embed_dim=D, num_heads=N, head_dim=P + R, value_dim=V, kv_latent=C, rope_dim=R, mlp_dim=F,
    max_length=1024, norm_eps=1e-6, tied_embeddings=False, num_experts=EXPERTS, experts_per_token=PER_TOKEN,
)
THREE = {
    "n_group": 4, "topk_group": 2, "n_shared_experts": 1, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "first_k_dense_replace": 1,
    "q_lora_rank": Q, "num_mtp_layers": 0,
}  # fmt: skip
OUR_THREE = {
    "expert_groups": 4, "groups_per_token": 2, "group_score": "best_two", "shared_experts": 1, "router": "sigmoid", "router_scale": 2.5,
    "balance": "bias", "first_layers": 1, "first_mlp_dim": DENSE, "q_latent": Q,
}  # fmt: skip
TWO = {
    "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "n_shared_experts": 2, "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 2, "q_lora_rank": Q,
}  # fmt: skip
OUR_TWO = {
    "expert_groups": 4, "groups_per_token": 2, "shared_experts": 2, "router_normalize": False, "router_scale": 1.5, "first_layers": 2,
    "first_mlp_dim": DENSE, "q_latent": Q,
}  # fmt: skip
# class of theirs, their settings and ours
MODELS = {
    "v3": (transformers.DeepseekV3ForCausalLM, THREE, OUR_THREE),
    "v3, biases, pairs apart": (
        transformers.DeepseekV3ForCausalLM, THREE | {"attention_bias": True, "rope_interleave": False},
        OUR_THREE | {"qkv_bias": True, "out_bias": True},
    ),
    "v3, queries of the input": (
        transformers.DeepseekV3ForCausalLM, THREE | {"q_lora_rank": None, "attention_bias": True, "norm_topk_prob": False},
        OUR_THREE | {"q_latent": 0, "qkv_bias": True, "out_bias": True, "router_normalize": False},
    ),
    "v3, yarn": (transformers.DeepseekV3ForCausalLM, THREE | {"rope_parameters": YARN | {"rope_theta": 1e4}}, OUR_THREE | OUR_YARN),
    "v2": (transformers.DeepseekV2ForCausalLM, TWO, OUR_TWO),
    "v2 lite": (
        transformers.DeepseekV2ForCausalLM,
        TWO | {"topk_method": "greedy", "q_lora_rank": None, "first_k_dense_replace": 0},
        OUR_TWO | {"expert_groups": 0, "q_latent": 0, "first_layers": 0},
    ),
    "v2, yarn": (
        transformers.DeepseekV2ForCausalLM, TWO | {"attention_bias": True, "rope_parameters": YARN | {"rope_theta": 1e4}},
        OUR_TWO | OUR_YARN | {"qkv_bias": True, "out_bias": True},
    ),
}  # fmt: skip


def made(name: str, seed: int):
    """Their model, our config and our parameters with the same weights."""
    family, theirs, ours = MODELS[name]
    reference = family(family.config_class(**{**COMMON, **theirs})).eval()
    randomise(reference, seed)
    noise = torch.Generator().manual_seed(seed)
    for key, b in reference.named_buffers():
        if key.endswith("e_score_correction_bias"):
            b.copy_(0.2 * torch.randn(b.shape, generator=noise))
    config = ModelConfig(**{**vars(OURS), **ours})
    return reference, config, parameters(reference, config)


def parameters(reference, c: ModelConfig):
    neighbours = getattr(reference.config, "rope_interleave", True)
    first = c.first_layers
    dense = [*NORMS, *attention(c, neighbours), *mlp("mlp", "mlp")]
    sparse = [*NORMS, *attention(c, neighbours), *experts(c)]
    stacks = {"first_layers": [dense] * first} if first else {}
    return mapped(reference, TOP, {**stacks, "layers": [sparse] * (c.num_layers - first)})


def rotated_part(w: np.ndarray, neighbours: bool) -> np.ndarray:
    """[R, …] in the order of our rotation, which turns (i, i + R/2) where theirs turns (2i, 2i + 1)."""
    return np.concatenate([w[::2], w[1::2]]) if neighbours else w


def query(w: np.ndarray, neighbours: bool) -> np.ndarray:
    """[N·(P + R), inputs] -> [inputs, N, R + P], the rotated part first."""
    heads = w.reshape(N, P + R, -1)
    turned = np.stack([np.concatenate([rotated_part(head[P:], neighbours), head[:P]]) for head in heads])
    return np.moveaxis(turned, -1, 0)


def attention(c: ModelConfig, neighbours: bool) -> Rows:
    a, turn = "self_attn.", partial(query, neighbours=neighbours)
    queries: Rows = [("self_attn.q_proj.weight", "attention/query/kernel", turn)]
    if c.q_latent:
        queries = [
            (a + "q_a_proj.weight", "attention/query_latent/kernel", transposed),
            (a + "q_a_layernorm.weight", "attention/query_norm/scale", as_is),
            (a + "q_b_proj.weight", "attention/query/kernel", turn),
        ]
    biases: Rows = [
        (a + "kv_a_proj_with_mqa.bias", "attention/latent/bias", lambda w: w[:C]),
        (a + "kv_a_proj_with_mqa.bias", "attention/rotated/bias", lambda w: rotated_part(w[C:], neighbours)),
        (a + "o_proj.bias", "attention/out/bias", as_is),
        *([(a + "q_a_proj.bias", "attention/query_latent/bias", as_is)] if c.q_latent else []),
    ]
    return [
        *queries,
        (a + "kv_a_proj_with_mqa.weight", "attention/latent/kernel", lambda w: w[:C].T),
        (a + "kv_a_proj_with_mqa.weight", "attention/rotated/kernel", lambda w: rotated_part(w[C:], neighbours).T),
        (a + "kv_a_layernorm.weight", "attention/latent_norm/scale", as_is),
        (a + "kv_b_proj.weight", "attention/key/kernel", lambda w: into_heads(N)(w)[..., :P]),
        (a + "kv_b_proj.weight", "attention/value/kernel", lambda w: into_heads(N)(w)[..., P:]),
        (a + "o_proj.weight", "attention/out/kernel", out_of_heads(N)),
        *(biases if c.qkv_bias else []),
    ]


def mlp(theirs: str, ours: str) -> Rows:
    return [(f"{theirs}.{name}_proj.weight", f"{ours}/{name}/kernel", transposed) for name in ("gate", "up", "down")]


def experts(c: ModelConfig) -> Rows:
    bias: Rows = [("mlp.gate.e_score_correction_bias", "mlp/router/balance", as_is)]
    return [
        ("mlp.gate.weight", "mlp/router/kernel", transposed),
        *(bias if c.balance == "bias" else []),
        ("mlp.experts.gate_up_proj", "mlp/gate/kernel", lambda w: transposed(w[:, :F])),
        ("mlp.experts.gate_up_proj", "mlp/up/kernel", lambda w: transposed(w[:, F:])),
        ("mlp.experts.down_proj", "mlp/down/kernel", transposed),
        *mlp("mlp.shared_experts", "mlp/shared"),
    ]


@pytest.mark.parametrize("layers", ["unroll", "scan"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, layers: str) -> None:
    reference, config, params = made(name, 1)
    assert_same_logits(reference, config, params, random_tokens(1, 1024 if "yarn" in name else 512), layers)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_through_the_cache(name: str) -> None:
    reference, config, params = made(name, 2)
    assert_same_greedy(reference, config, params, random_tokens(2, 40), new=32)
