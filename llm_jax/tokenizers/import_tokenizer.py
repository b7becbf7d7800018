"""Importing a tokenizer: a Hugging Face folder, a SentencePiece model or a file of ranks becomes a
folder for ``open_tokenizer``.

The source's files are copied byte for byte, and ``imported.json`` is written from what they say
together (``imported``, ``declared``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from llm_jax.files import TOKENIZER, check_folder, make_folder, write_atomic
from llm_jax.progress import note
from llm_jax.tokenizers import hf_config as said
from llm_jax.tokenizers.huggingface import HuggingFaceTokenizer, load_tokenizer_json
from llm_jax.tokenizers.import_records import JSON_FILE, hugging_face_record, sentencepiece_record
from llm_jax.tokenizers.imported_sentencepiece import ImportedSentencePiece
from llm_jax.tokenizers.manifest import IMPORTED, Imported, check_record
from llm_jax.tokenizers.marian import FILES as MARIAN_FILES
from llm_jax.tokenizers.marian import SOURCE, MarianTokenizer, marian_record
from llm_jax.tokenizers.tiktoken import encoding_of, is_ranks, ranks_to_json, read_ranks
from llm_jax.tokenizers.tokenizer import MODEL_FILE, Tokenizer
from llm_jax.types import DataError

SENTENCEPIECE_FILES = (MODEL_FILE, "spiece.model", "sentencepiece.bpe.model")
# A folder with one of these has a tokenizer: the first of them, since a tokenizer.json beside
# Marian's files knows one language only.
MODELS = (SOURCE, JSON_FILE, *SENTENCEPIECE_FILES)
# Kept for whoever gets the folder back; of these nothing is read, but Marian's.
_KEPT = ("vocab.txt", "merges.txt", *MARIAN_FILES)


class Specials(NamedTuple):
    """What a tokenizer.json does not say: special ids (-1: none), and whether a text is put between
    ``<s>`` and ``</s>``.

    eos:        all ids that end a text; the first one closes documents.
    vocab_size: of the model where its embedding is padded; 0 takes the tokenizer's own.
    """

    bos: int = -1
    eos: tuple[int, ...] = ()
    pad: int = -1
    unk: int = -1
    add_bos: bool = False
    add_eos: bool = False
    vocab_size: int = 0


class Source(NamedTuple):
    """A tokenizer that was read and found usable, and is not written yet: its record, its files by
    name, and itself.
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
        encoding: where a file of ranks cuts text, and its special tokens: gpt2, cl100k, o200k,
            llama3 or qwen; empty goes by its name.
        overwrite: replace a tokenizer that is already there.

    Raises:
        DataError: no tokenizer in the source, or one that cannot be read or is of an unknown kind;
            ``out`` is taken or cannot be written.
    """
    check_folder(Path(out), replaces=TOKENIZER, overwrite=overwrite)
    return write_tokenizer(read_tokenizer(Path(source), encoding), Path(out))


def read_tokenizer(source: Path, encoding: str = "") -> Source:
    """What ``import_tokenizer`` writes of a source. Raises DataError as it does; writes nothing."""
    return _read_ranks(source, encoding) if source.is_file() else _read_folder(source, encoding)


def _read_folder(source: Path, encoding: str) -> Source:
    if not source.is_dir():
        raise DataError(
            f"source {str(source)!r} is not there; name a folder with {JSON_FILE} or {MODEL_FILE},"
            " or a .tiktoken file"
        )
    large = {*MODELS, *_KEPT}
    there = [
        name
        for name in (JSON_FILE, *SENTENCEPIECE_FILES, *said.DECLARING, *_KEPT)
        if (source / name).is_file()
    ]
    files = {
        name: said.read_file(source / name, said.MAX_MODEL if name in large else said.MAX_CONFIG)
        for name in there
    }
    model = next((name for name in MODELS if name in there), None)
    if model is None:
        ranks = [path.name for path in sorted(source.glob("*.tiktoken"))]
        if len(ranks) == 1:
            return _read_ranks(source / ranks[0], encoding)
        names, known = (
            ", ".join(sorted(path.name for path in source.iterdir()))[:300],
            ", ".join((*MODELS[1:], SOURCE)),
        )
        raise DataError(
            f"source {str(source)!r} has no {known} or .tiktoken file; there are: {names}"
        )
    if is_ranks(files[model]):
        return _read_ranks(source / model, encoding)
    if encoding:
        raise DataError(
            f"encoding is {encoding!r}, which is for files of ranks; {str(source / model)!r} says"
            " itself where it cuts text"
        )
    if model == JSON_FILE and "kind" in said.read_json(
        files[JSON_FILE], str(source / JSON_FILE), said.MAX_MODEL
    ):
        raise DataError(f"source {str(source)!r} is a tokenizer trained here; use it as it is")
    declared = said.read_declared(files, str(source))
    # The model's, which has more than the tokenizer in it.
    files.pop(said.MODEL_CONFIG, None)
    if model == JSON_FILE:
        record = hugging_face_record(files, declared, str(source))
    elif model == SOURCE:
        record = marian_record(files, declared, str(source))
    else:
        record = sentencepiece_record(source / model, files, declared, str(source))
    return _usable(record, files, source)


def _read_ranks(path: Path, encoding: str) -> Source:
    where = str(path)
    chosen = encoding_of(encoding, path.name, where)
    data = said.read_file(path, said.MAX_MODEL)
    tokenizer_json, special = ranks_to_json(read_ranks(data, where), chosen)
    specials = Specials(special.get(chosen.bos, -1), (special[chosen.eos],), add_bos=chosen.add_bos)
    return source_of_json(tokenizer_json, specials, where=where, more={path.name: data})


def source_of_json(
    tokenizer_json: dict[str, Any],
    specials: Specials,
    chat_template: str | None = None,
    *,
    where: str = "tokenizer",
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> Source:
    """A ``tokenizer.json`` built by the caller, and what goes with it, as the source of an imported
    tokenizer; loads in transformers too.

    A post-processor that puts ``<s>`` and ``</s>`` is added where there is none. Raises DataError
    as ``import_tokenizer`` does, for an id that is no token, and for a post-processor that says
    otherwise than ``specials``.
    """
    tok = load_tokenizer_json(json.dumps(tokenizer_json).encode(), where)
    by_id = {id: token for token, id in tok.get_vocab(with_added_tokens=True).items()}
    for name, id in (
        ("bos", specials.bos),
        *(("eos", id) for id in specials.eos),
        ("pad", specials.pad),
        ("unk", specials.unk),
    ):
        if id >= 0 and id not in by_id:
            raise DataError(
                f"{where}: {name} id {id} is no token of the vocabulary, which has {len(by_id)}"
            )
    named = {
        "bos_token": specials.bos,
        "eos_token": (*specials.eos, -1)[0],
        "pad_token": specials.pad,
        "unk_token": specials.unk,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
    }
    config |= {name: by_id.get(id) for name, id in named.items()} | (
        {"chat_template": chat_template} if chat_template else {}
    )
    if (specials.add_bos or specials.add_eos) and not tokenizer_json.get("post_processor"):
        tokenizer_json = {**tokenizer_json, "post_processor": _template_processing(specials, by_id)}
    files = {
        name: json.dumps(value, ensure_ascii=False).encode()
        for name, value in ((JSON_FILE, tokenizer_json), (said.CONFIG, config))
    }
    if len(specials.eos) > 1:
        files[said.GENERATION] = json.dumps({"eos_token_id": list(specials.eos)}).encode()
    declared = said.read_declared(files, where)._replace(vocab_size=specials.vocab_size)
    files |= more
    record = hugging_face_record(files, declared, where)
    if (record.add_bos, record.add_eos) != (specials.add_bos, specials.add_eos):
        raise DataError(
            f"{where}: the post-processor gives add_bos={record.add_bos}, add_eos={record.add_eos},"
            f" and add_bos={specials.add_bos}, add_eos={specials.add_eos} were asked for; mend one"
            " of them"
        )
    return _usable(record, files, Path(where))


def _template_processing(specials: Specials, by_id: dict[int, str]) -> dict[str, Any]:
    before, after = [specials.bos][: specials.add_bos], list(specials.eos)[: specials.add_eos]

    def one(name: str, type_id: int) -> list[dict[str, Any]]:
        def token(id):
            return {"SpecialToken": {"id": by_id[id], "type_id": type_id}}

        return [
            *map(token, before),
            {"Sequence": {"id": name, "type_id": type_id}},
            *map(token, after),
        ]

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
    """The source with its tokenizer, read before anything is written. Raises DataError."""
    check_record(record, record.source)
    if record.kind == "hugging-face":
        return Source(record, files, HuggingFaceTokenizer(files[record.model], record, source))
    kind = MarianTokenizer if record.kind == "marian" else ImportedSentencePiece
    return Source(record, files, kind(record, source))


def write_tokenizer(source: Source, out: Path) -> Tokenizer:
    """Writes the folder of an imported tokenizer; ``imported.json`` is written last, so that half a
    folder is none. Raises DataError.
    """
    make_folder(out)
    for name in (IMPORTED, *MODELS, *said.DECLARING, *_KEPT):
        # The configuration of a model is never a tokenizer's file.
        if name != said.MODEL_CONFIG:
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
