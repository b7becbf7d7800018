"""Rows of tokens through a model in batches of similar lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.decode.inputs import filled_rows, padded_rows
from llm_jax.models import rows_of
from llm_jax.types import Batch, Params

# Rows are padded to a multiple of this, so that few lengths are ever compiled.
_BUCKET = 32


def of_rows(
    run: Run,
    rows: Sequence[Sequence[int]],
    compute: Callable[[Params, Batch], jax.Array],
    *,
    batch_size: int,
    token_types: Sequence[Sequence[int]] | None = None,
) -> list[np.ndarray]:
    """What ``compute`` makes of each row, in the order of the rows.

    Args:
        run: the model, on any mesh.
        rows: token ids, at least one of each and at most ``model.max_length``.
        compute: a jitted function (params, batch) -> [B, …], one row a document.
        batch_size: rows computed together; a batch is filled up to a multiple of the ways that the
            mesh splits rows.
        token_types: of each token, for models that have them.
    """
    found: dict[int, np.ndarray] = {}
    # Rows of similar length together have the least padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = _padded(run, [rows[i] for i in chosen])
        if token_types is not None:
            types = _padded(run, [token_types[i] for i in chosen]).inputs.ids
            batch = batch._replace(inputs=batch.inputs._replace(token_types=types))
        with jax.set_mesh(run.mesh):
            made = np.asarray(compute(run.params, batch))
        found |= dict(zip(chosen, made))
    return [found[i] for i in range(len(rows))]


def _padded(run: Run, rows: Sequence[Sequence[int]]) -> Batch:
    filled = filled_rows(rows, run.mesh)
    width = min(-(-max(map(len, filled)) // _BUCKET) * _BUCKET, run.config.model.max_length)
    tokens, lengths = padded_rows([np.asarray(row) for row in filled], width)
    return rows_of(jnp.asarray(tokens), jnp.asarray(lengths))
