"""The mesh and its table: every refusal's message, and where arrays are on it."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curves import MODEL, STEPS
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from llm_jax.config import ExecutionConfig, MeshConfig, OptimizerConfig, override
from llm_jax.models import build, zigzag_order
from llm_jax.sharding import (
    MESH_AXES,
    batch_sharding,
    check_host_memory,
    constrain,
    make_mesh,
    parameter_shardings,
    partition_spec,
    placement,
)
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.state import state_shardings
from llm_jax.types import Batch, ConfigError, ParamSpec, Tokens

ONES = dict.fromkeys(MESH_AXES, 1)
# A dimension that is left to the partitioner.
OPEN = P.UNCONSTRAINED
SHAPE = {**ONES, "data": 2, "fsdp": 2, "tensor": 2}


def test_there_are_eight_devices():
    assert len(jax.devices()) == 8


@pytest.mark.parametrize(
    "axes, shape, expected",
    [
        (("vocab", "embed"), (6, 4), P(("tensor",), ("fsdp",))),
        (
            ("layers", "embed", "heads", "head_dim"),
            (3, 4, 2, 5),
            P(None, ("fsdp",), ("tensor",), None),
        ),
        (("batch", "length"), (4, 3), P(("data", "fsdp"), None)),
        (("norm",), (3,), P(None)),
        ((None, "mlp"), (3, 2), P(None, ("tensor",))),
        ((), (), P()),
    ],
)
def test_partition_spec_follows_the_table(axes, shape, expected):
    assert partition_spec(axes, shape, SHAPE) == expected


def test_mesh_axes_of_one_device_are_left_out():
    assert partition_spec(("vocab", "embed"), (5, 4), {**ONES, "data": 8}) == P(None, None)
    assert partition_spec(("batch", "length"), (4, 3), {**ONES, "fsdp": 4, "tensor": 2}) == P(
        ("fsdp",), None
    )


@pytest.mark.parametrize(
    "axes, shape, mesh, message",
    [
        (
            ("vocab", "width"),
            (4, 4),
            SHAPE,
            r"w: unknown logical axis 'width'; there are layers, embed, ",
        ),
        (
            ("heads", "mlp"),
            (4, 4),
            SHAPE,
            r"w: mesh axis 'tensor' is wanted by two of the axes \('heads', 'mlp'\)",
        ),
        (("batch", "embed"), (4, 4), SHAPE, r"w: mesh axis 'fsdp' is wanted by two"),
        (
            ("vocab",),
            (50257,),
            {**ONES, "tensor": 8},
            r"'vocab' of size 50257 .* tensor = 8; use 50256 or 50264",
        ),
        (
            ("batch",),
            (6,),
            {**ONES, "data": 2, "fsdp": 2},
            r"of size 6 does not divide over mesh data x fsdp = 4; use 4 or 8",
        ),
        (("vocab",), (4,), {"data": 8}, r"'vocab' wants mesh axis 'tensor'; the mesh has data"),
        (("vocab",), (4, 4), SHAPE, r"w has 2 dimensions \(4, 4\) but 1 logical axes \('vocab',\)"),
    ],
)
def test_partition_spec_refuses(axes, shape, mesh, message):
    with pytest.raises(ConfigError, match=message):
        partition_spec(axes, shape, mesh, "w")


@pytest.mark.mesh
def test_parameter_shardings_name_the_parameter():
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    shapes = {"layers": {"key": {"kernel": jax.ShapeDtypeStruct((2, 16, 4, 8), jnp.float32)}}}
    spec = ParamSpec(("layers", "embed", "kv_heads", "head_dim"), (1,), "matrix")
    specs = {"layers": {"key": {"kernel": spec}}}
    with pytest.raises(
        ConfigError,
        match=(
            "layers/key/kernel: dimension 'kv_heads' of size 4 does not divide over mesh tensor = 8"
        ),
    ):
        parameter_shardings(specs, shapes, mesh)


@pytest.mark.mesh
@pytest.mark.parametrize(
    "config, sizes",
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
        (MeshConfig(data=1, fsdp=1, tensor=-1), (1, 1, 8)),
        (MeshConfig(data=4, fsdp=2), (4, 2, 1)),
    ],
)
def test_make_mesh(config, sizes):
    mesh = make_mesh(config)
    assert dict(mesh.shape) == {**ONES, **dict(zip(("data", "fsdp", "tensor"), sizes))}
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    "config, message",
    [
        (MeshConfig(data=3), r"mesh data=3 does not fit 8 devices; the product must be 8"),
        (MeshConfig(fsdp=3), r"mesh data=-1 x fsdp=3 does not fit 8 devices"),
        (MeshConfig(data=16), r"mesh data=16 .* one axis may be -1 to take the rest"),
    ],
)
def test_make_mesh_refuses(config, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(config)


@pytest.mark.mesh
def test_a_mesh_over_fewer_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:2]).shape["data"] == 2


@pytest.mark.mesh
def test_a_batch_that_does_not_divide_is_refused_with_the_next_numbers():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    with pytest.raises(
        ConfigError,
        match=r"batch_size .* 20 does not divide over data x fsdp = 8 mesh shards; use 16 or 24",
    ):
        batch_sharding(mesh, 20)
    assert batch_sharding(mesh, 16).spec == P(("data", "fsdp", "expert"))


@pytest.mark.mesh
def test_suggested_numbers_are_two_different_ones_or_one():
    for call in (
        lambda: batch_sharding(make_mesh(MeshConfig(data=8)), 3),
        lambda: partition_spec(("vocab",), (3,), {**ONES, "tensor": 8}),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert "use 8 or 8" not in str(error.value)


def test_constrain_without_a_mesh_is_the_identity():
    x = jnp.ones((3, 2))
    assert constrain(x, "batch", "length") is x


@pytest.mark.mesh
def test_constrain_places_or_refuses():
    with jax.set_mesh(make_mesh(MeshConfig(data=4, tensor=2))):
        y = jax.jit(lambda x: constrain(x, "batch", "length", "act_mlp"))(jnp.ones((4, 3, 2)))
        assert y.sharding.spec == P("data", None, "tensor")
        with pytest.raises(ConfigError, match="activation: dimension 'batch' of size 3"):
            jax.jit(lambda x: constrain(x, "batch", "length"))(jnp.ones((3, 2)))


@pytest.mark.mesh
def test_rows_that_do_not_divide_round_a_ring_are_refused():
    zeros = np.zeros((8, 12), np.int32)
    batch = Batch(Tokens(zeros, zeros, zeros), zeros, zeros)
    told = "12 tokens do not divide into 16 pieces .* use data.seq_length 16"
    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 1, 8))), pytest.raises(ConfigError, match=told):
        zigzag_order(MODEL, ExecutionConfig(), batch)


@pytest.mark.mesh
def test_activations_between_products_are_split_by_position_over_tensor():
    mesh = make_mesh(MeshConfig(1, 1, 8))
    ids, mask = (jax.ShapeDtypeStruct((8, 16), d) for d in (jnp.int32, bool))
    rows = Batch(Tokens(ids, ids, ids), ids, mask)
    model = override(MODEL, {"attention.num_heads": 8, "attention.num_kv_heads": 8})
    found = {}
    for split in (True, False):
        net = build(
            model,
            ExecutionConfig(
                layers="scan", attention="xla", compute_dtype="float32", shard_sequence=split
            ),
        )
        shapes = jax.eval_shape(net.init, jax.random.key(0))
        placed = parameter_shardings(net.specs, shapes, mesh)
        with jax.set_mesh(mesh):
            run = jax.jit(
                lambda p, b, net=net: jnp.sum(net.apply(p, b).hidden), in_shardings=(placed, None)
            )
            found[split] = run.lower(shapes, rows).compile().as_text()
    # A residual [8, 16, 64] is there whole only where it is not split; [8, 2, 64] is an eighth of
    # its positions.
    assert "f32[8,2,64]" in found[True] and "f32[8,2,64]" not in found[False]


@pytest.mark.mesh
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "adafactor", "sgd"])
def test_every_moment_lives_where_its_parameter_does(optimizer):
    net = build(MODEL, ExecutionConfig(layers="unroll"))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    rule = make_optimizer(
        override(OptimizerConfig(), {"update": optimizer}), STEPS, shapes, net.specs
    )
    placed = state_shardings(net, rule, mesh)
    flat = jax.tree_util.tree_flatten_with_path(placed.params)[0]
    assert all(
        not s.is_fully_replicated for path, s in flat if path[-1].key in ("kernel", "embedding")
    )
    moments = zip(
        jax.tree.leaves(placed.opt_state), jax.tree.leaves(jax.eval_shape(rule.init, shapes))
    )
    sizes = {a.shape for a in jax.tree.leaves(shapes) if a.size > 1000}
    full = [s for s, a in moments if a.shape in sizes]
    assert all(not s.is_fully_replicated for s in full)
    assert len(full) >= {"adafactor": 0}.get(optimizer, 7)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device of one of several TPU slices."""

    id: int
    slice_index: int
    coords: tuple
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0

    @property
    def process_index(self):
        return self.slice_index


def two_slices():
    return [
        Chip(4 * s + 2 * y + x, s, (x, y, 0)) for s in range(2) for y in range(2) for x in range(2)
    ]


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("config", "between"),
    [
        (MeshConfig(data=2, fsdp=4), "data"),
        (MeshConfig(data=4, tensor=2), "data"),
        (MeshConfig(data=1, pipeline=2, fsdp=2, tensor=2), "pipeline"),
        (MeshConfig(data=2, pipeline=2, fsdp=2), "data"),
    ],
)
def test_only_one_axis_goes_from_slice_to_slice(config, between):
    mesh = make_mesh(config, two_slices())
    where = np.vectorize(lambda d: d.slice_index)(mesh.devices)
    for i, name in enumerate(MESH_AXES):
        crosses = bool(np.any(where != np.take(where, [0], axis=i)))
        assert crosses == (name == between)


@pytest.mark.mesh
def test_a_device_without_host_memory_cannot_offload():
    check_host_memory(make_mesh(MeshConfig()))
    memories = [SimpleNamespace(kind=kind) for kind in ("device", "unpinned_host")]
    bare = SimpleNamespace(device_kind="TPU v0", addressable_memories=lambda: memories)
    with pytest.raises(
        ConfigError,
        match=(
            "offload:… needs pinned_host memory, and TPU v0 has only device, unpinned_host; use"
            " names:"
        ),
    ):
        check_host_memory(SimpleNamespace(devices=np.array([bare])))


def test_slices_that_neither_data_nor_pipeline_divides_over_are_refused():
    with pytest.raises(
        ConfigError,
        match="mesh.data is 1 and mesh.pipeline is 1; one of them .* a multiple of the 2 slices",
    ):
        make_mesh(MeshConfig(data=1, fsdp=8), two_slices())


@pytest.mark.parametrize(
    "sizes, axes, wanted",
    [
        ({"rows": 2, "model": 2}, ("batch", "length", "act_heads"), None),
        ({"tensor": 2, "rows": 2}, ("batch", None, "act_heads"), (OPEN, OPEN, ("tensor",))),
        (
            {"tensor": 2, "fsdp": 2},
            ("batch", "act_mlp", "act_heads"),
            (("fsdp",), ("tensor",), OPEN),
        ),
        ({"tensor": 1, "data": 4}, ("batch", None, "act_heads"), (("data",), OPEN, OPEN)),
        ({"tensor": 3}, ("batch", None, "act_heads"), None),
    ],
)
def test_a_mesh_of_others_splits_what_it_has_axes_for(sizes, axes, wanted):
    devices = np.array(jax.devices()[: math.prod(sizes.values())]).reshape(*sizes.values())
    mesh = Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    with jax.set_mesh(mesh):
        spec = placement(axes, (4, 4, 4))
    assert spec == (None if wanted is None else P(*wanted))


def test_manual_and_explicit_axes_are_not_placed_over():
    sizes = {"data": 2, "tensor": 2}
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    axes = ("batch", "act_heads")

    def local(x):
        assert placement(axes, x.shape) == P(OPEN, ("tensor",))
        return x

    mesh = Mesh(devices, tuple(sizes), axis_types=(AxisType.Auto,) * 2)
    rows = P("data")
    mapped = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, axis_names={"data"})
    jax.eval_shape(mapped, jnp.ones((4, 4)))
    mesh = Mesh(devices, tuple(sizes), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        assert placement(axes, (4, 4)) is None
