"""One file of any supported format as a stream of texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm_jax.data.corpus.compressed import COMPRESSED, decompressed
from llm_jax.data.corpus.counts import ReadCounts
from llm_jax.data.corpus.jsonl_reader import read_jsonl
from llm_jax.data.corpus.parquet_reader import read_parquet
from llm_jax.data.corpus.text_reader import read_text
from llm_jax.data.corpus.utf8 import InvalidUtf8, Utf8Decoder
from llm_jax.types import DataError

_KINDS = {
    "text": (".txt", ".md", ".text"),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
}
SUPPORTED = (
    f"{', '.join(_KINDS['text'] + _KINDS['jsonl'])}, each also with {' or '.join(COMPRESSED)} "
    "after it, and .parquet"
)


def kind_of(path: Path) -> str | None:
    """The format by the file's name, compressed or not: ``"text"``, ``"jsonl"``, ``"parquet"``.

    None for other names.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSED
    if compressed:
        suffixes.pop()
    for kind, known in _KINDS.items():
        if suffixes and suffixes[-1] in known:
            return None if compressed and kind == "parquet" else kind
    return None


def supported(path: Path) -> Path:
    """``path`` itself.

    Raises:
        DataError: its format is not supported.
    """
    if kind_of(path) is None:
        raise DataError(f"input {str(path)!r}: format not supported; supported are {SUPPORTED}")
    return path


def read_texts(
    path: Path,
    fields: Sequence[str],
    *,
    invalid_utf8: InvalidUtf8,
    document_bytes: int,
    counts: ReadCounts,
) -> Iterator[tuple[str, ...]]:
    """The texts of one file in order, one for each of ``fields``.

    Args:
        path: a file of a supported format. Plain text has one text and no fields.
        fields: names of one or two fields.
        invalid_utf8: ``"repair"`` or ``"refuse"``.
        document_bytes: where plain text is cut.
        counts: updated as texts are read.

    Raises:
        DataError: the file cannot be read; the message names the file and, if there is one, the
            line, row, row group or byte.
    """
    kind = kind_of(supported(path))
    if kind == "text" and len(fields) > 1:
        raise DataError(
            f"input {str(path)!r}: plain text has no fields {list(fields)}; "
            "give pairs of texts as .jsonl or .parquet"
        )
    before = counts.bytes_read
    decode = Utf8Decoder(invalid_utf8, counts)
    try:
        with path.open("rb") as raw, decompressed(raw, path) as stream:
            if kind == "parquet":
                texts = read_parquet(path, fields, decode, counts)
            elif kind == "jsonl":
                texts = read_jsonl(stream, path, fields, decode, counts)
            else:
                texts = ((text,) for text in read_text(stream, path, document_bytes, decode))
            for found in texts:
                # pyarrow reads through a file of its own.
                if kind != "parquet":
                    counts.bytes_read = before + raw.tell()
                yield found
            counts.bytes_read = before + raw.seek(0, os.SEEK_END)
    except FileNotFoundError:
        raise DataError(f"input {str(path)!r}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"input {str(path)!r}: cannot be read ({error}); check the file") from error
    except MemoryError as error:
        raise DataError(
            f"input {str(path)!r}: a line or document does not fit memory; split it"
        ) from error
