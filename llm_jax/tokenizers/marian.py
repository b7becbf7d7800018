"""Marian's tokenizer: two SentencePiece models, of the language read and of the one written, and
one vocabulary for the pieces of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.tokenizers.ends import all_ends
from llm_jax.tokenizers.hf_config import MAX_MODEL, Declared, read_json
from llm_jax.tokenizers.manifest import Imported, ImportedTokenizer, read_model, sha256_of
from llm_jax.tokenizers.sentencepiece_model import BLANK, ModelRules, load_model, model_rules
from llm_jax.tokenizers.token_table import TokenTable
from llm_jax.tokenizers.tokenizer import check_utf8, encode_around
from llm_jax.types import DataError

SOURCE, TARGET, VOCABULARY = "source.spm", "target.spm", "vocab.json"
FILES = (SOURCE, TARGET, VOCABULARY)
_DEFAULTS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


class MarianTokenizer(ImportedTokenizer):
    """Marian's files as a ``Tokenizer`` of what the decoder writes; ``reader`` is that of what the
    encoder reads.

    A text is cut by the model of its side, and each piece is looked up in the vocabulary; one that
    is not there is ``<unk>``. The text of an added token becomes that token; ``>>pt<<`` before a
    text, which says what language to write, is looked up whole. Punctuation is not normalised
    first, as transformers does not either.

    Args:
        record: what imported.json says.
        path: the folder, with the three files.
        side: the model that cuts, ``target.spm`` or ``source.spm``.

    Raises:
        DataError: a file that is missing, has changed, or cannot be read.
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
        later[self.unk_id] = first[self.unk_id] = "\ufffd".encode()
        return TokenTable(later, first, control, rules.drops_all)

    def piece(self, id: int) -> str:
        """The token as readable text."""
        return self._pieces.get(int(id), f"<unused {id}>").replace(BLANK, " ")

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without ``</s>``."""
        check_utf8(text)
        return encode_around(text, self._added, self._encode_between)

    def encode_with_control(self, text: str) -> list[int]:
        """``encode``, which knows the text of control tokens anyway."""
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of each text."""
        return [self.encode(text) for text in texts]

    def encode_bytes(self, texts: Sequence[str]) -> list[bytes]:
        """``encode`` of each text, as the bytes of int32 ids."""
        return [np.array(ids, np.int32).tobytes() for ids in self.encode_batch(texts)]

    def _encode_between(self, texts: Sequence[str]) -> list[list[int]]:
        split = [_language(text) for text in texts]
        cut = self._model.EncodeAsPieces([text for _, text in split], num_threads=1)
        return [
            [self._vocabulary.get(piece, self.unk_id) for piece in (*code, *pieces)]
            for (code, _), pieces in zip(split, cut)
        ]


def marian_record(files: dict[str, bytes], declared: Declared, source: str) -> Imported:
    """The record of Marian's ``files`` with what their folder declares. Raises DataError."""
    if missing := [name for name in FILES if name not in files]:
        raise DataError(
            f"source {source!r} has no {missing[0]}, which goes with"
            f" {', '.join(n for n in FILES if n in files)}"
        )
    if declared.config.get("separate_vocabs"):
        raise DataError(
            f"{source}: separate_vocabs is true; a vocabulary for each language is not supported,"
            " as embeddings are shared"
        )
    if (kind := declared.config.get("tokenizer_class")) not in (None, "MarianTokenizer"):
        raise DataError(
            f"{source}: tokenizer_class {str(kind)[:80]!r} with {SOURCE} and {TARGET} is unknown;"
            " known is MarianTokenizer"
        )
    if options := declared.config.get("sp_model_kwargs"):
        raise DataError(
            f"{source}: sp_model_kwargs {str(options)[:80]} would change how text is cut; they are"
            " not supported"
        )
    vocabulary = read_vocabulary(files[VOCABULARY], f"{source}/{VOCABULARY}")
    named = _DEFAULTS | {name: text for name, text in declared.named.items() if text is not None}
    added: dict[str, dict[str, Any]] = {}
    for id, token in sorted(declared.added.items()):
        if (
            vocabulary.get(token["content"]) != id
            or token["lstrip"]
            or token["rstrip"]
            or token["single_word"]
        ):
            raise DataError(
                f"{source}: added token {token['content']!r} with id {id} is not so in"
                f" {VOCABULARY}, or takes blanks with it"
            )
        added[token["content"]] = token
    for text in (*named.values(), *declared.extra):
        if text not in vocabulary:
            raise DataError(
                f"{source}/{VOCABULARY}: the special token {text!r} is not in it; get the file"
                " again"
            )
        added.setdefault(text, {"id": vocabulary[text], "content": text, "special": True})
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
        eos_ids=all_ends(
            (eos,),
            declared,
            {token["content"]: token["id"] for token in added.values() if token["special"]},
        ),
        add_bos=False,
        add_eos=True,
        vocab_size=max(declared.vocab_size, max(vocabulary.values()) + 1),
        added_tokens=tuple(sorted(added.values(), key=lambda token: token["id"])),
        piece_ids=sha256_of({name: files[name] for name in (SOURCE, TARGET)}),
        tokens=named,
        chat_templates=declared.chat_templates,
        source=source,
    )


def read_vocabulary(data: bytes, where: str) -> dict[str, int]:
    """Piece -> id, all different. Raises DataError for anything else; ``where`` names the file."""
    vocabulary = read_json(data, where, MAX_MODEL)
    ids = list(vocabulary.values())
    if (
        not ids
        or any(type(id) is not int or not 0 <= id < 1 << 24 for id in ids)
        or len(set(ids)) < len(ids)
    ):
        raise DataError(
            f"{where}: must give every piece an id of its own, from 0 on; get the file again"
        )
    return vocabulary


def _language(text: str) -> tuple[list[str], str]:
    """The code before a text of the language to write, and the rest."""
    end = text.find("<<") + 2
    return ([text[:end]], text[end:]) if text.startswith(">>") and end > 1 else ([], text)


def _bytes_of(piece: str, models: dict[str, Any]) -> bytes:
    if any(model.IsByte(model.PieceToId(piece)) for model in models.values()):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(BLANK, " ").encode()
