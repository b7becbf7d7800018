"""What each id of a vocabulary stands for, and how ids become text: the part that all kinds of
tokenizer share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from llm_jax.types import DataError


class TokenTable(NamedTuple):
    """Bytes of every id of a vocabulary.

    later: bytes of each id after other text; empty for control tokens.
    first: bytes of each id at the start of a text, where decoding leaves out the blank that
        encoding put there.
    control: bool [V]: ids that stand for no text.
    drops_all: whether every blank at the start of a text is left out, and not just one.
    """

    later: list[bytes]
    first: list[bytes]
    control: np.ndarray
    drops_all: bool = False


class TableTokenizer:
    """Decoding by a ``TokenTable``, which a subclass makes and keeps as ``_table``."""

    vocab_size: int
    _table: TokenTable

    def is_control(self, id: int) -> bool:
        """True for tokens that stand for no text, such as ``<s> </s> <pad>``, and for ids without a
        token.
        """
        return bool(self._table.control[id])

    def first_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of a token at the start of a text, without the blank that encoding put
        there.
        """
        return self._table.first[id]

    @property
    def drops_all(self) -> bool:
        """Whether every blank at the start of a text is left out in decoding, and not just one."""
        return self._table.drops_all

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of the ids; control tokens are left out, the blank that encoding puts
        before a text is not.
        """
        later = self._table.later
        return b"".join([later[id] for id in check_ids(ids, self.vocab_size)])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; control tokens are left out, bytes that are not UTF-8
        become U+FFFD.
        """
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


class TextStart:
    """The bytes of one token after another from the start of a text.

    Attributes:
        over: whether the start is behind: from then on a token's bytes are those of
            ``decode_bytes``.
    """

    def __init__(self, tokenizer: TableTokenizer):
        self._tokenizer = tokenizer
        self.over = False

    def bytes_of(self, id: int) -> bytes:
        """The bytes of the next token."""
        data = self._tokenizer.decode_bytes([id])
        if self.over or not data:
            # A token that stands for no text does not begin one.
            return data
        data = self._tokenizer.first_bytes(id)
        self.over = bool(data) or not self._tokenizer.drops_all
        return data


def check_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list. Raises DataError for one that is no id of the vocabulary."""
    ids = ids.tolist() if isinstance(ids, np.ndarray) else [int(id) for id in ids]
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise DataError(
            f"token ids from {min(ids)} to {max(ids)}; this tokenizer has ids 0 to {vocab_size - 1}"
        )
    return ids
