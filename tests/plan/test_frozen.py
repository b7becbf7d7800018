"""Frozen parameters take their own memory, and none for gradients and the optimizer."""

from __future__ import annotations

import dataclasses

import pytest

from llm_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig
from llm_jax.config.overrides import override
from llm_jax.plan.estimate import flops_per_token
from llm_jax.plan.memory import peak
from llm_jax.plan.shares import parameters_on_device
from llm_jax.plan.step import plan_step
from llm_jax.plan.topology import parse_topology

V, D, F, L = 512, 64, 256, 2
CONFIG = Config(
    model=override(
        ModelConfig(),
        {
            "vocab_size": V,
            "num_layers": L,
            "embed_dim": D,
            "attention.num_heads": 4,
            "mlp.hidden_dim": F,
            "max_length": 128,
        },
    ),
    data=DataConfig(seq_length=128, batch_size=8),
    optimizer=override(OptimizerConfig(), {"update": "adamw"}),
    mesh=MeshConfig(data=1, fsdp=4),
)
ONE = dataclasses.asdict(MeshConfig(data=1, fsdp=4))
ATTENTION = ("layers/attention/*",)
PARTLY = override(CONFIG, {"train.trainable": ATTENTION})
TRAINED = L * 4 * D * D


def test_shares_count_what_is_trained():
    every, part = (
        parameters_on_device(CONFIG.model, CONFIG.optimizer, tuple(ONE.items()), patterns)
        for patterns in (("*",), ATTENTION)
    )
    assert (every.trained_layers, every.trained_rest) == (every.layers, every.rest)
    assert part[:4] == every[:4]
    assert (part.trained_layers, part.trained_rest) == (TRAINED / 4, 0)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_estimate_has_no_gradients_and_no_slots_of_frozen_parameters(accumulation):
    whole, part = (
        peak(override(config, {"train.accumulation": accumulation}), ONE)
        for config in (CONFIG, PARTLY)
    )
    for name in ("parameters", "batch"):
        assert part[name] == whole[name]
    # Adam's two moments, and counters.
    assert part["optimizer state"] == pytest.approx(2 * 4 * TRAINED / 4, abs=64)
    assert part["gradients"] <= accumulation * 4 * TRAINED / 4
    assert sum(part.values()) < sum(whole.values())


def test_a_plan_has_the_state_that_the_run_holds():
    target = parse_topology("v5e:2x2")
    whole, part = (plan_step(config, target, analytic=True) for config in (CONFIG, PARTLY))
    assert part.memory["parameters"] == whole.memory["parameters"]
    assert part.memory["optimizer state"] == pytest.approx(8 * TRAINED / 4, abs=64)
    assert part.parameters == whole.parameters
    assert part.flops["traced"] < whole.flops["traced"]


def test_a_frozen_kernel_saves_the_product_of_its_gradient():
    execution = dataclasses.replace(
        CONFIG.execution, attention="xla", layers="scan", remat="none", compute_dtype="float32"
    )
    whole, part = (
        flops_per_token(CONFIG.model, execution, 128, "TPU v5 lite", trainable=patterns)
        for patterns in (("*",), ATTENTION)
    )
    # Of each layer's gate, up and down, and of the head.
    assert whole - part == pytest.approx(2 * L * 3 * D * F + 2 * V * D, rel=1e-6)
