"""Damaged files: each reader gives a result or a DataError that names the file, no other error."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable

import pytest

from llm_jax.data.corpus.sources import read_documents
from llm_jax.types import DataError

MUTATIONS = 2000
TEXTS = ["One.\n\nTwo.", "Zwölf Boxkämpfer 日本\r\n", "", " indented\t😀", "x" * 40] * 3
TOKENS = [b"\0", b"\xff", b"\xff\xfe", b"\n", b'"', b"[", b"{", b"}", b"\\ud800", b"\\", b"9" * 400]
TOKENS += [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"\x80\x80\x80\x80\x08", b"\x7f\xff\xff\xff"]


def jsonl() -> bytes:
    records = [{"text": text, "id": n, "tags": [n, None, 0.5]} for n, text in enumerate(TEXTS)]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    return compressor.compress(data[:90]) + compressor.compress(data[90:])


def parquet(kind: str, **options) -> bytes:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    column = pa.array([*TEXTS, None]).cast(kind)
    if options.pop("dictionary", False):
        column = column.dictionary_encode()
    file = io.BytesIO()
    table = pa.table({"id": list(range(len(column))), "text": column})
    pq.write_table(table, file, row_group_size=7, **options)
    return file.getvalue()


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "a.txt": lambda: ["".join(TEXTS).encode()],
    "a.jsonl": lambda: [jsonl()],
    "a.jsonl.gz": lambda: [gzip.compress(jsonl()[:200]) + gzip.compress(jsonl()[200:])],
    "a.txt.gz": lambda: [gzip.compress("".join(TEXTS).encode())],
    "a.txt.zst": lambda: [zstd("".join(TEXTS).encode())],
    "a.parquet": lambda: [
        parquet("string", compression="none", use_dictionary=False),
        parquet("large_string", compression="snappy"),
        parquet("string", compression="zstd", dictionary=True, write_page_checksum=True),
        parquet("string_view", compression="gzip", data_page_version="2.0"),
    ],
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """``data`` with one to three pieces of it replaced, removed, doubled, or cut off at the end."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 1, 2, 4, 16, 64)))
        piece = data[start:end]
        new = rng.choice(
            (
                rng.randbytes(len(piece)),
                bytes(byte ^ (1 << rng.randrange(8)) for byte in piece),
                rng.choice(TOKENS),
                piece + piece,
                b"",
            )
        )
        data = data[:start] + new + (b"" if rng.random() < 0.1 else data[end:])
    return data


@pytest.mark.parametrize("name", SEEDS)
def test_a_mutated_file_gives_documents_or_an_error_that_names_it(tmp_path, name):
    rng = random.Random(name)
    seeds = SEEDS[name]()
    path = tmp_path / name
    read = errors = 0
    file = path.open("wb", buffering=0)
    for n in range(MUTATIONS):
        file.seek(0)
        file.truncate()
        file.write(mutated(seeds[n % len(seeds)], rng))
        refuse = rng.random() < 0.2
        documents = read_documents(
            [path],
            invalid_utf8="refuse" if refuse else "repair",
            document_bytes=rng.choice((50, 4096)),
        )
        try:
            for document in documents:
                document.text.encode("utf-8")
            read += 1
        except DataError as error:
            assert name in str(error) or str(error).startswith("no documents"), error
            errors += 1
    file.close()
    assert read > 20 and errors > 20
