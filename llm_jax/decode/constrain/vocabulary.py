"""The tokens of a model as llguidance reads them: the bytes of each id."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from llm_jax.decode.constrain.library import llguidance
from llm_jax.tokenizers.token_table import TextStart, check_ids
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import ConfigError

# Encoded before a text by a tokenizer that puts a blank at the start, and cut off again. No piece
# goes on after a line end.
_ANCHOR = "\n"


class GrammarVocabulary:
    """The bytes of every token, and which tokens end a text.

    A constraint is about the bytes that new tokens add to a text. Where a text begins, as a
    translation does, some tokens write their text without the blank that they have elsewhere: such
    a token has a second id, behind those of the model, which stands for it as the first of a text.
    Bytes that no token writes alone have an id there too, since llguidance expects all 256; the
    model never gets these ids.

    Building one takes about half a second for 50,000 tokens; keep it for a model.

    Attributes:
        size: V, ids of the model. Those that the tokenizer does not have are never allowed.
        words: ceil(V / 32), 32-bit words of a row of a bitmask.
        stop_ids: tokens that end a text. They never are part of one.
        stop_mask: uint32 [ceil(V / 32)], their bits.
        tokenizer: llguidance's ``LLTokenizer``.
        executor: llguidance's threads; None where one thread does all.
        starts: int [n], tokens that are written differently where a text begins.
        start_ids: int [n], their second ids; -1 where nothing of the token would be left.

    Args:
        tokenizer: of the model's texts.
        vocab_size: V.
        stop_ids: tokens that end a text; None takes the tokenizer's ``eos_ids``.
        threads: that compute bitmasks of several rows; None leaves one core of the machine to the
            model.

    Raises:
        ConfigError: there is no tokenizer, a stop id is not an id of the model, or llguidance is
            missing.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        stop_ids: Iterable[int] | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        if tokenizer is None:
            raise ConfigError(
                "a constraint is about text, and this model has no tokenizer; open a run with one,"
                " or decode without the constraint"
            )
        library = llguidance()
        self.size = vocab_size
        self.words = -(-vocab_size // 32)
        given = tokenizer.eos_ids if stop_ids is None else tuple(stop_ids)
        self.stop_ids = _checked_stops(given, vocab_size)
        self.stop_mask = self.mask_of(self.stop_ids)
        self._source = tokenizer
        self._known = _bytes_of_tokens(tokenizer, vocab_size, self.stop_ids)
        self._ids = {data: id for id, data in reversed(list(enumerate(self._known))) if data}
        self._longest_size = max(map(len, self._ids), default=1)
        self.starts, self.start_ids, tokens = self._with_starts(tokenizer)
        self._first_ids = dict(zip(self.starts.tolist(), self.start_ids.tolist()))
        for byte in range(256):
            if bytes([byte]) not in self._ids:
                self._ids[bytes([byte])] = len(tokens)
                tokens.append(bytes([byte]))
        # llguidance wants a token that ends texts; ``Matchers`` adds the bits of ``stop_ids``.
        self.end_id = len(tokens)
        described = _Described([*tokens, b"<end>"], self.end_id, self._encode)
        self.tokenizer = library.LLTokenizer(library.TokenizerWrapper(described))
        threads = max(1, (os.cpu_count() or 1) - 1) if threads is None else threads
        self.executor = library.LLExecutor(threads) if threads > 1 else None
        if self.tokenizer.vocab_size != self.end_id + 1:
            raise ConfigError(
                f"llguidance has {self.tokenizer.vocab_size} tokens of {self.end_id + 1}; install"
                " the newest version"
            )

    @property
    def count(self) -> int:
        """Ids that the tokenizer and the model both have."""
        return len(self._known)

    def bytes_of(self, id: int) -> bytes:
        """The bytes of a token after other text; empty for a token that is never allowed."""
        return self._known[id]

    def begins_after(self, prompt: Iterable[int]) -> bool:
        """Whether a text begins after the tokens of a prompt, and does not go on from their text,
        as after ``<s>`` alone.

        Raises:
            DataError: an id is not in the tokenizer's vocabulary.
        """
        start = TextStart(self._source)
        for id in check_ids(prompt, self._source.vocab_size):
            start.bytes_of(id)
            if start.over:
                return False
        return True

    def has_text(self, id: int) -> bool:
        """Whether an id is a token of the model that may be part of a text."""
        return 0 <= id < len(self._known) and bool(self._known[id])

    def mask_of(self, ids: Iterable[int]) -> np.ndarray:
        """The bits of the ids: uint32 [ceil(V / 32)]."""
        bits = np.zeros(self.words * 32, np.uint8)
        bits[list(ids)] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def fitting(self, text: bytes, at_start: bool) -> list[int]:
        """The tokens that write the beginning of a text, or more than the text.

        Args:
            text: bytes, at least one.
            at_start: whether the text begins with them.
        """
        written = self._known
        if at_start:
            written = [self._source.first_bytes(id) for id in range(len(self._known))]
        fits = (bool(data) and (text.startswith(data) or data.startswith(text)) for data in written)
        return [id for id, fit in enumerate(fits) if fit and self.has_text(id)]

    def begins_as(self, id: int) -> int:
        """The id that stands for a token as the first of a text; -1 where nothing is left."""
        return self._first_ids.get(id, id)

    def _with_starts(self, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
        """``starts``, ``start_ids`` and the bytes of all ids, those of second ids behind."""
        tokens = [*self._known, *[b""] * (self.words * 32 - len(self._known))]
        starts: list[int] = []
        ids: list[int] = []
        for id, data in enumerate(self._known):
            first = tokenizer.first_bytes(id) if data else b""
            if first == data:
                continue
            starts.append(id)
            ids.append(len(tokens) if first else -1)
            if first:
                tokens.append(first)
        return np.array(starts, np.int64), np.array(ids, np.int64), tokens

    def _encode(self, data: bytes) -> list[int]:
        """The tokens that a tokenizer makes of a text, or the longest ones that fit one after
        another where these do not write exactly this text.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return self._longest(data)
        if self._source.adds_prefix:
            ids = self._after_anchor(self._source.encode(_ANCHOR + text))
        else:
            ids = self._source.encode(text)
        if all(id < len(self._known) for id in ids) and self._written(ids) == data:
            return ids
        return self._longest(data)

    def _longest(self, data: bytes) -> list[int]:
        """The longest token at each place."""
        ids: list[int] = []
        start = 0
        while start < len(data):
            size = min(self._longest_size, len(data) - start)
            while size > 1 and data[start : start + size] not in self._ids:
                size -= 1
            ids.append(self._ids[data[start : start + size]])
            start += size
        return ids

    def _after_anchor(self, ids: Sequence[int]) -> list[int]:
        for count in range(len(ids) + 1):
            if self._source.decode_bytes(ids[:count]).endswith(_ANCHOR.encode()):
                return list(ids[count:])
        return []

    def _written(self, ids: Iterable[int]) -> bytes:
        parts = [self._known[id] for id in ids]
        return b"".join(parts) if all(parts) else b""


class _Described:
    """A vocabulary in the form that ``llguidance.TokenizerWrapper`` reads."""

    bos_token_id = None

    def __init__(self, tokens: list[bytes], end_id: int, encode: Any) -> None:
        self.tokens = tokens
        self.eos_token_id = end_id
        self.special_token_ids = [end_id]
        self._encode = encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text)


def _checked_stops(stop_ids: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    stops = tuple(dict.fromkeys(int(id) for id in stop_ids))
    for id in stops:
        if not 0 <= id < vocab_size:
            raise ConfigError(f"stop_ids has {id}; this model has the ids 0 to {vocab_size - 1}")
    return stops


def _bytes_of_tokens(tokenizer: Tokenizer, size: int, stops: Sequence[int]) -> list[bytes]:
    """The bytes of each token that may be written; empty for control tokens, for ``<unk>`` and for
    tokens that end a text.
    """
    silent = {*stops, tokenizer.unk_id}
    known: list[bytes] = []
    for id in range(min(size, tokenizer.vocab_size)):
        written = id not in silent and not tokenizer.is_control(id)
        known.append(tokenizer.decode_bytes([id]) if written else b"")
    return known
