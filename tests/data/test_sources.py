"""Reading: every format gives the same documents, in bounded memory, and bad input is named."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.data.corpus.formats import ReadCounts
from llm_jax.data.corpus.sources import expand, read_documents
from llm_jax.types import DataError

TEXTS = ["One.\nTwo.", "Zwölf Boxkämpfer 日本\n", "", "  indented\t😀"]


def texts_of(path, **options) -> list[str]:
    return [d.text for d in read_documents([path], **options)]


def jsonl(texts) -> bytes:
    return "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts).encode()


def test_every_format_gives_the_same_documents(tmp_path):
    zstandard, pa = pytest.importorskip("zstandard"), pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    data = jsonl(TEXTS)
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    frames = b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:50], data[50:]))
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    pq.write_table(
        pa.table({"text": TEXTS, "id": list(range(4))}), tmp_path / "a.parquet", row_group_size=3
    )
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        assert texts_of(tmp_path / name) == TEXTS, name
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_bytes(text.encode())
        (tmp_path / f"{i}.md.gz").write_bytes(gzip.compress(text.encode()))
    for pattern in ("*.txt", "*.md.gz"):
        found = [d.text for d in read_documents(expand([str(tmp_path / pattern)]))]
        assert found == [t for t in TEXTS if t]


@given(st.text(alphabet="ab\nä日\r ", max_size=300), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_a_long_text_file_is_cut_without_loss(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_bytes(text.encode())
    counts = ReadCounts()
    if not text:
        with pytest.raises(DataError, match="no documents"):
            texts_of(path)
        return
    pieces = texts_of(path, document_bytes=max(size, 4), counts=counts)
    assert "".join(pieces) == text
    assert all(0 < len(p.encode()) <= max(size, 4) for p in pieces)
    assert counts.invalid_utf8 == 0


def test_cuts_are_at_blank_lines_where_there_are_any(tmp_path):
    (tmp_path / "a.txt").write_text("aaaa\nbbbb\n\ncccc\ndddd\n\neeee\n")
    assert texts_of(tmp_path / "a.txt", document_bytes=14) == [
        "aaaa\nbbbb\n\n",
        "cccc\ndddd\n\n",
        "eeee\n",
    ]


def test_memory_stays_bounded_and_documents_come_before_the_end(tmp_path):
    path = tmp_path / "big.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(60):
            file.write((b"x" * 79 + b"\n") * 12_500 + b"\n")  # 60 MB in all
    tracemalloc.start()
    counts = ReadCounts()
    sizes, first_read = [], None
    for document in read_documents([path], document_bytes=1 << 20, counts=counts):
        first_read = first_read or counts.bytes_read
        sizes.append(len(document.text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 60 * 1_000_001 and len(sizes) >= 60
    assert first_read < path.stat().st_size / 2 or path.stat().st_size < 1 << 20
    assert peak < 12 << 20


def test_invalid_utf8_is_repaired_and_counted_or_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("good \ufffd text ".encode() + b"\xff bad \xe6\x97 end " + b"x" * 100)
    counts = ReadCounts()
    (text,) = texts_of(path, counts=counts)
    assert text.startswith("good \ufffd text \ufffd bad \ufffd end") and counts.invalid_utf8 == 2
    refused = r"a\.txt: invalid UTF-8 at byte 14; .* \(--invalid-utf8 repair\)"
    with pytest.raises(DataError, match=refused):
        texts_of(path, invalid_utf8="refuse")
    line = tmp_path / "b.jsonl"
    line.write_text('{"text": "half \\ud83d pair"}\n')
    counts = ReadCounts()
    assert texts_of(line, counts=counts) == ["half \ufffd pair"] and counts.invalid_utf8 == 1
    with pytest.raises(DataError, match=r"b\.jsonl:1: unpaired surrogate"):
        texts_of(line, invalid_utf8="refuse")


def test_empty_files_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("text")
    counts = ReadCounts()
    assert [d.text for d in read_documents(expand([str(tmp_path)]), counts=counts)] == ["text"]
    assert counts.empty == 1
    assert counts.documents == {str(tmp_path / "a.txt"): 0, str(tmp_path / "b.txt"): 1}


def test_expand_finds_files_folders_and_patterns_once_and_sorted(tmp_path):
    (tmp_path / "d" / ".hidden").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "d/c.jsonl", "d/.hidden/e.txt", "d/picture.png"):
        (tmp_path / name).write_text("x")
    found = expand([str(tmp_path / "*.txt"), str(tmp_path / "b.txt"), str(tmp_path / "d")])
    assert [p.name for p in found] == ["a.txt", "b.txt", "c.jsonl"]
    assert [p.name for p in expand([str(tmp_path / "**" / "*.jsonl")])] == ["c.jsonl"]


BAD_FILES = {
    "binary": ("a.txt", b"text\0more", r"a\.txt: binary file \(NUL byte at 4\)"),
    "UTF-16": (
        "a.txt",
        "日本".encode("utf-16"),
        r"a\.txt: text in UTF-16 or UTF-32; convert it to UTF-8",
    ),
    "UTF-16, the other order": ("a.txt", b"\xfe\xff\x65\xe5", r"a\.txt: text in UTF-16 or UTF-32"),
    "UTF-16 without a mark": (
        "a.txt",
        "ab".encode("utf-16-le"),
        r"a\.txt: binary file \(NUL byte at 1\)",
    ),
    "UTF-32": ("a.txt", "ab".encode("utf-32"), r"a\.txt: text in UTF-16 or UTF-32"),
    "other encoding": (
        "a.txt",
        bytes(range(0x80, 0x100)) * 4,
        r"a\.txt: binary file or another encoding .* convert it to UTF-8",
    ),
    "not json": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": \n',
        r"a\.jsonl:2: not valid JSON .*one JSON object",
    ),
    "not an object": ("a.jsonl", b"[1]\n", r"a\.jsonl:1: an array, not an object"),
    "no such field": (
        "a.jsonl",
        b'{"body": "a", "id": 1}\n',
        (
            r"a\.jsonl:1: no field 'text'; the fields there are \['body', 'id'\]: pass one of them"
            r" as text_field \(--text-field\)"
        ),
    ),
    "not a string": (
        "a.jsonl",
        b'{"text": 5}\n',
        r"a\.jsonl:1: field 'text' holds a number, not a string",
    ),
    "all empty": ("a.txt", b"", r"no documents: every input file is empty \(1 files\)"),
    "truncated gzip": (
        "a.txt.gz",
        gzip.compress(b"abc" * 10_000)[:-20],
        r"a\.txt\.gz.*damaged or truncated compressed file",
    ),
    "no gzip": ("a.txt.gz", b"plain text", r"a\.txt\.gz.*damaged or truncated compressed file"),
    "not parquet": ("a.parquet", b"PAR0" * 10, r"a\.parquet: not a readable parquet file"),
}


@pytest.mark.parametrize("name, data, message", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_named(tmp_path, name, data, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        texts_of(tmp_path / name)


def test_missing_and_unknown_inputs_are_named(tmp_path):
    (tmp_path / "a.pdf").write_text("x")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "\udcff.txt").write_text("x")
    cases = [
        ([str(tmp_path / "no*.txt")], r"no\*\.txt': pattern matches no file"),
        ([str(tmp_path / "gone.txt")], r"gone\.txt': no such file or folder"),
        ([str(tmp_path / "a.pdf")], r"a\.pdf': format not supported; supported are \.txt, \.md"),
        (["a" * 5000], "File name too long; check the path"),
        ([str(tmp_path / "pipe.txt")], "pipe.txt': a pipe, device or broken link; name a file"),
        ([str(tmp_path / "li*.txt")], "link.txt': a pipe, device or broken link; name a file"),
        ([str(tmp_path / "\udcff.txt")], r"\\udcff.txt': its name is not valid UTF-8; rename it"),
        ([str(tmp_path / "empty")], r"the folder holds no file of a supported format"),
        ([], "no input given"),
        ("a.txt", "must be a sequence"),
    ]
    for inputs, message in cases:
        with pytest.raises(DataError, match=message):
            expand(inputs)
