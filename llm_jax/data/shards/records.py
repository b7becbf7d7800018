"""Records of an ``array_record`` file, written and read; ``data.shards.store`` describes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.files import replacing
from llm_jax.types import DataError

# Uncompressed records take half the time to read, and no version of a library changes their bytes.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class Block(NamedTuple):
    """One record.

    Attributes:
        tokens: [block_size + 1] token ids.
        starts: [n] int32, offsets where documents begin.
        length: number of tokens that are not padding.
    """

    tokens: np.ndarray
    starts: np.ndarray
    length: int


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and int32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def write_shard(
    path: Path, stream: np.ndarray, starts: np.ndarray, block_size: int, pad_id: int
) -> int:
    """Write one shard file of text, atomically.

    Args:
        path: file to write.
        stream: [n] token ids of all documents end to end, not empty; records have its dtype.
        starts: [documents] offsets in the stream where documents begin, ascending.
        block_size: tokens in a block.
        pad_id: fills the last block.

    Returns:
        The number of blocks.

    Raises:
        DataError: the file cannot be written.
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
    """Write one file of records, atomically.

    Raises:
        DataError: the file cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    try:
        with replacing(path) as temporary:
            writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
            for record in records:
                writer.write(record)
            writer.close()
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"shard {str(path)!r} cannot be written ({error}); free space or choose another folder"
        ) from error


def serialize(**values: np.ndarray | int) -> bytes:
    """A record as bytes: the ``tf.train.Example`` that tensorflow-datasets' serializer writes.

    Encoded here, because protobuf's writer gives a map no fixed order, and so that workers need not
    import tensorflow-datasets.

    Args:
        values: the fields, in the order in which they are written: whole numbers and arrays.
    """
    encoded = b"".join(_entry(name, value) for name, value in values.items())
    return _field(1, encoded)


def _entry(name: str, value: np.ndarray | int) -> bytes:
    """An entry of the map of features: an ``Int64List`` of one number, or a ``BytesList``."""
    if isinstance(value, int):
        feature = _field(3, _field(1, _varint(value)))
    else:
        feature = _field(1, _field(1, value.tobytes()))
    return _field(1, _field(1, name.encode()) + _field(2, feature))


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
    """Parse a record of text: several times faster than tensorflow-datasets, with the same result.

    Args:
        record: as ``serialize`` returns it.
        dtype: of the tokens.
    """
    features = record_features(record)
    return Block(
        array_of(features, "tokens", dtype),
        array_of(features, "starts", np.int32),
        features["length"].int64_list.value[0],
    )


def record_features(record: bytes) -> Any:
    """The fields of a record by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def array_of(features: Any, name: str, dtype: np.dtype | type) -> np.ndarray:
    """An array field of a record."""
    return np.frombuffer(features[name].bytes_list.value[0], dtype)
