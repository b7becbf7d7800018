"""Parameters that a run begins with: those of another run or of a converted model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from llm_jax.checkpoints.manifest import names
from llm_jax.checkpoints.open_run import open_run
from llm_jax.config import ModelConfig
from llm_jax.config.sections import flatten
from llm_jax.params.select import present, split
from llm_jax.progress import note
from llm_jax.training.build import Parts
from llm_jax.training.state import TrainState
from llm_jax.types import ConfigError

# What may differ from the model that a run begins with: the layers that a task puts on top, and
# what plays no part in what the parameters mean.
_ON_TOP = ("pooler", "classes")
_FREE = ("pooler", "dropout", "init_std", "max_length")


def started(parts: Parts, state: TrainState) -> TrainState:
    """The first state of a run with the parameters of ``train.start``.

    The pooler and the classes are taken where the other model has them in the same shapes, and stay
    random else.

    Args:
        parts: of the run.
        state: at step 0.

    Raises:
        ConfigError: the other model has another architecture or other parameters.
        CheckpointError: the folder has no model, or a damaged one.
    """
    config = parts.config
    run = open_run(config.train.start, mesh=config.mesh)
    check_same_model(config.model, run.config.model, run.folder)
    params = _taken(state.params, names(run.params), run.folder)
    trainable, frozen = split(params, present(params, state.trainable))
    where = jax.tree.map(lambda a: a.sharding, state.opt_state)
    with jax.set_mesh(parts.mesh):
        slots = jax.jit(parts.optimizer.init, out_shardings=where)(trainable)
    return TrainState(state.step, trainable, frozen, slots)


def check_same_model(ours: ModelConfig, theirs: ModelConfig, folder: Path) -> None:
    """Raises ConfigError where two architectures differ in more than the layers on top."""
    mine = flatten(ours)
    other = flatten(theirs)
    for key in {**mine, **other}:
        if key.split(".")[0] in _FREE or mine.get(key) == other.get(key):
            continue
        raise ConfigError(
            f"train.start is {str(folder)!r}, whose model.{key} is {other.get(key)!r}, and this"
            f" run's is {mine.get(key)!r}; set model.{key} to that of the model"
        )


def _taken(params: Any, theirs: dict[str, Any], folder: Path) -> Any:
    """``params`` with the arrays of another model, by path."""
    random: list[str] = []

    def one(path: tuple[Any, ...], own: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found = theirs.get(name)
        if found is not None and found.shape == own.shape:
            return jax.device_put(found.astype(own.dtype), own.sharding)
        if name.split("/")[0] in _ON_TOP:
            random.append(name)
            return own
        shape = "absent" if found is None else list(found.shape)
        raise ConfigError(
            f"train.start is {str(folder)!r}, whose {name} is {shape}, and this run's is"
            f" {list(own.shape)}; begin with a model of the same shapes"
        )

    taken = jax.tree_util.tree_map_with_path(one, params)
    beginning = f"begins with the parameters of {folder}"
    note(f"{beginning}; at random: {', '.join(random)}" if random else beginning)
    return taken
