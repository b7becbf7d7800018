"""The training state: where its arrays live, and its form on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.checkpoints.checkpoint import MISSING
from llm_jax.models import Model
from llm_jax.ops.weights import expand_specs
from llm_jax.params.select import ALL, merge, present, select, split
from llm_jax.sharding import parameter_shardings
from llm_jax.types import Params


class TrainState(NamedTuple):
    """What a step reads and returns.

    step: int32 [], optimizer steps done, which is also the position in the data.
    trainable: parameters that the loss is differentiated by; the only ones with optimizer slots,
        weight decay and a share of the norms.
    frozen: the other parameters. Both are the model's tree less the leaves of the other.
    opt_state: of the optimizer, for ``trainable``.
    """

    step: Array
    trainable: Params
    frozen: Params
    opt_state: Any

    @property
    def params(self) -> Params:
        """The parameters of the model."""
        return merge(self.trainable, self.frozen)


class SavedState(NamedTuple):
    """A TrainState as checkpoints hold it: one canonical tree of parameters, whichever of them are
    trained.
    """

    step: Array
    params: Params
    opt_state: Any


def to_saved(state: TrainState) -> SavedState:
    """``state`` as checkpoints hold it."""
    return SavedState(state.step, state.params, state.opt_state)


def from_saved(saved: SavedState, like: TrainState) -> TrainState:
    """A TrainState whose parameters are trainable where those of ``like`` are."""
    trainable, frozen = split(saved.params, present(saved.params, like.trainable))
    return TrainState(saved.step, trainable, frozen, saved.opt_state)


def fill_slots(
    state: TrainState, optimizer: optax.GradientTransformation, where: Any
) -> TrainState:
    """``state`` with those slots of the optimizer that its checkpoint lacked as at step 0.

    Args:
        state: of a checkpoint, with ``MISSING`` for such slots.
        optimizer: of the run.
        where: the shardings of ``opt_state``.
    """
    if not any(slot is MISSING for slot in jax.tree.leaves(state.opt_state)):
        return state
    new = jax.jit(optimizer.init, out_shardings=where)(state.trainable)
    slots = jax.tree.map(lambda old, new: new if old is MISSING else old, state.opt_state, new)
    return state._replace(opt_state=slots)


def make_init(
    model: Model, optimizer: optax.GradientTransformation, patterns: Sequence[str] = ALL
) -> Callable[[Array], TrainState]:
    """The pure function key -> TrainState at step 0.

    Args:
        model: its ``init`` makes the parameters.
        optimizer: of the trainable parameters.
        patterns: which parameters are trainable (``train.trainable``).
    """

    def init(key: Array) -> TrainState:
        params = model.init(key)
        specs = expand_specs(model.specs, params)
        trainable, frozen = split(params, select(patterns, specs, "train.trainable"))
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, trainable, frozen, optimizer.init(trainable))

    return init


def state_shardings(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    patterns: Sequence[str] = ALL,
) -> TrainState:
    """NamedShardings of a TrainState: optimizer arrays shaped like their parameter live where it
    does, others everywhere.
    """
    shapes = jax.eval_shape(make_init(model, optimizer, patterns), jax.random.key(0))
    params = parameter_shardings(model.specs, shapes.params, mesh)
    trainable, frozen = split(params, present(params, shapes.trainable))
    everywhere = NamedSharding(mesh, PartitionSpec())

    # A moment's path ends in its parameter's path, also where optax wraps or masks the tree.
    known = _by_path(trainable)
    sizes = {name: leaf.shape for name, leaf in _by_path(shapes.trainable).items()}

    def like(path: tuple, leaf: Any) -> NamedSharding:
        tails = (jax.tree_util.keystr(path[i:]) for i in range(len(path)))
        name = next((t for t in tails if t in known), "")
        return known[name] if name and sizes[name] == leaf.shape else everywhere

    opt_state = jax.tree_util.tree_map_with_path(like, shapes.opt_state)
    where: Any = everywhere
    return TrainState(where, trainable, frozen, opt_state)


def _by_path(tree: Params) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in flat}


def create_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    patterns: Sequence[str] = ALL,
) -> TrainState:
    """The state at step 0, made in place on the mesh; the same values whatever the mesh, to the
    last bit or next to it.
    """
    where = state_shardings(model, optimizer, mesh, patterns)
    init = jax.jit(make_init(model, optimizer, patterns), out_shardings=where)
    with jax.set_mesh(mesh):
        return init(seed_key(seed))


def seed_key(seed: int) -> Array:
    """The random key of a seed from 0 to 2**64 - 1; ``jax.random.key`` reads only its lower 32
    bits.
    """
    high, low = divmod(seed, 2**32)
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key
