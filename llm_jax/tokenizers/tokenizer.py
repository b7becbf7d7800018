"""Tokenizers: the protocol the rest relies on, and SentencePiece behind it (``open_tokenizer``
picks the class for a folder).

The SentencePiece models trained here are loss-free by construction: ``decode(encode(text)) ==
text`` for every string that UTF-8 can hold.

- Models are trained with the identity normalisation, no added or removed blanks, and byte fallback,
  so every character has an encoding; a newline is the byte token ``<0x0A>``.
- SentencePiece writes a blank as ``▁`` (U+2581) inside its pieces, so it cannot tell the two apart.
  Here a real U+2581 never reaches it: the text is cut there and the character is written as its
  three byte tokens.
- Decoding joins the bytes of the pieces and decodes UTF-8 once, at the end.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llm_jax.tokenizers.sentencepiece_model import BLANK, load_model, model_rules, token_table
from llm_jax.tokenizers.token_table import TableTokenizer, TextStart, check_ids
from llm_jax.types import DataError

__all__ = [
    "META_FILE",
    "MODEL_FILE",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "check_ids",
    "check_utf8",
    "continuation",
    "encode_around",
    "encoder_ids",
]
MODEL_FILE, META_FILE = "tokenizer.model", "tokenizer.json"
_PROBE = " a  b\n\n\tc \u2581 \ufb01 e\u0301 <s> "
# Where no piece has a blank or line end after something else, byte-pair merging works on each of
# these by itself.
_WORDS = re.compile(f" *[^ \n{BLANK}]+|\n| +|{BLANK}")
_KNOWN_CHARACTERS, _GROUP = 2 << 20, 256 << 10


class Tokenizer(Protocol):
    """Text to token ids and back. ``-1`` is the id of a special token that there is not.

    path: where it was read from: a folder or a file, as ``open_tokenizer`` takes it.
    eos_ids: every id that ends a text; ``eos_id`` is the first of them, with which documents are
        closed.
    pad_id: never -1: ``eos_id`` or 0 where there is no such token, since padding is masked wherever
        it is used.
    add_bos, add_eos: whether a text is given ``bos_id`` before it and ``eos_id`` after it.
    fingerprint: sha256 (hex) of the model: equal fingerprints, equal ids.
    lossless: whether ``decode(encode(x)) == x``; each class says for which texts.
    adds_prefix: whether a blank is put before the text, and cut off again on decoding.
    drops_all: whether decoding leaves out every blank at the start of a text, and not just one.
    reader: tokenizer of what an encoder reads, where that is another language with a model of its
        own; None: this one.
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
    def drops_all(self) -> bool: ...

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
        """The text of the ids; control tokens are left out, bytes that are no UTF-8
        become U+FFFD.
        """

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of the ids after other text; control tokens are left out."""

    def first_bytes(self, id: int) -> bytes:
        """The UTF-8 bytes of a token at the start of a text, without the blank that encoding put
        there.
        """

    def is_control(self, id: int) -> bool:
        """True for tokens that stand for no text: ``<s> </s> <pad>``."""

    def piece(self, id: int) -> str:
        """The token as readable text."""


class SentencePieceTokenizer(TableTokenizer):
    """A SentencePiece model as a ``Tokenizer``.

    ``lossless`` says whether ``decode(encode(x)) == x`` always holds: it does for models trained
    here, and not for models with a lossy normalisation of their own. ``merges`` says whether it
    merges pairs (bpe).

    Args:
        path: a folder with ``tokenizer.model``, or a SentencePiece ``.model`` file.
        model: contents of the file where it has been read already, or is not written yet.

    Raises:
        DataError: no such file, or a file that is not a SentencePiece model or has rules for
            decoding.
    """

    def __init__(self, path: str | Path, model: bytes | None = None):
        self.path = Path(path) if model is not None else model_file(Path(path))
        data = self.path.read_bytes() if model is None else model
        where = f"tokenizer {str(self.path)!r}"
        self._sp = sp = load_model(data, where)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self.vocab_size: int = sp.GetPieceSize()
        self.bos_id, self.eos_id, self.unk_id = sp.bos_id(), sp.eos_id(), sp.unk_id()
        self.pad_id = sp.pad_id() if sp.pad_id() >= 0 else max(self.eos_id, 0)
        self.eos_ids = (self.eos_id,) * (self.eos_id >= 0)
        self.add_bos, self.add_eos = self.bos_id >= 0, self.eos_id >= 0
        self.reader = None
        rules = model_rules(data, where)
        self.adds_prefix = rules.adds_prefix
        self.merges: bool = rules.merges
        self._table = token_table(sp, rules, where)
        byte_ids = [sp.PieceToId(f"<0x{b:02X}>") for b in range(256)]
        all_bytes = all(sp.IsByte(id) for id in byte_ids)
        self._space_ids = [byte_ids[b] for b in BLANK.encode()]
        self._by_words = False
        # The probe is a second opinion on what the file says: no text shows all that a rule does.
        self.lossless = all_bytes and rules.keeps_text and self._keeps(_PROBE)
        pieces = (self.piece(i) for i in range(self.vocab_size))
        # Only merging is exactly the same on a part: unigram scores are float sums that depend on
        # what came before.
        self._by_words = (
            self.lossless and self.merges and not any(re.search("[^ ] |\n", p) for p in pieces)
        )
        self._known, self._known_characters = {BLANK: _bytes_of(self._space_ids)}, 0

    def piece(self, id: int) -> str:
        """The token as readable text: its characters, or ``<0x..>`` and ``<s>`` as SentencePiece
        writes them.
        """
        return self._sp.IdToPiece(id).replace(BLANK, " ")

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``<s>`` or ``</s>``."""
        return self.encode_batch([text])[0]

    def encode_with_control(self, text: str) -> list[int]:
        """``encode`` of a text in which the text of a control token means that token; the parts
        between are encoded each by itself.
        """
        control = {
            self._sp.IdToPiece(int(id)): int(id) for id in np.flatnonzero(self._table.control)
        }
        return encode_around(text, control, self.encode_batch)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text. Raises DataError for a text with unpaired surrogates, which has
        no UTF-8 form.
        """
        return [np.frombuffer(ids, np.int32).tolist() for ids in self.encode_bytes(texts)]

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """``encode`` of each text, as the bytes of int32 ids; saves making a Python int of each."""
        try:
            if self._by_words:
                return [ids for group in _groups(texts) for ids in self._encode_words(group)]
            return self._encode_whole(texts) if texts else []
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                check_utf8(text)
            raise

    def _encode_words(self, texts: Sequence[str]) -> list[bytes]:
        """Word by word, each encoded once: several times faster than SentencePiece on the same
        text.
        """
        if self._known_characters > _KNOWN_CHARACTERS:
            self._known, self._known_characters = {BLANK: self._known[BLANK]}, 0
        known, split = self._known, [_WORDS.findall(text) for text in texts]
        if new := [word for word in set().union(*split) if word not in known]:
            known.update(zip(new, map(_bytes_of, self._sp.EncodeAsIds(new, num_threads=1))))
            self._known_characters += sum(map(len, new))
        return [b"".join(map(known.__getitem__, words)) for words in split]

    def _encode_whole(self, texts: Sequence[str]) -> list[bytes]:
        if not self.lossless or not any(BLANK in text for text in texts):
            return list(map(_bytes_of, self._sp.EncodeAsIds(list(texts), num_threads=1)))
        return self._encode_cut(texts)

    def _encode_cut(self, texts: Sequence[str]) -> list[bytes]:
        """Cut at U+2581, which SentencePiece would take for a blank, and which is written as its
        bytes.
        """
        parts = [re.split(f"({BLANK})", text) for text in texts]
        ids = iter(self._sp.EncodeAsIds(list(itertools.chain.from_iterable(parts)), num_threads=1))
        return [
            b"".join(
                _bytes_of(self._space_ids if part == BLANK else i) for part, i in zip(text, ids)
            )
            for text in parts
        ]

    def _keeps(self, text: str) -> bool:
        ids = np.frombuffer(self._encode_cut([text])[0], np.int32)
        return self.decode(ids) == text


class StreamDecoder:
    """Decodes a stream token by token and yields only whole characters.

    ``"".join(pushes) + flush()`` is ``decode(all ids)`` or, after a prompt,
    ``continuation(tokenizer, prompt_ids, all ids)``.

    Args:
        tokenizer: of the ids.
        prompt_ids: ids that the stream goes on from. Their text is not given back; a character that
            their last tokens begin is, once it is complete.

    Raises:
        DataError: an id that is no id of the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Iterable[int] = ()):
        import codecs

        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._start = TextStart(tokenizer)
        for id in check_ids(prompt_ids, tokenizer.vocab_size):
            self.push(id)

    def push(self, id: int) -> str:
        """The text that this token completes; empty while a character is incomplete and for control
        tokens.
        """
        return self._utf8.decode(self._start.bytes_of(id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never was completed."""
        return self._utf8.decode(b"", final=True)


def continuation(tokenizer: Tokenizer, prompt_ids: Iterable[int], ids: Iterable[int]) -> str:
    """The text that ``ids`` add to the text of ``prompt_ids``.

    It is the text of both together without that of the prompt. So the blank that leads a text is
    left out only where the prompt has no text: a prompt of control tokens such as ``<s>`` has none.
    A character that begins in the prompt and ends in ``ids`` belongs to the continuation.

    Raises:
        DataError: an id that is no id of the vocabulary.
    """
    stream = StreamDecoder(tokenizer, prompt_ids)
    ids = check_ids(ids, tokenizer.vocab_size)
    return "".join(map(stream.push, ids)) + stream.flush()


def encode_around(
    text: str, tokens: dict[str, int], encode_batch: Callable[[list[str]], list[list[int]]]
) -> list[int]:
    """Ids of a text cut at each of ``tokens`` (the longest one where several begin), which stand
    for themselves.
    """
    longest_first = sorted(tokens, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if tokens else [text]
    between = iter(encode_batch([part for part in parts[::2] if part]))
    return [
        id
        for n, part in enumerate(parts)
        if part
        for id in ([tokens[part]] if n % 2 else next(between))
    ]


def encoder_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, between ``<s>`` and ``</s>`` where the tokenizer puts them: what an encoder
    reads.
    """
    tokenizer = tokenizer.reader or tokenizer
    before, after = [tokenizer.bos_id] * tokenizer.add_bos, [tokenizer.eos_id] * tokenizer.add_eos
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


def model_file(path: Path) -> Path:
    """The SentencePiece model of a folder, or the file itself. Raises DataError where there is
    none.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"tokenizer {str(path)!r}: no {MODEL_FILE} there; train one with `llm-jax tokenizer"
            " train` or name a .model file"
        )
    return file


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Texts of about ``_GROUP`` characters together: a call of SentencePiece costs as much as a
    hundred words.
    """
    first, size = 0, 0
    for last, text in enumerate(texts, start=1):
        size += len(text)
        if size >= _GROUP or last == len(texts):
            yield texts[first:last]
            first, size = last, 0


def _bytes_of(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()
