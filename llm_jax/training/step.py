"""The train step: pure, jitted once with shardings and donation. An objective changes the loss,
never the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.config import Config
from llm_jax.models import Model
from llm_jax.objectives import Loss, Metric, Sums, objective_of
from llm_jax.params.select import ALL
from llm_jax.sharding import interleave_rows, row_sharding, unstrided
from llm_jax.training.compiler_flags import compiler_options
from llm_jax.training.optimizer import make_schedule, of_the_loss
from llm_jax.training.spikes import spike_metrics
from llm_jax.training.state import TrainState, seed_key, state_shardings
from llm_jax.types import Batch, Params

Metrics = dict[str, Array]
Gradient = Callable[[Params, Params, Batch, Array | None], tuple[Params, Sums]]

_CHUNK_BYTES = 64 << 20


def pick_loss_chunk(tokens: int, vocab_size: int, shards: int = 1) -> int:
    """Tokens of the vocabulary per chunk of the loss: about half at most, and so many that one
    device's float32 logits of a chunk stay within 64 MiB; a divisor of the vocabulary where one is
    near, else a multiple of 128.

    Args:
        tokens: positions that one device has at once.
        vocab_size: V.
        shards: pieces that the vocabulary is split into over devices; chunks split alike.
    """
    fewest = max(2, -(-tokens * vocab_size * 4 // (shards * _CHUNK_BYTES)))
    pieces = next((n for n in range(fewest, 2 * fewest) if vocab_size % (n * shards) == 0), 0)
    if pieces:
        return vocab_size // pieces
    whole = 128 * shards
    return min(vocab_size, -(-vocab_size // (fewest * whole)) * whole)


def abstract_batch(config: Config, sharding: NamedSharding | None = None) -> Batch:
    """Shapes of the global batch of a run, with every field that its objective fills."""
    return jax.tree.map(
        lambda field: jax.ShapeDtypeStruct(field.shape, jnp.dtype(field.dtype), sharding=sharding),
        objective_of(config.data).fields(config),
    )


def gradient_of(loss: Loss) -> Gradient:
    """The function (trainable, frozen, batch, key) -> (gradient of the total by the trainable tree,
    sums).
    """

    def gradient(
        trainable: Params, frozen: Params, batch: Batch, key: Array | None
    ) -> tuple[Params, Sums]:
        def total(trainable: Params) -> tuple[Array, Sums]:
            sums = loss(trainable, frozen, batch, key)
            return sums.total, sums

        return jax.grad(total, has_aux=True)(trainable)

    return gradient


def accumulate(gradient: Gradient, pieces: int) -> Gradient:
    """``gradient`` of a batch that is worked through in ``pieces`` pieces, one after the other:
    gradients and sums are added, and nothing is divided.
    """
    if pieces == 1:
        return gradient

    def accumulated(
        trainable: Params, frozen: Params, batch: Batch, key: Array | None
    ) -> tuple[Params, Sums]:
        def one(grads: Params, xs: tuple[Array, Batch]) -> tuple[Params, Sums]:
            index, piece = xs
            piece_key = None if key is None else jax.random.fold_in(key, index)
            grad, sums = gradient(trainable, frozen, piece, piece_key)
            return jax.tree.map(jnp.add, grads, grad), sums

        split = jax.tree.map(lambda x: interleave_rows(x, pieces), batch)
        zeros = jax.tree.map(jnp.zeros_like, trainable)
        grads, by_piece = jax.lax.scan(one, zeros, (jnp.arange(pieces), split))
        sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), by_piece._replace(row_losses=None))
        return grads, sums._replace(row_losses=unstrided(by_piece.row_losses))

    return accumulated


def divide(metric: Metric) -> Array:
    """A metric's quotient, the largest one if it has several, 0 where the weight is 0; its sum if
    it has no weight.
    """
    if metric.weight is None:
        return metric.sum
    return jnp.max(metric.sum * _inverse(metric.weight))


def _inverse(weight: Array) -> Array:
    some = weight > 0
    return jnp.where(some, 1.0 / jnp.where(some, weight, 1.0), 0.0)


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, config: Config, specs: Params
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure function (state, batch) -> (state, metrics).

    The loss is summed over pieces of the batch and over devices, and its gradient divided once by
    the objective's weight. Metrics are float32 or int32 scalars: the objective's, each divided by
    its own weight; grad_norm and param_norm of the trainable parameters; learning_rate; bad_row,
    the first row whose loss is not finite, else -1; and under a policy for spikes those of
    ``spike_metrics``.

    Raises:
        ValueError: when traced, if the objective has no metric named ``loss``.
    """
    gradient = accumulate(gradient_of(loss), config.train.accumulation)
    schedule = make_schedule(config.optimizer, config.train.steps)
    update = optax.with_extra_args_support(optimizer).update

    def dropout_key(step: Array) -> Array | None:
        if config.model.dropout == 0:
            return None
        return jax.random.fold_in(seed_key((config.train.seed + 1) % 2**64), step)

    spike = config.train.spike
    deviations = spike.deviations if spike else 0.0

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.named_scope("gradient"):
            grads, sums = gradient(state.trainable, state.frozen, batch, dropout_key(state.step))
        scale = _inverse(sums.weight)
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        metrics = _quotients(sums)
        norm = optax.tree.norm(of_the_loss(grads, specs))
        with jax.named_scope("update"):
            updates, opt_state = update(
                grads, state.opt_state, state.trainable, loss=metrics["loss"], grad_norm=norm
            )
            trainable = optax.apply_updates(state.trainable, updates)
        metrics |= {
            "grad_norm": norm,
            "param_norm": optax.tree.norm(trainable),
            "learning_rate": schedule(state.step),
            "bad_row": _first_not_finite(sums.row_losses),
            **spike_metrics(state.opt_state, opt_state, deviations),
        }
        return TrainState(state.step + 1, trainable, state.frozen, opt_state), metrics

    return train_step


def _quotients(sums: Sums) -> Metrics:
    if "loss" not in sums.metrics:
        raise ValueError(
            f"the objective has the metrics {sorted(sums.metrics)}; one must be named loss"
        )
    return {name: divide(metric) for name, metric in sums.metrics.items()}


def _first_not_finite(row_losses: Array) -> Array:
    """int32 []: index of the first row, -1 if all are finite."""
    finite = jnp.isfinite(row_losses)
    return jnp.where(jnp.all(finite), -1, jnp.argmin(finite)).astype(jnp.int32)


def jit_train_step(
    step: Callable,
    model: Model,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    patterns: Sequence[str] = ALL,
) -> Callable:
    """``step`` compiled for the mesh, the state donated. Call it inside ``jax.set_mesh(mesh)``.

    patterns: which parameters are trainable (``train.trainable``).
    """
    state = state_shardings(model, optimizer, mesh, patterns)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(state, row_sharding(mesh)),
        out_shardings=(state, everywhere),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def make_eval_step(
    loss: Loss, names: Sequence[str] = ("loss", "accuracy")
) -> Callable[[Params, Batch], dict[str, Metric]]:
    """The pure function (params, batch) -> metrics of these names, not divided yet."""

    def eval_step(params: Params, batch: Batch) -> dict[str, Metric]:
        metrics = loss(params, {}, batch, None).metrics
        return {name: metrics[name] for name in names}

    return eval_step
