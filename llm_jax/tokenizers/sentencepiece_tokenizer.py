"""SentencePiece models as tokenizers.

The models trained here are loss-free by construction: ``decode(encode(text)) == text`` for every
string that UTF-8 can hold.

- They are trained with the identity normalization, no added or removed blanks, and byte fallback,
  so every character has an encoding; a newline is the byte token ``<0x0A>``.
- SentencePiece writes a blank as ``▁`` (U+2581) inside its pieces, so it cannot tell the two apart.
  A real U+2581 is therefore never given to it: the text is cut there, and the character is written
  as its three byte tokens.
- Decoding joins the bytes of the pieces and decodes UTF-8 once, at the end.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.storage.paths import local_file, path_of
from llm_jax.tokenizers.sentencepiece_model import BLANK, load_model, model_rules, token_table
from llm_jax.tokenizers.token_table import TableTokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer, check_utf8, encode_around
from llm_jax.types import DataError

MODEL_FILE = "tokenizer.model"
META_FILE = "tokenizer.json"
_PROBE = " a  b\n\n\tc \u2581 \ufb01 e\u0301 <s> "
# Where no piece has a blank or a line end after another character, merging works on each of these
# words by itself.
_WORDS = re.compile(f" *[^ \n{BLANK}]+|\n| +|{BLANK}")
# The cache of words is emptied beyond this number of characters.
_MAX_KNOWN_CHARACTERS = 2 << 20
# Characters of texts that are encoded in one call: a call takes as long as about a hundred words.
_GROUP_CHARACTERS = 256 << 10


class SentencePieceTokenizer(TableTokenizer):
    """A SentencePiece model as a ``Tokenizer``.

    ``lossless`` holds for models trained here, and not for models that normalize text. ``merges``
    says whether the model merges pairs (bpe).

    Args:
        path: A folder with ``tokenizer.model``, or a SentencePiece ``.model`` file.
        model: Contents of the file, where it was read already or is not written yet.

    Raises:
        DataError: There is no such file, or it is not a SentencePiece model, or it has rules for
            decoding.
    """

    def __init__(self, path: str | Path, model: bytes | None = None):
        self.path = path_of(path) if model is not None else model_file(path_of(path))
        data = local_file(self.path).read_bytes() if model is None else model
        where = f"tokenizer {str(self.path)!r}"
        self._model = load_model(data, where)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self.reader: Tokenizer | None = None
        self._set_special_ids(self._model)
        rules = model_rules(data, where)
        self.adds_prefix = rules.adds_prefix
        self.merges: bool = rules.merges
        self._table = token_table(self._model, rules, where)
        byte_ids = [self._model.PieceToId(f"<0x{byte:02X}>") for byte in range(256)]
        has_bytes = all(self._model.IsByte(id) for id in byte_ids)
        self._blank_ids = [byte_ids[byte] for byte in BLANK.encode()]
        self._by_words = False
        # The probe checks what the file says: a rule may do more to a text than the file shows.
        self.lossless = has_bytes and rules.keeps_text and self._keeps(_PROBE)
        # Merging gives the same ids for a word alone. Unigram scores are float sums, which depend
        # on the text before it.
        self._by_words = self.lossless and self.merges and not self._has_pieces_across_words()
        self._known = {BLANK: _bytes_of(self._blank_ids)}
        self._known_characters = 0

    def _set_special_ids(self, model: Any) -> None:
        self.vocab_size: int = model.GetPieceSize()
        self.bos_id: int = model.bos_id()
        self.eos_id: int = model.eos_id()
        self.unk_id: int = model.unk_id()
        self.pad_id: int = model.pad_id() if model.pad_id() >= 0 else max(self.eos_id, 0)
        self.eos_ids: tuple[int, ...] = (self.eos_id,) if self.eos_id >= 0 else ()
        self.add_bos = self.bos_id >= 0
        self.add_eos = self.eos_id >= 0

    def _keeps(self, text: str) -> bool:
        ids = np.frombuffer(self._encode_cut([text])[0], np.int32)
        return self.decode(ids) == text

    def _has_pieces_across_words(self) -> bool:
        return any(re.search("[^ ] |\n", self.piece(id)) for id in range(self.vocab_size))

    def piece(self, id: int) -> str:
        """The token as readable text: its characters, or ``<0x..>`` and ``<s>`` as SentencePiece
        writes them.
        """
        return self._model.IdToPiece(id).replace(BLANK, " ")

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``<s>`` or ``</s>``."""
        return self.encode_batch([text])[0]

    def encode_with_control(self, text: str) -> list[int]:
        """``encode`` of a text in which the text of a control token means that token. The parts
        between control tokens are encoded separately.
        """
        control = {
            self._model.IdToPiece(int(id)): int(id) for id in np.flatnonzero(self._table.control)
        }
        return encode_around(text, control, self.encode_batch)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text.

        Raises:
            DataError: A text has unpaired surrogates and so no UTF-8 form.
        """
        return [np.frombuffer(ids, np.int32).tolist() for ids in self.encode_bytes(texts)]

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """``encode`` of each text, as the bytes of int32 ids. No Python int is made for an id."""
        try:
            if self._by_words:
                return [ids for group in _groups(texts) for ids in self._encode_words(group)]
            return self._encode_whole(texts) if texts else []
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                check_utf8(text)
            raise

    def _encode_words(self, texts: Sequence[str]) -> list[bytes]:
        """Encodes each distinct word once: several times faster than SentencePiece on whole
        texts.
        """
        if self._known_characters > _MAX_KNOWN_CHARACTERS:
            self._known = {BLANK: self._known[BLANK]}
            self._known_characters = 0
        known = self._known
        split = [_WORDS.findall(text) for text in texts]
        new = [word for word in set().union(*split) if word not in known]
        if new:
            known.update(zip(new, map(_bytes_of, self._encode_ids(new))))
            self._known_characters += sum(map(len, new))
        return [b"".join(map(known.__getitem__, words)) for words in split]

    def _encode_whole(self, texts: Sequence[str]) -> list[bytes]:
        if not self.lossless or not any(BLANK in text for text in texts):
            return list(map(_bytes_of, self._encode_ids(list(texts))))
        return self._encode_cut(texts)

    def _encode_cut(self, texts: Sequence[str]) -> list[bytes]:
        """Encodes texts cut at U+2581, which SentencePiece would take for a blank."""
        cut_texts = [re.split(f"({BLANK})", text) for text in texts]
        encoded = iter(self._encode_ids(list(itertools.chain.from_iterable(cut_texts))))
        out = []
        for parts in cut_texts:
            ids = [self._blank_ids if part == BLANK else i for part, i in zip(parts, encoded)]
            out.append(b"".join(map(_bytes_of, ids)))
        return out

    def _encode_ids(self, texts: list[str]) -> list[list[int]]:
        return self._model.EncodeAsIds(texts, num_threads=1)


def model_file(path: Path) -> Path:
    """The SentencePiece model of a folder, or the file itself.

    Raises:
        DataError: There is none.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            f"tokenizer {str(path)!r}: no {MODEL_FILE} there; train one with `llm-jax tokenizer"
            " train` or name a .model file"
        )
    return file


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive texts of about ``_GROUP_CHARACTERS`` together."""
    first = 0
    size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text)
        if size >= _GROUP_CHARACTERS or end == len(texts):
            yield texts[first:end]
            first = end
            size = 0


def _bytes_of(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()
