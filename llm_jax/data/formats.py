"""The bytes of one file, of whatever format, as a stream of texts."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from llm_jax.data.compressed import COMPRESSED, decompressed
from llm_jax.types import DataError

TEXT, JSONL, PARQUET = (".txt", ".md", ".text"), (".jsonl", ".ndjson"), (".parquet",)
SUPPORTED = f"{', '.join(TEXT + JSONL)}, each also with {' or '.join(COMPRESSED)} after it, and .parquet"
_HEAD = 64 << 10

InvalidUtf8 = Literal["repair", "refuse"]


@dataclass
class ReadCounts:
    """What ``read_documents`` saw so far; it updates the object it is given.

    bytes_read: bytes consumed on disk, of all files. empty: files or lines that held no text.
    invalid_utf8: invalid sequences replaced by U+FFFD. documents: per source path.
    """

    bytes_read: int = 0
    empty: int = 0
    invalid_utf8: int = 0
    documents: dict[str, int] = field(default_factory=dict)


def kind_of(path: Path) -> str | None:
    """``"text"``, ``"jsonl"``, ``"parquet"`` or None by the file's name, whatever compression suffix ends it."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
        kinds = {"text": TEXT, "jsonl": JSONL}
    else:
        kinds = {"text": TEXT, "jsonl": JSONL, "parquet": PARQUET}
    return next((kind for kind, known in kinds.items() if suffixes and suffixes[-1] in known), None)


def supported(path: Path) -> Path:
    """``path`` itself. Raises DataError when its format is not supported."""
    if kind_of(path) is None:
        raise DataError(f"input {str(path)!r}: format not supported; supported are {SUPPORTED}")
    return path


def read_texts(
    path: Path, fields: Sequence[str], invalid_utf8: InvalidUtf8, document_bytes: int, counts: ReadCounts
) -> Iterator[tuple[str, ...]]:
    """The texts of one file in order, one for each of ``fields``, with ``counts`` brought up to date as they come. A file of plain text
    has one text and no fields. Raises DataError.
    """
    before = counts.bytes_read
    kind = kind_of(supported(path))
    if kind == "text" and len(fields) > 1:
        raise DataError(f"input {str(path)!r}: plain text has no fields {list(fields)}; give pairs of texts as .jsonl or .parquet")
    try:
        if kind == "parquet":
            yield from _parquet(path, fields)
            return
        with path.open("rb") as raw:
            stream = decompressed(raw, path)
            decode = _Decoder(path, invalid_utf8, counts)
            for texts in _jsonl(stream, path, fields, decode) if kind == "jsonl" else _text(stream, document_bytes, decode):
                counts.bytes_read = before + raw.tell()
                yield texts
    except FileNotFoundError:
        raise DataError(f"input {str(path)!r}: no such file; check the path") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"input {str(path)!r}: damaged or truncated compressed file ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise DataError(f"input {str(path)!r}: cannot be read ({error})") from error


class _Decoder:
    """UTF-8 to str with a count of repairs, or an error that says where."""

    def __init__(self, path: Path, invalid_utf8: InvalidUtf8, counts: ReadCounts):
        self.path, self.refuse, self.counts = path, invalid_utf8 == "refuse", counts

    def __call__(self, data: bytes, offset: int) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.refuse:
                raise DataError(
                    f"{self.path}: invalid UTF-8 at byte {offset + error.start}; convert the file or pass "
                    "invalid_utf8='repair'"
                ) from None
        text = data.decode("utf-8", errors="replace")
        self.counts.invalid_utf8 += text.count("\ufffd") - data.count(b"\xef\xbf\xbd")
        return text

    def surrogates(self, text: str, where: str) -> str:
        """JSON escapes can hold half a surrogate pair, which no UTF-8 can: treated as invalid UTF-8 is."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            if self.refuse:
                raise DataError(
                    f"{where}: unpaired surrogate at character {error.start}; pass invalid_utf8='repair'"
                ) from None
            repaired = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
            self.counts.invalid_utf8 += repaired.count("\ufffd") - text.count("\ufffd")
            return repaired
        return text

    def check_head(self, head: bytes) -> None:
        """Refuse what is no text at all: a NUL byte, or mostly undecodable."""
        if (nul := head.find(b"\0")) >= 0:
            raise DataError(
                f"{self.path}: binary file (NUL byte at {nul}); text must be UTF-8, so convert it or leave it out"
            )
        bad = head.decode("utf-8", errors="replace").count("\ufffd") - head.count(b"\xef\xbf\xbd")
        if bad > 1 and bad > 0.3 * len(head):
            raise DataError(
                f"{self.path}: binary file or another encoding ({bad} undecodable of the first {len(head)} bytes); "
                "convert it to UTF-8"
            )


def _text(stream: BinaryIO, document_bytes: int, decode: _Decoder) -> Iterator[tuple[str]]:
    """Documents of a plain text file: the whole, or pieces of at most ``document_bytes`` cut where a reader would."""
    buffer, offset, first = b"", 0, True
    while True:
        block = stream.read(max(document_bytes + 1 - len(buffer), _HEAD))
        if first:
            decode.check_head(block[:_HEAD])
            first = False
        buffer += block
        while len(buffer) > document_bytes:
            cut = _cut(buffer, document_bytes)
            yield (decode(buffer[:cut], offset),)
            buffer, offset = buffer[cut:], offset + cut
        if not block:
            if buffer:
                yield (decode(buffer, offset),)
            return


def _cut(data: bytes, limit: int) -> int:
    """Where to cut ``data`` at or before ``limit``: after a blank line, else a line, else a character. At least 1."""
    for mark in (b"\n\n", b"\n\r\n", b"\n"):
        at = data.rfind(mark, limit // 2 if mark != b"\n" else 0, limit)
        if at >= 0:
            return at + len(mark)
    cut = limit
    while cut > max(1, limit - 3) and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _jsonl(stream: BinaryIO, path: Path, fields: Sequence[str], decode: _Decoder) -> Iterator[tuple[str, ...]]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        if number == 1:
            decode.check_head(line[:_HEAD])
        start, offset = offset, offset + len(line)
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(decode(line, start).removeprefix("\ufeff"))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: not valid JSON ({error.msg} at column {error.colno}); each line must be one JSON object"
            ) from None
        texts = tuple(_text_of(record, name, where) for name in fields)
        yield tuple(decode.surrogates(text, where) for text in texts) if b"\\u" in line else texts


def _text_of(record: object, name: str, where: str) -> str:
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON {type(record).__name__}, not an object; each line must be one JSON object")
    if name not in record:
        raise DataError(f"{where}: no field {name!r}; the fields there are {sorted(record)}: pass one of them")
    if not isinstance(record[name], str):
        kind = type(record[name]).__name__
        raise DataError(f"{where}: field {name!r} holds {kind}, not a string; the fields there are {sorted(record)}")
    return record[name]


def _parquet(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(".parquet files need the package pyarrow: pip install 'llm_jax[data]'") from None
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from error
    with file:
        names = file.schema_arrow.names
        for name in fields:
            if name not in names:
                raise DataError(f"{path}: no column {name!r}; the columns there are {names}: pass one of them")
            kind = file.schema_arrow.field(name).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"{path}: column {name!r} holds {kind}, not strings; the columns there are {names}")
        row = 0
        for batch in file.iter_batches(batch_size=256, columns=list(dict.fromkeys(fields))):
            for texts in zip(*(batch.column(name).to_pylist() for name in fields)):
                if None in texts:
                    raise DataError(f"{path}: row {row} of column {fields[texts.index(None)]!r} is null; drop such rows first")
                row += 1
                yield texts
