"""What objectives over examples share: rows of a folder of examples as they are, and their loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llm_jax.config import Config
from llm_jax.data.examples.folder import ExampleRows
from llm_jax.objectives.contract import Metric, Sums
from llm_jax.types import Array, Batch, DataError

if TYPE_CHECKING:
    from llm_jax.models import Output


class AsExamples(NamedTuple):
    """Rows of a folder of examples.

    task: name of the objective.
    token_types: whether the rows must have them.
    """

    task: str
    token_types: bool = False

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> ExampleRows:
        rows = ExampleRows(
            path, split, seq_length, task=self.task, tokenizer_fingerprint=fingerprint
        )
        has = rows.examples.token_types is not None
        if has != self.token_types:
            raise DataError(
                f"data {str(path)!r} has {'' if has else 'no '}types of tokens, and"
                f" data.objective.token_types is {self.token_types}; set it to {has}"
            )
        return rows

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        return batch


class Scored(NamedTuple):
    """Losses of the rows or tokens of a batch, arrays of one shape [B, …].

    nll: nats of each, 0 where it does not count.
    weights: of each in the loss, 0 where it does not count.
    correct: whether each is right; False where it does not count.
    counted: whether each counts.
    """

    nll: Array
    weights: Array
    correct: Array
    counted: Array


def sums_of(total: Array, scored: Scored, out: Output, batch: Batch, *, share: float = 1.0) -> Sums:
    """The sums of an objective over examples.

    Args:
        total: weighted loss of the batch, with all terms but those of the model.
        scored: what it is made of.
        out: of the model, whose own terms are sums over tokens.
        batch: of which the tokens are counted.
        share: what multiplies these, where the loss is not divided by a number of tokens.
    """
    import jax.numpy as jnp

    weight = jnp.sum(scored.weights, dtype=jnp.float32)
    count = jnp.sum(scored.counted, dtype=jnp.float32)
    weighted = scored.nll * scored.weights
    row_losses = jnp.sum(weighted.reshape(len(weighted), -1), axis=1)
    metrics = {
        "loss": Metric(jnp.sum(weighted), weight),
        "accuracy": Metric(jnp.sum(scored.correct, dtype=jnp.float32), count),
        "examples": Metric(count),
        "tokens": Metric(jnp.sum(batch.inputs.segment_ids != 0, dtype=jnp.float32)),
    }
    metrics |= {name: Metric(term * share, weight) for name, term in out.aux.items()}
    if out.load is not None:
        even = jnp.mean(out.load, axis=1, keepdims=True)
        metrics["expert_load"] = Metric(out.load, even)
    return Sums(
        sum((term * share for term in out.aux.values()), total), weight, metrics, row_losses
    )


def weights_of(class_weights: tuple[float, ...], labels: Array, counted: Array) -> Array:
    """Float32 weight of each label, 0 where it does not count."""
    import jax.numpy as jnp

    if not class_weights:
        return counted.astype(jnp.float32)
    return jnp.where(counted, jnp.asarray(class_weights, jnp.float32)[labels], 0.0)


def random_labels(config: Config, shape: tuple[int, ...]) -> np.ndarray:
    """Random classes of the model, int32; of a model without classes all 0."""
    pooler = config.model.pooler
    classes = max(pooler.num_classes if pooler else 1, 1)
    return np.random.default_rng(2).integers(0, classes, shape, dtype=np.int32)
