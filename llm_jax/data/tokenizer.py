"""Tokenizers: the protocol the rest relies on, and SentencePiece behind it (``open_tokenizer`` picks the class for a folder).

The SentencePiece models trained here are loss-free by construction: ``decode(encode(text)) == text`` for every string that UTF-8 can hold.

- Models are trained with the identity normalisation, no added or removed blanks, and byte fallback, so every character
  has an encoding; a newline is the byte token ``<0x0A>``.
- SentencePiece writes a blank as ``▁`` (U+2581) inside its pieces, so it cannot tell the two apart. Here a real U+2581
  never reaches it: the text is cut there and the character is written as its three byte tokens.
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

from llm_jax.types import DataError

MODEL_FILE, META_FILE = "tokenizer.model", "tokenizer.json"
_SPACE = "\u2581"
_PROBE = " a  b\n\n\tc \u2581 \ufb01 e\u0301 <s> "
# Where no piece has a blank or line end after something else, byte-pair merging works on each of these by itself.
_WORDS = re.compile(f" *[^ \n{_SPACE}]+|\n| +|{_SPACE}")
_KNOWN_CHARACTERS, _GROUP = 2 << 20, 256 << 10


class Tokenizer(Protocol):
    """Text to token ids and back. ``-1`` is the id of a special token that there is not.

    path:             where it was read from: a folder or a file, as ``open_tokenizer`` takes it.
    eos_ids:          every id that ends a text; ``eos_id`` is the first of them, with which documents are closed.
    pad_id:           never -1: ``eos_id`` or 0 where there is no such token, since padding is masked wherever it is used.
    add_bos, add_eos: whether a text is given ``bos_id`` before it and ``eos_id`` after it.
    fingerprint:      sha256 (hex) of the model: equal fingerprints, equal ids.
    lossless:         whether ``decode(encode(x)) == x``; each class says for which texts.
    adds_prefix:      whether a blank is put before the text, and cut off again on decoding.
    reader:           tokenizer of what an encoder reads, where that is another language with a model of its own; None: this one.
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

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``<s>`` or ``</s>``."""

    def encode_with_control(self, text: str) -> list[int]:
        """``encode`` of a text in which the text of a control token, such as ``</s>``, means that token."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text."""

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """``encode`` of each text, as the bytes of int32 ids."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; control tokens are left out, bytes that are no UTF-8 become U+FFFD."""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of the ids; control tokens are left out."""

    def is_control(self, id: int) -> bool:
        """True for tokens that stand for no text: ``<s> </s> <pad>``."""

    def piece(self, id: int) -> str:
        """The token as readable text."""


class SentencePieceTokenizer:
    """A SentencePiece model as a ``Tokenizer``.

    ``lossless`` says whether ``decode(encode(x)) == x`` always holds: it does for models trained here, and not for
    models with a lossy normalisation of their own. ``merges`` says whether it merges pairs (bpe).

    Args:
        path: a folder with ``tokenizer.model``, or a SentencePiece ``.model`` file.
    """

    def __init__(self, path: str | Path):
        import sentencepiece

        self.path = model_file(Path(path))
        data = self.path.read_bytes()
        self._sp = sp = sentencepiece.SentencePieceProcessor()
        try:
            sp.LoadFromSerializedProto(data)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"tokenizer {str(self.path)!r}: not a SentencePiece model ({error})") from error
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self.vocab_size: int = sp.GetPieceSize()
        self.bos_id, self.eos_id, self.unk_id = sp.bos_id(), sp.eos_id(), sp.unk_id()
        self.pad_id = sp.pad_id() if sp.pad_id() >= 0 else max(self.eos_id, 0)
        self.eos_ids = (self.eos_id,) * (self.eos_id >= 0)
        self.add_bos, self.add_eos = self.bos_id >= 0, self.eos_id >= 0
        try:
            self._bytes, self._control = _piece_bytes(sp)
        except ValueError as error:
            raise DataError(f"tokenizer {str(self.path)!r}: a piece that cannot be ({error}); get the file again") from error
        # Of rules that replace characters before the model cuts, no text shows what all of them do.
        proto = _proto(data)
        byte_ids = [sp.PieceToId(f"<0x{b:02X}>") for b in _SPACE.encode()]
        self._space_ids = byte_ids if self.unk_id not in byte_ids else None
        self.adds_prefix = sp.EncodeAsPieces("a")[:1] not in ([], ["a"])
        self._by_words, self.reader = False, None
        rewrites = bool(proto.normalizer_spec.precompiled_charsmap)
        self.lossless = self._space_ids is not None and not rewrites and self.decode(self.encode(_PROBE)) == _PROBE
        if not self.lossless:
            self._space_ids = None
        pieces = (self.piece(i) for i in range(self.vocab_size))
        # Only merging is exactly the same on a part: unigram scores are float sums that depend on what came before.
        self.merges: bool = proto.trainer_spec.model_type == proto.trainer_spec.BPE
        self._by_words = self.lossless and self.merges and not any(re.search("[^ ] |\n", p) for p in pieces)
        self._known, self._known_characters = {_SPACE: _bytes_of(byte_ids)}, 0

    def piece(self, id: int) -> str:
        """The token as readable text: its characters, or ``<0x..>`` and ``<s>`` as SentencePiece writes them."""
        return self._sp.IdToPiece(id).replace(_SPACE, " ")

    def is_control(self, id: int) -> bool:
        """True for tokens that stand for no text: ``<s> </s> <pad>``."""
        return bool(self._control[id])

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``<s>`` or ``</s>``."""
        return self.encode_batch([text])[0]

    def encode_with_control(self, text: str) -> list[int]:
        """``encode`` of a text in which the text of a control token means that token; the parts between are encoded each by itself."""
        control = {self._sp.IdToPiece(int(id)): int(id) for id in np.flatnonzero(self._control)}
        return encode_around(text, control, self.encode_batch)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text. Raises DataError for a text with unpaired surrogates, which has no UTF-8 form."""
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
        """Word by word, each encoded once: several times faster than SentencePiece on the same text."""
        if self._known_characters > _KNOWN_CHARACTERS:
            self._known, self._known_characters = {_SPACE: self._known[_SPACE]}, 0
        known, split = self._known, [_WORDS.findall(text) for text in texts]
        if new := [word for word in set().union(*split) if word not in known]:
            known.update(zip(new, map(_bytes_of, self._sp.EncodeAsIds(new, num_threads=1))))
            self._known_characters += sum(map(len, new))
        return [b"".join(map(known.__getitem__, words)) for words in split]

    def _encode_whole(self, texts: Sequence[str]) -> list[bytes]:
        if self._space_ids is None or not any(_SPACE in text for text in texts):
            return list(map(_bytes_of, self._sp.EncodeAsIds(list(texts), num_threads=1)))
        parts = [re.split(f"({_SPACE})", text) for text in texts]
        ids = iter(self._sp.EncodeAsIds(list(itertools.chain.from_iterable(parts)), num_threads=1))
        return [b"".join(_bytes_of(self._space_ids if part == _SPACE else i) for part, i in zip(text, ids)) for text in parts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of the ids; control tokens are left out."""
        return b"".join([self._bytes[id] for id in check_ids(ids, self.vocab_size)])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; control tokens are left out, bytes that are no UTF-8 become U+FFFD."""
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.adds_prefix else text


class StreamDecoder:
    """Decodes a stream token by token and yields only whole characters: ``"".join(pushes) + flush() == decode(all
    ids)``.
    """

    def __init__(self, tokenizer: Tokenizer):
        import codecs

        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._strip = tokenizer.adds_prefix

    def push(self, id: int) -> str:
        """The text that this token completes; empty while a character is incomplete and for control tokens."""
        return self._out(self._utf8.decode(self._tokenizer.decode_bytes([id])))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never was completed."""
        return self._out(self._utf8.decode(b"", final=True))

    def _out(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


def encode_around(text: str, tokens: dict[str, int], encode_batch: Callable[[list[str]], list[list[int]]]) -> list[int]:
    """Ids of a text cut at each of ``tokens`` (the longest one where several begin), which stand for themselves."""
    longest_first = sorted(tokens, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if tokens else [text]
    between = iter(encode_batch([part for part in parts[::2] if part]))
    return [id for n, part in enumerate(parts) if part for id in ([tokens[part]] if n % 2 else next(between))]


def encoder_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, between ``<s>`` and ``</s>`` where the tokenizer puts them: what an encoder reads."""
    tokenizer = tokenizer.reader or tokenizer
    before, after = [tokenizer.bos_id] * tokenizer.add_bos, [tokenizer.eos_id] * tokenizer.add_eos
    return [[*before, *ids, *after] for ids in tokenizer.encode_batch(texts)]


def check_ids(ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list. Raises DataError for one that is no id of the vocabulary."""
    ids = ids.tolist() if isinstance(ids, np.ndarray) else [int(id) for id in ids]
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise DataError(f"token ids from {min(ids)} to {max(ids)}; this tokenizer has ids 0 to {vocab_size - 1}")
    return ids


def check_utf8(text: str) -> None:
    """Raises DataError for a text with unpaired surrogates, which has no UTF-8 form."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text with an unpaired surrogate at character {error.start}; replace it by U+FFFD first"
        ) from None


def model_file(path: Path) -> Path:
    """The SentencePiece model of a folder, or the file itself. Raises DataError where there is none."""
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"tokenizer {str(path)!r}: no {MODEL_FILE} there; train one with `llm-jax tokenizer train` or name a "
            ".model file"
        )
    return file


def _proto(model: bytes):
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto.FromString(model)


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Texts of about ``_GROUP`` characters together: a call of SentencePiece costs as much as a hundred words."""
    first, size = 0, 0
    for last, text in enumerate(texts, start=1):
        size += len(text)
        if size >= _GROUP or last == len(texts):
            yield texts[first:last]
            first, size = last, 0


def _bytes_of(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def _piece_bytes(sp) -> tuple[list[bytes], np.ndarray]:
    """Bytes of every id, and which ids are control tokens (whose bytes are empty)."""
    table, control = [], np.zeros(sp.GetPieceSize(), bool)
    for id in range(sp.GetPieceSize()):
        piece = sp.IdToPiece(id)
        if sp.IsControl(id):
            control[id] = True
            table.append(b"")
        elif sp.IsByte(id):
            table.append(bytes([int(piece[3:5], 16)]))
        elif sp.IsUnknown(id):
            table.append("\ufffd".encode())
        else:
            table.append(piece.replace(_SPACE, " ").encode())
    return table, control
