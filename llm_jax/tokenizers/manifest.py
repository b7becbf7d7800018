"""The record of an imported tokenizer, ``imported.json``, which describes the files beside it.

There are two kinds of tokenizer folders:

- native: ``tokenizer.model``, and the trainer's notes in ``tokenizer.json``. There is no
  ``imported.json``.
- imported: the files of the source under their own names, byte for byte, and ``imported.json``. A
  ``tokenizer.json`` there is Hugging Face's. Everything that decides the ids beyond the model file,
  and everything that the source spreads over several files (special ids, where ``<s>`` and
  ``</s>`` go, chat templates), is read from ``imported.json`` alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.storage.paths import local_file
from llm_jax.tokenizers.token_table import TableTokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError

IMPORTED = "imported.json"
FORMAT_VERSION = 1
KINDS = ("hugging-face", "sentencepiece", "marian")
_MAX_IDS = 1 << 24


class Imported(NamedTuple):
    """Contents of ``imported.json``.

    Attributes:
        kind: ``hugging-face`` (``tokenizer.json``, through ``tokenizers``), ``sentencepiece``, or
            ``marian`` (two SentencePiece models).
        model: Name of the file with the vocabulary.
        files: Name -> sha256 (hex) of every file of the source.
        special: bos, pad, unk -> id, or -1.
        eos_ids: Ids that end a text; the first one closes documents.
        add_bos, add_eos: Whether a text gets ``<s>`` before it and ``</s>`` after it.
        vocab_size: Number of ids, with those that only a model's padded embedding has.
        added_tokens: Tokens that the model file lacks: id, text and flags, as in Hugging Face's
            ``added_tokens``.
        piece_ids: How ids follow from those of a SentencePiece model, where they differ (see
            ``moved_ids``); for Marian, name -> sha256 of its two models.
        tokens: bos_token, eos_token, … -> text, for chat templates.
        chat_templates: Name -> Jinja template; a single one is called ``default``.
        source: Where the tokenizer came from, for people.
    """

    kind: str
    model: str
    files: dict[str, str]
    special: dict[str, int]
    eos_ids: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    vocab_size: int
    added_tokens: tuple[dict[str, Any], ...]
    piece_ids: dict[str, Any]
    tokens: dict[str, Any]
    chat_templates: dict[str, str]
    source: str

    def to_json(self) -> bytes:
        """The file's bytes. Equal records give equal bytes."""
        fields = {"format_version": FORMAT_VERSION, **self._asdict()}
        return (json.dumps(fields, indent=1, ensure_ascii=False) + "\n").encode()

    def fingerprint(self) -> str:
        """The sha256 of the model file, or, where ids depend on more fields, of that and these."""
        model = self.files[self.model]
        fields = {"added_tokens": self.added_tokens, "piece_ids": self.piece_ids}
        more = {name: value for name, value in fields.items() if value}
        if not more:
            return model
        return hashlib.sha256(f"{model} {json.dumps(more, sort_keys=True)}".encode()).hexdigest()


class ImportedTokenizer(TableTokenizer):
    """The attributes that an imported tokenizer gets from its record; -1 means no such token."""

    def __init__(self, record: Imported, path: Path):
        self.path = path
        self.fingerprint = record.fingerprint()
        self.vocab_size = record.vocab_size
        self.bos_id = record.special["bos"]
        self.unk_id = record.special["unk"]
        self.eos_ids = record.eos_ids
        self.eos_id = record.eos_ids[0] if record.eos_ids else -1
        self.pad_id = record.special["pad"] if record.special["pad"] >= 0 else max(self.eos_id, 0)
        self.add_bos = record.add_bos
        self.add_eos = record.add_eos
        self.reader: Tokenizer | None = None


def sha256_of(files: dict[str, bytes]) -> dict[str, str]:
    """Name -> sha256 (hex) of each file."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def is_imported(folder: Path) -> bool:
    """Whether the folder holds an imported tokenizer."""
    return (folder / IMPORTED).is_file()


def read_imported(folder: Path) -> Imported:
    """The record of a folder.

    Raises:
        DataError: The record is damaged or of another format version.
    """
    path = folder / IMPORTED
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("format_version")
        if version != FORMAT_VERSION:
            raise DataError(
                f"{str(path)!r}: format version {version}, expected {FORMAT_VERSION}; import the"
                " tokenizer again"
            )
        record = Imported(**fields)._replace(
            eos_ids=tuple(fields["eos_ids"]), added_tokens=tuple(fields["added_tokens"])
        )
        # A name with a folder in it would reach outside.
        outside = [name for name in (record.model, *record.files) if Path(name).name != name]
        if outside:
            raise DataError(
                f"{str(path)!r}: {outside[0]!r} is not the name of a file in its folder; import the"
                " tokenizer again"
            )
        wrong = _wrong(record)
        if wrong:
            raise ValueError(f"{wrong} is {str(getattr(record, wrong))[:80]}, which is not valid")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{str(path)!r}: damaged ({error}); import the tokenizer again") from error
    if record.kind not in KINDS:
        raise DataError(
            f"{str(path)!r}: unknown kind of tokenizer {record.kind!r}; known are"
            f" {', '.join(KINDS)}"
        )
    return record


def check_record(record: Imported, source: str) -> None:
    """Checks that a record can be read back.

    Args:
        record: The record.
        source: Where its values are from, for messages.

    Raises:
        DataError: A value is not valid.
    """
    wrong = _wrong(record)
    if wrong:
        raise DataError(
            f"{source}: {wrong} would be {str(getattr(record, wrong))[:80]}, with a vocabulary of"
            f" {record.vocab_size:,} ids; fix the file that declares it"
        )


def _wrong(record: Imported) -> str:
    """The first field that is not valid, or an empty string. Files may have been edited by hand."""
    size = record.vocab_size if type(record.vocab_size) is int else -1

    def is_id(id: Any, smallest: int = 0) -> bool:
        return type(id) is int and smallest <= id < size

    def is_token(token: Any) -> bool:
        is_text = isinstance(token["content"], str)
        return is_text and type(token["special"]) is bool and is_id(token["id"])

    valid = {
        "vocab_size": 0 < size <= _MAX_IDS,
        "files": isinstance(record.files, dict) and record.model in record.files,
        "special": (
            record.special.keys() == {"bos", "pad", "unk"}
            and all(is_id(id, -1) for id in record.special.values())
        ),
        "eos_ids": all(map(is_id, record.eos_ids)),
        "add_bos": isinstance(record.add_bos, bool),
        "add_eos": isinstance(record.add_eos, bool),
        "added_tokens": all(map(is_token, record.added_tokens)),
        "piece_ids": isinstance(record.piece_ids, dict),
    }
    return next((name for name, is_valid in valid.items() if not is_valid), "")


def read_model(folder: Path, record: Imported, name: str = "") -> bytes:
    """The bytes of a file of the source, checked against the record.

    Args:
        folder: The folder.
        record: Its record.
        name: Name of the file; empty means the model file.

    Raises:
        DataError: The file is missing or has changed.
    """
    path = folder / (name or record.model)
    if not path.is_file():
        raise DataError(
            f"tokenizer {str(path)!r} is missing, though {IMPORTED} names it; import the tokenizer"
            " again"
        )
    data = local_file(path).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != record.files.get(path.name):
        raise DataError(
            f"tokenizer {str(path)!r} has changed: sha256 {found[:16]}…, {IMPORTED} says"
            f" {str(record.files.get(path.name))[:16]}…; import the tokenizer again"
        )
    return data
