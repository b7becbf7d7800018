"""Opening the folder of any kind of tokenizer."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llm_jax.storage.paths import local_file, path_of
from llm_jax.tokenizers.huggingface import HuggingFaceTokenizer
from llm_jax.tokenizers.imported_sentencepiece import ImportedSentencePiece
from llm_jax.tokenizers.manifest import IMPORTED, is_imported, read_imported, read_model
from llm_jax.tokenizers.marian import MarianTokenizer
from llm_jax.tokenizers.sentencepiece_tokenizer import (
    META_FILE,
    MODEL_FILE,
    SentencePieceTokenizer,
    model_file,
)
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError


def open_tokenizer(path: str | Path) -> Tokenizer:
    """Opens a tokenizer.

    Args:
        path: Folder of a tokenizer that was trained by llm_jax or imported (see ``manifest``), or a
            SentencePiece ``.model`` file.

    Raises:
        DataError: There is no tokenizer, its kind is unknown, or its files are damaged.
    """
    path = path_of(path)
    if not is_imported(path):
        if (path / META_FILE).is_file() and not (path / MODEL_FILE).is_file():
            raise DataError(
                f"tokenizer {str(path)!r}: a {META_FILE} without {MODEL_FILE} or {IMPORTED}; import"
                f" a tokenizer of Hugging Face first, with `llm-jax tokenizer import {path} --out"
                " FOLDER`"
            )
        return SentencePieceTokenizer(path)
    record = read_imported(path)
    if record.kind == "marian":
        return MarianTokenizer(record, path)
    model = read_model(path, record)
    if record.kind == "hugging-face":
        return HuggingFaceTokenizer(model, record, path)
    return ImportedSentencePiece(record, path)


def tokenizer_fingerprint(path: str | Path) -> str:
    """The fingerprint of a tokenizer, without loading the library that runs it.

    Raises:
        DataError: As ``open_tokenizer``.
    """
    path = path_of(path)
    if not is_imported(path):
        return hashlib.sha256(local_file(model_file(path)).read_bytes()).hexdigest()
    record = read_imported(path)
    for name in (record.model, *(name for name in record.piece_ids if name in record.files)):
        read_model(path, record, name)
    return record.fingerprint()


def tokenizer_files(path: str | Path) -> dict[str, bytes]:
    """Name -> bytes of the files that make up a tokenizer.

    Args:
        path: As for ``open_tokenizer``, which must have opened it.

    Raises:
        DataError: A file is missing.
    """
    path = path_of(path)
    if is_imported(path):
        names = (*read_imported(path).files, IMPORTED)
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise DataError(
                f"tokenizer {str(path / missing[0])!r} is missing, though {IMPORTED} names it;"
                " import the tokenizer again"
            )
        return {name: local_file(path / name).read_bytes() for name in names}
    model = path / MODEL_FILE if path.is_dir() else path
    meta = model.with_name(META_FILE)
    files = {MODEL_FILE: local_file(model).read_bytes()}
    if model.name == MODEL_FILE and meta.is_file():
        files[META_FILE] = local_file(meta).read_bytes()
    return files
