"""Parquet: every column of text gives its text; damage is named with file and row group."""

from __future__ import annotations

import random

import pytest

from llm_jax.data.corpus.formats import ReadCounts
from llm_jax.data.corpus.sources import read_documents
from llm_jax.types import DataError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = ["One.\nTwo.", None, "Zwölf 日本 😀", "", "One.\nTwo."]
READ = [text or "" for text in TEXTS]


def texts_of(path, **options) -> list[str]:
    return [document.text for document in read_documents([path], **options)]


def strings(values: list[bytes]):
    """A column of type string that holds any bytes, as other writers leave them."""
    offsets = [0]
    for value in values:
        offsets.append(offsets[-1] + len(value))
    buffers = [
        None,
        pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in offsets)),
        pa.py_buffer(b"".join(values)),
    ]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


PLAIN = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


@pytest.mark.parametrize("kind", PLAIN)
def test_every_type_of_text_is_read(tmp_path, kind):
    column = pa.array(TEXTS, pa.string()).cast(kind)
    counts = ReadCounts()
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet", row_group_size=2)
    assert texts_of(tmp_path / "a.parquet", counts=counts) == READ
    assert (counts.nulls, counts.documents) == (1, {str(tmp_path / "a.parquet"): 5})


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary"])
@pytest.mark.parametrize("index", ["int8", "int64"])
def test_dictionaries_are_read_as_the_texts_they_stand_for(tmp_path, kind, index):
    values = pa.array(["One.\nTwo.", "Zwölf 日本 😀", "", "unused"]).cast(kind)
    column = pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 2, 0], index), values)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert pa.types.is_dictionary(
        pq.ParquetFile(tmp_path / "a.parquet").schema_arrow.field("text").type
    )
    assert texts_of(tmp_path / "a.parquet") == READ


def test_an_extension_of_strings_and_a_column_of_nulls(tmp_path):
    json_type = getattr(pa, "json_", None)
    if json_type is not None:
        column = pa.ExtensionArray.from_storage(json_type(), pa.array(TEXTS))
        pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        assert texts_of(tmp_path / "a.parquet") == READ
    counts = ReadCounts()
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.parquet", counts=counts) == ["", "", ""]
    assert counts.nulls == 3


@pytest.mark.parametrize("kind", ["plain", "dictionary", "binary"])
def test_invalid_utf8_is_repaired_and_counted_or_refused(tmp_path, kind):
    column = strings(
        [b"good \xef\xbf\xbd", b"bad \xff row \xe6\x97", b"good", b"bad \xff row \xe6\x97"]
    )
    if kind == "dictionary":
        column = column.dictionary_encode()
    if kind == "binary":
        column = column.cast(pa.binary())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path)
    counts = ReadCounts()
    repaired = "bad \ufffd row \ufffd"
    assert texts_of(path, counts=counts) == ["good \ufffd", repaired, "good", repaired]
    assert counts.invalid_utf8 == 4
    message = r"a\.parquet: column 'text', row 1: invalid UTF-8 at byte 4; .*--invalid-utf8 repair"
    with pytest.raises(DataError, match=message):
        texts_of(path, invalid_utf8="refuse")


def test_a_null_on_either_side_of_a_pair_is_empty(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"de": ["a", None, None, "d"], "en": ["A", "B", None, None]}), path)
    counts = ReadCounts()
    pairs = list(read_documents([path], text_field="en", encoder_field="de", counts=counts))
    assert [d.texts for d in pairs] == [("A", "a"), ("B", ""), ("", ""), ("", "d")]
    assert counts.nulls == 3


def test_column_errors(tmp_path):
    path = tmp_path / "a.parquet"
    column = pa.array(["a", "b"])
    names = ["body", "id", "twice", "twice", "a.b", "list", "fixed"]
    columns = [
        column,
        pa.array([1, 2]),
        column,
        column,
        column,
        pa.array([["a"], []]),
        column.cast(pa.binary(1)),
    ]
    pq.write_table(pa.Table.from_arrays(columns, names=names), path)
    assert texts_of(path, text_field="body") == texts_of(path, text_field="a.b") == ["a", "b"]
    there = r"\['body', 'id', 'twice', 'a.b', 'list', 'fixed'\]"
    one_of = rf"the columns there are {there}: pass one of them as text_field \(--text-field\)"
    cases = {
        "text": f"no column 'text'; {one_of}",
        "id": f"column 'id' holds int64, not strings; {one_of}",
        "list": "column 'list' holds list<.*>, not strings",
        "fixed": r"column 'fixed' holds fixed_size_binary\[1\], not strings",
        "twice": "2 columns 'twice'; rename all but one of them",
    }
    for field, message in cases.items():
        with pytest.raises(DataError, match=rf"a\.parquet: {message}"):
            texts_of(path, text_field=field)
    with pytest.raises(DataError, match=r"no column 'de'; .* as encoder_field \(--encoder-field\)"):
        list(read_documents([path], text_field="body", encoder_field="de"))


@pytest.fixture
def written(tmp_path):
    """A file of 10 row groups of 20 rows, uncompressed, with checksums of its pages."""
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"the text of row {n:03}" for n in range(200)]})
    pq.write_table(
        table,
        path,
        row_group_size=20,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    return path


def test_a_changed_page_is_named_by_its_row_group(written):
    data = bytearray(written.read_bytes())
    data[data.index(b"row 070")] ^= 1
    written.write_bytes(data)
    read = []
    with pytest.raises(
        DataError, match=r"a\.parquet: row group 3 is not readable \(.*\); fetch or write it again"
    ):
        read.extend(document.text for document in read_documents([written]))
    assert read == [f"the text of row {n:03}" for n in range(60)]


@pytest.mark.parametrize("kept", [0, 3, 8, 1000, -4, -1])
def test_a_truncated_file_is_named(written, kept):
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(
        DataError, match=r"a\.parquet: not a readable parquet file \(.*\); fetch or write it again"
    ):
        texts_of(written)


def test_a_page_without_its_bytes_is_named(written):
    data = bytearray(written.read_bytes())
    start = data.index(b"the text of row 100") - 40
    data[start : start + 40] = bytes(40)
    written.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: row group 5 is not readable"):
        texts_of(written)


def test_memory_stays_bounded(tmp_path):
    path = tmp_path / "a.parquet"
    rng = random.Random(0)
    texts = [rng.randbytes(50_000).hex() for _ in range(300)]
    options = {"compression": "none", "use_dictionary": False, "write_batch_size": 4}
    pq.write_table(pa.table({"text": texts}), path, row_group_size=300, **options)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_documents([path])]
    assert len(held) == 300 and max(held) < path.stat().st_size / 2
