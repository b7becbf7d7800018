"""Packing: from blocks of the token stream to the rows of a ``Batch``. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_jax.data.shards.records import Block
from llm_jax.types import Batch, DataError, Tokens


def check_divides(seq_length: int, block_size: int, name: str = "seq_length") -> None:
    """Check that ``seq_length`` divides ``block_size``.

    Args:
        seq_length: T.
        block_size: of the shards.
        name: name of ``seq_length`` in the error.

    Raises:
        DataError: it does not; the message has the divisors nearest to it.
    """
    if seq_length > 0 and block_size % seq_length == 0:
        return
    divisors = [d for d in range(1, block_size + 1) if block_size % d == 0]
    near = sorted(sorted(divisors, key=lambda d: abs(d - seq_length))[:4])
    raise DataError(
        f"{name}={seq_length} does not divide block_size={block_size} of these shards; near it are"
        f" {near}, or prepare the data with block_size a multiple of {max(seq_length, 1)}"
    )


def cut_rows(
    blocks: Sequence[Block], offsets: Sequence[int], seq_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of ``seq_length + 1`` tokens, the last one only to be predicted.

    Args:
        blocks: the block each row comes from.
        offsets: where in its block each row begins.
        seq_length: T.

    Returns:
        windows [B, T + 1] int32, starts [B, T + 1] bool (a document begins there), lengths [B]
        (real tokens in the window).
    """
    window = seq_length + 1
    windows = np.empty((len(blocks), window), np.int32)
    starts = np.zeros((len(blocks), window), bool)
    for row, block, offset in zip(range(len(blocks)), blocks, offsets):
        windows[row] = block.tokens[offset : offset + window]
    if blocks:
        counts = [len(block.starts) for block in blocks]
        inside = np.concatenate([block.starts for block in blocks]) - np.repeat(offsets, counts)
        here = (inside >= 0) & (inside < window)
        starts[np.repeat(np.arange(len(blocks)), counts)[here], inside[here]] = True
    lengths = np.minimum(
        np.array([block.length for block in blocks], np.int32) - np.asarray(offsets, np.int32),
        window,
    )
    return windows, starts, lengths


def rows_to_batch(windows: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Batch:
    """The ``Batch`` of windows as ``cut_rows`` returns them; see ``llm_jax.types`` for what the
    fields mean.

    A row that begins in the middle of a document begins with segment 1 at position 0. Rows of
    length 0 are all padding.
    """
    begins = starts[:, :-1].copy()
    begins[:, 0] = True
    index = np.arange(begins.shape[1], dtype=np.int32)
    real = index < lengths[:, None]
    segment_ids = np.cumsum(begins, axis=1, dtype=np.int32)
    positions = index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
    if not real.all():
        segment_ids *= real
        positions *= real
    loss_mask = (index + 1 < lengths[:, None]) & ~starts[:, 1:]
    return Batch(
        inputs=Tokens(np.ascontiguousarray(windows[:, :-1]), segment_ids, positions),
        targets=np.ascontiguousarray(windows[:, 1:]),
        loss_mask=loss_mask,
    )
