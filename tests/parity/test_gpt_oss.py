"""Attention sinks, biased experts and the clamped gate against transformers' gpt-oss."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="parity tests need the extra: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra: pip install -e '.[parity]'")

from mapped import NORMS, TOP, Rows, as_is, into_heads, mapped, out_of_heads, transposed  # noqa: E402
from test_transformers import VOCAB, assert_same_greedy, assert_same_logits, random_tokens, randomise  # noqa: E402

from llm_jax.config import ModelConfig  # noqa: E402

pytestmark = pytest.mark.parity

D, N, K, H, F, EXPERTS, PER_TOKEN, LAYERS, WINDOW = 48, 4, 2, 16, 32, 6, 2, 4, 20
YARN = {
    "rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 128,
    "rope_theta": 150000.0,
}  # fmt: skip
OUR_YARN = {"rope_scaling": "yarn", "rope_factor": 8.0, "rope_original_length": 128, "rope_truncate": False}
# their settings and ours; the clamp of the last is so low that half of what it limits is beyond it
MODELS = {
    "plain rotation": ({"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}, {}),
    "yarn": ({"rope_parameters": YARN}, OUR_YARN),
    "low clamp": ({"rope_parameters": YARN, "swiglu_limit": 0.7}, OUR_YARN | {"mlp_clamp": 0.7}),
    "no biases in attention": ({"rope_parameters": YARN, "attention_bias": False}, OUR_YARN | {"qkv_bias": False, "out_bias": False}),
}


def made(name: str, seed: int):
    """Their model, our config and our parameters with the same weights."""
    theirs, ours = MODELS[name]
    reference = transformers.GptOssForCausalLM(
        transformers.GptOssConfig(
            vocab_size=VOCAB, hidden_size=D, intermediate_size=F, num_hidden_layers=LAYERS, num_attention_heads=N, num_key_value_heads=K,
            head_dim=H, num_local_experts=EXPERTS, num_experts_per_tok=PER_TOKEN, sliding_window=WINDOW, max_position_embeddings=1024,
            attn_implementation="eager", bos_token_id=None, eos_token_id=None, pad_token_id=None, **theirs,
        )
    ).eval()  # fmt: skip
    randomise(reference, seed)
    config = ModelConfig(**{
        "vocab_size": VOCAB, "num_layers": LAYERS, "embed_dim": D, "num_heads": N, "num_kv_heads": K, "head_dim": H, "mlp_dim": F,
        "max_length": 1024, "norm_eps": 1e-5, "rope_theta": 150000.0, "window_pattern": (WINDOW, 0), "tied_embeddings": False,
        "attention_sinks": True, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "num_experts": EXPERTS,
        "experts_per_token": PER_TOKEN, "router_bias": True, "activation": "quick_gelu", "mlp_clamp": 7.0, "mlp_up_offset": 1.0, **ours,
    })  # fmt: skip
    rows = [*NORMS, *attention(config), *EXPERT_ROWS]
    return reference, config, mapped(reference, TOP, {"layers": [rows] * LAYERS})


def attention(c: ModelConfig) -> Rows:
    heads = {"query": ("q", N), "key": ("k", K), "value": ("v", K)}
    biases: Rows = [
        *((f"self_attn.{theirs}_proj.bias", f"attention/{ours}/bias", into_heads(n)) for ours, (theirs, n) in heads.items()),
        ("self_attn.o_proj.bias", "attention/out/bias", as_is),
    ]
    return [
        *((f"self_attn.{theirs}_proj.weight", f"attention/{ours}/kernel", into_heads(n)) for ours, (theirs, n) in heads.items()),
        ("self_attn.o_proj.weight", "attention/out/kernel", out_of_heads(N)),
        ("self_attn.sinks", "attention/sink/bias", as_is),
        *(biases if c.qkv_bias else []),
    ]


# Their gate and up take turns along the last axis.
EXPERT_ROWS: Rows = [
    ("mlp.router.weight", "mlp/router/kernel", transposed),
    ("mlp.router.bias", "mlp/router/bias", as_is),
    ("mlp.experts.gate_up_proj", "mlp/gate/kernel", lambda w: w[..., ::2]),
    ("mlp.experts.gate_up_proj", "mlp/up/kernel", lambda w: w[..., 1::2]),
    ("mlp.experts.gate_up_proj_bias", "mlp/gate/bias", lambda w: w[..., ::2]),
    ("mlp.experts.gate_up_proj_bias", "mlp/up/bias", lambda w: w[..., 1::2]),
    ("mlp.experts.down_proj", "mlp/down/kernel", as_is),
    ("mlp.experts.down_proj_bias", "mlp/down/bias", as_is),
]


@pytest.mark.parametrize("layers", ["unroll", "scan"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, layers: str) -> None:
    reference, config, params = made(name, 1)
    assert_same_logits(reference, config, params, random_tokens(1, 512 if name == "plain rotation" else 1024), layers)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_through_the_cache(name: str) -> None:
    reference, config, params = made(name, 2)
    assert_same_greedy(reference, config, params, random_tokens(2, 40), new=32)
