"""Full forward passes over given texts: logits, and the negative log-likelihood of each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from llm_jax.decode.finite import cause
from llm_jax.decode.inputs import checked_ids, filled_rows, padded_rows
from llm_jax.host_memory import allocating
from llm_jax.models import Model, rows_of
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params

# Rows are padded to a multiple of this, so that few lengths are ever compiled.
_BUCKET = 32
Ids = Sequence[int]


class Scorer:
    """Full forward passes of one model, without a cache; compiled once for each padded length.

    Args:
        model: the model.
        params: its parameters.
        mesh: the devices that they are on.
        vocab_size: number of its ids.
        max_length: of its context.
    """

    def __init__(
        self, model: Model, params: Params, mesh: Mesh, *, vocab_size: int, max_length: int
    ) -> None:
        self._model = model
        self._params = params
        self._mesh = mesh
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._logits = jax.jit(self._forward)
        self._nll = jax.jit(self._token_nll)

    def logits(self, rows: Sequence[Ids], encoder_rows: Sequence[Ids] = ()) -> list[np.ndarray]:
        """float32 [T, V] of each row of token ids, as one batch.

        Args:
            rows: token ids of each row.
            encoder_rows: what the encoder reads for each row, where the model has one.

        Raises:
            ConfigError: a row that is empty, longer than the context, or has other ids.
        """
        filled = filled_rows(rows, self._mesh)
        batch, lengths = self._batch(filled, filled_rows(encoder_rows, self._mesh))
        with self._running(batch):
            out = np.asarray(self._logits(self._params, batch))
        return [row[:n] for row, n in zip(out[: len(rows)], lengths)]

    def nll(self, rows: Sequence[Ids], encoder_rows: Sequence[Ids] = ()) -> list[np.ndarray]:
        """The negative log-likelihood of each token of a row after the first.

        Args:
            rows: token ids of each row.
            encoder_rows: what the encoder reads for each row, where the model has one.

        Returns:
            float32 [T - 1] of each row of T ids, in nats.

        Raises:
            ConfigError: as ``logits``.
            NonFiniteError: a number is NaN or infinite.
        """
        filled = filled_rows(rows, self._mesh)
        whole = [self._checked(row, f"text {i}", 2, 1) for i, row in enumerate(filled)]
        inputs = [row[:-1].tolist() for row in whole]
        batch, lengths = self._batch(inputs, filled_rows(encoder_rows, self._mesh))
        targets, _ = padded_rows([row[1:] for row in whole], batch.inputs.ids.shape[1])
        with self._running(batch):
            out = np.asarray(self._nll(self._params, batch._replace(targets=targets)))
        found = [row[:n] for row, n in zip(out[: len(rows)], lengths)]
        for number, row in enumerate(found):
            if not np.isfinite(row).all():
                raise NonFiniteError(
                    f"text {number}: the loss is not finite; {cause(self._params)}"
                )
        return found

    def _forward(self, params: Params, batch: Batch) -> Array:
        return self._model.logits(params, self._model.apply(params, batch).hidden)

    def _token_nll(self, params: Params, batch: Batch) -> Array:
        logits = jax.nn.log_softmax(self._forward(params, batch))
        return -jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]

    def _checked(self, row: Ids, name: str, least: int, more: int = 0) -> np.ndarray:
        ids = checked_ids(row, name, self._vocab_size)
        if not least <= len(ids) <= self._max_length + more:
            raise ConfigError(
                f"{name} has {len(ids)} tokens; it must have from {least} to"
                f" {self._max_length + more} (model.max_length {self._max_length})"
            )
        return ids

    def _batch(self, rows: Sequence[Ids], encoder_rows: Sequence[Ids]) -> tuple[Batch, np.ndarray]:
        checked = [self._checked(row, f"text {i}", 1) for i, row in enumerate(rows)]
        tokens, lengths = padded_rows(checked, self._width(checked))
        batch = rows_of(jnp.asarray(tokens), jnp.asarray(lengths))
        if encoder_rows:
            reads = [self._checked(r, f"encoder text {i}", 1) for i, r in enumerate(encoder_rows)]
            read, read_lengths = padded_rows(reads, self._width(reads))
            encoded = rows_of(jnp.asarray(read), jnp.asarray(read_lengths))
            batch = batch._replace(encoder=encoded.inputs)
        return batch, lengths

    def _width(self, rows: Sequence[np.ndarray]) -> int:
        longest = max(map(len, rows))
        return min(-(-longest // _BUCKET) * _BUCKET, self._max_length)

    @contextmanager
    def _running(self, batch: Batch) -> Iterator[None]:
        rows, length = batch.inputs.ids.shape
        size = rows * length * self._vocab_size * 4 / 2**30
        what = f"logits of {rows} rows of {length:,} tokens, {size:,.2f} GiB in float32"
        with jax.set_mesh(self._mesh), allocating(what, "give fewer or shorter texts"):
            yield
