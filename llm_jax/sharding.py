"""Where arrays live: the mesh, one table from logical axis to mesh axis, and errors instead of
silent replication.

Sharded functions are ``jax.jit`` with ``in_shardings``, ``out_shardings`` and ``donate_argnums``
(what was called pjit). Every mesh axis is Auto: XLA's partitioner places what the table leaves
open. Enter a mesh with ``jax.set_mesh``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from llm_jax.config import MeshConfig
from llm_jax.ops.transposes import with_transpose
from llm_jax.ops.weights import expand_specs
from llm_jax.types import ConfigError, Params

# In the order of the devices: those that talk most are nearest.
MESH_AXES = ("data", "pipeline", "fsdp", "expert", "context", "tensor")

# The axes that may go over the slow network between slices, the first that fits: they send once a
# step, or little.
BETWEEN_SLICES = ("data", "pipeline")

# Of a host, as its devices reach it by themselves.
HOST_MEMORY = "pinned_host"

# Logical axis of a parameter or an activation -> mesh axes it is split over; None is replicated.
RULES: Mapping[str, tuple[str, ...] | None] = {
    "layers": ("pipeline",),
    # Context first: what splits positions can then be exchanged for width without going through
    # every device.
    "embed": ("context", "fsdp", "expert"),
    "expert": ("expert",),
    "expert_embed": ("context", "fsdp"),
    "router": None,
    "mlp": ("tensor",),
    # Of a recurrent kernel: the state that it reads, which is split as a layer's input is.
    "state": ("context", "fsdp", "expert"),
    "gate": None,
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": None,
    # A latent that a kernel makes, and one that it reads, which is split as the layer's input is.
    "to_latent": None,
    "latent": ("context", "fsdp", "expert"),
    "kv_latent": ("context", "fsdp", "expert"),
    "vocab": ("tensor", "pipeline"),
    "norm": None,
    "position": None,
    "bucket": None,
    "token_type": None,
    "transform": None,
    "class": None,
    "stage": ("pipeline",),
    "batch": ("data", "fsdp", "expert"),
    # Of the embedding and the loss, which every stage has a share of; "batch" is that within the
    # layers.
    "outer_batch": ("data", "fsdp", "expert", "pipeline"),
    "length": ("context",),
    "act_length": ("context", "tensor"),
    "act_embed": None,
    "width_for_length": ("context",),
    "act_heads": ("tensor",),
    "act_kv_heads": ("tensor",),
    "act_mlp": ("tensor",),
    "act_vocab": ("tensor",),
}


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of MESH_AXES over ``devices`` (default: all there are); -1 takes what the others
    leave.

    Devices of several TPU slices are laid out so that only ``data`` goes from slice to slice, or,
    where the slices do not divide it, only ``pipeline``. Raises ConfigError, with the numbers that
    would fit, when the product is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {name: getattr(config, name) for name in MESH_AXES}
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise ConfigError(f"mesh.{name} is {size}; it must be at least 1, or -1 for the rest")
    fixed = math.prod(s for s in sizes.values() if s != -1)
    if -1 in sizes.values() and len(devices) % fixed == 0:
        sizes = {name: len(devices) // fixed if s == -1 else s for name, s in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        asked = " x ".join(f"{name}={s}" for name, s in sizes.items() if s != 1) or "of one device"
        raise ConfigError(
            f"mesh {asked} does not fit {len(devices)} devices; the product must be {len(devices)},"
            " and one axis may be -1 to take the rest"
        )
    return Mesh(_laid_out(sizes, devices), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _laid_out(sizes: Mapping[str, int], devices: list[jax.Device]) -> np.ndarray:
    """Devices by mesh axis, as their network suits: axes that talk most along its links, one that
    talks little from slice to slice.
    """
    shape, slices = tuple(sizes.values()), len({getattr(d, "slice_index", 0) for d in devices})
    if slices == 1:
        try:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        except TypeError as error:  # how its search ends without an answer
            asked = " x ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
            raise ConfigError(
                f"mesh {asked} cannot be laid along the network of these devices; where a side of"
                " it is no power of two, let each axis be a whole side or several"
            ) from error
    inner = within_slice(sizes, slices)
    outer = tuple(sizes[name] // inner[name] for name in sizes)
    return mesh_utils.create_hybrid_device_mesh(
        tuple(inner.values()), outer, devices, allow_split_physical_axes=True
    )


def between_slices(sizes: Mapping[str, int], slices: int) -> str:
    """The mesh axis that goes from slice to slice; "" of one slice. ConfigError where the slices
    divide none that may.
    """
    if slices == 1:
        return ""
    found = next((name for name in BETWEEN_SLICES if sizes[name] % slices == 0), "")
    if not found:
        has = " and ".join(f"mesh.{name} is {sizes[name]}" for name in BETWEEN_SLICES)
        raise ConfigError(
            f"{has}; one of them goes from slice to slice and must be a multiple of the {slices}"
            " slices"
        )
    return found


def within_slice(sizes: Mapping[str, int], slices: int) -> dict[str, int]:
    """``sizes`` of the part of a mesh that lies in one of ``slices`` slices."""
    between = between_slices(sizes, slices)
    return {name: size // slices if name == between else size for name, size in sizes.items()}


def partition_spec(
    axes: Sequence[str | None],
    shape: Sequence[int],
    mesh_shape: Mapping[str, int],
    name: str = "array",
) -> PartitionSpec:
    """The PartitionSpec of an array with logical ``axes`` and ``shape``; mesh axes of size 1 are
    left out.

    Raises ConfigError for an unknown logical axis, a mesh axis that is missing or used twice, or a
    dimension that does not divide over its mesh axes.
    """
    if len(axes) != len(shape):
        raise ConfigError(
            f"{name} has {len(shape)} dimensions {tuple(shape)} but {len(axes)} logical axes"
            f" {tuple(axes)}"
        )
    entries: list[tuple[str, ...] | None] = []
    taken: set[str] = set()
    for axis, size in zip(axes, shape):
        if axis is not None and axis not in RULES:
            raise ConfigError(
                f"{name}: unknown logical axis {axis!r}; there are {', '.join(RULES)}"
            )
        wanted = (RULES[axis] if axis is not None else None) or ()
        missing = [m for m in wanted if m not in mesh_shape]
        if missing:
            raise ConfigError(
                f"{name}: logical axis {axis!r} wants mesh axis {missing[0]!r}; the mesh has"
                f" {', '.join(mesh_shape)}"
            )
        used = tuple(m for m in wanted if mesh_shape[m] > 1)
        if taken & set(used):
            raise ConfigError(
                f"{name}: mesh axis {sorted(taken & set(used))[0]!r} is wanted by two of the axes"
                f" {tuple(axes)}"
            )
        ways = math.prod(mesh_shape[m] for m in used)
        if size % ways:
            raise ConfigError(
                f"{name}: dimension {axis!r} of size {size} does not divide over mesh"
                f" {' x '.join(used)} = {ways}; use {multiples(size, ways)}, or another mesh"
            )
        taken |= set(used)
        entries.append(used or None)
    return PartitionSpec(*entries)


def multiples(size: int, ways: int) -> str:
    """The multiples of ``ways`` next to ``size``."""
    return " or ".join(str(n) for n in (size // ways * ways, (size // ways + 1) * ways) if n)


def tree_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """NamedShardings for a tree of arrays (or ShapeDtypeStructs) from the tree of their logical
    axes (tuples).
    """

    def one(
        path: tuple, leaf: jax.ShapeDtypeStruct, names: tuple[str | None, ...]
    ) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(names, leaf.shape, mesh.shape, name))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def parameter_shardings(specs: Params, params: Params, mesh: Mesh) -> Params:
    """NamedShardings of parameters (or their shapes), which may be any ``ops.weights`` types.

    Args:
        specs: ``Model.specs``, the ``ParamSpec`` of each parameter.
        params: parameters, or their shapes.
        mesh: where they are placed.
    """
    axes = jax.tree.map(lambda spec: spec.axes, expand_specs(specs, params))
    return tree_shardings(axes, params, mesh)


def own_sizes() -> Mapping[str, int]:
    """Size of each mesh axis over which a program of ours is split by name.

    They are those of the current mesh if it is one that ``make_mesh`` makes. On any other (of other
    names, with Manual axes of a ``shard_map`` around us, or none at all) each is 1: there a model
    is the plain function of its arrays, and XLA's partitioner splits it as they are split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape if _is_own(mesh) else dict.fromkeys(MESH_AXES, 1)


def own_batch_ways() -> int:
    """Devices of the current mesh that each have rows of their own, as far as ``own_sizes``."""
    sizes = own_sizes()
    return math.prod(sizes[axis] for axis in RULES["batch"] or ())


def _is_own(mesh: AbstractMesh) -> bool:
    return mesh.axis_names == MESH_AXES and set(mesh.axis_types) == {AxisType.Auto}


def placement(axes: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec | None:
    """Where an activation goes on the current mesh; None where there is nothing to place.

    On a mesh of ``make_mesh`` the table holds to the letter. On any other, a logical axis goes to
    those of its mesh axes that are there, Auto, and divide its size together; all else stays open.

    Args:
        axes: its logical axes.
        shape: its shape.

    Raises:
        ConfigError: a dimension does not divide over a mesh of ``make_mesh``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if _is_own(mesh):
        one_device = math.prod(mesh.shape.values()) == 1
        return None if one_device else partition_spec(axes, shape, mesh.shape, "activation")
    sizes = {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types)
        if kind == AxisType.Auto and mesh.shape[name] > 1
    }
    entries = []
    for axis, size in zip(axes, shape):
        found = _where_it_fits(axis, size, sizes)
        # A mesh axis splits one dimension: the first that wants it.
        sizes = {name: ways for name, ways in sizes.items() if name not in found}
        entries.append(found or PartitionSpec.UNCONSTRAINED)
    placed = any(entry is not PartitionSpec.UNCONSTRAINED for entry in entries)
    return PartitionSpec(*entries) if placed else None


def _where_it_fits(axis: str | None, size: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes, of ``sizes``, that a dimension is split over; () if they do not divide it."""
    wanted = (RULES[axis] if axis is not None else None) or ()
    there = tuple(name for name in wanted if name in sizes)
    return there if size % math.prod(sizes[name] for name in there) == 0 else ()


def constrain(x: Array, *axes: str | None) -> Array:
    """``x`` with its activation axes pinned to the current mesh as ``placement`` says."""
    spec = placement(axes, x.shape)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def constrain_with_grad(
    x: Array, to: tuple[str | None, ...], back: tuple[str | None, ...]
) -> Array:
    """``constrain(x, *to)`` with the gradient pinned to the axes ``back``: summed and split at
    once, where the transpose of a constraint would have every device sum all of it.
    """
    if placement(to, x.shape) is None and placement(back, x.shape) is None:
        return x

    def gather(x: Array) -> Array:
        return constrain(x, *to)

    def split(gradient: Array) -> Array:
        return constrain(gradient, *back)

    return with_transpose(gather, split, (), x)


def interleave_rows(x: Array, pieces: int) -> Array:
    """[B, …] -> [pieces, B / pieces, …]; row b goes to piece b % pieces, so that splitting a batch
    moves no row off its device.
    """
    return jnp.moveaxis(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 1, 0)


def unstrided(x: Array) -> Array:
    """The inverse of ``interleave_rows``."""
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def batch_ways(mesh: Mesh) -> int:
    """Devices that each have rows of their own."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"] or ())


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of the arrays [B, …] of a batch by rows."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """``row_sharding`` of B rows; ConfigError when B does not divide."""
    ways = batch_ways(mesh)
    if batch_size % ways:
        over = " x ".join(axis for axis in RULES["batch"] or () if mesh.shape[axis] > 1)
        raise ConfigError(
            f"data.batch_size (per accumulation step) {batch_size} does not divide over {over} ="
            f" {ways} mesh shards; use {multiples(batch_size, ways)}"
        )
    return row_sharding(mesh)


def check_host_memory(mesh: Mesh) -> None:
    """Raise ConfigError where devices have no part of their host's memory to move activations to
    (execution.remat offload:…).
    """
    device = mesh.devices.flat[0]
    # Who only stands in for a device (llm_jax.plan, analytic) knows of no memories.
    kinds = (
        [m.kind for m in device.addressable_memories()]
        if hasattr(device, "addressable_memories")
        else [HOST_MEMORY]
    )
    if HOST_MEMORY not in kinds:
        raise ConfigError(
            f"execution.remat offload:… needs {HOST_MEMORY} memory, and {device.device_kind} has"
            f" only {', '.join(kinds)}; use names:…"
        )


def device_put_batch(batch: Params, mesh: Mesh) -> Params:
    """A whole batch of one process, split over the batch axes of the mesh. Of several processes
    each has its rows: ``multihost.global_batch``.
    """
    return jax.device_put(batch, row_sharding(mesh))
