"""The ways in which other people's JAX code calls a function of parameters and rows.

Each way is ``way(compute, params, batch)``, where ``compute`` returns a tree of sums over its rows,
and returns the same tree over all rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llm_jax.sharding import MESH_AXES

Compute = Callable[[Any, Any], Any]
Way = Callable[[Compute, Any, Any], Any]
AUTO = AxisType.Auto
EXPLICIT = AxisType.Explicit


def mesh_of(sizes: dict[str, int], kind: AxisType) -> Mesh:
    """A mesh over the first devices."""
    devices = np.array(jax.devices()[: int(np.prod(list(sizes.values())))])
    shape = tuple(sizes.values())
    return Mesh(devices.reshape(shape), tuple(sizes), axis_types=(kind,) * len(sizes))


def own_mesh(kind: AxisType = AUTO) -> Mesh:
    """A mesh of the project's axes, of two times two devices."""
    sizes = dict.fromkeys(MESH_AXES, 1) | {"data": 2, "tensor": 2}
    return mesh_of(sizes, kind)


def by_rows(batch: Any, mesh: Mesh) -> Any:
    """``batch`` split by row over the first axis of the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, P(mesh.axis_names[0])))


def plainly(compute: Compute, params: Any, batch: Any) -> Any:
    """Without jit."""
    return compute(params, batch)


def jitted(compute: Compute, params: Any, batch: Any) -> Any:
    return jax.jit(compute)(params, batch)


def vmapped(compute: Compute, params: Any, batch: Any) -> Any:
    """Over the rows, each a batch of one."""
    rows = jax.tree.map(lambda a: jnp.asarray(a)[:, None], batch)
    return _summed(jax.jit(jax.vmap(compute, in_axes=(None, 0)))(params, rows))


def ensemble(compute: Compute, params: Any, batch: Any) -> Any:
    """Over parameters: the first of two models."""
    both = jax.tree.map(lambda a: jnp.stack([a, a + 0.1]), params)
    out = jax.jit(jax.vmap(compute, in_axes=(0, None)))(both, batch)
    return jax.tree.map(lambda a: a[0], out)


def scanned(compute: Compute, params: Any, batch: Any) -> Any:
    """In a loop over halves of the rows."""

    def accumulate(params: Any, halves: Any) -> Any:
        def step(sums: Any, half: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, compute(params, half)), None

        first = jax.eval_shape(compute, params, jax.tree.map(lambda a: a[0], halves))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
        return jax.lax.scan(step, zeros, halves)[0]

    halves = jax.tree.map(lambda a: jnp.asarray(a).reshape(2, -1, *a.shape[1:]), batch)
    return jax.jit(accumulate)(params, halves)


def under_mesh(mesh: Mesh, compute: Compute, params: Any, batch: Any) -> Any:
    """Rows split over the first axis of a current mesh, parameters on all its devices."""
    placed = jax.device_put(params, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        return jax.jit(compute)(placed, by_rows(batch, mesh))


def on_mesh(mesh: Mesh, compute: Compute, params: Any, batch: Any) -> Any:
    """As ``under_mesh``, where only the arrays know of the mesh."""
    placed = jax.device_put(params, NamedSharding(mesh, P()))
    return jax.jit(compute)(placed, by_rows(batch, mesh))


def split_parameters(mesh: Mesh, compute: Compute, params: Any, batch: Any) -> Any:
    """As ``under_mesh``, with parameters split over both axes of the mesh."""

    def split(a: Array) -> Array:
        spec: list[Any] = [None] * a.ndim
        for axis in mesh.axis_names:
            free = [i for i, n in enumerate(a.shape) if spec[i] is None and n % 2 == 0]
            if free:
                spec[free[-1]] = axis
        return jax.device_put(a, NamedSharding(mesh, P(*spec)))

    with jax.set_mesh(mesh):
        return jax.jit(compute)(jax.tree.map(split, params), by_rows(batch, mesh))


def plain_arrays(mesh: Mesh, compute: Compute, params: Any, batch: Any) -> Any:
    """Arrays that are on no mesh, under one."""
    with jax.set_mesh(mesh):
        return jax.jit(compute)(params, batch)


def in_shard_map(
    mesh: Mesh,
    compute: Compute,
    params: Any,
    batch: Any,
    *,
    current: bool = False,
    **options: Any,
) -> Any:
    """Each device its rows, over the first axis of a mesh. current: the mesh is set, too."""
    axis = mesh.axis_names[0]

    def local(params: Any, batch: Any) -> Any:
        # The gradient by what is the same on all devices is summed over them by itself.
        varying = jax.tree.map(lambda a: jax.lax.pcast(a, axis, to="varying"), params)
        return jax.lax.psum(compute(varying, batch), axis)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(axis)), out_specs=P(), **options)
    if not current:
        return jax.jit(mapped)(params, batch)
    with jax.set_mesh(mesh):
        return jax.jit(mapped)(params, by_rows(batch, mesh))


def in_pmap(compute: Compute, params: Any, batch: Any) -> Any:
    rows = jax.tree.map(lambda a: jnp.asarray(a)[:, None], batch)
    mapped = jax.pmap(compute, in_axes=(None, 0), devices=jax.devices()[:4])
    return _summed(jax.tree.map(np.asarray, mapped(params, rows)))


def in_auto_axes(mesh: Mesh, compute: Compute, params: Any, batch: Any) -> Any:
    """Within ``auto_axes`` of a mesh with Explicit axes."""
    with jax.set_mesh(mesh):
        inside = jax.sharding.auto_axes(compute, out_sharding=P())
        return jax.jit(inside)(params, by_rows(batch, mesh))


def with_mesh(mesh: Mesh, compute: Compute, params: Any, batch: Any) -> Any:
    """Under ``with mesh:``, as older code has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with mesh:
            return jax.jit(compute)(params, by_rows(batch, mesh))


def _summed(tree: Any) -> Any:
    return jax.tree.map(lambda a: a.sum(0), tree)


FOREIGN = {"replica": 2, "model": 2}
# Two of the project's own names, with other meanings.
SAME_NAMES = {"tensor": 2, "data": 2}
WAYS: dict[str, Callable[[], Way]] = {
    "jit": lambda: jitted,
    "no jit": lambda: plainly,
    "vmap": lambda: vmapped,
    "ensemble": lambda: ensemble,
    "scan": lambda: scanned,
    "Auto axes": lambda: partial(under_mesh, mesh_of(FOREIGN, AUTO)),
    "Auto axes, same names": lambda: partial(split_parameters, mesh_of(SAME_NAMES, AUTO)),
    "Auto axes, not current": lambda: partial(on_mesh, mesh_of(FOREIGN, AUTO)),
    "Explicit axes": lambda: partial(under_mesh, mesh_of(FOREIGN, EXPLICIT)),
    "Explicit axes, split parameters": lambda: partial(
        split_parameters, mesh_of(SAME_NAMES, EXPLICIT)
    ),
    "Explicit axes, not current": lambda: partial(on_mesh, mesh_of(FOREIGN, EXPLICIT)),
    "Explicit axes, plain arrays": lambda: partial(plain_arrays, mesh_of(FOREIGN, EXPLICIT)),
    "own mesh": lambda: partial(under_mesh, own_mesh()),
    "own mesh, Explicit": lambda: partial(under_mesh, own_mesh(EXPLICIT)),
    "shard_map": lambda: partial(in_shard_map, mesh_of({"replica": 4}, AUTO)),
    "shard_map, unchecked": lambda: partial(
        in_shard_map, mesh_of({"replica": 4}, AUTO), check_vma=False
    ),
    "shard_map, own mesh": lambda: partial(in_shard_map, own_mesh(), current=True),
    "shard_map, one axis of own mesh": lambda: partial(
        in_shard_map, own_mesh(), axis_names={"data"}
    ),
    "shard_map, Explicit": lambda: partial(
        in_shard_map, mesh_of({"replica": 4}, EXPLICIT), current=True
    ),
    "pmap": lambda: in_pmap,
    "auto_axes": lambda: partial(in_auto_axes, mesh_of(FOREIGN, EXPLICIT)),
    "with mesh": lambda: partial(with_mesh, mesh_of(FOREIGN, AUTO)),
    "with own mesh": lambda: partial(with_mesh, own_mesh()),
}
# Left to the nightly run: each differs little from another.
RARE = (
    "jit",
    "no jit",
    "Auto axes, not current",
    "Explicit axes, not current",
    "shard_map, unchecked",
    "with own mesh",
)
