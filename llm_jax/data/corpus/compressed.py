"""Streams out of compressed files; a truncated file is an error, never an early end."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llm_jax.types import DataError

COMPRESSED = (".gz", ".zst")
# At most 64 MiB come out of it: four bytes can stand for a block of 128 KiB.
_READ = 2 << 10
_BUFFER = 1 << 20
# What zstandard says of files that are not damaged, and what helps.
_ZSTD_ADVICE = {
    "Dictionary mismatch": "compress it without a dictionary",
    "too much memory": "compress it with a window of at most 128 MiB",
}


class _ZstdError(Exception):
    """Why a file is not zstd, in the words of the library."""


@contextmanager
def decompressed(raw: io.BufferedReader, path: Path) -> Iterator[BinaryIO]:
    """The decompressed stream of an open file, by the suffix of its name; otherwise the file.

    Raises:
        DataError: from the block, where the file is damaged, truncated, empty or followed by
            something else; it says how many bytes of the file were read up to there.
    """
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        yield raw
        return
    stream = gzip.GzipFile(fileobj=raw) if suffix == ".gz" else _zstd(raw)
    try:
        if not raw.peek(1):
            raise EOFError("it is empty")
        yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error, _ZstdError) as error:
        raise _explained(str(error), path, raw.tell()) from error


def _explained(reason: str, path: Path, bytes_read: int) -> DataError:
    for words, advice in _ZSTD_ADVICE.items():
        if words in reason:
            return DataError(f"input {str(path)!r}: cannot be decompressed ({reason}); {advice}")
    return DataError(
        f"input {str(path)!r}: damaged or truncated compressed file ({reason}; "
        f"found in its first {bytes_read:,} bytes); fetch it again"
    )


def _zstd(raw: BinaryIO) -> BinaryIO:
    return io.BufferedReader(_ZstdStream(raw), buffer_size=_BUFFER)


class _ZstdStream(io.RawIOBase):
    """Reads concatenated zstd frames.

    Unlike the library's stream reader it raises on a truncated last one.
    """

    def __init__(self, raw: BinaryIO):
        try:
            import zstandard
        except ImportError:
            raise DataError(
                ".zst files need the package zstandard: pip install 'llm_jax[data]'"
            ) from None
        self._zstd = zstandard
        self._raw = raw
        self._frame = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            data = self._next_input()
            if not data:
                return 0
            self._ready = memoryview(self._decompress(data))
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def _next_input(self) -> bytes:
        """What follows the last input; nothing at the end of the file."""
        within = self._frame is not None and not self._frame.eof
        if self._frame is not None and self._frame.unused_data:
            return self._frame.unused_data
        data = self._raw.read(_READ)
        if not data and within:
            raise _ZstdError("ends in the middle of a zstd frame")
        return data

    def _decompress(self, data: bytes) -> bytes:
        if self._frame is None or self._frame.eof:
            self._frame = self._zstd.ZstdDecompressor().decompressobj()
        try:
            return self._frame.decompress(data)
        except self._zstd.ZstdError as error:
            raise _ZstdError(str(error)) from error
