"""Packed batches from documents written out by hand."""

from __future__ import annotations

import numpy as np

from llm_jax.types import Batch, Tokens


def pack_rows(rows: list[list[list[int]]], length: int) -> Batch:
    """Rows of documents (lists of token ids), each row padded to ``length``, as numpy arrays."""
    fields = {
        name: np.zeros((len(rows), length), np.int32)
        for name in ("ids", "targets", "segment_ids", "positions")
    }
    loss_mask = np.zeros((len(rows), length), bool)
    for r, documents in enumerate(rows):
        stream = [t for d in documents for t in d]
        assert len(stream) <= length
        fields["ids"][r, : len(stream)] = stream
        fields["targets"][r, : len(stream)] = [*stream[1:], 0] if stream else []
        start = 0
        for number, document in enumerate(documents, start=1):
            end = start + len(document)
            fields["segment_ids"][r, start:end] = number
            fields["positions"][r, start:end] = range(len(document))
            loss_mask[r, start : end - 1] = True
            start = end
    tokens = Tokens(fields["ids"], fields["segment_ids"], fields["positions"])
    return Batch(tokens, targets=fields["targets"], loss_mask=loss_mask)
