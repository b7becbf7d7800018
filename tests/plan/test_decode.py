"""Decoding planned: bounds by hand, and the two real programs compiled for TPU slices that are not
there.
"""

from __future__ import annotations

import json

import pytest

from llm_jax.commands.plan import plan
from llm_jax.config import CacheConfig, Config
from llm_jax.config.overrides import override
from llm_jax.plan.decode import Draft, decode_flops, plan_decode, prefill_flops
from llm_jax.plan.report import decode_figures, decode_table
from llm_jax.plan.topology import parse_topology
from llm_jax.types import ConfigError

L, D, N, K, H, F, V, B, S = 2, 256, 4, 2, 64, 512, 1024, 16, 512
CONFIG = override(
    Config(),
    {
        "model.num_layers": L,
        "model.embed_dim": D,
        "model.attention.num_heads": N,
        "model.attention.num_kv_heads": K,
        "model.mlp.hidden_dim": F,
        "model.vocab_size": V,
        "model.max_length": S,
        "model.embedding.tied": False,
        "mesh.data": 1,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
    },
)
MATRICES = L * (D * H * (N + 2 * K) + N * H * D + 3 * D * F)
NORMS = (2 * L + 1) * D * 4
CACHE = 2 * L * B * K * S * H * 2


def test_flops_by_hand():
    m = CONFIG.model
    assert decode_flops(m, S) == 2 * (MATRICES + V * D) + 4 * L * N * H * S
    assert prefill_flops(m, 1) == 2 * (MATRICES + V * D) + 4 * L * N * H * 0.5
    windowed = override(CONFIG, {"model.attention.window_pattern": (0, 128)}).model
    assert decode_flops(windowed, S) == 2 * (MATRICES + V * D) + 4 * N * H * (S + 128)


@pytest.mark.mesh
def test_flops_of_latents_are_those_of_the_programs():
    """A token's queries see S latents of 48 and rotated parts of 16; a prompt of keys 48 wide and
    values 32.
    """
    latent = override(
        CONFIG,
        {
            "model.attention": "latent",
            "model.attention.head_dim": 48,
            "model.attention.value_dim": 32,
            "model.attention.kv_latent": 48,
            "model.attention.rope_dim": 16,
            "model.first_layers.count": 1,
            "model.first_layers.mlp_dim": 384,
        },
    )
    m = latent.model
    attention = D * N * 48 + D * (48 + 16) + 48 * N * (32 + 32) + N * 32 * D
    matrices = 2 * attention + 3 * D * (384 + F) + V * D
    assert decode_flops(m, S) == 2 * matrices + 2 * 2 * N * (2 * 48 + 16) * S
    assert prefill_flops(m, 1) == 2 * matrices + 2 * 2 * N * (48 + 32) * 0.5
    p = plan_decode(
        latent, parse_topology("v5e:2x2"), batch=B, context=S, prompt=256, analytic=True
    )
    assert p.step.flops["traced"] == B * decode_flops(m, S)
    # Latents are on all devices that share the heads.
    assert p.step.memory["cache"] == 2 * B * S * (48 + 16) * 2 / 2 + B * 4 / 2


@pytest.mark.mesh
def test_without_a_compiler_bytes_and_bounds_are_those_by_hand():
    p = plan_decode(CONFIG, parse_topology("v5e:2x2"), batch=B, context=S, prompt=64, analytic=True)
    held = 2 * (MATRICES + 2 * V * D) / 4 + NORMS
    assert p.step.memory == {"parameters": held, "cache": CACHE / 4 + B * 4 / 2}
    # The input embedding is looked up and not read.
    read = held - 2 * V * D / 4 + CACHE / 4 + B * 4 / 2
    assert p.step.seconds["memory"] == pytest.approx(read / 819e9)
    assert p.step.flops["model"] == B * decode_flops(CONFIG.model, S) == p.step.flops["traced"]
    assert p.tokens_per_second_per_chip == pytest.approx(B / p.step.seconds["memory"] / 4)
    assert p.hbm_share[0] == 1.0 > p.hbm_share[1] > 0.9
    assert decode_figures(p)["decode"]["fits"] is None


@pytest.mark.mesh
def test_a_layer_with_a_window_keeps_and_reads_the_window():
    windowed = override(CONFIG, {"model.attention.window_pattern": (0, 128)})
    p = plan_decode(
        windowed, parse_topology("v5e:2x2"), batch=B, context=S, prompt=64, analytic=True
    )
    assert p.step.memory["cache"] == 2 * B * K * (S + 128) * H * 2 / 4 + B * 4 / 2
    assert p.step.flops["traced"] == B * decode_flops(windowed.model, S) == p.step.flops["model"]


@pytest.mark.mesh
def test_a_cache_that_cannot_fit_needs_no_compiler():
    long = override(CONFIG, {"model.max_length": 2**21})
    p = plan_decode(
        long, parse_topology("v5e:2x2"), batch=256, context=2**21, prompt=64, analytic=True
    )
    assert "parameters and cache alone are" in p.step.refused and "does not fit" in decode_table(p)


@pytest.mark.mesh
def test_what_cannot_be_decoded():
    target = parse_topology("v5e:2x2")
    with pytest.raises(
        ConfigError, match="prompt is 600; it must be at least 1 and at most the context of 512"
    ):
        plan_decode(CONFIG, target, batch=B, context=S, prompt=600, analytic=True)
    with pytest.raises(
        ConfigError, match="a cache of 4096 tokens is longer than model.max_length 512"
    ):
        plan_decode(CONFIG, target, batch=B, context=4096, prompt=64, analytic=True)
    with pytest.raises(ConfigError, match="'batch' of size 3 does not divide over mesh fsdp = 2"):
        plan_decode(CONFIG, target, batch=3, context=S, prompt=64, analytic=True)
    two = override(CONFIG, {"model.encoder.num_layers": 2})
    with pytest.raises(
        ConfigError,
        match="model.encoder is 'on', and plan --decode plans decoders alone",
    ):
        plan_decode(two, target, batch=B, context=S, prompt=64, analytic=True)
    with pytest.raises(
        ConfigError, match="--batch, --context and --prompt are those of decoding: give --decode"
    ):
        plan("configs/tiny_cpu.py", "v5e:2x2", batch=8)


@pytest.mark.compiler
def test_the_two_programs_are_compiled_for_the_slice(tmp_path):
    out = tmp_path / "plan.json"
    settings = (
        "mesh.data=1",
        "mesh.fsdp=2",
        "mesh.tensor=2",
        "model.attention.num_heads=2",
        "model.embed_dim=256",
    )
    text = plan(
        "configs/tiny_cpu.py",
        "v5e:2x2",
        settings,
        vocab_size=1024,
        decode=True,
        batch=16,
        context=256,
        prompt=64,
        price=1.0,
        out=str(out),
    )
    p = json.loads(out.read_text())
    prefill, step = p["prefill"], p["decode"]
    assert prefill["fits"] and step["fits"]
    # Four layers, two heads of 128, keys and values in bfloat16, over four chips.
    cache = 2 * 4 * 16 * 2 * 256 * 128 * 2 / 4
    for phase in (prefill, step):
        assert phase["memory_bytes_per_chip"]["cache"] == pytest.approx(cache, rel=1e-4)
        assert (
            phase["memory_bytes_per_chip"]["tokens"] < 2**20
            and phase["memory_bytes_per_chip"]["temporaries"] > 0
        )
        # Heads are summed over tensor; what else is sent is over these axes too.
        assert {a for t in phase["traffic"] for a in t["axes"]} <= {"fsdp", "tensor"} and phase[
            "traffic"
        ]
    assert (
        p["time_to_first_token_at_best"]
        == prefill["seconds"]["at best"]
        > step["seconds"]["compute"]
    )
    assert p["tokens_per_second_per_chip_at_best"] == pytest.approx(
        16 / step["seconds"]["at best"] / 4
    )
    assert 0 < p["hbm_roofline_share"]["at worst"] < p["hbm_roofline_share"]["at best"] <= 1
    per_token = step["seconds"]["at best"] / 16
    assert p["cost"]["usd"][0] == pytest.approx(1e6 * per_token * 4 / 3600)
    assert "of HBM roofline" in text and "cost of 1,000,000 tokens written, without prefill" in text


@pytest.mark.mesh
def test_a_draft_model_and_its_cache_come_on_top():
    """A round is some steps of the draft model and one call of the model."""
    target = parse_topology("v5e:2x2")
    small = override(CONFIG, {"model.num_layers": 1})
    alone = plan_decode(small, target, batch=B, context=S, prompt=64, analytic=True)
    p = plan_decode(
        CONFIG,
        target,
        batch=B,
        context=S,
        prompt=64,
        cache=CacheConfig("paged", "int8", page=128),
        draft=Draft(small, 3),
        analytic=True,
    )
    assert p.draft is not None and p.draft.tokens == 3
    assert p.draft.parameters == alone.parameters
    # In int8 a vector of 64 is 64 bytes and a scale; the table has four pages a row.
    cache = CACHE / (2 * H) * (H + 4) / 4 + B * 4 * 4 / 2 + B * 4 / 2
    memory = p.draft.verify.memory
    assert memory["cache"] == cache and memory == p.draft.step.memory == p.step.memory
    assert memory["draft parameters"] == alone.step.memory["parameters"]
    assert memory["draft cache"] == (cache - B * 4 * 5 / 2) / 2 + B * 4 * 5 / 2
    assert p.draft.verify.flops["model"] == 4 * p.step.flops["model"]
    assert p.draft.seconds == 3 * p.draft.step.seconds.at_best + p.draft.verify.seconds.at_best
    text = decode_table(p)
    assert "int8 paged (128 tokens a page) cache" in text and "by the draft model" in text
    assert decode_figures(p)["draft"]["tokens"] == 3
    with pytest.raises(ConfigError, match="a vocabulary of 512, and the model one of 1024"):
        other = override(small, {"model.vocab_size": 512})
        plan_decode(
            CONFIG, target, batch=B, context=S, prompt=64, draft=Draft(other, 3), analytic=True
        )
    with pytest.raises(ConfigError, match="--draft are those of decoding: give --decode too"):
        plan("configs/tiny_cpu.py", "v5e:2x2", cache="paged")
