"""Full forward passes over given texts: logits, and the negative log-likelihood of each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from llm_jax.decode.finite import cause
from llm_jax.decode.inputs import checked_ids, filled_rows, padded_rows
from llm_jax.decode.results import TokenScore, token_scores
from llm_jax.host_memory import allocating
from llm_jax.models import Model, rows_of
from llm_jax.ops.sampling.logprobs import Logprobs, token_logprobs
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params

# Rows are padded to a multiple of this, so that few lengths are ever compiled.
_BUCKET = 32
Ids = Sequence[int]
Found = TypeVar("Found")


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
        self._scores = jax.jit(self._token_scores, static_argnames="top")

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
        batch, lengths = self._with_targets(rows, encoder_rows)
        with self._running(batch):
            out = np.asarray(self._nll(self._params, batch))
        found = [row[:n] for row, n in zip(out[: len(rows)], lengths)]
        for number, row in enumerate(found):
            if not np.isfinite(row).all():
                raise NonFiniteError(
                    f"text {number}: the loss is not finite; {cause(self._params)}"
                )
        return found

    def scores(
        self, rows: Sequence[Ids], encoder_rows: Sequence[Ids] = (), *, top: int = 0
    ) -> list[list[TokenScore]]:
        """How likely each token of a row after the first is, given those before it.

        Args:
            rows: token ids of each row.
            encoder_rows: what the encoder reads for each row, where the model has one.
            top: how many of the most likely tokens are given at each place.

        Raises:
            ConfigError: as ``logits``; more tokens are asked for than the vocabulary has.
            NonFiniteError: a number is NaN.
        """
        if not 0 <= top <= self._vocab_size:
            raise ConfigError(f"top is {top}; it must be from 0 to the {self._vocab_size} tokens")
        batch, lengths = self._with_targets(rows, encoder_rows)
        with self._running(batch):
            found = jax.device_get(self._scores(self._params, batch, top))
        out = []
        for number, row in enumerate(rows):
            of_row = Logprobs(*(a[number, : lengths[number]] for a in found))
            if np.isnan(of_row.chosen).any():
                raise NonFiniteError(
                    f"text {number}: a log-probability is NaN; {cause(self._params)}"
                )
            out.append(token_scores(row[1:], of_row))
        return out

    def _with_targets(
        self, rows: Sequence[Ids], encoder_rows: Sequence[Ids]
    ) -> tuple[Batch, np.ndarray]:
        """The batch whose targets are the tokens after the first, and how many each row has."""
        filled = filled_rows(rows, self._mesh)
        whole = [self._checked(row, f"text {i}", 2, 1) for i, row in enumerate(filled)]
        inputs = [row[:-1].tolist() for row in whole]
        batch, lengths = self._batch(inputs, filled_rows(encoder_rows, self._mesh))
        targets, _ = padded_rows([row[1:] for row in whole], batch.inputs.ids.shape[1])
        return batch._replace(targets=jnp.asarray(targets)), lengths

    def _token_scores(self, params: Params, batch: Batch, top: int) -> Logprobs:
        """Of the targets [B, T]."""
        return self._by_chunks(params, batch, partial(token_logprobs, top=top))

    def _token_nll(self, params: Params, batch: Batch) -> Array:
        """float32 [B, T], nats of the targets."""

        def of_chunk(logits: Array, targets: Array) -> Array:
            logprobs = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]

        return self._by_chunks(params, batch, of_chunk)

    def _by_chunks(
        self, params: Params, batch: Batch, of_chunk: Callable[[Array, Array], Found]
    ) -> Found:
        """``of_chunk(logits [B, C, V], targets [B, C])`` of all places, a chunk of them at a time:
        their arrays [B, T, ...].
        """
        hidden = self._model.apply(params, batch).hidden
        B, T, D = hidden.shape
        # Widths are multiples of _BUCKET, or the context.
        size = _BUCKET if T % _BUCKET == 0 else T
        chunks = hidden.reshape(B, T // size, size, D).swapaxes(0, 1)
        targets = batch.targets.reshape(B, T // size, size).swapaxes(0, 1)
        found = jax.lax.map(
            lambda chunk: of_chunk(self._model.logits(params, chunk[0]), chunk[1]),
            (chunks, targets),
        )
        return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(B, T, *a.shape[3:]), found)

    def _forward(self, params: Params, batch: Batch) -> Array:
        return self._model.logits(params, self._model.apply(params, batch).hidden)

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
