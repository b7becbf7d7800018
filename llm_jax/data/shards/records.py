"""Records: what an ``array_record`` file of shards holds, written and read. See
``data.shards.store`` for what a record of text is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_jax.types import DataError

# Uncompressed: half the read time, and the bytes do not depend on a compression library's version.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class Block(NamedTuple):
    """One record: tokens [block_size + 1], starts [n], and how many tokens are real."""

    tokens: np.ndarray
    starts: np.ndarray
    length: int


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and int32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def write_shard(
    path: Path, stream: np.ndarray, starts: np.ndarray, block_size: int, pad_id: int
) -> int:
    """Write one shard file, atomically. Returns the number of blocks.

    Args:
        path: file to write.
        stream: [n] token ids of all documents end to end, of the dtype the records shall have; not
            empty.
        starts: [documents] offsets in the stream where documents begin, ascending.
        block_size: tokens in a block.
        pad_id: fills the last block.
    """
    blocks = -(-len(stream) // block_size)
    padded = np.full(blocks * block_size + 1, pad_id, stream.dtype)
    padded[: len(stream)] = stream
    first = np.searchsorted(starts, np.arange(blocks) * block_size)
    last = np.searchsorted(starts, np.arange(1, blocks + 1) * block_size, side="right")

    def records() -> Iterator[bytes]:
        for b in range(blocks):
            at = b * block_size
            offsets = (starts[first[b] : last[b]] - at).astype(np.int32)
            length = min(len(stream) - at, block_size + 1)
            yield serialize(length=length, starts=offsets, tokens=padded[at : at + block_size + 1])

    write_records(path, records())
    return blocks


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write one file of records, atomically."""
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"shard {str(path)!r} cannot be written ({error}); free space or choose another folder"
        ) from error


def serialize(**values: np.ndarray | int) -> bytes:
    """The bytes that tensorflow-datasets' own serializer writes for this record (a
    ``tf.train.Example``), with its fields in the order given.

    Written out by hand: a map has no fixed order in protobuf's own writer, and workers need not
    import tensorflow-datasets.
    """

    def number(v):
        return _field(3, _field(1, _varint(v)))

    def array(v):
        return _field(1, _field(1, v.tobytes()))

    fields = (
        (name.encode(), (number if isinstance(v, int) else array)(v)) for name, v in values.items()
    )
    return _field(
        1, b"".join(_field(1, _field(1, name) + _field(2, feature)) for name, feature in fields)
    )


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def parse_record(record: bytes, dtype: np.dtype) -> Block:
    """One record as a ``Block``; several times faster than tensorflow-datasets' own decoding, with
    the same result.
    """
    feature = record_features(record)
    return Block(
        array_of(feature, "tokens", dtype),
        array_of(feature, "starts", np.int32),
        feature["length"].int64_list.value[0],
    )


def record_features(record: bytes):
    """The fields of a record by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def array_of(features, name: str, dtype: np.dtype | type) -> np.ndarray:
    """A field of a record that holds numbers."""
    return np.frombuffer(features[name].bytes_list.value[0], dtype)
