"""Opening a tokenizer's folder, whatever made it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llm_jax.tokenizers.huggingface import HuggingFaceTokenizer
from llm_jax.tokenizers.imported_sentencepiece import ImportedSentencePiece
from llm_jax.tokenizers.manifest import IMPORTED, is_imported, read_imported, read_model
from llm_jax.tokenizers.marian import MarianTokenizer
from llm_jax.tokenizers.tokenizer import (
    META_FILE,
    MODEL_FILE,
    SentencePieceTokenizer,
    Tokenizer,
    model_file,
)
from llm_jax.types import DataError


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder: one trained here, or an imported one (see ``imported``); or of a
    SentencePiece ``.model`` file.

    Raises DataError for a folder without a tokenizer, of an unknown kind, or whose files are
    damaged.
    """
    path = Path(path)
    if not is_imported(path):
        if (path / META_FILE).is_file() and not (path / MODEL_FILE).is_file():
            raise DataError(
                f"tokenizer {str(path)!r}: a {META_FILE} without {MODEL_FILE} or {IMPORTED};"
                f" Hugging Face's is imported first, with `llm-jax tokenizer import {path} --out"
                " FOLDER`"
            )
        return SentencePieceTokenizer(path)
    record = read_imported(path)
    if record.kind == "marian":
        return MarianTokenizer(record, path)
    model = read_model(path, record)
    return (
        HuggingFaceTokenizer(model, record, path)
        if record.kind == "hugging-face"
        else ImportedSentencePiece(record, path)
    )


def tokenizer_fingerprint(path: str | Path) -> str:
    """The fingerprint of the tokenizer of a folder, without the library that runs it. Raises
    DataError as ``open_tokenizer`` does.
    """
    path = Path(path)
    if not is_imported(path):
        return hashlib.sha256(model_file(path).read_bytes()).hexdigest()
    record = read_imported(path)
    for name in (record.model, *(name for name in record.piece_ids if name in record.files)):
        read_model(path, record, name)
    return record.fingerprint()


def tokenizer_files(path: str | Path) -> dict[str, bytes]:
    """Name -> bytes of the files that make up a tokenizer, to copy it by. ``path`` is one that
    ``open_tokenizer`` has opened.

    Raises DataError where one is missing.
    """
    path = Path(path)
    if is_imported(path):
        names = (*read_imported(path).files, IMPORTED)
        if missing := [name for name in names if not (path / name).is_file()]:
            raise DataError(
                f"tokenizer {str(path / missing[0])!r} is missing, though {IMPORTED} names it;"
                " import the tokenizer again"
            )
        return {name: (path / name).read_bytes() for name in names}
    model = path / MODEL_FILE if path.is_dir() else path
    meta = model.with_name(META_FILE)
    ours = model.name == MODEL_FILE and meta.is_file()
    return {MODEL_FILE: model.read_bytes()} | ({META_FILE: meta.read_bytes()} if ours else {})
