"""JSON Lines as texts: one object a line.

The values of other fields are parsed and not used, so they are an error only where they are not
valid JSON: numbers of any length are converted to floats, and NaN and Infinity are accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from llm_jax.data.corpus.counts import ReadCounts
from llm_jax.data.corpus.field_errors import pass_another
from llm_jax.data.corpus.utf8 import HEAD, Utf8Decoder, check_head
from llm_jax.types import DataError


class _Object(list):
    """The (key, value) pairs of a JSON object, so that a repeated key can be found."""


# A whole number parsed as a float may have any number of digits.
_JSON = json.JSONDecoder(object_pairs_hook=_Object, parse_int=float)
_KINDS = {_Object: "an object", list: "an array", float: "a number", bool: "true or false"}
_KINDS |= {str: "a string", type(None): "null"}


def read_jsonl(
    stream: BinaryIO, path: Path, fields: Sequence[str], decode: Utf8Decoder, counts: ReadCounts
) -> Iterator[tuple[str, ...]]:
    """The texts of ``fields`` of every line that is not blank; a null is read as "" and counted.

    Raises:
        DataError: with file and line, where a line is not a JSON object with these fields.
    """
    name = str(path)
    offset = 0
    for number, line in enumerate(stream, start=1):
        where = f"{name}:{number}"
        if number == 1:
            check_head(line[:HEAD], where)
        if line.strip():
            record = _parsed(decode(line, where, offset), where)
            values = [_field(record, index, fields, where) for index in range(len(fields))]
            if None in values:
                counts.nulls += 1
            texts = [value or "" for value in values]
            # Surrogates can only be written as escapes.
            if b"\\u" in line:
                texts = [decode.without_surrogates(text, where) for text in texts]
            yield tuple(texts)
        offset += len(line)


def _parsed(line: str, where: str) -> _Object:
    try:
        # A file concatenated from several has byte order marks on later lines too.
        record = _JSON.decode(line.removeprefix("\ufeff").rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno}); "
            "each line must be one JSON object"
        ) from None
    except RecursionError:
        raise DataError(
            f"{where}: JSON nested too deeply to be read; remove the field or the line"
        ) from None
    if not isinstance(record, _Object):
        kind = _KINDS[type(record)]
        raise DataError(f"{where}: {kind}, not an object; each line must be one JSON object")
    return record


def _field(record: _Object, index: int, fields: Sequence[str], where: str) -> str | None:
    name = fields[index]
    values = [value for key, value in record if key == name]
    if len(values) > 1:
        raise DataError(f"{where}: {len(values)} fields {name!r}; keep one of them")
    if values and (values[0] is None or isinstance(values[0], str)):
        return values[0]
    others = pass_another("fields", (key for key, _ in record), index)
    if not values:
        raise DataError(f"{where}: no field {name!r}; {others}")
    kind = _KINDS[type(values[0])]
    raise DataError(f"{where}: field {name!r} holds {kind}, not a string; {others}")
