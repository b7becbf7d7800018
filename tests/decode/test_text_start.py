"""Texts that end a row, where the blank at the start of a text is dropped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from constrained_rows import COMPLETE_KINDS, tokenizer_of

from llm_jax.decode.state import Stops, TextStart
from llm_jax.decode.text import bytes_of_tokens
from llm_jax.decode.text_start import joined, token_starts
from llm_jax.ops.sampling.stops import START, stop_table

_ADVANCE = jax.jit(Stops.advance)


def matched_after(kind: str, text: list[int], stop: str, begins: bool) -> int | None:
    """How many tokens a row has written when a stop text ends it; None where none does."""
    tokenizer = tokenizer_of(kind)
    later = bytes_of_tokens(tokenizer, tokenizer.vocab_size)
    starts = token_starts(tokenizer, tokenizer.vocab_size)
    table = stop_table([[stop]])
    stops = Stops(table, later)
    if starts is not None:
        start = TextStart(jnp.array([begins]), jnp.asarray(starts.begun))
        stops = Stops(table, joined(later, starts.bytes), start)
    state = jnp.full((1,), START)
    for place, id in enumerate(text):
        state, matched = _ADVANCE(stops, state, jnp.array([id]), jnp.array([place == 0]))
        if matched[0]:
            return place + 1
    return None


@pytest.mark.parametrize("kind", [*COMPLETE_KINDS, "marian"])
@pytest.mark.parametrize("stop", [" the", "the", " the the", "e t", " "])
def test_a_stop_text_ends_a_row_where_its_visible_text_has_it(kind, stop):
    tokenizer = tokenizer_of(kind)
    for words in ("the the the", " the a", "an the"):
        ids = tokenizer.encode(words)
        for text in (ids, [tokenizer.eos_ids[0], *ids] if tokenizer.eos_ids else ids):
            found = matched_after(kind, text, stop, begins=True)
            expected = next(
                (n for n in range(1, len(text) + 1) if stop in tokenizer.decode(text[:n])), None
            )
            assert found == expected


@pytest.mark.parametrize("kind", ["metaspace", "marian"])
def test_a_stop_text_with_a_blank_is_not_found_where_the_blank_is_dropped(kind):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer.encode("the")
    assert tokenizer.decode_bytes(ids).startswith(b" the") and tokenizer.decode(ids) == "the"
    assert matched_after(kind, ids, " the", begins=True) is None
    assert matched_after(kind, ids, " the", begins=False) == len(ids)
    assert matched_after(kind, [*ids, *ids], " the", begins=True) == 2 * len(ids)
