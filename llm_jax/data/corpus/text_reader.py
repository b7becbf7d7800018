"""Plain text files as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llm_jax.data.corpus.utf8 import HEAD, Utf8Decoder, check_head


def read_text(
    stream: BinaryIO, path: Path, document_bytes: int, decode: Utf8Decoder
) -> Iterator[str]:
    """Documents of a plain text file: all of it, or pieces of at most ``document_bytes``.

    Pieces end after a blank line where there is one, else after a line, else after a character.

    Raises:
        DataError: the file is not text in UTF-8.
    """
    where = str(path)
    buffer = stream.read(max(document_bytes + 1, HEAD))
    check_head(buffer[:HEAD], where)
    offset = 0
    while len(buffer) > document_bytes:
        cut = _cut(buffer, document_bytes)
        yield decode(buffer[:cut], where, offset)
        buffer = buffer[cut:]
        offset += cut
        if len(buffer) <= document_bytes:
            buffer += stream.read(max(document_bytes + 1 - len(buffer), HEAD))
    if buffer:
        yield decode(buffer, where, offset)


def _cut(data: bytes, limit: int) -> int:
    """Where to cut ``data`` at or before ``limit``: after a blank line, a line or a character."""
    for mark in (b"\n\n", b"\n\r\n", b"\n"):
        at = data.rfind(mark, limit // 2 if mark != b"\n" else 0, limit)
        if at >= 0:
            return at + len(mark)
    cut = limit
    while cut > max(1, limit - 3) and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
