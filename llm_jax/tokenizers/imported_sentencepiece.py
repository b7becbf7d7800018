"""An imported SentencePiece model as a ``Tokenizer``, with the ids and the added tokens that its
tokenizer class in transformers gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_jax.tokenizers.manifest import Imported, ImportedTokenizer
from llm_jax.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.tokenizers.token_table import TokenTable
from llm_jax.tokenizers.tokenizer import encode_around
from llm_jax.types import DataError


class TokenizerClass(NamedTuple):
    """How a tokenizer class of Hugging Face uses its SentencePiece model.

    Attributes:
        add_bos, add_eos: Defaults of these flags of tokenizer_config.json.
        offset: Number that is added to every id of the model that is not in ``moved``.
        moved: Pairs (id of the model, id).
        before: Pairs (text, id) of tokens with ids among the first.
        last: Tokens after all others.
        sentinels: Default number of tokens ``<extra_id_n>``. They come after all others, the
            highest n first.
    """

    add_bos: bool
    add_eos: bool
    offset: int = 0
    moved: tuple[tuple[int, int], ...] = ()
    before: tuple[tuple[str, int], ...] = ()
    last: tuple[str, ...] = ()
    sentinels: int = 0


TOKENIZER_CLASSES = {
    "LlamaTokenizer": TokenizerClass(add_bos=True, add_eos=False),
    "GemmaTokenizer": TokenizerClass(add_bos=True, add_eos=False),
    "T5Tokenizer": TokenizerClass(add_bos=False, add_eos=True, sentinels=100),
    "XLMRobertaTokenizer": TokenizerClass(
        add_bos=True,
        add_eos=True,
        offset=1,
        moved=((0, 3), (1, 0), (2, 2)),
        before=(("<pad>", 1),),
        last=("<mask>",),
    ),
}


def tokenizer_class_of(tokenizer_class: object, where: str) -> TokenizerClass:
    """The settings of a ``tokenizer_class``; None means Llama's, whose ids are the model's.

    Raises:
        DataError: The class is unknown.
    """
    name = "LlamaTokenizer"
    if tokenizer_class is not None:
        name = str(tokenizer_class).removesuffix("Fast")
    if name not in TOKENIZER_CLASSES:
        raise DataError(
            f"{where}: tokenizer_class {name[:80]!r} with a SentencePiece model is unknown; known"
            f" are {', '.join(TOKENIZER_CLASSES)}; a folder with tokenizer.json does not need one"
        )
    return TOKENIZER_CLASSES[name]


class ImportedSentencePiece(ImportedTokenizer):
    """A SentencePiece model of another program as a ``Tokenizer``.

    The ids of a text are the model's own, moved as the record says. The text of an added token
    becomes that token, and the parts between added tokens are encoded separately. As in
    SentencePiece, the text of a control piece, such as ``<s>``, is text;
    ``encode_with_control`` reads it as that token. ``lossless`` is as for
    ``SentencePieceTokenizer``, for texts without the text of an added token.

    Args:
        record: The tokenizer's imported.json.
        path: The folder, with the model.
    """

    def __init__(self, record: Imported, path: Path):
        super().__init__(record, path)
        self._model = SentencePieceTokenizer(path / record.model)
        self._ids = moved_ids(self._model.vocab_size, record.piece_ids)
        self._moves = bool(record.piece_ids)
        self._added = {token["content"]: token["id"] for token in record.added_tokens}
        self._added_control = {token["id"] for token in record.added_tokens if token["special"]}
        self.lossless = self._model.lossless
        self.adds_prefix = self._model.adds_prefix
        self._pieces, self._table = self._tables()

    def _tables(self) -> tuple[dict[int, str], TokenTable]:
        """Text of each token, and the bytes of each id."""
        pieces = {int(id): self._model.piece(n) for n, id in enumerate(self._ids)}
        pieces |= {id: text for text, id in self._added.items()}
        if max(pieces) >= self.vocab_size:
            raise DataError(
                f"tokenizer {str(self.path)!r}: id {max(pieces)} and vocab_size {self.vocab_size};"
                " import it again"
            )
        later = [b""] * self.vocab_size
        first = list(later)
        control = np.ones(self.vocab_size, bool)
        for n, id in enumerate(self._ids):
            later[id] = self._model.decode_bytes([n])
            first[id] = self._model.first_bytes(n)
            control[id] = self._model.is_control(n)
        for text, id in self._added.items():
            control[id] = id in self._added_control
            later[id] = b"" if control[id] else text.encode()
            first[id] = later[id]
        return pieces, TokenTable(later, first, control, self._model.drops_all)

    def piece(self, id: int) -> str:
        """The token as readable text."""
        return self._pieces.get(int(id), f"<unused {id}>")

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``<s>`` or ``</s>``."""
        return encode_around(text, self._added, self._encode_between)

    def encode_with_control(self, text: str) -> list[int]:
        """``encode`` of a text in which the text of a control token means that token."""
        control = {
            self._pieces[int(id)]: int(id)
            for id in np.flatnonzero(self._table.control)
            if int(id) in self._pieces
        }
        return encode_around(text, self._added | control, self._encode_between)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text."""
        return [self.encode(text) for text in texts] if self._added else self._encode_between(texts)

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """``encode`` of each text, as the bytes of int32 ids."""
        if not self._added and not self._moves:
            return self._model.encode_bytes(texts)
        return [np.array(ids, np.int32).tobytes() for ids in self.encode_batch(texts)]

    def _encode_between(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = (np.frombuffer(ids, np.int32) for ids in self._model.encode_bytes(texts))
        return [(self._ids[ids] if self._moves else ids).tolist() for ids in encoded]


def moved_ids(size: int, piece_ids: dict) -> np.ndarray:
    """[size] int32: the id of each piece of a model.

    Args:
        size: Number of pieces.
        piece_ids: ``offset`` and ``moved``, as in ``TokenizerClass``.
    """
    ids = np.arange(size, dtype=np.int32) + np.int32(piece_ids.get("offset", 0))
    for piece, id in piece_ids.get("moved", ()):
        ids[piece] = id
    return ids
