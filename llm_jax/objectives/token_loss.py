"""The loss over tokens that all of today's objectives share: cross-entropy of the targets where the
batch's mask counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from llm_jax.config import Config
from llm_jax.objectives.contract import Loss, Metric, Sums
from llm_jax.types import Array, Batch, Params

if TYPE_CHECKING:
    from llm_jax.models import Model

EVALUATION = ("loss", "perplexity", "accuracy")


def make_token_loss(model: Model, config: Config, chunk: int) -> Loss:
    """``token_loss`` with the settings of a run."""
    from llm_jax.models import zigzag_order

    order = partial(zigzag_order, config.model, config.execution)
    train = config.train
    return token_loss(model, chunk, train.z_loss, train.label_smoothing, order=order)


def token_loss(
    model: Model,
    chunk: int,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    *,
    order: Callable[[Batch], Batch] | None = None,
) -> Loss:
    """Cross-entropy of the batch's targets by the model, weighted by the tokens that count.

    The metrics are loss (nats per counted token, without z-loss and label smoothing), accuracy
    (the target alone was the most likely token), tokens (counted), the model's own terms per
    counted token, and, with experts, expert_load: how many times its even share the busiest expert
    of any layer has.

    Args:
        model: any model of ``llm_jax.models``.
        chunk: tokens of the vocabulary whose logits exist at once.
        z_loss: weight of the squared log-normaliser.
        label_smoothing: share of each target's weight that is spread over the vocabulary.
        order: reorders the positions of a batch (``models.zigzag_order``); None keeps their order.
    """
    import jax.numpy as jnp

    from llm_jax.ops.losses import chunked_cross_entropy
    from llm_jax.params.select import merge

    def loss(trainable: Params, frozen: Params, batch: Batch, key: Array | None) -> Sums:
        params = merge(trainable, frozen)
        if order is not None:
            batch = order(batch)
        out = model.apply(params, batch, dropout_key=key)
        head = model.head(params)
        entropy = chunked_cross_entropy(
            head.transformed(out.hidden),
            head.kernel,
            batch.targets,
            batch.loss_mask,
            chunk=chunk,
            softcap=head.softcap,
            z_loss=z_loss,
            bias=head.bias,
            label_smoothing=label_smoothing,
        )
        tokens = jnp.sum(batch.loss_mask, dtype=jnp.float32)
        metrics = {
            "loss": Metric(jnp.sum(entropy.nll), tokens),
            "accuracy": Metric(jnp.sum(entropy.correct, dtype=jnp.float32), tokens),
            "tokens": Metric(tokens),
        }
        metrics |= {name: Metric(term, tokens) for name, term in out.aux.items()}
        if out.load is not None:
            even = jnp.mean(out.load, axis=1, keepdims=True)
            metrics["expert_load"] = Metric(out.load, even)
        total = sum(out.aux.values(), entropy.total)
        return Sums(total, tokens, metrics, jnp.sum(entropy.nll, axis=1))

    return loss
