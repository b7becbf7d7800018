"""Documents packed into rows: worked examples, and that nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.packing import assign_rows, pack_documents
from llm_jax.types import ConfigError, DataError


def test_a_worked_example():
    batch = pack_documents([[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]], 6, pad_id=1)
    assert batch.inputs.ids.tolist() == [[5, 6, 7, 8, 9, 14], [10, 11, 12, 13, 1, 1]]
    assert batch.inputs.segment_ids.tolist() == [[1, 1, 1, 2, 2, 3], [1, 1, 1, 1, 0, 0]]
    assert batch.inputs.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    assert batch.loss_mask.astype(int).tolist() == [[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert batch.targets[batch.loss_mask].tolist() == [6, 7, 9, 11, 12, 13]
    assert {array.dtype for array in (*batch.inputs[:3], batch.targets)} == {np.dtype(np.int32)}
    assert batch.loss_mask.dtype == bool


def test_a_long_document_is_split_and_every_token_but_the_first_is_predicted():
    batch = pack_documents([[1, 2, 3, 4, 5, 6, 7], [8, 9]], 3)
    assert batch.inputs.ids.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert batch.inputs.segment_ids.tolist() == [[1, 1, 1], [1, 1, 1], [1, 2, 2]]
    assert batch.inputs.positions.tolist() == [[0, 1, 2], [0, 1, 2], [0, 0, 1]]
    assert batch.targets[batch.loss_mask].tolist() == [2, 3, 4, 5, 6, 7, 9]


def test_methods_choose_other_rows():
    lengths = [5, 7, 2, 3]
    assert assign_rows(lengths, 10, "first_fit").tolist() == [0, 1, 0, 0]
    assert assign_rows(lengths, 10, "best_fit").tolist() == [0, 1, 1, 0]


def naive(lengths, seq_length, best):
    """The definition, row by row."""
    room, rows = [], []
    for length in lengths:
        fitting = [row for row, left in enumerate(room) if left >= length]
        if not fitting:
            room.append(seq_length)
            fitting = [len(room) - 1]
        row = min(fitting, key=lambda r: (room[r], r)) if best else fitting[0]
        room[row] -= length
        rows.append(row)
    return rows


@given(st.integers(1, 12), st.data())
@settings(max_examples=150, deadline=None)
def test_rows_by_their_definition(seq_length, data):
    lengths = data.draw(st.lists(st.integers(1, seq_length), max_size=30))
    for method in ("first_fit", "best_fit"):
        expected = naive(lengths, seq_length, method == "best_fit")
        assert assign_rows(lengths, seq_length, method).tolist() == expected


@given(
    st.lists(st.integers(1, 20), max_size=12),
    st.integers(1, 9),
    st.sampled_from(["first_fit", "best_fit"]),
)
@settings(max_examples=150, deadline=None)
def test_nothing_is_lost(lengths, seq_length, method):
    """Each token is there once, in its segment, and predicts the next of its document."""
    ends = np.cumsum(lengths)
    documents = [list(range(end - n + 1, end + 1)) for n, end in zip(lengths, ends)]
    batch = pack_documents(documents, seq_length, method=method)
    ids = batch.inputs.ids
    real = batch.inputs.segment_ids > 0
    assert sorted(ids[real].tolist()) == [token for tokens in documents for token in tokens]
    assert (batch.targets == ids + 1)[batch.loss_mask].all()
    last = {tokens[-1] for tokens in documents}
    predicting = set(ids[batch.loss_mask].tolist())
    assert predicting == {token for tokens in documents for token in tokens} - last
    owner = np.searchsorted(ends, ids)
    inside = real[:, 1:] & (batch.inputs.positions[:, 1:] > 0)
    assert (owner[:, 1:] == owner[:, :-1])[inside].all()
    assert (batch.inputs.positions[:, 1:] == batch.inputs.positions[:, :-1] + 1)[inside].all()


def test_no_documents_are_no_rows():
    assert pack_documents([], 4).targets.shape == (0, 4)


def test_many_documents_fill_their_rows():
    """20,000 documents in rows of 2,048: less than a tenth of the rows is padding."""
    lengths = np.random.default_rng(0).integers(1, 2049, 20_000)
    for method in ("first_fit", "best_fit"):
        rows = assign_rows(lengths, 2048, method)
        filled = np.bincount(rows, weights=lengths)
        assert filled.max() <= 2048
        assert filled.mean() > 0.9 * 2048


@pytest.mark.parametrize(
    ("documents", "options", "error", "message"),
    [
        ([[1], []], {}, DataError, "document 1 is empty"),
        ([[1, 2, 3]], {"long_documents": "error"}, DataError, "3 tokens, more than seq_length 2"),
        ([[1.5]], {}, DataError, "document 0 is float64"),
        ([[[1]]], {}, DataError, "of shape \\(1, 1\\)"),
        ([[1], [-3]], {}, DataError, "document 1 has the id -3"),
        ([[2**31]], {}, DataError, "has the id 2147483648"),
        ([[1]], {"method": "worst_fit"}, ConfigError, "method is 'worst_fit'"),
        ([[1]], {"long_documents": "cut"}, ConfigError, "long_documents is 'cut'"),
    ],
)
def test_what_cannot_be_packed_is_refused(documents, options, error, message):
    with pytest.raises(error, match=message):
        pack_documents(documents, 2, **options)


def test_rows_of_no_tokens_are_refused():
    with pytest.raises(ConfigError, match="seq_length is 0"):
        pack_documents([[1]], 0)
