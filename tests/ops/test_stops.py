"""Stop strings: the automaton against ``bytes.find``, whatever the tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.ops import advance_stops
from llm_jax.ops.sampling import START, stop_table, token_bytes_table

# Tokens of one to three bytes, some of which cut a character of UTF-8; and one without text.
TOKENS = [b"", b"a", b"b", b"ab", b"ba", b"aba", b"\xc3", b"\xa9", "é".encode(), b" ", b"\xf0\x9f"]
BYTES = token_bytes_table(TOKENS)
LENGTH = 8
ADVANCE = jax.jit(advance_stops)


def follow(stops, tokens):
    """Whether a row has matched after each token, and the bytes held back."""
    table = stop_table(stops)
    state = jnp.full(len(stops), START)
    matched, held = [], []
    for column in np.asarray(tokens).T:
        state, found = ADVANCE(state, column, table, BYTES)
        matched.append(np.asarray(found))
        held.append(np.asarray(table.held)[np.arange(len(stops)), np.asarray(state)])
    return np.array(matched).T, np.array(held).T


def longest_beginning(text, stops):
    """Bytes at the end of the text that begin a stop string."""
    most = max((len(stop) for stop in stops), default=1) - 1
    ends = range(min(most, len(text)), 0, -1)
    return next((n for n in ends if any(s.startswith(text[-n:]) for s in stops)), 0)


STOP = st.lists(st.sampled_from(TOKENS[1:]), min_size=1, max_size=3).map(b"".join)
ROW = st.tuples(
    st.lists(STOP, max_size=4), st.lists(st.integers(0, 10), min_size=LENGTH, max_size=LENGTH)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(ROW, min_size=3, max_size=3))
def test_it_finds_what_find_finds(rows):
    stops = [stops for stops, _ in rows]
    matched, held = follow(stops, [tokens for _, tokens in rows])
    for row, (strings, tokens) in enumerate(rows):
        for n in range(LENGTH):
            text = b"".join(TOKENS[token] for token in tokens[: n + 1])
            found = any(text.find(string) >= 0 for string in strings)
            assert matched[row, n] == found
            if not found:
                assert held[row, n] == longest_beginning(text, strings)


def test_text_is_utf8_and_a_token_may_end_inside_a_character():
    matched, held = follow([["é"], [b"b a"]], [[1, 6, 7, 1], [2, 9, 1, 0]])
    assert matched.tolist() == [[False, False, True, True], [False, False, True, True]]
    assert held[0, :2].tolist() == [0, 1]


def test_a_row_that_has_ended_stays_as_it_is():
    table = stop_table([["ab"]])
    state, _ = advance_stops(jnp.array([START]), jnp.array([1]), table, BYTES)
    again, found = advance_stops(state, jnp.array([-1]), table, BYTES)
    assert again.tolist() == state.tolist() and not found[0]
    assert advance_stops(again, jnp.array([2]), table, BYTES)[1].tolist() == [True]


def test_room_grows_by_powers_of_two_and_rows_are_gathered():
    assert stop_table([[], ["x" * 20]]).next.shape == (2, 32, 256)
    assert stop_table([["x" * 40]]).next.shape == (1, 64, 256)
    table = stop_table([["a"], ["b"]]).gather(jnp.array([1, 1, 0]))
    _, found = advance_stops(jnp.zeros(3, jnp.int32), jnp.array([2, 1, 1]), table, BYTES)
    assert found.tolist() == [True, False, True]


def test_errors_name_the_row():
    with pytest.raises(ValueError, match="row 1 has an empty stop string"):
        stop_table([["a"], ["b", ""]])
    with pytest.raises(ValueError, match="row 0 have 40001 bytes together"):
        stop_table([["x" * 40_000]])
    with pytest.raises(ValueError, match="expected \\[B\\], \\[B\\] and"):
        advance_stops(jnp.zeros(2, jnp.int32), jnp.zeros(3, jnp.int32), stop_table([["a"]]), BYTES)
