"""What loops and reshapes need where a mesh has explicit or manual axes.

Elsewhere, as under ``jit`` with automatic axes, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

T = TypeVar("T")


def vary_together(tree: T) -> T:
    """The arrays of a tree, typed as differing over the same manual axes of a ``shard_map``.

    A loop must give back what it was given in the same type. The gradient of an array that was the
    same on all devices is summed over them, as JAX does elsewhere.
    """
    leaves, structure = jax.tree.flatten(tree)
    axes = [jax.typeof(leaf).manual_axis_type.varying for leaf in leaves]
    union = frozenset[str]().union(*axes)
    cast = [
        jax.lax.pcast(leaf, tuple(sorted(union - own)), to="varying") if union - own else leaf
        for leaf, own in zip(leaves, axes)
    ]
    return jax.tree.unflatten(structure, cast)


def varies(x: jax.Array) -> bool:
    """Whether x is typed as differing over manual axes of a ``shard_map``."""
    return bool(jax.typeof(x).manual_axis_type.varying)


def vary_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """x, typed as differing over the manual axes of ``other``."""
    return vary_together((x, other))[0]


def explicit_spec(x: Any, dimensions: int | None = None) -> PartitionSpec:
    """The explicit mesh axes of the first ``dimensions`` dimensions of x, or of all."""
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes:
        return PartitionSpec()
    return PartitionSpec(*tuple(sharding.spec)[:dimensions])


def explicit_mesh(*trees: Any) -> Any:
    """The mesh over whose explicit axes an array of the trees lies, or None."""
    current = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in current.axis_types:
        return current
    for leaf in jax.tree.leaves(trees):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def place_automatically(run: Callable[..., T], out: Any, *args: Any) -> T:
    """``run(*args)`` with the explicit axes of the mesh made automatic inside, where XLA's
    partitioner splits the work.

    Args:
        run: takes trees of arrays.
        out: the ``PartitionSpec`` of each result over these axes, a tree of them as ``run`` returns
            it.
        *args: what ``run`` is called with.
    """
    mesh = explicit_mesh(*args)
    if mesh is None:
        return run(*args)
    shardings = jax.tree.map(partial(NamedSharding, mesh), out)
    return jax.sharding.auto_axes(run, axes=mesh.explicit_axes, out_sharding=shardings)(*args)
