"""Exporting a tokenizer as the files that Hugging Face's libraries read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from llm_jax.files import HUGGING_FACE_MODEL, TOKENIZER, check_folder, make_folder, write_atomic
from llm_jax.progress import note
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers.hf_config import CONFIG
from llm_jax.tokenizers.manifest import IMPORTED
from llm_jax.tokenizers.open_tokenizer import open_tokenizer, tokenizer_files
from llm_jax.tokenizers.sentencepiece_model import BLANK, model_rules
from llm_jax.tokenizers.sentencepiece_tokenizer import META_FILE, MODEL_FILE, SentencePieceTokenizer
from llm_jax.types import DataError


def export_tokenizer(folder: Path, out: Path, overwrite: bool = False) -> list[Path]:
    """Write the files by which Hugging Face's libraries read a tokenizer.

    An imported tokenizer is exported as the files of its source, byte for byte. A tokenizer trained
    by llm_jax (bpe) is exported as ``tokenizer.model``, byte for byte, and a
    ``tokenizer_config.json`` with which transformers reads it as its Llama tokenizer. The
    vocabulary, the special ids, ``<s>`` before a text and decoding are the same there, and so are
    the ids of every text except in two cases: transformers reads U+2581 as a blank, while llm_jax
    writes it as its three bytes; and transformers reads the text of a special token, such as
    ``</s>``, as that token, while llm_jax reads it as text. A vocabulary with a user symbol that
    has a blank in it is refused, since transformers' Llama tokenizer does not find such symbols.

    Args:
        folder: folder of tokenizer train or tokenizer import, or tokenizer/ of a run.
        out: folder to write to: new, empty, or of a Hugging Face model, whose files stay.
        overwrite: replace files that are already there.

    Returns:
        Paths of the files.

    Raises:
        DataError: There is no tokenizer; it is a unigram model or has a user symbol with a blank,
            which transformers' Llama tokenizer cannot use; or ``out`` is taken or not writable.
    """
    folder = path_of(folder)
    out = path_of(out)
    files = exported_files(folder)
    check_folder(out, resumes=(HUGGING_FACE_MODEL,), replaces=TOKENIZER, overwrite=overwrite)
    taken = [name for name in files if (out / name).exists()]
    if taken and not overwrite:
        raise DataError(
            f"out {str(out / taken[0])!r} exists already; pass overwrite (--overwrite) to replace"
            " it, or choose another folder"
        )
    make_folder(out)
    for name, data in files.items():
        write_atomic(out / name, data)
    note(f"{out}: {', '.join(files)} of {folder}")
    return [out / name for name in files]


def exported_files(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of the files that ``export_tokenizer`` writes.

    Raises:
        DataError: As ``export_tokenizer``.
    """
    tokenizer = open_tokenizer(folder)
    files = tokenizer_files(folder)
    record = json.loads(files.pop(IMPORTED, b"{}"))
    if isinstance(tokenizer, SentencePieceTokenizer):
        files.pop(META_FILE, None)
        files[CONFIG] = _llama_config(tokenizer, files[MODEL_FILE])
    for name, data in files.items():
        if record and hashlib.sha256(data).hexdigest() != record["files"][name]:
            raise DataError(
                f"{str(folder / name)!r} has changed since it was imported; import the tokenizer"
                " again"
            )
    return files


def _llama_config(tokenizer: SentencePieceTokenizer, model: bytes) -> bytes:
    """The ``tokenizer_config.json`` with which transformers reads the model as Llama's."""
    if not tokenizer.merges:
        raise DataError(
            f"tokenizer {str(tokenizer.path)!r} is a unigram model, and transformers' Llama"
            f" tokenizer merges pairs; train it with model_type=bpe, or use {MODEL_FILE} with the"
            " sentencepiece library"
        )
    symbols = model_rules(model, str(tokenizer.path)).symbols
    blank = [symbol for symbol in symbols if symbol != BLANK and (" " in symbol or BLANK in symbol)]
    if blank:
        raise DataError(
            f"tokenizer {str(tokenizer.path)!r} has the user symbol"
            f" {blank[0].replace(BLANK, ' ')!r}, and transformers' Llama tokenizer does not find"
            f" symbols with a blank; train it without, or use {MODEL_FILE} with the sentencepiece"
            " library"
        )
    ids = {
        "bos": tokenizer.bos_id,
        "eos": tokenizer.eos_id,
        "unk": tokenizer.unk_id,
        "pad": tokenizer.pad_id,
    }
    special = {f"{name}_token": tokenizer.piece(id) for name, id in ids.items() if id >= 0}
    config = {
        "tokenizer_class": "LlamaTokenizer",
        **special,
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": False,
        "add_prefix_space": tokenizer.adds_prefix,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
    }
    return (json.dumps(config, indent=1) + "\n").encode()
