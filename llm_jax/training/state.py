"""The training state and where its arrays live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.models import Model
from llm_jax.sharding import parameter_shardings
from llm_jax.types import Params


class TrainState(NamedTuple):
    """step: int32 [], optimizer steps done, which is also the position in the data · params ·
    opt_state.
    """

    step: Array
    params: Params
    opt_state: Any


def make_init(
    model: Model, optimizer: optax.GradientTransformation
) -> Callable[[Array], TrainState]:
    """The pure function key -> TrainState at step 0."""

    def init(key: Array) -> TrainState:
        params = model.init(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    return init


def state_shardings(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """NamedShardings of a TrainState: optimizer arrays shaped like their parameter live where it
    does, others everywhere.
    """
    shapes = jax.eval_shape(make_init(model, optimizer), jax.random.key(0))
    params = parameter_shardings(model.specs, shapes.params, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())

    # A moment's path ends in its parameter's path, also where optax wraps or masks the tree.
    known = {
        jax.tree_util.keystr(path): s for path, s in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    sizes = {
        jax.tree_util.keystr(path): x.shape
        for path, x in jax.tree_util.tree_flatten_with_path(shapes.params)[0]
    }

    def like(path: tuple, leaf: Any) -> NamedSharding:
        tails = (jax.tree_util.keystr(path[i:]) for i in range(len(path)))
        name = next((t for t in tails if t in known), "")
        return known[name] if name and sizes[name] == leaf.shape else everywhere

    opt_state = jax.tree_util.tree_map_with_path(like, shapes.opt_state)
    return TrainState(everywhere, params, opt_state)


def create_state(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int
) -> TrainState:
    """The state at step 0, made in place on the mesh; the same values whatever the mesh, to the
    last bit or next to it.
    """
    init = jax.jit(
        make_init(model, optimizer), out_shardings=state_shardings(model, optimizer, mesh)
    )
    with jax.set_mesh(mesh):
        return init(seed_key(seed))


def seed_key(seed: int) -> Array:
    """The random key of a seed from 0 to 2**64 - 1; ``jax.random.key`` reads only its lower 32
    bits.
    """
    high, low = divmod(seed, 2**32)
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key
