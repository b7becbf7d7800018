"""Decompressed streams of files; a truncated file is an error, never an early end."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from llm_jax.types import DataError

COMPRESSED = (".gz", ".zst")
# Decompressed at a time; it becomes at most 64 MiB, as four bytes can encode a block of 128 KiB.
_READ = 2 << 10
_BUFFER = 1 << 20
# Parts of zstandard's messages about files that are not damaged, and the fix of each.
_ZSTD_ADVICE = {
    "Dictionary mismatch": "compress it without a dictionary",
    "too much memory": "compress it with a window of at most 128 MiB",
}


class _ZstdError(Exception):
    """A zstd stream cannot be decompressed; the message is the library's."""


@contextmanager
def decompressed(raw: io.BufferedReader, path: Path) -> Iterator[BinaryIO]:
    """The decompressed stream of an open file.

    Args:
        raw: the open file.
        path: its path. The suffix decides the format; without one of ``COMPRESSED``, the stream is
            ``raw`` itself.

    Raises:
        DataError: within the block, if the file is damaged, truncated, empty or followed by other
            bytes; the message has the number of bytes read before the error.
    """
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        yield raw
        return
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if suffix == ".gz" else _zstd(raw)
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

    Unlike the library's stream reader, it raises if the last frame is truncated.
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
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """True, as ``io.RawIOBase`` defines it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as data is ready; returns the number of bytes, 0 at the end."""
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
        """The next compressed bytes; none at the end of the file."""
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
