"""Rows of a Batch: the worked example of llm_jax.types, and the definition checked token
by token.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.loading.leaves import leaves
from llm_jax.data.shards.pack import check_divides, cut_rows, rows_to_batch
from llm_jax.data.shards.records import Block
from llm_jax.types import DataError


def row(tokens, starts, length, offset=0, seq_length=None):
    block = Block(np.array(tokens, np.uint16), np.array(starts, np.int32), length)
    batch = rows_to_batch(*cut_rows([block], [offset], seq_length or len(tokens) - 1))
    assert batch.inputs.mutual_ids is None
    fields = dict(leaves(batch))
    assert fields.keys() == {f"inputs/{name}" for name in ("ids", "segment_ids", "positions")} | {
        "targets",
        "loss_mask",
    }
    assert all(a.dtype == (bool if name == "loss_mask" else np.int32) for name, a in fields.items())
    return {name.split("/")[-1]: a[0].astype(int).tolist() for name, a in fields.items()}


def test_the_worked_example_of_types():
    S, E, a, b, c, d, e, f = 2, 3, 10, 11, 12, 13, 14, 15
    assert row([S, a, b, E, S, c, d, e, f], [0, 4], 9) == {
        "ids": [S, a, b, E, S, c, d, e],
        "targets": [a, b, E, S, c, d, e, f],
        "loss_mask": [1, 1, 1, 0, 1, 1, 1, 1],
        "segment_ids": [1, 1, 1, 1, 2, 2, 2, 2],
        "positions": [0, 1, 2, 3, 0, 1, 2, 3],
    }


def test_padding_and_the_last_token_before_it():
    assert row([2, 10, 3, 2, 11, 0, 0, 0, 0], [0, 3], 5) == {
        "ids": [2, 10, 3, 2, 11, 0, 0, 0],
        "targets": [10, 3, 2, 11, 0, 0, 0, 0],
        "loss_mask": [1, 1, 0, 1, 0, 0, 0, 0],
        "segment_ids": [1, 1, 1, 2, 2, 0, 0, 0],
        "positions": [0, 1, 2, 0, 1, 0, 0, 0],
    }


def test_a_row_from_the_middle_of_a_document_to_its_end():
    # Document 10 … 15, then 20 21; the row of 4 at offset 2 ends exactly where the document does:
    # its last target belongs to the next.
    stream, starts = [10, 11, 12, 13, 14, 15, 20, 21, 22], [0, 6]
    assert row(stream, starts, 9, offset=2, seq_length=4) == {
        "ids": [12, 13, 14, 15],
        "targets": [13, 14, 15, 20],
        "loss_mask": [1, 1, 1, 0],
        "segment_ids": [1, 1, 1, 1],
        "positions": [0, 1, 2, 3],
    }


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=12),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.data(),
)
@settings(max_examples=300, deadline=None)
def test_every_field_by_its_definition(documents, seq_length, data):
    """A block of 12, cut into rows; each field computed from the owner of each token, one
    by one.
    """
    owner = [n for n, length in enumerate(documents) for _ in range(length)][:13]
    length = len(owner)
    tokens = list(range(100, 100 + length)) + [0] * (13 - length)
    starts = [i for i in range(length) if i == 0 or owner[i] != owner[i - 1]]
    offset = data.draw(st.sampled_from(range(0, 12, seq_length)))
    found = row(tokens, starts, length, offset, seq_length)
    for t in range(seq_length):
        at = offset + t
        real, follows = at < length, at + 1 < length
        assert found["ids"][t] == tokens[at] and found["targets"][t] == tokens[at + 1]
        assert found["loss_mask"][t] == (follows and owner[at] == owner[at + 1])
        inside = owner[offset : at + 1] if real else []
        assert found["segment_ids"][t] == (len(set(inside)))
        assert found["positions"][t] == (inside.count(owner[at]) - 1 if real else 0)


def test_rows_of_several_blocks_do_not_mix():
    blocks = [
        Block(np.arange(9, dtype=np.uint16) + 10 * k, np.array(s, np.int32), 9)
        for k, s in ((1, [0, 3]), (2, []), (3, [8]))
    ]
    together = rows_to_batch(*cut_rows(blocks, [4, 0, 4], 4))
    for i, offset in enumerate((4, 0, 4)):
        alone = rows_to_batch(*cut_rows([blocks[i]], [offset], 4))
        for (_, part), (_, whole) in zip(leaves(alone), leaves(together), strict=True):
            np.testing.assert_array_equal(whole[i : i + 1], part)
    assert together.loss_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]


def test_lengths_that_do_not_divide_name_those_that_do():
    check_divides(512, 2048)
    with pytest.raises(
        DataError,
        match=(
            r"seq_length=1000 does not divide block_size=2048 .* near it are \[128, 256, 512,"
            r" 1024\]"
        ),
    ):
        check_divides(1000, 2048)
    for bad in (0, -4, 4096):
        with pytest.raises(DataError, match=f"seq_length={bad} does not divide"):
            check_divides(bad, 2048)
