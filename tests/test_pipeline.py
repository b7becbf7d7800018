"""mesh.pipeline: the schedule's arithmetic, its order of work, and refusals. That training is the
same: test_combinations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curves import MODEL, batches

from llm_jax.config import ExecutionConfig, MeshConfig, ModelConfig, override
from llm_jax.models import build, schedule
from llm_jax.models.pipeline import Schedule, through_stages
from llm_jax.sharding import MESH_AXES, make_mesh
from llm_jax.types import ConfigError, ParamSpec

SHAPE = dict.fromkeys(MESH_AXES, 1)


def mesh_of(**sizes):
    return make_mesh(
        MeshConfig(**{"data": 1, **sizes}), jax.devices()[: int(np.prod(list(sizes.values())))]
    )


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("stages", "repeats", "microbatches"), [(4, 1, 4), (4, 1, 8), (2, 3, 4), (2, 2, 2)]
)
def test_the_bubble_is_the_share_of_steps_in_which_a_stage_has_nothing_to_do(
    stages, repeats, microbatches
):
    """A stage that writes down which layers saw which row, in the order in which they did."""
    plan = Schedule(stages, repeats, microbatches, layers=1)
    L, B = stages * repeats, microbatches
    params = {"number": jnp.arange(1.0, L + 1)}
    specs = {"number": ParamSpec(("layers",), (), "norm")}

    def stage(params, x, rows, repeat):
        number = params["number"][0] if repeats == 1 else params["number"][0, repeat]
        # A row's own number must travel with it; its layers are digits in the order of their work.
        return x * (L + 1) + number, {"row": rows[:, 0].sum()[None], "worked": jnp.ones(1)}

    with jax.set_mesh(mesh_of(pipeline=stages)):
        rows = jnp.arange(B, dtype=jnp.float32)[:, None]

        def run(x):
            return through_stages(stage, plan, x, rows, params=params, specs=specs, length=None)

        x, said = jax.jit(run)(jnp.zeros((B, 1, 1)))
        [length] = {
            e.params["length"]
            for e in jax.make_jaxpr(run)(jnp.zeros((B, 1, 1))).eqns
            if e.primitive.name == "scan"
        }
    in_order = functools.reduce(lambda x, n: x * (L + 1) + n, range(1, L + 1), 0)
    assert x.ravel().tolist() == [in_order] * B
    # Every layer worked on each microbatch once: what it made of none in the bubble is not counted.
    assert said["worked"].tolist() == [B] * L and said["row"].tolist() == [sum(range(B))] * L
    assert length == plan.steps and plan.bubble == pytest.approx(
        1 - L * microbatches / (length * stages)
    )


@pytest.mark.parametrize(
    ("model", "execution", "stages", "rows", "message"),
    [
        (
            {"num_layers": 2},
            {},
            4,
            8,
            r"mesh.pipeline 4 is more stages than the model has layers, 2",
        ),
        (
            {"num_layers": 4},
            {"pipeline_repeats": 4},
            2,
            8,
            r"mesh.pipeline 2 x execution.pipeline_repeats 4 is more stages .* layers, 4",
        ),
        (
            {"num_layers": 6},
            {},
            4,
            8,
            r"model.num_layers 6 does not divide over mesh.pipeline 4; use 4 or 8 layers",
        ),
        (
            {"num_layers": 6, "attention.window_pattern": (4, 0)},
            {},
            2,
            8,
            r"stages of 3 layers .* repeats of the 2 layers .* use 4 or 8 layers",
        ),
        (
            {"num_layers": 4},
            {"microbatches": 6},
            4,
            24,
            r"execution.microbatches 6 is not a multiple of mesh.pipeline 4; use 4 or 8",
        ),
        (
            {"num_layers": 4},
            {"microbatches": 8},
            4,
            12,
            r"data.batch_size \(per accumulation step\) 12 .*microbatches 8 .* use 8 or 16",
        ),
        (
            {"num_layers": 4, "dropout": 0.1},
            {},
            2,
            8,
            r"model.dropout is 0.1, and mesh.pipeline 2 would draw other numbers .*dropout to 0",
        ),
        (
            {"num_layers": 5, "first_layers.count": 1},
            {},
            2,
            8,
            r"model.first_layers is .on., and mesh.pipeline 2 has stages of layers of one kind",
        ),
        ({}, {"microbatches": 4}, 1, 8, r"execution.microbatches is 4, but mesh.pipeline is 1"),
        (
            {},
            {"pipeline_repeats": 2},
            1,
            8,
            r"execution.pipeline_repeats is 2, but mesh.pipeline is 1",
        ),
    ],
)
def test_a_schedule_that_cannot_be(model, execution, stages, rows, message):
    with pytest.raises(ConfigError, match=message):
        schedule(
            override(ModelConfig(), {**model}),
            ExecutionConfig(**execution),
            {**SHAPE, "pipeline": stages},
            rows,
        )


def test_a_microbatch_needs_rows_for_every_share_of_the_batch():
    with pytest.raises(
        ConfigError,
        match="8 does not divide into execution.microbatches 2 for each of 8 mesh shards; use 16",
    ):
        schedule(
            ModelConfig(), ExecutionConfig(), {**SHAPE, "pipeline": 2, "data": 4, "fsdp": 2}, 8
        )
    assert (
        schedule(
            ModelConfig(), ExecutionConfig(), {**SHAPE, "pipeline": 2, "data": 4, "fsdp": 2}, 16
        ).microbatches
        == 2
    )


@pytest.mark.mesh
def test_decoding_over_a_pipeline_is_refused():
    net = build(MODEL, ExecutionConfig())
    cache = jax.eval_shape(lambda: net.init_cache(2, 8))
    batch = jax.tree.map(lambda a: a[:2, :1], next(batches()))
    with (
        jax.set_mesh(mesh_of(pipeline=2)),
        pytest.raises(ConfigError, match="decoding does not go through mesh.pipeline 2"),
    ):
        jax.eval_shape(net.apply, jax.eval_shape(net.init, jax.random.key(0)), batch, cache)
