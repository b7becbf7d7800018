"""The record of an imported tokenizer: what ``imported.json`` says about the files beside it.

A tokenizer's folder is of one of two kinds:

- ours: ``tokenizer.model``, and the trainer's notes in ``tokenizer.json``. There is no
  ``imported.json``;
- imported: the files of the source under their own names, byte for byte, and ``imported.json``. A
  ``tokenizer.json`` there is Hugging Face's. What decides the ids beyond the model file, and what
  the source spreads over several files (special ids, where ``<s>`` and ``</s>`` go, chat
  templates), is in ``imported.json`` and read from nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.tokenizers.token_table import TableTokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import DataError

IMPORTED = "imported.json"
FORMAT_VERSION = 1
KINDS = ("hugging-face", "sentencepiece", "marian")


class Imported(NamedTuple):
    """Contents of ``imported.json``.

    kind: ``hugging-face`` (``tokenizer.json``, through ``tokenizers``), ``sentencepiece``, or
        ``marian`` (two of them).
    model: name of the file that holds the vocabulary.
    files: name -> sha256 (hex) of every file of the source.
    special: bos, pad, unk -> id, -1 where there is none.
    eos_ids: ids that end a text; the first one closes documents.
    add_bos, add_eos: whether a text is given ``<s>`` before it and ``</s>`` after it.
    vocab_size: number of ids, those that only the model's padded embedding has included.
    added_tokens: tokens that the model file lacks: their id, text and flags, as in Hugging Face's
        ``added_tokens``.
    piece_ids: how ids follow from those of a SentencePiece model, where they differ: see
        ``moved_ids``; Marian's two models -> sha256.
    tokens: bos_token, eos_token, … -> text, as chat templates are given them.
    chat_templates: name -> Jinja template; ``default`` where there is only one.
    source: where it came from, for people.
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
        """The file's bytes; always the same for the same record."""
        return (
            json.dumps(
                {"format_version": FORMAT_VERSION, **self._asdict()}, indent=1, ensure_ascii=False
            )
            + "\n"
        ).encode()

    def fingerprint(self) -> str:
        """The model file's sha256, or, where ids depend on more, of it and that together."""
        beyond = {
            name: value for name in ("added_tokens", "piece_ids") if (value := getattr(self, name))
        }
        if not beyond:
            return self.files[self.model]
        return hashlib.sha256(
            f"{self.files[self.model]} {json.dumps(beyond, sort_keys=True)}".encode()
        ).hexdigest()


class ImportedTokenizer(TableTokenizer):
    """What an imported tokenizer is given by its record; -1 means that there is no such token."""

    def __init__(self, record: Imported, path: Path):
        self.path = path
        self.fingerprint, self.vocab_size = record.fingerprint(), record.vocab_size
        self.bos_id, self.unk_id = record.special["bos"], record.special["unk"]
        self.eos_ids = record.eos_ids
        self.eos_id = record.eos_ids[0] if record.eos_ids else -1
        self.pad_id = record.special["pad"] if record.special["pad"] >= 0 else max(self.eos_id, 0)
        self.add_bos, self.add_eos = record.add_bos, record.add_eos
        self.reader: Tokenizer | None = None


def sha256_of(files: dict[str, bytes]) -> dict[str, str]:
    """name -> sha256 (hex) of each file."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def is_imported(folder: Path) -> bool:
    """Whether the folder holds an imported tokenizer."""
    return (folder / IMPORTED).is_file()


def read_imported(folder: Path) -> Imported:
    """The record of a folder. Raises DataError for one that is damaged, of another version, or
    whose files have changed.
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
        if bad := [name for name in (record.model, *record.files) if Path(name).name != name]:
            raise DataError(
                f"{str(path)!r}: {bad[0]!r} is no name of a file in its folder; import the"
                " tokenizer again"
            )
        if wrong := _wrong(record):
            raise ValueError(f"{wrong} is {str(getattr(record, wrong))[:80]}, which cannot be")
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
    """Raises DataError for a record that could not be read back; ``source`` names where its values
    are from.
    """
    if wrong := _wrong(record):
        raise DataError(
            f"{source}: {wrong} would be {str(getattr(record, wrong))[:80]}, with a vocabulary of"
            f" {record.vocab_size:,} ids; fix the file that declares it"
        )


def _wrong(record: Imported) -> str:
    """The first field that is of no use; files may have been changed by hand."""
    size = record.vocab_size if type(record.vocab_size) is int else -1

    def is_id(id, least=0):
        return type(id) is int and least <= id < size

    def is_token(t):
        return (isinstance(t["content"], str), type(t["special"]), is_id(t["id"])) == (
            True,
            bool,
            True,
        )

    fits = {
        "vocab_size": 0 < size <= 1 << 24,
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
    return next((name for name, right in fits.items() if not right), "")


def read_model(folder: Path, record: Imported, name: str = "") -> bytes:
    """The bytes of the model file, or of another that goes with it, checked against the record.
    Raises DataError if it is missing or another one.
    """
    path = folder / (name or record.model)
    if not path.is_file():
        raise DataError(
            f"tokenizer {str(path)!r} is missing, though {IMPORTED} names it; import the tokenizer"
            " again"
        )
    data = path.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != record.files.get(path.name):
        raise DataError(
            f"tokenizer {str(path)!r} has changed: sha256 {found[:16]}…, {IMPORTED} says"
            f" {str(record.files.get(path.name))[:16]}…; import the tokenizer again"
        )
    return data
