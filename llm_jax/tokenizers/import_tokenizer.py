"""Importing a tokenizer: a Hugging Face folder, a SentencePiece model or a file of ranks becomes a
folder for ``open_tokenizer``.

The source's files are copied byte for byte, and ``imported.json`` is written from what they declare
together (``manifest``, ``hf_config``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from llm_jax.files import TOKENIZER, check_folder, make_folder, write_atomic
from llm_jax.progress import note
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers import hf_config
from llm_jax.tokenizers.huggingface import HuggingFaceTokenizer, load_tokenizer_json
from llm_jax.tokenizers.import_records import JSON_FILE, hugging_face_record, sentencepiece_record
from llm_jax.tokenizers.imported_sentencepiece import ImportedSentencePiece
from llm_jax.tokenizers.manifest import IMPORTED, Imported, check_record
from llm_jax.tokenizers.marian import FILES as MARIAN_FILES
from llm_jax.tokenizers.marian import SOURCE, MarianTokenizer, marian_record
from llm_jax.tokenizers.sentencepiece_tokenizer import MODEL_FILE
from llm_jax.tokenizers.tiktoken import encoding_of, is_ranks, ranks_to_json, read_ranks
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError

SENTENCEPIECE_FILES = (MODEL_FILE, "spiece.model", "sentencepiece.bpe.model")
# A folder with one of these has a tokenizer, and the first of them is used: a tokenizer.json beside
# Marian's files knows only one language.
MODELS = (SOURCE, JSON_FILE, *SENTENCEPIECE_FILES)
# Files that are copied for programs that read the folder later. Only Marian's are read here.
_KEPT = ("vocab.txt", "merges.txt", *MARIAN_FILES)
# transformers' value of model_max_length for no limit is larger; this one fits an int32.
_NO_LIMIT = 1 << 30


class Specials(NamedTuple):
    """What a tokenizer.json does not declare: special ids, and what goes around a text.

    Attributes:
        bos, pad, unk: Ids, or -1.
        eos: All ids that end a text; the first one closes documents.
        add_bos, add_eos: Whether a text gets ``<s>`` before it and ``</s>`` after it.
        vocab_size: Vocabulary size of the model, where its embedding is padded; 0 means the
            tokenizer's own.
    """

    bos: int = -1
    eos: tuple[int, ...] = ()
    pad: int = -1
    unk: int = -1
    add_bos: bool = False
    add_eos: bool = False
    vocab_size: int = 0


class Source(NamedTuple):
    """A tokenizer that was read and found usable, and is not written yet.

    Attributes:
        record: Its record.
        files: Name -> bytes of its files.
        tokenizer: The tokenizer.
    """

    record: Imported
    files: dict[str, bytes]
    tokenizer: HuggingFaceTokenizer | MarianTokenizer | ImportedSentencePiece


def import_tokenizer(
    source: Path, out: Path, encoding: str = "", overwrite: bool = False
) -> Tokenizer:
    """Copy a tokenizer that was made elsewhere, so that data prepare, training and generate can use
    it.

    Args:
        source: folder of a Hugging Face model, with tokenizer.json, a SentencePiece model or
            Marian's two; or a file of ranks (.tiktoken).
        out: folder to write the tokenizer to.
        encoding: how a file of ranks splits text, and its special tokens: gpt2, cl100k, o200k,
            llama3 or qwen; empty goes by its name.
        overwrite: replace a tokenizer that is already there.

    Raises:
        DataError: The source has no tokenizer, or one that cannot be read or is of an unknown kind;
            or ``out`` is taken or cannot be written.
    """
    check_folder(path_of(out), replaces=TOKENIZER, overwrite=overwrite)
    return write_tokenizer(read_tokenizer(path_of(source), encoding), path_of(out))


def read_tokenizer(source: Path, encoding: str = "") -> Source:
    """Reads what ``import_tokenizer`` writes.

    Args:
        source: As for ``import_tokenizer``.
        encoding: As for ``import_tokenizer``.

    Raises:
        DataError: As ``import_tokenizer``.
    """
    if source.is_file():
        return _read_ranks(source, encoding)
    return _read_folder(source, encoding)


def _read_folder(source: Path, encoding: str) -> Source:
    if not source.is_dir():
        raise DataError(
            f"source {str(source)!r} does not exist; name a folder with {JSON_FILE} or"
            f" {MODEL_FILE}, or a .tiktoken file"
        )
    files = _read_files(source)
    model = next((name for name in MODELS if name in files), None)
    if model is None:
        return _read_only_ranks(source, encoding)
    if is_ranks(files[model]):
        return _read_ranks(source / model, encoding)
    if encoding:
        raise DataError(
            f"encoding is {encoding!r}, which is for files of ranks; {str(source / model)!r}"
            " itself says how it splits text; leave encoding out"
        )
    if model == JSON_FILE and _is_trainers_note(files[JSON_FILE], source):
        raise DataError(
            f"source {str(source)!r} is a tokenizer trained by llm_jax; use it without importing it"
        )
    declared = hf_config.read_declared(files, str(source))
    # config.json is the model's and not copied: it has more than the tokenizer in it.
    files.pop(hf_config.MODEL_CONFIG, None)
    if model == JSON_FILE:
        record = hugging_face_record(files, declared, str(source))
    elif model == SOURCE:
        record = marian_record(files, declared, str(source))
    else:
        record = sentencepiece_record(source / model, files, declared, str(source))
    return _usable(record, files, source)


def _read_files(source: Path) -> dict[str, bytes]:
    """Name -> bytes of the files of a folder that belong to a tokenizer."""
    large = {*MODELS, *_KEPT}
    files = {}
    for name in (JSON_FILE, *SENTENCEPIECE_FILES, *hf_config.DECLARING, *_KEPT):
        if (source / name).is_file():
            limit = hf_config.MAX_MODEL if name in large else hf_config.MAX_CONFIG
            files[name] = hf_config.read_file(source / name, limit)
    return files


def _read_only_ranks(source: Path, encoding: str) -> Source:
    """The tokenizer of a folder whose only tokenizer is one file of ranks."""
    ranks = sorted(source.glob("*.tiktoken"))
    if len(ranks) == 1:
        return _read_ranks(ranks[0], encoding)
    names = ", ".join(sorted(path.name for path in source.iterdir()))[:300]
    known = ", ".join((*MODELS[1:], SOURCE))
    raise DataError(f"source {str(source)!r} has no {known} or .tiktoken file; there are: {names}")


def _is_trainers_note(data: bytes, source: Path) -> bool:
    """Whether a tokenizer.json is the note of llm_jax's trainer and not Hugging Face's."""
    return "kind" in hf_config.read_json(data, str(source / JSON_FILE), hf_config.MAX_MODEL)


def _read_ranks(path: Path, encoding: str) -> Source:
    where = str(path)
    chosen = encoding_of(encoding, path.name, where)
    data = hf_config.read_file(path, hf_config.MAX_MODEL)
    tokenizer_json, special = ranks_to_json(read_ranks(data, where), chosen)
    specials = Specials(
        bos=special.get(chosen.bos, -1), eos=(special[chosen.eos],), add_bos=chosen.add_bos
    )
    return source_of_json(tokenizer_json, specials, where=where, more={path.name: data})


def source_of_json(
    tokenizer_json: dict[str, Any],
    specials: Specials,
    chat_template: str | None = None,
    *,
    where: str = "tokenizer",
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> Source:
    """A tokenizer from the contents of a ``tokenizer.json``. Its files load in transformers too.

    A post-processor that puts ``<s>`` and ``</s>`` around a text is added where there is none.

    Args:
        tokenizer_json: The contents.
        specials: What they do not declare.
        chat_template: Jinja source, or None.
        where: Name of the tokenizer, for messages.
        more: Name -> bytes of files to keep beside it.

    Raises:
        DataError: As ``import_tokenizer``; or an id is not in the vocabulary; or a post-processor
            contradicts ``specials``.
    """
    tok = load_tokenizer_json(json.dumps(tokenizer_json).encode(), where)
    by_id = {id: token for token, id in tok.get_vocab(with_added_tokens=True).items()}
    _check_ids(specials, by_id, where)
    if (specials.add_bos or specials.add_eos) and not tokenizer_json.get("post_processor"):
        tokenizer_json = {**tokenizer_json, "post_processor": _post_processor(specials, by_id)}
    files = {
        JSON_FILE: json.dumps(tokenizer_json, ensure_ascii=False).encode(),
        hf_config.CONFIG: _tokenizer_config(specials, by_id, chat_template),
    }
    if len(specials.eos) > 1:
        files[hf_config.GENERATION] = json.dumps({"eos_token_id": list(specials.eos)}).encode()
    declared = hf_config.read_declared(files, where)._replace(vocab_size=specials.vocab_size)
    files |= more
    record = hugging_face_record(files, declared, where)
    if (record.add_bos, record.add_eos) != (specials.add_bos, specials.add_eos):
        raise DataError(
            f"{where}: the post-processor gives add_bos={record.add_bos}, add_eos={record.add_eos},"
            f" and add_bos={specials.add_bos}, add_eos={specials.add_eos} were asked for; change"
            " one of them"
        )
    return _usable(record, files, Path(where))


def _check_ids(specials: Specials, by_id: Mapping[int, str], where: str) -> None:
    named = [("bos", specials.bos)]
    named += [("eos", id) for id in specials.eos]
    named += [("pad", specials.pad), ("unk", specials.unk)]
    for name, id in named:
        if id >= 0 and id not in by_id:
            raise DataError(
                f"{where}: {name} id {id} is not in the vocabulary, which has {len(by_id)} tokens"
            )


def _tokenizer_config(
    specials: Specials, by_id: Mapping[int, str], chat_template: str | None
) -> bytes:
    """A ``tokenizer_config.json``."""
    eos = specials.eos[0] if specials.eos else -1
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": _NO_LIMIT,
        "bos_token": by_id.get(specials.bos),
        "eos_token": by_id.get(eos),
        "pad_token": by_id.get(specials.pad),
        "unk_token": by_id.get(specials.unk),
    }
    if chat_template:
        config["chat_template"] = chat_template
    return json.dumps(config, ensure_ascii=False).encode()


def _post_processor(specials: Specials, by_id: Mapping[int, str]) -> dict[str, Any]:
    """A post-processor that puts ``<s>`` and ``</s>`` around a text, or around each of a pair."""
    before = [specials.bos] if specials.add_bos else []
    after = [specials.eos[0]] if specials.add_eos and specials.eos else []

    def one(name: str, type_id: int) -> list[dict[str, Any]]:
        def token(id: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": by_id[id], "type_id": type_id}}

        text = {"Sequence": {"id": name, "type_id": type_id}}
        return [*map(token, before), text, *map(token, after)]

    tokens = {
        by_id[id]: {"id": by_id[id], "ids": [id], "tokens": [by_id[id]]} for id in (*before, *after)
    }
    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": one("A", 0) + one("B", 1),
        "special_tokens": tokens,
    }


def _usable(record: Imported, files: dict[str, bytes], source: Path) -> Source:
    """The source with its tokenizer, which is opened before anything is written.

    Raises:
        DataError: The tokenizer is not usable.
    """
    check_record(record, record.source)
    if record.kind == "hugging-face":
        return Source(record, files, HuggingFaceTokenizer(files[record.model], record, source))
    kind = MarianTokenizer if record.kind == "marian" else ImportedSentencePiece
    return Source(record, files, kind(record, source))


def write_tokenizer(source: Source, out: Path) -> Tokenizer:
    """Writes the folder of an imported tokenizer. ``imported.json`` comes last, so that a folder
    that is written in part has no tokenizer.

    Raises:
        DataError: The folder cannot be written.
    """
    make_folder(out)
    for name in (IMPORTED, *MODELS, *hf_config.DECLARING, *_KEPT):
        # config.json is the file of a model and never of a tokenizer.
        if name != hf_config.MODEL_CONFIG:
            (out / name).unlink(missing_ok=True)
    for name, data in source.files.items():
        write_atomic(out / name, data)
    write_atomic(out / IMPORTED, source.record.to_json())
    tokenizer = source.tokenizer
    for side in (tokenizer, tokenizer.reader):
        if side is not None:
            side.path = out
    note(
        f"{out}: {tokenizer.vocab_size:,} tokens of {source.record.source}, fingerprint"
        f" {tokenizer.fingerprint[:16]}…"
    )
    return tokenizer
