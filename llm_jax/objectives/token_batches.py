"""Batches of rows of tokens: their fields, examples with random tokens, and packed windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from llm_jax.config import Config
from llm_jax.objectives.contract import Field, Window
from llm_jax.types import Batch, Tokens


def token_fields(config: Config) -> Batch:
    """Fields of a batch [B, T] of one stack of layers."""
    shape = (config.data.batch_size, config.data.seq_length)
    ids = Field(shape)
    return Batch(inputs=Tokens(ids, ids, ids), targets=ids, loss_mask=Field(shape, "bool"))


def encoder_fields(config: Config) -> Batch:
    """Fields of a batch [B, T] whose encoder reads [B, S]."""
    reads = Field((config.data.batch_size, config.data.encoder_length))
    return token_fields(config)._replace(encoder=Tokens(reads, reads, reads))


def random_tokens(config: Config) -> Batch:
    """A batch [B, T] of random tokens; each row is one document, and every token counts."""
    rows = config.data.batch_size
    length = config.data.seq_length
    tokens = _random_ids(0, rows, length + 1, config.model.vocab_size)
    return Batch(
        inputs=_whole_rows(tokens[:, :-1]),
        targets=tokens[:, 1:],
        loss_mask=np.ones((rows, length), bool),
    )


def random_encoder_tokens(config: Config) -> Batch:
    """``random_tokens`` whose encoder reads [B, S] random tokens."""
    data = config.data
    ids = _random_ids(1, data.batch_size, data.encoder_length, config.model.vocab_size)
    return random_tokens(config)._replace(encoder=_whole_rows(ids))


def _random_ids(seed: int, rows: int, length: int, vocab_size: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab_size, (rows, length), dtype=np.int32)


def _whole_rows(ids: np.ndarray) -> Tokens:
    """Rows that are one document each, without padding."""
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    return Tokens(ids, np.ones_like(ids), positions)


def pack_windows(windows: Iterable[Window], length: int, rows: int) -> Iterator[Batch]:
    """Packs windows into batches for next-token prediction; each window is a segment of its own.

    Args:
        windows: each has at most ``length`` predictions.
        length: T of the batches.
        rows: B of the batches; the last batch may have empty rows.
    """
    batch = _empty_batch(rows, length)
    row = 0
    start = 0
    segment = 1
    for tokens, scored in windows:
        predictions = len(tokens) - 1
        if start + predictions > length:
            row += 1
            start = 0
            segment = 1
        if row == rows:
            yield batch
            batch = _empty_batch(rows, length)
            row = 0
        end = start + predictions
        batch.inputs.ids[row, start:end] = tokens[:-1]
        batch.targets[row, start:end] = tokens[1:]
        batch.inputs.segment_ids[row, start:end] = segment
        batch.inputs.positions[row, start:end] = np.arange(predictions)
        batch.loss_mask[row, end - scored : end] = True
        start = end
        segment += 1
    if batch.inputs.segment_ids.any():
        yield batch


def _empty_batch(rows: int, length: int) -> Batch:
    shape = (rows, length)
    ids, segment_ids, positions, targets = (np.zeros(shape, np.int32) for _ in range(4))
    return Batch(
        inputs=Tokens(ids, segment_ids, positions),
        targets=targets,
        loss_mask=np.zeros(shape, bool),
    )
