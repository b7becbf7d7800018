"""The train step: pure, jitted once with shardings and donation. Other trainings change the loss,
not the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.config import Config
from llm_jax.models import Model
from llm_jax.ops.losses import chunked_cross_entropy
from llm_jax.sharding import interleave_rows, row_sharding, unstrided
from llm_jax.training.compiler_flags import compiler_options
from llm_jax.training.optimizer import make_schedule, of_the_loss
from llm_jax.training.spikes import spike_metrics
from llm_jax.training.state import TrainState, seed_key, state_shardings
from llm_jax.types import Batch, Params


class Loss(NamedTuple):
    """Sums over a batch.

    total:    float32 [], what is differentiated: nll, its z-loss and the model's aux terms
    nll:      float32 [B, T], negative log-likelihood in nats per token, 0 where not counted
    correct:  bool [B, T], the target alone was the most likely token, False where not counted
    aux:      float32 [] each, the model's own terms by name
    load:     float32 [L, E], counted tokens that chose each expert, or None without experts
    """

    total: Array
    nll: Array
    correct: Array
    aux: dict[str, Array]
    load: Array | None


# (params, batch, dropout_key or None) -> sums over the batch
LossFn = Callable[[Params, Batch, Array | None], Loss]
Metrics = dict[str, Array]

_CHUNK_BYTES = 64 << 20


def pick_loss_chunk(tokens: int, vocab_size: int, shards: int = 1) -> int:
    """Tokens of the vocabulary per chunk of the loss: about half at most, and so many that one
    device's float32 logits of a chunk stay within 64 MiB; a divisor of the vocabulary where one is
    near, else a multiple of 128.

    tokens: positions that one device has at once, shards: pieces that the vocabulary is split into
    over devices; chunks split alike.
    """
    fewest = max(2, -(-tokens * vocab_size * 4 // (shards * _CHUNK_BYTES)))
    pieces = next((n for n in range(fewest, 2 * fewest) if vocab_size % (n * shards) == 0), 0)
    if pieces:
        return vocab_size // pieces
    whole = 128 * shards
    return min(vocab_size, -(-vocab_size // (fewest * whole)) * whole)


def abstract_batch(config: Config, sharding: NamedSharding | None = None) -> Batch:
    """Shapes of the global batch of a run, with every field that its objective fills."""
    d = config.data

    def row(length, dtype):
        return jax.ShapeDtypeStruct((d.batch_size, length), dtype, sharding=sharding)

    tokens, reads = (
        row(d.seq_length, jnp.int32),
        row(d.encoder_length, jnp.int32) if config.model.encoder_layers else None,
    )
    return Batch(
        tokens,
        tokens,
        row(d.seq_length, jnp.bool_),
        tokens,
        tokens,
        encoder_tokens=reads,
        encoder_segment_ids=reads,
    )


def make_loss(model: Model, chunk: int, z_loss: float, label_smoothing: float = 0.0) -> LossFn:
    """Cross-entropy of the batch's targets by the model, in chunks of ``chunk`` tokens of the
    vocabulary.

    What it says of positions is in the order of ``model.arrange(batch)``.
    """

    def loss(params: Params, batch: Batch, dropout_key: Array | None) -> Loss:
        batch = model.zigzag_order(batch)
        out = model.apply(params, batch, dropout_key=dropout_key)
        head = model.head(params)
        result = chunked_cross_entropy(
            model.head_transform(params, out.hidden),
            head.kernel,
            batch.targets,
            batch.loss_mask,
            chunk=chunk,
            softcap=head.softcap,
            z_loss=z_loss,
            bias=head.bias,
            label_smoothing=label_smoothing,
        )
        return Loss(
            sum(out.aux.values(), result.total), result.nll, result.correct, out.aux, out.load
        )

    return loss


def make_train_step(
    loss: LossFn, optimizer: optax.GradientTransformation, config: Config, specs: Params
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure function (state, batch) -> (state, metrics). Metrics are float32 or int32 scalars:

    loss (nats per counted token), accuracy, grad_norm, param_norm, learning_rate, tokens (counted),
    bad_row (first row whose loss is not finite, else -1), the model's aux terms per counted token,
    with experts expert_load, how many times its even share the busiest expert of any layer has, and
    under a policy for spikes what ``spike_metrics`` says.
    """
    pieces, schedule = (
        config.train.accumulation,
        make_schedule(config.optimizer, config.train.steps),
    )
    use_dropout = config.model.dropout > 0

    def gradient(params: Params, batch: Batch, key: Array | None) -> tuple[Params, Loss]:
        def total(params: Params) -> tuple[Array, Loss]:
            out = loss(params, batch, key)
            return out.total, out

        return jax.grad(total, has_aux=True)(params)

    def accumulated(params: Params, batch: Batch, key: Array | None) -> tuple[Params, Loss]:
        def one(grads: Params, xs: tuple) -> tuple[Params, Loss]:
            index, piece = xs
            k = None if key is None else jax.random.fold_in(key, index)
            g, out = gradient(params, piece, k)
            return jax.tree.map(jnp.add, grads, g), out

        split = jax.tree.map(lambda x: interleave_rows(x, pieces), batch)
        grads, out = jax.lax.scan(
            one, jax.tree.map(jnp.zeros_like, params), (jnp.arange(pieces), split)
        )
        total, aux, load = jax.tree.map(
            lambda x: jnp.sum(x, axis=0), (out.total, out.aux, out.load)
        )
        return grads, Loss(total, unstrided(out.nll), unstrided(out.correct), aux, load)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = (
            jax.random.fold_in(seed_key((config.train.seed + 1) % 2**64), state.step)
            if use_dropout
            else None
        )
        with jax.named_scope("gradient"):
            grads, out = (gradient if pieces == 1 else accumulated)(state.params, batch, key)
        tokens = jnp.sum(batch.loss_mask, dtype=jnp.float32)
        scale = 1.0 / jnp.maximum(tokens, 1.0)
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        mean, norm = jnp.sum(out.nll) * scale, optax.tree.norm(of_the_loss(grads, specs))
        with jax.named_scope("update"):
            update = optax.with_extra_args_support(optimizer).update
            updates, opt_state = update(
                grads, state.opt_state, state.params, loss=mean, grad_norm=norm
            )
            params = optax.apply_updates(state.params, updates)
        rows = jnp.isfinite(jnp.sum(out.nll, axis=1))
        metrics = {
            "loss": mean,
            "accuracy": jnp.sum(out.correct, dtype=jnp.float32) * scale,
            "grad_norm": norm,
            "param_norm": optax.tree.norm(params),
            "learning_rate": schedule(state.step),
            "tokens": tokens,
            "bad_row": jnp.where(jnp.all(rows), -1, jnp.argmin(rows)).astype(jnp.int32),
            **{name: term * scale for name, term in out.aux.items()},
            **spike_metrics(state.opt_state, opt_state, config.train.spike_deviations),
        }
        if out.load is not None:
            metrics["expert_load"] = jnp.max(
                out.load / jnp.maximum(jnp.mean(out.load, axis=1, keepdims=True), 1e-9)
            )
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def jit_train_step(
    step: Callable, model: Model, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable:
    """``step`` compiled for the mesh, the state donated. Call it inside ``jax.set_mesh(mesh)``."""
    state = state_shardings(model, optimizer, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(state, row_sharding(mesh)),
        out_shardings=(state, everywhere),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def make_eval_step(loss: LossFn) -> Callable[[Params, Batch], Metrics]:
    """(params, batch) -> sums over counted tokens: nll (nats), correct, tokens."""

    def eval_step(params: Params, batch: Batch) -> Metrics:
        out = loss(params, batch, None)
        return {
            "nll": jnp.sum(out.nll),
            "correct": jnp.sum(out.correct, dtype=jnp.float32),
            "tokens": jnp.sum(batch.loss_mask, dtype=jnp.float32),
        }

    return eval_step
