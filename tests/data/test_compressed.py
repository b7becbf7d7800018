"""Compressed files: the whole text, or an error that says what is wrong; never an early end."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest

from llm_jax.data.corpus.sources import read_documents
from llm_jax.types import DataError

zstandard = pytest.importorskip("zstandard")
TEXT = b"".join(b"%d\n" % n for n in range(3000))


def zstd(data: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def with_window(log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=log, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(TEXT) + stream.flush()


def with_dictionary() -> bytes:
    words = [b"the word %d of a long list" % n for n in range(2000)]
    return zstd(TEXT, dict_data=zstandard.train_dictionary(2000, words))


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]


# A frame that holds no text, which parallel compressors write.
SKIPPABLE = bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"abcd"
WHOLE = {
    "gz": ("a.txt.gz", gzip.compress(TEXT)),
    "two gzip members": ("a.txt.gz", gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:])),
    "an empty gzip member": ("a.txt.gz", gzip.compress(b"") + gzip.compress(TEXT)),
    "gzip, padded with zeros": ("a.txt.gz", gzip.compress(TEXT) + bytes(512)),
    "zst": ("a.txt.zst", zstd(TEXT)),
    "many zstd frames": (
        "a.txt.zst",
        b"".join(zstd(TEXT[n : n + 7]) for n in range(0, len(TEXT), 7)),
    ),
    "an empty zstd frame": ("a.txt.zst", zstd(b"") + zstd(TEXT)),
    "skippable frames": ("a.txt.zst", SKIPPABLE + zstd(TEXT) + SKIPPABLE),
    "a window of 128 MiB": ("a.txt.zst", with_window(27)),
    "the name in capitals": ("A.TXT.GZ", gzip.compress(TEXT)),
}


@pytest.mark.parametrize("name, data", WHOLE.values(), ids=WHOLE)
def test_whole_files(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert [document.text for document in read_documents([path])] == [TEXT.decode()]


DAMAGED = "damaged or truncated compressed file "
ENDS = DAMAGED + r"\(Compressed file ended"
NO_GZIP = DAMAGED + r"\(Not a gzipped file"
INSIDE = DAMAGED + r"\(ends in the middle of a zstd frame"
NO_ZSTD = DAMAGED + r"\(.*Unknown frame descriptor"
BAD = {
    "gz, empty": ("gz", b"", DAMAGED + r"\(it is empty"),
    "gz, another format": ("gz", TEXT, NO_GZIP),
    "gz, zstd in it": ("gz", zstd(TEXT), NO_GZIP),
    "gz, truncated": ("gz", gzip.compress(TEXT)[:-100], ENDS),
    "gz, truncated in the head": ("gz", gzip.compress(TEXT)[:5], ENDS),
    "gz, truncated in the checksum": ("gz", gzip.compress(TEXT)[:-1], ENDS),
    "gz, something after it": ("gz", gzip.compress(TEXT) + b"more", NO_GZIP),
    "gz, one byte after it": ("gz", gzip.compress(TEXT) + b"x", NO_GZIP),
    "gz, changed": ("gz", flipped(gzip.compress(TEXT)), DAMAGED),
    "gz, wrong checksum": ("gz", gzip.compress(TEXT)[:-8] + bytes(8), DAMAGED + r"\(.*CRC"),
    "zst, empty": ("zst", b"", DAMAGED + r"\(it is empty"),
    "zst, another format": ("zst", TEXT, NO_ZSTD),
    "zst, truncated": ("zst", zstd(TEXT)[:-100], INSIDE),
    "zst, truncated in the head": ("zst", zstd(TEXT)[:3], INSIDE),
    "zst, truncated in the second frame": ("zst", zstd(TEXT) + zstd(TEXT)[:-1], INSIDE),
    "zst, something after it": ("zst", zstd(TEXT) + b"more", NO_ZSTD),
    "zst, changed": ("zst", flipped(zstd(TEXT, write_checksum=True)), DAMAGED),
}
NOT_DAMAGED = {
    "dictionary": (with_dictionary(), "compress it without a dictionary"),
    "window": (with_window(28), "compress it with a window of at most 128 MiB"),
}


@pytest.mark.parametrize("suffix, data, message", BAD.values(), ids=BAD)
def test_what_is_wrong_is_said(tmp_path, suffix, data, message):
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(data)
    found = r".*; found in its first [\d,]+ bytes\); fetch it again"
    with pytest.raises(DataError, match=rf"a\.txt\.{suffix}': {message}{found}"):
        list(read_documents([path]))


@pytest.mark.parametrize("data, advice", NOT_DAMAGED.values(), ids=NOT_DAMAGED)
def test_what_zstandard_cannot_read_is_not_called_damaged(tmp_path, data, advice):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.txt\.zst': cannot be decompressed \(.*\); {advice}"):
        list(read_documents([path]))


def test_a_high_ratio_does_not_fill_memory(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstd((b"x" * 99 + b"\n") * 1_000_000))
    tracemalloc.start()
    size = sum(len(document.text) for document in read_documents([path], document_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 100_000_000 and path.stat().st_size < 20_000
    assert peak < 64 << 20
