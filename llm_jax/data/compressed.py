"""Streams out of compressed files; a truncated file is an error, never an early end."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import BinaryIO

from llm_jax.types import DataError

COMPRESSED = (".gz", ".zst")


def decompressed(raw: BinaryIO, path: Path) -> BinaryIO:
    """The decompressed stream of an open file, by the suffix of its name; the file itself for other suffixes."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(raw, "rb")
    if suffix == ".zst":
        return io.BufferedReader(_ZstdStream(raw), buffer_size=1 << 20)
    return raw


class _ZstdStream(io.RawIOBase):
    """Reads concatenated zstd frames and, unlike the library's stream reader, raises on a truncated last one."""

    def __init__(self, raw: BinaryIO):
        try:
            import zstandard
        except ImportError:
            raise DataError(".zst files need the package zstandard: pip install 'llm_jax[data]'") from None
        self.zstd, self.raw, self.frame, self.ready = zstandard, raw, None, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.ready:
            data = self.frame.unused_data if self.frame is not None and self.frame.eof else b""
            data = data or self.raw.read(256 << 10)
            if not data:
                if self.frame is not None and not self.frame.eof:
                    raise EOFError("ends in the middle of a zstd frame")
                return 0
            if self.frame is None or self.frame.eof:
                self.frame = self.zstd.ZstdDecompressor().decompressobj()
            try:
                self.ready = self.frame.decompress(data)
            except self.zstd.ZstdError as error:
                raise EOFError(str(error)) from error
        n = min(len(buffer), len(self.ready))
        buffer[:n], self.ready = self.ready[:n], self.ready[n:]
        return n
