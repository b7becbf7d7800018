"""Stop strings: texts that end a row wherever they appear in it, across the borders of tokens.

The host makes an automaton of the stop strings of each row (Aho and Corasick 1975), over bytes. The
device follows it through the bytes of each new token; the state of a row is one number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically, vary_together

START = 0
"""The state before a text."""
MATCHED = 1
"""The state after a stop string; it does not end."""
SMALLEST = 32
"""States that an automaton has room for at least; more are powers of two."""


class StopTable(NamedTuple):
    """The automaton of each row.

    Attributes:
        next: int16 [B, states, 256], the state after each byte.
        held: int16 [B, states], bytes at the end of the text that may begin a stop string. A
            stream holds these back, and no more.
    """

    next: Array
    held: Array

    def gather(self, rows: Array) -> StopTable:
        """The automata whose row b is row ``rows[b]`` of these. rows: int [B']."""
        return StopTable(*(jnp.take(a, rows, axis=0) for a in self))


class TokenBytes(NamedTuple):
    """The bytes of each token.

    Attributes:
        flat: uint8 [n], those of all tokens, one after another.
        offsets: int32 [V + 1], where each token begins, and the end.
    """

    flat: Array
    offsets: Array


def token_bytes_table(tokens: Sequence[bytes]) -> TokenBytes:
    """The bytes of each token as arrays; a special token, which is no text, has none."""
    lengths = np.array([len(token) for token in tokens], np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    # At least one byte, so that a place in the array exists.
    flat = np.frombuffer(b"".join(tokens) + b"\0", np.uint8)
    return TokenBytes(jnp.asarray(flat), jnp.asarray(offsets.astype(np.int32)))


def stop_table(rows: Sequence[Sequence[str | bytes]]) -> StopTable:
    """The automata of the stop strings of each row, on the host.

    Args:
        rows: stop strings of each row; a row may have none. Text stands for its UTF-8.

    Raises:
        ValueError: a stop string is empty, or those of a row are too long together.
    """
    automata = [
        _automaton(row, [_as_bytes(row, stop) for stop in stops]) for row, stops in enumerate(rows)
    ]
    states = max((len(table) for table, _ in automata), default=1)
    room = max(SMALLEST, 1 << (states - 1).bit_length())
    following = np.zeros((len(automata), room, 256), np.int16)
    held = np.zeros((len(automata), room), np.int16)
    for row, (table, depth) in enumerate(automata):
        following[row, : len(table)] = table
        held[row, : len(depth)] = depth
    return StopTable(jnp.asarray(following), jnp.asarray(held))


def advance_stops(
    state: Array, tokens: Array, table: StopTable, token_bytes: TokenBytes
) -> tuple[Array, Array]:
    """The state of each row after one more token of its new text.

    Args:
        state: int32 [B], ``START`` before the first new token.
        tokens: int [B]; below 0 is none.
        table: the automata.
        token_bytes: the bytes of tokens.

    Returns:
        The state int32 [B], and bool [B]: whether the new text has a stop string.

    Raises:
        ValueError: the shapes disagree.
    """
    rows = state.shape
    if len(rows) != 1 or tokens.shape != rows or table.next.shape[:1] != rows:
        raise ValueError(
            f"advance_stops got states {state.shape}, tokens {tokens.shape} and automata"
            f" {table.next.shape}; expected [B], [B] and [B, states, 256]"
        )

    def run(
        state: Array, tokens: Array, following: Array, token_bytes: TokenBytes
    ) -> tuple[Array, Array]:
        state, tokens, following, token_bytes = vary_together(
            (state.astype(jnp.int32), tokens, following, token_bytes)
        )
        flat, offsets = token_bytes
        token = jnp.maximum(tokens, 0)
        begin = jnp.take(offsets, token)
        count = jnp.where(tokens < 0, 0, jnp.take(offsets, token + 1) - begin)
        each_row = jnp.arange(tokens.shape[0])

        def read(place: Array, state: Array) -> Array:
            byte = jnp.take(flat, begin + place, mode="clip").astype(jnp.int32)
            after = following[each_row, state, byte].astype(jnp.int32)
            return jnp.where(place < count, after, state)

        state = jax.lax.fori_loop(0, jnp.max(count), read, state)
        return state, state == MATCHED

    spec = explicit_spec(state)
    return place_automatically(run, (spec, spec), state, tokens, table.next, token_bytes)


def _as_bytes(row: int, stop: str | bytes) -> bytes:
    text = stop.encode() if isinstance(stop, str) else bytes(stop)
    if not text:
        raise ValueError(f"row {row} has an empty stop string, which would end every text at once")
    return text


def _automaton(row: int, stops: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The states after each byte, [states, 256], and the bytes that each state has matched."""
    children = _trie(stops)
    if len(children) > np.iinfo(np.int16).max:
        raise ValueError(
            f"the stop strings of row {row} have {len(children)} bytes together; at most"
            f" {np.iinfo(np.int16).max} fit"
        )
    table = np.zeros((len(children), 256), np.int16)
    depth = np.zeros(len(children), np.int16)
    # The state of the longest proper end of what a state has matched that may begin a stop string.
    fallback = np.zeros(len(children), np.int64)
    waiting = deque([START])
    while waiting:
        state = waiting.popleft()
        table[state] = table[fallback[state]]
        if state == START:
            table[state] = START
        for byte, child in children[state].items():
            after = table[state, byte] if state != START else START
            table[state, byte] = child
            if child == MATCHED:
                continue
            if after == MATCHED:
                # Another stop string ends here.
                table[state, byte] = MATCHED
                continue
            fallback[child] = after
            depth[child] = depth[state] + 1
            waiting.append(child)
    table[MATCHED] = MATCHED
    return table, depth


def _trie(stops: Sequence[bytes]) -> list[dict[int, int]]:
    """The states that begin stop strings, each with the states after further bytes."""
    children: list[dict[int, int]] = [{}, {}]
    for stop in sorted(stops, key=len):
        state = START
        for byte in stop[:-1]:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
            state = children[state][byte]
            if state == MATCHED:
                # A shorter stop string begins this one.
                break
        else:
            children[state][stop[-1]] = MATCHED
    return children
