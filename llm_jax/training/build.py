"""What a train step needs, built from a config: mesh, model, optimizer, loss and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from llm_jax import models, sharding
from llm_jax.config import Config, ExecutionConfig
from llm_jax.config.overrides import override, provenance
from llm_jax.config.validate import validate
from llm_jax.models import Model
from llm_jax.objectives import Loss, objective_of
from llm_jax.ops.weights import expand_specs
from llm_jax.params.select import select, split
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.spikes import skip_spikes
from llm_jax.training.state import TrainState, create_state, make_init, state_shardings
from llm_jax.training.step import jit_train_step, make_train_step, pick_loss_chunk
from llm_jax.types import ConfigError


class Parts(NamedTuple):
    """What a train step needs, built once from a config.

    Attributes:
        config: of the run; its vocabulary is known.
        mesh: of all devices.
        model: for this mesh.
        optimizer: of the trainable parameters, with the policy for spikes.
        loss: of the objective.
        abstract: ShapeDtypeStructs with shardings; what a checkpoint must contain.
    """

    config: Config
    mesh: Mesh
    model: Model
    optimizer: optax.GradientTransformation
    loss: Loss
    abstract: TrainState


def build(config: Config, devices: Sequence[jax.Device] | None = None) -> Parts:
    """Builds the parts of a run.

    Args:
        config: its vocabulary size must be known.
        devices: where it runs; all there are if not given.

    Raises:
        ConfigError: settings that cannot run together, or not on these devices.
    """
    validate(config)
    platform = jax.default_backend() if devices is None else devices[0].platform
    mesh = sharding.make_mesh(config.mesh, devices)
    context = mesh.shape["context"]
    execution = models.resolve_execution(config.execution, config.model, platform, context)
    piece = config.data.batch_size // config.train.accumulation
    sharding.batch_sharding(mesh, piece)
    models.schedule(config.model, execution, mesh.shape, piece)
    if execution.remat.startswith("offload:"):
        sharding.check_host_memory(mesh)
    model = models.build(config.model, execution, platform, context)
    optimizer = _optimizer(config, model)
    rows = piece // sharding.batch_ways(mesh)
    chunk = _loss_chunk(config, execution, mesh.shape, rows)
    loss = objective_of(config.data).make_loss(model, config, chunk)
    abstract = _abstract_state(model, optimizer, mesh, config.train.trainable)
    return Parts(config, mesh, model, optimizer, loss, abstract)


def _optimizer(config: Config, model: Model) -> optax.GradientTransformation:
    train = config.train
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    specs = expand_specs(model.specs, shapes)
    trainable, _ = split(shapes, select(train.trainable, specs, "train.trainable"))
    optimizer = make_optimizer(
        config.optimizer,
        train.steps,
        trainable,
        specs,
        config.model.balance_rate,
        growth=config.model.growth,
    )
    if train.spike is None:
        return optimizer
    return skip_spikes(optimizer, train.spike.window, train.spike.deviations)


def _loss_chunk(
    config: Config, execution: ExecutionConfig, mesh_shape: Mapping[str, int], rows: int
) -> int:
    """Tokens of the vocabulary whose logits exist at once.

    Args:
        config: of the run.
        execution: its resolved execution.
        mesh_shape: size of each mesh axis.
        rows: of one accumulation step on one device.
    """
    if execution.loss_chunk:
        return execution.loss_chunk
    tokens = rows // mesh_shape["pipeline"] * config.data.seq_length
    return pick_loss_chunk(tokens, config.model.vocab_size, mesh_shape["tensor"])


def _abstract_state(
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    patterns: Sequence[str],
) -> TrainState:
    state = jax.eval_shape(make_init(model, optimizer, patterns), jax.random.key(0))
    shardings = state_shardings(model, optimizer, mesh, patterns)

    def with_sharding(
        array: jax.ShapeDtypeStruct, where: jax.sharding.Sharding
    ) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)

    return jax.tree.map(with_sharding, state, shardings)


def step_of(parts: Parts) -> Callable:
    """The train step of a run, compiled at its first call (inside ``jax.set_mesh``)."""
    specs = expand_specs(parts.model.specs, parts.abstract.params)
    return jit_train_step(
        make_train_step(parts.loss, parts.optimizer, parts.config, specs),
        parts.model,
        parts.optimizer,
        parts.mesh,
        parts.config.train.trainable,
    )


def first_state(parts: Parts) -> TrainState:
    """The state of a run at step 0."""
    train = parts.config.train
    return create_state(parts.model, parts.optimizer, parts.mesh, train.seed, train.trainable)


def with_vocabulary(config: Config, vocab_size: int) -> Config:
    """``config`` with the vocabulary size of the tokenizer, where it leaves it to the tokenizer.

    Raises:
        ConfigError: the config has fewer tokens than the tokenizer.
    """
    if config.model.vocab_size == 0:
        place = provenance(config).get("data.path", "the tokenizer")
        return override(
            config, {"model.vocab_size": vocab_size}, f"the tokenizer of data.path ({place})"
        )
    if config.model.vocab_size < vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size} but the tokenizer of data.path has"
            f" {vocab_size} tokens; use 0 (take it from the tokenizer) or at least {vocab_size}"
        )
    return config
