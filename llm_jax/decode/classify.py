"""Probabilities of classes: of rows, or of each token of rows."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.config.support import refuse
from llm_jax.decode.finite import cause
from llm_jax.decode.row_batches import of_rows
from llm_jax.models import class_logits
from llm_jax.ranges import Count, checked
from llm_jax.types import Batch, NonFiniteError, Params


@checked
def class_probabilities(
    run: Run,
    rows: Sequence[Sequence[int]],
    *,
    token_types: Sequence[Sequence[int]] | None = None,
    batch_size: Count = 32,
) -> list[np.ndarray]:
    """The probabilities of the model's classes (``model.pooler.num_classes``) of each row.

    Args:
        run: a model of one stack with classes, on any mesh.
        rows: token ids of each row.
        token_types: which of two texts each token is of, for models that have them.
        batch_size: rows computed together.

    Returns:
        For each row float32 [classes]; where the pooler reads each token, [tokens, classes].

    Raises:
        ConfigError: a model of two stacks, or without classes.
        NonFiniteError: a probability is NaN.
    """
    config = run.config.model
    refuse(config, "embed", "classes")

    @jax.jit
    def probabilities(params: Params, batch: Batch) -> jax.Array:
        hidden = run.model.apply(params, batch).hidden
        logits = class_logits(config, params, hidden, batch.loss_mask)
        return jax.nn.softmax(logits, axis=-1)

    found = of_rows(run, rows, probabilities, batch_size=batch_size, token_types=token_types)
    if config.pooler and config.pooler.reads == "each":
        found = [one[: len(row)] for one, row in zip(found, rows)]
    for number, one in enumerate(found):
        if not np.isfinite(one).all():
            raise NonFiniteError(f"the classes of row {number} are not finite; {cause(run.params)}")
    return found
