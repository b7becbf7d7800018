"""Marian's tokenizer: a SentencePiece model of the source language, one of the target language, and
one vocabulary for the pieces of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.tokenizers.ends import all_ends
from llm_jax.tokenizers.hf_config import MAX_IDS, MAX_MODEL, Declared, read_json
from llm_jax.tokenizers.manifest import Imported, ImportedTokenizer, read_model, sha256_of
from llm_jax.tokenizers.sentencepiece_model import BLANK, ModelRules, load_model, model_rules
from llm_jax.tokenizers.token_table import TokenTable
from llm_jax.tokenizers.tokenizer import check_utf8, encode_around
from llm_jax.types import DataError

SOURCE = "source.spm"
TARGET = "target.spm"
VOCABULARY = "vocab.json"
FILES = (SOURCE, TARGET, VOCABULARY)
_DEFAULTS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_REPLACEMENT = "\ufffd".encode()


class MarianTokenizer(ImportedTokenizer):
    """Marian's files as a ``Tokenizer`` of the decoder's texts; ``reader`` is the tokenizer of the
    encoder's texts.

    A text is split by the model of its side, and each piece is looked up in the vocabulary; unknown
    pieces are ``<unk>``. The text of an added token becomes that token. ``>>pt<<`` before a text,
    which sets the language to write, is looked up whole. Punctuation is not normalized first, which
    transformers does not do either.

    Args:
        record: The tokenizer's imported.json.
        path: The folder, with the three files.
        side: Name of the model that splits text, ``target.spm`` or ``source.spm``.

    Raises:
        DataError: A file is missing, has changed, or cannot be read.
    """

    def __init__(self, record: Imported, path: Path, side: str = TARGET):
        super().__init__(record, path)
        self._vocabulary = read_vocabulary(read_model(path, record), str(path / VOCABULARY))
        self._added = {token["content"]: token["id"] for token in record.added_tokens}
        if (
            max(self._vocabulary.values()) >= self.vocab_size
            or min(self.unk_id, record.special["pad"], self.eos_id) < 0
        ):
            raise DataError(
                f"tokenizer {str(path)!r}: its record does not fit {VOCABULARY}; import the"
                " tokenizer again"
            )
        data = {name: read_model(path, record, name) for name in (SOURCE, TARGET)}
        models = {name: load_model(model, str(path / name)) for name, model in data.items()}
        rules = model_rules(data[side], str(path / side))
        self._model = models[side]
        self.lossless = False
        self.adds_prefix = rules.adds_prefix
        if side == TARGET:
            self.reader = MarianTokenizer(record, path, SOURCE)
        self._pieces = {id: piece for piece, id in self._vocabulary.items()}
        self._table = self._bytes_of_ids(models, rules)

    def _bytes_of_ids(self, models: dict[str, Any], rules: ModelRules) -> TokenTable:
        """The bytes of each id."""
        silent = {*self.eos_ids, self.pad_id}
        control = np.array(
            [id in silent or id not in self._pieces for id in range(self.vocab_size)], bool
        )
        later = [b""] * self.vocab_size
        first = list(later)
        for id, piece in self._pieces.items():
            if not control[id]:
                later[id] = _bytes_of(piece, models)
                first[id] = later[id][1:] if rules.strips and piece.startswith(BLANK) else later[id]
        later[self.unk_id] = _REPLACEMENT
        first[self.unk_id] = _REPLACEMENT
        return TokenTable(later, first, control, rules.drops_all)

    def piece(self, id: int) -> str:
        """The token as readable text."""
        return self._pieces.get(int(id), f"<unused {id}>").replace(BLANK, " ")

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``</s>``."""
        check_utf8(text)
        return encode_around(text, self._added, self._encode_between)

    def encode_with_control(self, text: str) -> list[int]:
        """The same as ``encode``, which always reads the text of a control token as that token."""
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text."""
        return [self.encode(text) for text in texts]

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """``encode`` of each text, as the bytes of int32 ids."""
        return [np.array(ids, np.int32).tobytes() for ids in self.encode_batch(texts)]

    def _encode_between(self, texts: Sequence[str]) -> list[list[int]]:
        split = [_split_language(text) for text in texts]
        cut = self._model.EncodeAsPieces([text for _, text in split], num_threads=1)
        return [
            [self._vocabulary.get(piece, self.unk_id) for piece in (*code, *pieces)]
            for (code, _), pieces in zip(split, cut)
        ]


def marian_record(files: dict[str, bytes], declared: Declared, source: str) -> Imported:
    """The record of Marian's files.

    Args:
        files: Name -> bytes of the source's files.
        declared: What their folder declares.
        source: Name of the folder.

    Raises:
        DataError: A file is missing, or the folder declares something that is not supported.
    """
    missing = [name for name in FILES if name not in files]
    if missing:
        present = ", ".join(name for name in FILES if name in files)
        raise DataError(f"source {source!r} has no {missing[0]}, which goes with {present}")
    _check_supported(declared, source)
    vocabulary = read_vocabulary(files[VOCABULARY], f"{source}/{VOCABULARY}")
    named = _DEFAULTS | {name: text for name, text in declared.named.items() if text is not None}
    added = _added(vocabulary, named, declared, source)
    special = {token["content"]: token["id"] for token in added.values() if token["special"]}
    eos = vocabulary[named["eos_token"]]
    return Imported(
        kind="marian",
        model=VOCABULARY,
        files=sha256_of(files),
        special={
            "bos": -1,
            "pad": vocabulary[named["pad_token"]],
            "unk": vocabulary[named["unk_token"]],
        },
        eos_ids=all_ends((eos,), declared, special),
        add_bos=False,
        add_eos=True,
        vocab_size=max(declared.vocab_size, max(vocabulary.values()) + 1),
        added_tokens=tuple(sorted(added.values(), key=lambda token: token["id"])),
        piece_ids=sha256_of({name: files[name] for name in (SOURCE, TARGET)}),
        tokens=named,
        chat_templates=declared.chat_templates,
        source=source,
    )


def _check_supported(declared: Declared, source: str) -> None:
    """Raises DataError for settings of tokenizer_config.json that are not supported."""
    config = declared.config
    if config.get("separate_vocabs"):
        raise DataError(
            f"{source}: separate_vocabs is true; a vocabulary for each language is not supported,"
            " as embeddings are shared"
        )
    kind = config.get("tokenizer_class")
    if kind not in (None, "MarianTokenizer"):
        raise DataError(
            f"{source}: tokenizer_class {str(kind)[:80]!r} with {SOURCE} and {TARGET} is unknown;"
            " known is MarianTokenizer"
        )
    options = config.get("sp_model_kwargs")
    if options:
        raise DataError(
            f"{source}: sp_model_kwargs {str(options)[:80]} would change how text is split, and is"
            " not supported; remove it"
        )


def _added(
    vocabulary: dict[str, int], named: dict[str, str], declared: Declared, source: str
) -> dict[str, dict[str, Any]]:
    """Text -> token of the added tokens, all of which are in the vocabulary.

    Args:
        vocabulary: Piece -> id.
        named: bos_token, … -> text.
        declared: What the folder declares.
        source: Name of the folder, for messages.
    """
    added: dict[str, dict[str, Any]] = {}
    for id, token in sorted(declared.added.items()):
        text = token["content"]
        takes_blanks = token["lstrip"] or token["rstrip"] or token["single_word"]
        if vocabulary.get(text) != id or takes_blanks:
            raise DataError(
                f"{source}: added token {text!r} does not have the id {id} in {VOCABULARY}, or has"
                " lstrip, rstrip or single_word, which are not supported"
            )
        added[text] = token
    for text in (*named.values(), *declared.extra):
        if text not in vocabulary:
            raise DataError(
                f"{source}/{VOCABULARY}: lacks the special token {text!r}; download the file again"
            )
        added.setdefault(text, {"id": vocabulary[text], "content": text, "special": True})
    return added


def read_vocabulary(data: bytes, where: str) -> dict[str, int]:
    """Piece -> id, all different.

    Args:
        data: Bytes of the file.
        where: Name of the file, for messages.

    Raises:
        DataError: The file holds anything else.
    """
    vocabulary = read_json(data, where, MAX_MODEL)
    ids = list(vocabulary.values())
    valid = all(type(id) is int and 0 <= id < MAX_IDS for id in ids)
    if not ids or not valid or len(set(ids)) < len(ids):
        raise DataError(
            f"{where}: must give every piece an id of its own, from 0 on; download the file again"
        )
    return vocabulary


def _split_language(text: str) -> tuple[list[str], str]:
    """The language code before a text (``>>pt<<``; at most one), and the rest."""
    end = text.find("<<") + 2
    if text.startswith(">>") and end > 1:
        return [text[:end]], text[end:]
    return [], text


def _bytes_of(piece: str, models: dict[str, Any]) -> bytes:
    if any(model.IsByte(model.PieceToId(piece)) for model in models.values()):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(BLANK, " ").encode()
