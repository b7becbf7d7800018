"""Columns of parquet files as texts, a few rows in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llm_jax.data.corpus.counts import ReadCounts
from llm_jax.data.corpus.field_errors import pass_another
from llm_jax.data.corpus.utf8 import Utf8Decoder
from llm_jax.storage.paths import local_file
from llm_jax.types import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

_BUFFER = 1 << 20
_BATCH_BYTES = 4 << 20
_BATCH_ROWS = 256
_MOST_SHOWN = 200


def read_parquet(
    path: Path, fields: Sequence[str], decode: Utf8Decoder, counts: ReadCounts
) -> Iterator[tuple[str, ...]]:
    """The texts of the columns ``fields`` of every row; a null is read as "" and counted.

    A column holds strings of any Arrow type, dictionaries of strings, or binary values, which are
    read as UTF-8: several writers store strings as binary.

    Raises:
        DataError: the file cannot be read, or a column is missing, occurs twice or does not hold
            text; the message names the file and the row group or row. Rows count from 0.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            f"{path}: .parquet files need the package pyarrow: pip install 'llm_jax[data]'"
        ) from None
    with _readable(f"{path}: not a readable parquet file"):
        # Buffering ahead would hold a row group in memory.
        options = {"buffer_size": _BUFFER, "pre_buffer": False, "page_checksum_verification": True}
        file = pq.ParquetFile(local_file(path), **options)
    with file:
        groups = _checked(file, path, fields)
        # Made once, since formatting the message for every row takes time.
        places = [f"{path}: column {name!r}, row " for name in fields]
        row = 0
        for group in range(groups):
            where = f"{path}: row group {group} is not readable"
            for columns in _columns(file, group, fields, where):
                for values in zip(*columns):
                    if None in values:
                        counts.nulls += 1
                    texts = [
                        decode(value, f"{place}{row}") if value else ""
                        for place, value in zip(places, values)
                    ]
                    yield tuple(texts)
                    row += 1


@contextmanager
def _readable(message: str) -> Iterator[None]:
    """Raise DataError in place of the many exceptions of pyarrow on a damaged file."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:_MOST_SHOWN] or type(error).__name__
        raise DataError(f"{message} ({reason}); fetch or write it again") from error


def _checked(file: ParquetFile, path: Path, fields: Sequence[str]) -> int:
    """The number of row groups.

    Raises:
        DataError: a field is not exactly one column of text.
    """
    with _readable(f"{path}: not a readable parquet file"):
        schema = file.schema_arrow
        names = schema.names
        groups = file.num_row_groups
        rows = sum(file.metadata.row_group(group).num_rows for group in range(groups))
        if rows != file.metadata.num_rows:
            raise ValueError(f"{rows} rows in row groups, {file.metadata.num_rows} in the file")
    for index, name in enumerate(fields):
        others = pass_another("columns", names, index)
        if name not in names:
            raise DataError(f"{path}: no column {name!r}; {others}")
        if names.count(name) > 1:
            raise DataError(
                f"{path}: {names.count(name)} columns {name!r}; rename all but one of them"
            )
        kind = schema.field(name).type
        if not _holds_text(kind):
            raise DataError(f"{path}: column {name!r} holds {kind}, not strings; {others}")
    return groups


def _holds_text(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    kind = getattr(kind, "storage_type", kind)
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    binaries = (types.is_binary, types.is_large_binary, types.is_binary_view)
    # Some writers give a column of nulls only the type null.
    return any(is_kind(kind) for is_kind in (*texts, *binaries, types.is_null))


def _columns(
    file: ParquetFile, group: int, fields: Sequence[str], message: str
) -> Iterator[list[list[bytes | None]]]:
    """The values of each field as UTF-8 bytes, for a few rows of a row group at a time."""
    import pyarrow as pa

    names = list(dict.fromkeys(fields))
    with _readable(message):
        about = file.metadata.row_group(group)
        fitting = _BATCH_BYTES * about.num_rows // max(about.total_byte_size, 1)
        size = max(1, min(_BATCH_ROWS, fitting))
        batches = file.iter_batches(size, row_groups=[group], columns=names, use_threads=False)
    rows = 0
    while True:
        with _readable(message):
            batch = next(batches, None)
            if batch is None:
                break
            # Cast to binary, because pyarrow raises where a string is not valid UTF-8.
            columns = [batch.column(name).cast(pa.large_binary()).to_pylist() for name in fields]
        rows += batch.num_rows
        yield columns
    if rows != about.num_rows:
        raise DataError(
            f"{message} ({rows} rows, its footer says {about.num_rows}); fetch or write it again"
        )
