"""Text sources: files of several formats, read as a stream of documents.

One ``.txt`` or ``.md`` file is one document (long ones are cut at blank lines), one line of
``.jsonl`` is one, one row of ``.parquet`` is one. Everything is streamed: no file is ever in memory
as a whole.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llm_jax.data.corpus.counts import ReadCounts
from llm_jax.data.corpus.document import Document
from llm_jax.data.corpus.formats import SUPPORTED, kind_of, read_texts, supported
from llm_jax.data.corpus.utf8 import InvalidUtf8
from llm_jax.files import file_sizes
from llm_jax.progress import note
from llm_jax.storage.paths import as_bucket, path_of
from llm_jax.types import DataError

DOCUMENT_BYTES = 4 << 20


def expand(inputs: Sequence[str]) -> list[Path]:
    """The files that ``inputs`` name, sorted, each once.

    Args:
        inputs: files, glob patterns (``**`` goes through folders) and folders (searched through for
            supported files).

    Raises:
        DataError: nothing given, an input that matches nothing, or a named file of an unsupported
            format.
    """
    if isinstance(inputs, str):
        raise DataError(
            f"input must be a sequence of paths, not the string {inputs!r}; write ({inputs!r},)"
        )
    if not inputs:
        raise DataError("no input given; name at least one file, folder or pattern")
    found: set[Path] = set()
    for pattern in map(str, inputs):
        try:
            found.update(_matches(pattern))
        except OSError as error:
            raise DataError(f"input {pattern!r}: {error.strerror}; check the path") from error
    return [_named_in_utf8(path) for path in sorted(found, key=str)]


def _matches(pattern: str) -> Iterator[Path]:
    path = path_of(pattern)
    if path.exists():
        matches = [path]
    else:
        matches = _glob(pattern)
    if not matches:
        what = "pattern matches no file" if glob.has_magic(pattern) else "no such file or folder"
        raise DataError(f"input {pattern!r}: {what}; check the path")
    for match in matches:
        if match.is_dir():
            yield from _folder(match)
        elif match.is_file():
            yield supported(match)
        else:
            # A pipe can be read once, and preparing reads twice.
            raise DataError(f"input {str(match)!r}: a pipe, device or broken link; name a file")


def _glob(pattern: str) -> list[Path]:
    remote = as_bucket(pattern)
    if remote is None:
        return [Path(match) for match in glob.glob(pattern, recursive=True)]
    # From the bucket's root on, since the pattern may have stars in any folder's name.
    bucket, _, names = pattern.partition("://")[2].partition("/")
    return list(path_of(f"{remote.scheme}://{bucket}").glob(names))


def _named_in_utf8(path: Path) -> Path:
    """``path`` itself. Its name is written to the manifest, which is UTF-8."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"input {str(path)!r}: its name is not valid UTF-8; rename it") from None
    return path


def _folder(folder: Path) -> list[Path]:
    files = [
        folder / name
        for name in file_sizes(folder)
        if not any(part.startswith(".") for part in name.split("/"))
    ]
    known = [p for p in files if kind_of(p)]
    if not known:
        raise DataError(
            f"input {str(folder)!r}: the folder holds no file of a supported format; supported are"
            f" {SUPPORTED}"
        )
    if len(known) < len(files):
        note(
            f"{folder}: {len(files) - len(known)} of {len(files)} files are of other formats and"
            " are left out"
        )
    return known


def read_documents(
    paths: Iterable[Path],
    *,
    text_field: str = "text",
    encoder_field: str = "",
    invalid_utf8: InvalidUtf8 = "repair",
    document_bytes: int = DOCUMENT_BYTES,
    counts: ReadCounts | None = None,
) -> Iterator[Document]:
    """Stream the documents of ``paths`` in order.

    Args:
        paths: files, as ``expand`` returns them.
        text_field: field of a .jsonl line, or column of a .parquet file, that holds the text.
        encoder_field: of pairs, field of the text that an encoder reads; empty where documents are
            single texts.
        invalid_utf8: ``"repair"`` replaces invalid bytes by U+FFFD and counts them, ``"refuse"``
            raises.
        document_bytes: a plain text file larger than this is cut into several documents, at blank
            lines where there are any.
        counts: filled in as the stream is read.

    Raises:
        DataError: a file is missing, damaged or binary, a line is not JSON or lacks the field, or
            all files are empty.
    """
    if invalid_utf8 not in ("repair", "refuse"):
        raise DataError(f"invalid_utf8={invalid_utf8!r}; it must be 'repair' or 'refuse'")
    if document_bytes < 1:
        raise DataError(f"document_bytes={document_bytes}; it must be at least 1")
    counts = ReadCounts() if counts is None else counts
    fields = (text_field, encoder_field) if encoder_field else (text_field,)
    total = 0
    for path in paths:
        count = 0
        source = str(path)
        texts = read_texts(
            path_of(path),
            fields,
            invalid_utf8=invalid_utf8,
            document_bytes=document_bytes,
            counts=counts,
        )
        for found in texts:
            count += 1
            yield Document(found, source)
        if count == 0:
            counts.empty += 1
            note(f"{path}: empty")
        total += count
        counts.documents[source] = counts.documents.get(source, 0) + count
    if total == 0:
        raise DataError(
            f"no documents: every input file is empty ({counts.empty} files); name files with text"
            " in them"
        )
