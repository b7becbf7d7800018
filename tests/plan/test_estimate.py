"""What a step is expected to send and compute without compiling: by hand, for experts and
pipelines.
"""

from __future__ import annotations

import pytest

from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.plan.estimate import bytes_sent, estimate, experts_sent, stages_sent
from llm_jax.plan.shares import shares
from llm_jax.plan.topology import parse_topology

TARGET = parse_topology("v5e:2x4")
DENSE = override(
    Config(),
    {
        "model.vocab_size": 1024,
        "model.num_layers": 8,
        "model.embed_dim": 256,
        "model.attention.num_heads": 2,
        "model.mlp.hidden_dim": 512,
        "data.seq_length": 256,
        "data.batch_size": 64,
        "mesh.data": 1,
        "mesh.fsdp": 8,
    },
)
EXPERTS = override(DENSE, {"model.experts.count": 8, "model.experts.per_token": 2})


def sent(config, part):
    mesh = vars(config.mesh)
    d = shares(config, mesh)
    return part(config, d) if part is stages_sent else part(config, mesh, d)


def test_tokens_travel_to_their_experts_and_back():
    apart = override(EXPERTS, {"mesh.fsdp": 2, "mesh.expert": 4})
    # 8 rows of a device, of which each token goes to 2 experts, three quarters of them elsewhere;
    # bfloat16; 8 layers.
    once = 8 * 256 * 2 * 256 * 2 * 3 / 4 * 8
    # There and back, forward and backward; with anything recomputed, forward twice.
    assert sent(apart, experts_sent) == 4 * once
    assert sent(override(apart, {"execution.remat": "dots"}), experts_sent) == 6 * once
    assert sent(EXPERTS, experts_sent) == sent(DENSE, experts_sent) == 0


def test_experts_that_stay_are_not_gathered():
    d, apart = (
        shares(c, vars(c.mesh))
        for c in (EXPERTS, override(EXPERTS, {"mesh.fsdp": 1, "mesh.expert": 8}))
    )
    kernels = 8 * 8 * 3 * 256 * 512
    # Of 8 layers of 8 experts a device lacks seven eighths, or nothing.
    assert d.parameters.layers == pytest.approx(apart.parameters.layers)
    lacking = [x.parameters.worked_layers - x.parameters.layers for x in (d, apart)]
    assert lacking[0] - lacking[1] == pytest.approx(kernels * 7 / 8)


def test_stages_hand_on_what_they_have_done():
    staged = override(DENSE, {"mesh.fsdp": 4, "mesh.pipeline": 2, "execution.microbatches": 4})
    # 16 rows of a stage's device in 4 microbatches, in 5 steps, forward and backward, bfloat16.
    handed_on = 2 * 5 * 4 * 256 * 256 * 2
    # Before and after the stages half of the rows come from, or go to, the other stage; and their
    # gradients.
    split = 4 * 16 * 256 * 256 * 2 / 2
    assert sent(staged, stages_sent) == handed_on + split
    twice = override(staged, {"execution.pipeline_repeats": 2})
    moved = 6 * shares(twice, vars(twice.mesh)).parameters.layers / 2
    assert sent(twice, stages_sent) == handed_on * 9 / 5 + split + moved
    assert sent(DENSE, stages_sent) == 0


def test_the_bubble_takes_time_and_more_microbatches_or_repeats_less_of_it():
    alone = estimate(DENSE, TARGET).seconds["compute"]
    staged = override(DENSE, {"mesh.fsdp": 4, "mesh.pipeline": 2})

    def of(**more):
        return estimate(
            override(staged, {f"execution.{k}": v for k, v in more.items()}), TARGET
        ).seconds["compute"]

    # The output projection's four products are split over stages, and have no bubble.
    outside = 8 * 1024 * 256 * 64 * 256 / 8 / 197e12
    for more, steps, useful in (
        ({}, 3, 2),
        ({"microbatches": 8}, 9, 8),
        ({"microbatches": 8, "pipeline_repeats": 2}, 17, 16),
    ):
        assert of(**more) - outside == pytest.approx((alone - outside) * steps / useful)


def test_a_pipeline_gathers_the_weights_of_its_layers_in_each_of_its_steps():
    staged = override(DENSE, {"mesh.fsdp": 4, "mesh.pipeline": 2, "model.vocab_size": 128})
    few, many = (override(staged, {"execution.microbatches": m}) for m in (2, 8))
    lacking = shares(few, vars(few.mesh)).parameters
    more = bytes_sent(many, vars(many.mesh), shares(many, vars(many.mesh)), TARGET) - sent(
        many, stages_sent
    )
    less = bytes_sent(few, vars(few.mesh), shares(few, vars(few.mesh)), TARGET) - sent(
        few, stages_sent
    )
    assert more - less == pytest.approx((9 - 3) * 8 * (lacking.worked_layers - lacking.layers))
