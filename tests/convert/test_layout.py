"""Layout patterns: literal truths, and that there and back is the same."""

from __future__ import annotations

import numpy as np
import pytest

from llm_jax.convert import layout

X = np.arange(24)


def test_a_transposed_matrix():
    x = X[:6].reshape(2, 3)
    assert layout.to_native(x, "f d -> d f", (3, 2)).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert layout.source_shape("f d -> d f", (3, 2)) == (2, 3)


def test_heads_of_a_projection():
    """Rows 0 and 1 are the first head, 2 and 3 the second; columns are the inputs."""
    x = X[:12].reshape(4, 3)
    native = layout.to_native(x, "(n h) d -> d n h", (3, 2, 2))
    assert (
        native[:, 0, 0].tolist() == [0, 1, 2]
        and native[:, 1, 0].tolist() == [6, 7, 8]
        and native[0].tolist() == [[0, 3], [6, 9]]
    )


def test_neighbours_become_halves():
    """One head of four numbers: source turns (0, 1) and (2, 3), native (0, 2) and (1, 3)."""
    x = np.asarray([[10], [11], [20], [21]])
    assert layout.to_native(x, "(n r 2) d -> d n (2 r)", (1, 1, 4)).tolist() == [[[10, 20, 11, 21]]]


@pytest.mark.parametrize(
    "pattern, shape",
    [
        ("v d -> v d", (4, 6)),
        ("f d -> d f", (4, 6)),
        ("(n h) d -> d n h", (4, 3, 2)),
        ("d (n h) -> n h d", (3, 2, 4)),
        ("(n r 2) d -> d n (2 r)", (3, 2, 4)),
        ("(r 2) -> (2 r)", (24,)),
        ("e d f -> e d f", (2, 3, 4)),
        ("a -> a", (24,)),
    ],
)
def test_there_and_back(pattern, shape):
    native = X.reshape(shape)
    source = layout.to_source(native, pattern)
    assert source.shape == layout.source_shape(pattern, shape) and layout.rank(pattern) == len(
        shape
    )
    np.testing.assert_array_equal(layout.to_native(source, pattern, shape), native)


def test_parts_one_after_another_and_in_turn():
    x = np.asarray([[0], [1], [2], [3], [4], [5]])
    one = layout.split(x, 0, 1, [2, 4])
    assert [p.ravel().tolist() for p in one] == [[0, 1], [2, 3, 4, 5]]
    turns = layout.split(x, 0, 3, [3, 3])
    assert [p.ravel().tolist() for p in turns] == [[0, 2, 4], [1, 3, 5]]
    uneven = layout.split(x, 0, 2, [2, 4])
    assert [p.ravel().tolist() for p in uneven] == [[0, 3], [1, 2, 4, 5]]
    for parts, groups in ((one, 1), (turns, 3), (uneven, 2)):
        np.testing.assert_array_equal(layout.join(parts, 0, groups), x)
    columns = layout.split(x.T, 1, 3, [3, 3])
    assert [p.tolist() for p in columns] == [[[0, 2, 4]], [[1, 3, 5]]]


def test_a_pattern_whose_sides_differ_is_a_mistake():
    with pytest.raises(AssertionError):
        layout.to_native(X, "a b -> a", (24,))
