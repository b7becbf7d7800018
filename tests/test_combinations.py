"""Training on 8 devices is training on one: losses, norms and gradients, whatever the mesh and the
execution.
"""

import jax
import numpy as np
import pytest
from curves import on_one_device, train
from pairwise import Pairs, pairs

pytestmark = pytest.mark.mesh

ALL_NAMES = "names:query,key,value,attention_out,mlp_hidden,mlp_out"

# mesh, model, layers, remat, accumulation, and what else differs
COMBINATIONS = [
    # In every run: each axis, each part of a model, each kind of layers and remat.
    (
        {"data": 2, "fsdp": 2, "tensor": 2},
        "dropout",
        "unroll",
        ALL_NAMES,
        1,
        {"optimizer": "muon", "shard_sequence": False},
    ),
    (
        {"context": 4, "data": 2},
        "all but routing by bias",
        "scan",
        "none",
        1,
        {"context": "all_to_all", "optimizer": "adafactor"},
    ),
    (
        {"pipeline": 2, "context": 2, "tensor": 2},
        "deep sinks",
        "scan",
        "offload:mlp_hidden",
        1,
        {"optimizer": "lion"},
    ),
    ({"expert": 2, "tensor": 2, "fsdp": 2}, "latent", "unroll", "full", 2, {}),
    # At night: with these, each axis has each part that it meets further down.
    (
        {"pipeline": 2, "expert": 2, "fsdp": 2},
        "deep moe with biases",
        "scan",
        "none",
        1,
        {"pipeline_repeats": 2},
    ),
    ({"data": 2, "context": 2, "expert": 2}, "moe by bias", "scan", "none", 2, {}),
    (
        {"expert": 2, "context": 2, "tensor": 2},
        "all but routing by bias",
        "scan",
        "dots",
        1,
        {"optimizer": "adafactor"},
    ),
    # All others.
    (
        {"data": 2, "fsdp": 2, "tensor": 2},
        "moe",
        "unroll",
        "dots",
        1,
        {"shard_sequence": False, "optimizer": "adafactor"},
    ),
    (
        {"context": 4, "data": 2},
        "dropout",
        "scan",
        "none",
        1,
        {"context": "all_to_all", "optimizer": "muon"},
    ),
    ({"expert": 2, "context": 2, "fsdp": 2}, "moe", "scan", "none", 1, {"optimizer": "adafactor"}),
    (
        {"expert": 2, "context": 2, "tensor": 2},
        "sinks",
        "scan",
        "full",
        1,
        {"context": "all_to_all"},
    ),
    ({"data": 8}, "dropout", "unroll", "none", 1, {}),
    ({"data": 8}, "dropout", "scan", "full", 1, {}),
    ({"data": 8}, "moe", "scan", "none", 1, {}),
    ({"data": 8}, "moe by bias", "unroll", "full", 1, {}),
    ({"fsdp": 8}, "dropout", "scan", "none", 1, {}),
    ({"fsdp": 8}, "dropout", "unroll", "dots", 1, {}),
    ({"fsdp": 8}, "moe", "unroll", "none", 1, {}),
    ({"fsdp": 8}, "moe by bias", "scan", "full", 1, {}),
    ({"tensor": 2, "data": 4}, "dropout", "scan", "dots", 1, {}),
    ({"tensor": 2, "data": 4}, "dropout", "unroll", "full", 1, {}),
    ({"tensor": 2, "data": 4}, "dense", "unroll", "none", 2, {"shard_sequence": False}),
    ({"tensor": 2, "fsdp": 4}, "dropout", "scan", "none", 1, {"optimizer": "muon"}),
    ({"tensor": 2, "fsdp": 4}, "moe", "scan", "full", 2, {}),
    ({"tensor": 2, "fsdp": 4}, "moe by bias", "unroll", "none", 1, {"shard_sequence": False}),
    ({"data": 2, "fsdp": 2, "tensor": 2}, "dropout", "unroll", ALL_NAMES, 1, {}),
    ({"data": 2, "fsdp": 2, "tensor": 2}, "dropout", "scan", "names:mlp_hidden", 1, {}),
    ({"data": 2, "fsdp": 2, "tensor": 2}, "dense", "unroll", "none", 2, {"optimizer": "adafactor"}),
    ({"data": 2, "fsdp": 2, "tensor": 2}, "moe", "unroll", "dots", 1, {}),
    ({"data": 2, "fsdp": 2, "tensor": 2}, "dense", "scan", "full", 2, {"optimizer": "lion"}),
    ({"context": 8}, "dense", "scan", "none", 1, {}),
    ({"context": 8}, "moe", "scan", "none", 1, {}),
    ({"context": 4, "data": 2}, "dense", "unroll", "full", 2, {}),
    ({"context": 4, "data": 2}, "dropout", "scan", "none", 1, {"context": "all_to_all"}),
    ({"context": 2, "fsdp": 4}, "dropout", "scan", "dots", 1, {}),
    ({"context": 2, "fsdp": 4}, "moe by bias", "scan", "none", 2, {"context": "all_to_all"}),
    ({"context": 2, "fsdp": 2, "tensor": 2}, "dense", "scan", "names:attention_out", 1, {}),
    (
        {"context": 2, "fsdp": 2, "tensor": 2},
        "dense",
        "unroll",
        "full",
        2,
        {"context": "all_to_all"},
    ),
    ({"expert": 8}, "moe by bias", "unroll", "full", 1, {}),
    ({"expert": 4, "data": 2}, "moe", "unroll", "dots", 1, {}),
    ({"expert": 2, "fsdp": 4}, "moe", "scan", "full", 1, {"optimizer": "muon"}),
    ({"expert": 2, "fsdp": 4}, "moe by bias", "scan", ALL_NAMES, 1, {}),
    ({"expert": 2, "tensor": 2, "data": 2}, "moe by bias", "unroll", "none", 1, {}),
    ({"expert": 4, "tensor": 2}, "moe", "unroll", "full", 1, {"shard_sequence": False}),
    (
        {"expert": 2, "context": 2, "tensor": 2},
        "moe by bias",
        "unroll",
        "none",
        1,
        {"context": "all_to_all"},
    ),
    ({"pipeline": 2, "context": 2, "tensor": 2}, "sinks", "scan", "none", 1, {}),
    ({"pipeline": 2, "fsdp": 2, "tensor": 2}, "deep", "scan", "offload:mlp_hidden", 1, {}),
    ({"pipeline": 2, "fsdp": 2, "context": 2}, "deep", "unroll", "names:attention_out", 1, {}),
    ({"pipeline": 4, "data": 2}, "deep moe", "unroll", "full", 1, {}),
    ({"expert": 2, "tensor": 2, "fsdp": 2}, "moe", "scan", "full", 2, {}),
    ({"data": 2, "tensor": 2, "context": 2}, "moe", "scan", "names:mlp_out", 4, {}),
    ({"context": 2, "fsdp": 2, "tensor": 2}, "moe", "unroll", "none", 1, {}),
    ({"expert": 2, "context": 2, "tensor": 2}, "moe", "scan", "full", 2, {}),
    ({"expert": 8}, "moe", "scan", "none", 1, {}),
    (
        {"pipeline": 2, "context": 2, "tensor": 2},
        "deep",
        "scan",
        "full",
        2,
        {"context": "all_to_all"},
    ),
    ({"expert": 4, "data": 2}, "moe by bias", "scan", "none", 1, {}),
    ({"expert": 2, "tensor": 2, "fsdp": 2}, "latent", "unroll", "full", 2, {"optimizer": "muon"}),
    ({"expert": 2, "context": 2, "fsdp": 2}, "moe", "scan", "none", 1, {}),
]


def name(case) -> str:
    mesh, model, layers, remat, accumulation, more = case
    return "-".join(
        (
            *(f"{a}{n}" for a, n in mesh.items()),
            model,
            layers,
            remat[:9],
            str(accumulation),
            *map(str, more.values()),
        )
    )


PARTS = {
    "dense": {"one MLP"},
    "dropout": {"one MLP", "dropout"},
    "moe": {"softmax router", "shared experts"},
    "moe by bias": {"sigmoid router"},
    "latent": {"sigmoid router", "shared experts", "latent attention"},
    "sinks": {"softmax router", "attention sinks", "biases of experts"},
    "all but routing by bias": {
        "softmax router",
        "shared experts",
        "attention sinks",
        "biases of experts",
        "dropout",
    },
    "deep": {"one MLP"},
    "deep sinks": {"one MLP", "attention sinks"},
    "deep moe": {"softmax router", "shared experts"},
    "deep moe with biases": {"softmax router", "shared experts", "biases of experts"},
}


def values_of(case):
    mesh, model, layers, remat, accumulation, more = case
    yield from (("axis", axis) for axis in mesh)
    yield from (("part", part) for part in PARTS[model])
    yield from (("layers", layers), ("remat", remat.partition(":")[0]))
    yield "accumulation", accumulation > 1
    yield from (("more", f"{name} {value}") for name, value in more.items())


def pairs_of(cases) -> Pairs:
    return set().union(*(pairs(values_of(case), [("axis", "part")]) for case in cases))


EVERY_RUN = COMBINATIONS[:4]
PAIRS = COMBINATIONS[:7]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in EVERY_RUN else pytest.mark.slow)
        for case in COMBINATIONS
    ],
    ids=name,
)
def test_a_run_on_8_devices_is_the_run_on_one(case):
    mesh, model, layers, remat, accumulation, more = case
    one = on_one_device(model, more.get("optimizer", "adamw"))
    run = train(mesh, model, layers, remat, accumulation, params=one.first, **more)
    np.testing.assert_allclose(run.metrics["loss"], one.metrics["loss"], rtol=1e-5)
    np.testing.assert_array_equal(run.metrics["tokens"], one.metrics["tokens"])
    for norm in ("grad_norm", "param_norm"):
        np.testing.assert_allclose(run.metrics[norm], one.metrics[norm], rtol=1e-3)
    # Relative to the largest of its parameter: an element near 0 is a difference of large terms.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max()),
        run.gradients,
        one.gradients,
    )


def kinds_of(cases) -> Pairs:
    return set().union(*(pairs(values_of(case), []) for case in cases))


def test_every_run_has_every_axis_and_every_part():
    wanted = {value for value in kinds_of(COMBINATIONS) if value[0][0] in ("axis", "part")}
    assert kinds_of(EVERY_RUN) >= wanted


def test_a_few_cases_have_every_pair_of_axis_and_part():
    assert len(COMBINATIONS) >= 49
    wanted = {pair for pair in pairs_of(COMBINATIONS) if len(pair) == 2}
    assert pairs_of(PAIRS) >= wanted
