"""JSON Lines: the right text or an error with file and line, whatever else a line holds."""

from __future__ import annotations

import json

import pytest

from llm_jax.data.corpus.formats import ReadCounts
from llm_jax.data.corpus.sources import read_documents
from llm_jax.types import DataError


@pytest.fixture
def read(tmp_path):
    """Reads bytes as one file; returns its texts."""

    def texts(data: bytes, **options) -> list[str]:
        path = tmp_path / "a.jsonl"
        path.write_bytes(data)
        return [document.text for document in read_documents([path], **options)]

    return texts


GOOD = b'{"text": "first"}\n'
OTHER_FIELDS = {
    "5,000 digits": b"9" * 5000,
    "5,000 digits, negative": b"-" + b"9" * 5000,
    "5,000 digits, in a list": b'[{"n": ' + b"7" * 5000 + b"}]",
    "5,000 decimals": b"0." + b"3" * 5000,
    "exponent": b"1e999999999",
    "NaN": b"[NaN, Infinity, -Infinity]",
    "the key again, deeper": b'{"text": 1, "text": 2}',
    "moderately deep": b"[" * 200 + b"]" * 200,
}


@pytest.mark.parametrize("value", OTHER_FIELDS.values(), ids=OTHER_FIELDS)
def test_another_field_changes_nothing(read, value):
    assert read(GOOD + b'{"a": ' + value + b', "text": "second"}\n') == ["first", "second"]


BAD_LINES = {
    "deep list": (
        b'{"text": "x", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "JSON nested too deeply",
    ),
    "deep object": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "JSON nested too deeply"),
    "deep and open": (b"[" * 100_000, "JSON nested too deeply"),
    "long number as text": (
        b'{"text": ' + b"9" * 5000 + b"}",
        "field 'text' holds a number, not a string",
    ),
    "NaN as text": (b'{"text": NaN}', "field 'text' holds a number, not a string"),
    "true": (b'{"text": true}', "field 'text' holds true or false, not a string"),
    "list": (b'{"text": ["a"]}', "field 'text' holds an array, not a string"),
    "object": (b'{"text": {}}', "field 'text' holds an object, not a string"),
    "bare number": (b"9" * 5000, "a number, not an object; each line must be one JSON object"),
    "bare null": (b"null", "null, not an object"),
    "twice": (b'{"text": "a", "b": 1, "text": "c"}', "2 fields 'text'; keep one of them"),
    "twice, once escaped": (
        b'{"text": "a", "te\\u0078t": "c"}',
        "2 fields 'text'; keep one of them",
    ),
    "two objects": (b'{"text": "a"} {"text": "b"}', "not valid JSON (Extra data at column 15"),
    "cut off": (b'{"text": "a', "not valid JSON (Unterminated string starting at column 10"),
    "control character": (
        b'{"text": "a\tb"}',
        "not valid JSON (Invalid control character at column 12",
    ),
    "NUL": (b"\0\0\0\0", "not valid JSON"),
    "many fields": (
        b"{" + b",".join(b'"f%d": 1' % n for n in range(30)) + b"}",
        "'f19'] and 10 more: pass one of them as",
    ),
}


@pytest.mark.parametrize("line, message", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(read, line, message):
    with pytest.raises(DataError) as raised:
        read(GOOD + b"\n" + line + b"\n" + GOOD)
    assert "a.jsonl:3: " in str(raised.value)
    assert message in str(raised.value)


def test_a_utf_16_file_is_named(read):
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        with pytest.raises(
            DataError, match=r"a\.jsonl:1: (text in UTF-16 or UTF-32|binary file \(NUL)"
        ):
            read('{"text": "日本"}\n'.encode(encoding))


def test_byte_order_marks_are_no_part_of_a_line(read):
    line = b'\xef\xbb\xbf{"text": "\xef\xbb\xbfa"}\r\n'
    assert read(line + line) == ["\ufeffa"] * 2


def test_a_null_is_an_empty_document_and_counted(read):
    counts = ReadCounts()
    assert read(b'{"text": null}\n{"text": "a"}\n{"text": ""}\n', counts=counts) == ["", "a", ""]
    assert counts.nulls == 1
    with pytest.raises(DataError, match=r"a\.jsonl:1: no field 'text'"):
        read(b'{"id": 1}\n')


def test_surrogates(read):
    paired = b'{"text": "\\ud83d\\ude00 \\\\ud83d"}\n'
    assert read(paired, invalid_utf8="refuse") == ["😀 \\ud83d"]
    counts = ReadCounts()
    assert read(b'{"text": "\\ude00\\ud83d", "b": "\\ud83d"}', counts=counts) == ["\ufffd\ufffd"]
    assert counts.invalid_utf8 == 2
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: unpaired surrogate at character 1 .*--invalid-utf8 repair"
    ):
        read(GOOD + b'{"text": "a\\ud83d"}\n', invalid_utf8="refuse")


def test_invalid_utf8_names_the_line_and_the_byte(read):
    data = GOOD + b'{"text": "a\xff"}\n'
    assert read(data) == ["first", "a\ufffd"]
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: invalid UTF-8 at byte 29; .*--invalid-utf8 repair"
    ):
        read(data, invalid_utf8="refuse")


def test_a_line_of_any_length_is_read_whole(read):
    long = "x" * (5 << 20) + "end"
    assert read(GOOD + json.dumps({"text": long}).encode()) == ["first", long]


def test_the_encoder_field_is_named_by_its_own_option(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n')
    with pytest.raises(
        DataError, match=r"no field 'de'.*pass one of them as encoder_field \(--encoder-field\)"
    ):
        list(read_documents([path], encoder_field="de"))
