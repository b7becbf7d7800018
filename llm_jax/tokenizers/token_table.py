"""The bytes of each id of a vocabulary, and decoding, which all kinds of tokenizers share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np

from llm_jax.types import DataError


class TokenTable(NamedTuple):
    """Bytes of every id of a vocabulary.

    Attributes:
        later: Bytes of each id after other text; empty for control tokens.
        first: Bytes of each id at the start of a text, without the blank that encoding put there.
        control: Bool [V]: ids that stand for no text.
        drops_all: Whether decoding drops every blank at the start of a text, and not just one.
    """

    later: list[bytes]
    first: list[bytes]
    control: np.ndarray
    drops_all: bool = False


class TableTokenizer:
    """Decoding by a ``TokenTable``, which a subclass puts into ``_table``."""

    vocab_size: int
    _table: TokenTable

    def is_control(self, id: int) -> bool:
        """Whether an id stands for no text, as ``<s>``, ``</s>``, ``<pad>`` and ids without a token
        do.
        """
        return bool(self._table.control[id])

    def first_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of a token at the start of a text, without the blank that encoding put
        there.
        """
        return self._table.first[id]

    @property
    def drops_all(self) -> bool:
        """Whether decoding drops every blank at the start of a text, and not just one."""
        return self._table.drops_all

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of the ids, without control tokens and with the blank that encoding puts
        before a text.
        """
        later = self._table.later
        return b"".join([later[id] for id in check_ids(ids, self.vocab_size)])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, without control tokens; bytes that are not UTF-8 become U+FFFD."""
        later = self._table.later
        ids = check_ids(ids, self.vocab_size)
        start = TextStart(self)
        parts: list[bytes] = []
        for place, id in enumerate(ids):
            if start.over:
                parts += [later[id] for id in ids[place:]]
                break
            parts.append(start.bytes_of(id))
        return b"".join(parts).decode("utf-8", errors="replace")


class _Decoder(Protocol):
    """The part of a tokenizer that ``TextStart`` needs."""

    @property
    def drops_all(self) -> bool: ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...

    def first_bytes(self, id: int) -> bytes: ...


class TextStart:
    """The bytes of one token after another from the start of a text.

    Attributes:
        over: Whether the start of the text is over. From then on a token's bytes are those of
            ``decode_bytes``.
    """

    def __init__(self, tokenizer: _Decoder):
        self._tokenizer = tokenizer
        self.over = False

    def bytes_of(self, id: int) -> bytes:
        """The bytes of the next token."""
        data = self._tokenizer.decode_bytes([id])
        if self.over or not data:
            # A token without text does not begin the text.
            return data
        data = self._tokenizer.first_bytes(id)
        self.over = bool(data) or not self._tokenizer.drops_all
        return data


def check_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list.

    Raises:
        DataError: An id is not in the vocabulary.
    """
    listed: list[int] = ids.tolist() if isinstance(ids, np.ndarray) else [int(id) for id in ids]
    if listed and not 0 <= min(listed) <= max(listed) < vocab_size:
        raise DataError(
            f"token ids from {min(listed)} to {max(listed)}; this tokenizer has ids 0 to"
            f" {vocab_size - 1}"
        )
    return listed
