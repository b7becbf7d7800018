"""The ``Tokenizer`` protocol that the rest of llm_jax relies on, and what works with any tokenizer.

``open_tokenizer`` picks the class for a folder.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from llm_jax.tokenizers.token_table import TextStart, check_ids
from llm_jax.types import DataError

__all__ = [
    "StreamDecoder",
    "Tokenizer",
    "check_ids",
    "check_utf8",
    "continuation",
    "encode_around",
    "encoder_ids",
]


class Tokenizer(Protocol):
    """Text to token ids and back. The id ``-1`` means that there is no such special token.

    Attributes:
        path: Folder or file that it was read from, as ``open_tokenizer`` takes it.
        vocab_size: Number of ids.
        bos_id, unk_id: Ids of special tokens.
        eos_id: Id that closes documents, the first of ``eos_ids``.
        eos_ids: Every id that ends a text.
        pad_id: Id of padding. It is never -1: without such a token it is ``eos_id`` or 0, since
            padding is masked wherever it is used.
        add_bos, add_eos: Whether a text gets ``bos_id`` before it and ``eos_id`` after it.
        fingerprint: sha256 (hex) of the model. Equal fingerprints mean equal ids.
        lossless: Whether ``decode(encode(x)) == x``; each class says for which texts.
        adds_prefix: Whether encoding puts a blank before the text and decoding removes it.
        reader: Tokenizer of an encoder's texts, where these are in another language with a model of
            its own. None means this tokenizer.
    """

    path: Path
    vocab_size: int
    bos_id: int
    eos_id: int
    eos_ids: tuple[int, ...]
    pad_id: int
    unk_id: int
    add_bos: bool
    add_eos: bool
    fingerprint: str
    lossless: bool
    adds_prefix: bool
    reader: Tokenizer | None

    @property
    def drops_all(self) -> bool:
        """Whether decoding drops every blank at the start of a text, and not just one."""

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``<s>`` or ``</s>``."""

    def encode_with_control(self, text: str) -> list[int]:
        """``encode`` of a text in which the text of a control token, such as ``</s>``, means that
        token.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text."""

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """``encode`` of each text, as the bytes of int32 ids."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, without control tokens; bytes that are not UTF-8 become U+FFFD."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of the ids after other text, without control tokens."""

    def first_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of a token at the start of a text, without the blank that encoding put
        there.
        """

    def is_control(self, id: int) -> bool:
        """Whether a token stands for no text, as ``<s>``, ``</s>`` and ``<pad>`` do."""

    def piece(self, id: int) -> str:
        """The token as readable text."""


class StreamDecoder:
    """Decodes a stream token by token and gives only whole characters.

    ``"".join(pushes) + flush()`` is ``decode(all ids)`` or, after a prompt,
    ``continuation(tokenizer, prompt_ids, all ids)``.

    Args:
        tokenizer: The tokenizer of the ids.
        prompt_ids: Ids before the stream. Their text is not returned, except for a character that
            begins in the prompt and is completed by the stream.

    Raises:
        DataError: An id is not in the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Iterable[int] = ()):
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._start = TextStart(tokenizer)
        for id in check_ids(prompt_ids, tokenizer.vocab_size):
            self.push(id)

    def push(self, id: int) -> str:
        """The text that this token completes; empty for control tokens and while a character is
        incomplete.
        """
        return self._utf8.decode(self._start.bytes_of(id))

    def flush(self) -> str:
        """U+FFFD for a character that was never completed; empty where there is none."""
        return self._utf8.decode(b"", final=True)


def continuation(tokenizer: Tokenizer, prompt_ids: Iterable[int], ids: Iterable[int]) -> str:
    """The text that ``ids`` add to the text of ``prompt_ids``.

    It is the text of both together without that of the prompt. The blank at the start of a text is
    therefore dropped only where the prompt has no text, as a prompt of control tokens has. A
    character that begins in the prompt and ends in ``ids`` belongs to the continuation.

    Raises:
        DataError: An id is not in the vocabulary.
    """
    stream = StreamDecoder(tokenizer, prompt_ids)
    ids = check_ids(ids, tokenizer.vocab_size)
    return "".join(map(stream.push, ids)) + stream.flush()


def encode_around(
    text: str, tokens: dict[str, int], encode_batch: Callable[[list[str]], list[list[int]]]
) -> list[int]:
    """Ids of a text in which the text of a token means that token.

    Args:
        text: The text.
        tokens: Text -> id. Where several begin at one place, the longest is taken.
        encode_batch: Encodes the parts between these tokens.
    """
    if not tokens:
        return encode_batch([text])[0] if text else []
    longest_first = sorted(tokens, key=len, reverse=True)
    # Every other part is one of the tokens.
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    between = iter(encode_batch([part for part in parts[::2] if part]))
    ids: list[int] = []
    for index, part in enumerate(parts):
        if index % 2:
            ids.append(tokens[part])
        elif part:
            ids += next(between)
    return ids


def encoder_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text for an encoder, with ``<s>`` and ``</s>`` where the tokenizer adds them."""
    tokenizer = tokenizer.reader or tokenizer
    before = [tokenizer.bos_id] if tokenizer.add_bos else []
    after = [tokenizer.eos_id] if tokenizer.add_eos else []
    return [[*before, *ids, *after] for ids in tokenizer.encode_batch(texts)]


def check_utf8(text: str) -> None:
    """Raises DataError for a text with unpaired surrogates, which has no UTF-8 form."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text with an unpaired surrogate at character {error.start}; replace it by U+FFFD"
            " first"
        ) from None
