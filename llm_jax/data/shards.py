"""Shards: token blocks in ``array_record`` files that are a tensorflow-datasets dataset, with a manifest beside them.

A folder of shards:

    manifest.json                            counts, sources, options, tokenizer; written last, so its presence means
    "complete" dataset_info.json features.json          what tensorflow-datasets reads
    tokens-train.array_record-00000 …        blocks; one file per shard and split
    tokenizer/                               a copy of the tokenizer, so that the folder explains itself

The documents of a shard, each ``<s> … </s>``, lie end to end in one stream of tokens that is cut into blocks. A record
is one block:

    tokens   [block_size + 1]  uint16 (vocabularies up to 65,536) or int32; the last one is the token that follows the
    block, so that
                               every pair of neighbours in a document is trained on once, whatever the block borders
    starts   [n] int32         offsets in [0, block_size] where a document begins
    length   scalar            how many entries of ``tokens`` are real, at most block_size + 1; the rest is padding
    (end of a shard)

A document goes on from block to block of a shard, never into another shard.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.types import DataError

FORMAT_VERSION = 1
DATASET = "tokens"
MANIFEST = "manifest.json"
FILENAME_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
# Uncompressed: half the read time, and the bytes do not depend on a compression library's version.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_OPEN_FILES = 256


class Block(NamedTuple):
    """One record: tokens [block_size + 1], starts [n], and how many tokens are real."""

    tokens: np.ndarray
    starts: np.ndarray
    length: int


def shard_name(split: str, index: int) -> str:
    """File name of a shard, as tensorflow-datasets will look for it."""
    return f"{DATASET}-{split}.array_record-{index:05}"


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and int32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def write_shard(path: Path, stream: np.ndarray, starts: np.ndarray, block_size: int, pad_id: int) -> int:
    """Write one shard file, atomically. Returns the number of blocks.

    Args:
        path: file to write.
        stream: [n] token ids of all documents end to end, of the dtype the records shall have; not empty.
        starts: [documents] offsets in the stream where documents begin, ascending.
        block_size: tokens in a block.
        pad_id: fills the last block.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    blocks = -(-len(stream) // block_size)
    padded = np.full(blocks * block_size + 1, pad_id, stream.dtype)
    padded[: len(stream)] = stream
    first = np.searchsorted(starts, np.arange(blocks) * block_size)
    last = np.searchsorted(starts, np.arange(1, blocks + 1) * block_size, side="right")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        writer = ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
        for b in range(blocks):
            at = b * block_size
            offsets = (starts[first[b] : last[b]] - at).astype(np.int32)
            length = min(len(stream) - at, block_size + 1)
            writer.write(serialize(padded[at : at + block_size + 1], offsets, length))
        writer.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"shard {str(path)!r} cannot be written ({error}); free space or choose another folder"
        ) from error
    return blocks


def serialize(tokens: np.ndarray, starts: np.ndarray, length: int) -> bytes:
    """The bytes that tensorflow-datasets' own serializer writes for this record (a ``tf.train.Example``), with its
    fields in a fixed order.

    Written out by hand: a map has no fixed order in protobuf's own writer, and workers need not import
    tensorflow-datasets.
    """
    fields = (
        (b"length", _field(3, _field(1, _varint(length)))),
        (b"starts", _field(1, _field(1, starts.tobytes()))),
        (b"tokens", _field(1, _field(1, tokens.tobytes()))),
    )
    return _field(1, b"".join(_field(1, _field(1, name) + _field(2, feature)) for name, feature in fields))


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
    """One record as a ``Block``; several times faster than tensorflow-datasets' own decoding, with the same result."""
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(record).features.feature
    return Block(
        np.frombuffer(feature["tokens"].bytes_list.value[0], dtype),
        np.frombuffer(feature["starts"].bytes_list.value[0], np.int32),
        feature["length"].int64_list.value[0],
    )


def features(block_size: int, vocab_size: int):
    """The tensorflow-datasets features of a record."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "tokens": tfds.features.Tensor(
                shape=(block_size + 1,), dtype=token_dtype(vocab_size).type, encoding="bytes"
            ),
            "starts": tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes"),
            "length": tfds.features.Scalar(np.int32),
        }
    )


def write_dataset_info(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the two files by which ``tfds.builder_from_directory(folder)`` reads the shards."""
    import tensorflow_datasets as tfds

    names = tfds.core.ShardedFileTemplate(
        data_dir=str(folder), template=FILENAME_TEMPLATE, dataset_name=DATASET, filetype_suffix="array_record"
    )
    splits = []
    for name, shards in manifest["shards"].items():
        if shards:
            lengths, size = [s["blocks"] for s in shards], sum(s["bytes"] for s in shards)
            template = names.replace(split=name)
            splits.append(
                tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=size, filename_template=template)
            )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features(manifest["block_size"], manifest["tokenizer"]["vocab_size"]),
        split_infos=splits,
        filename_template=names,
        check_data=False,
        description="Token blocks; see manifest.json.",
    )


def json_bytes(value: Any) -> bytes:
    """Readable JSON, always the same for the same value."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards. Raises DataError if there is none, or of another format version."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        unfinished = (Path(folder) / "parts").is_dir()
        hint = (
            "its preparation was interrupted: run the same `llm-jax data prepare` again"
            if unfinished
            else "see `llm-jax data prepare`"
        )
        raise DataError(f"data {str(folder)!r}: no {MANIFEST} there; {hint}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"data {str(path)!r}: damaged manifest ({error}); prepare the data again") from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"data {str(path)!r}: format version {manifest.get('format_version')}, expected {FORMAT_VERSION}; "
            "prepare it again"
        )
    return manifest


class ShardReader:
    """Random access to the blocks of one split. Thread-safe.

    Opening compares every file with the manifest (size and number of records), so that a damaged copy is found at once.

    Args:
        folder: folder of shards.
        split: ``"train"`` or ``"validation"``.

    Raises:
        DataError: no manifest, no such split, or a shard that is missing, truncated or unreadable.
    """

    def __init__(self, folder: str | Path, split: str):
        self.folder, self.split = Path(folder), split
        self.manifest = read_manifest(self.folder)
        if split not in self.manifest["shards"]:
            raise DataError(f"data {str(folder)!r}: no split {split!r}; there are {sorted(self.manifest['shards'])}")
        shards = self.manifest["shards"][split]
        if not shards:
            raise DataError(
                f"data {str(folder)!r}: split {split!r} is empty; prepare it with a larger validation_fraction"
            )
        self.paths = [self.folder / s["file"] for s in shards]
        self.block_size: int = self.manifest["block_size"]
        self.dtype = token_dtype(self.manifest["tokenizer"]["vocab_size"])
        self.shard_tokens = np.array([s["tokens"] for s in shards], np.int64)
        self._readers: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        for path, shard in zip(self.paths, shards):
            self._check_size(path, shard["bytes"])
        for index, shard in enumerate(shards):
            records = self._reader(index).num_records()
            if records != shard["blocks"]:
                raise DataError(
                    f"shard {str(self.paths[index])!r}: {records} records, the manifest says {shard['blocks']}; "
                    "copy it again"
                )

    def _check_size(self, path: Path, expected: int) -> None:
        if not path.is_file():
            raise DataError(f"shard {str(path)!r} is missing; copy it again or prepare the data again")
        if (size := path.stat().st_size) != expected:
            what = "truncated" if size < expected else "changed"
            raise DataError(f"shard {str(path)!r} is {what}: {size} bytes, the manifest says {expected}; copy it again")

    def _reader(self, index: int):
        from array_record.python.array_record_module import ArrayRecordReader

        if index in self._readers:
            self._readers.move_to_end(index)
            return self._readers[index]
        try:
            reader = ArrayRecordReader(
                str(self.paths[index]), options="readahead_buffer_size:0", file_reader_buffer_size=32768
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(f"shard {str(self.paths[index])!r} cannot be read ({error}); copy it again") from error
        self._readers[index] = reader
        if len(self._readers) > _OPEN_FILES:
            self._readers.popitem(last=False)[1].close()
        return reader

    def read(self, shard: int, blocks: Sequence[int]) -> list[Block]:
        """The given blocks of one shard file."""
        try:
            with self._lock:
                records = self._reader(shard).read(list(blocks))
            parsed = [parse_record(record, self.dtype) for record in records]
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"shard {str(self.paths[shard])!r}: record unreadable ({error}); copy it again") from error
        if any(len(block.tokens) != self.block_size + 1 for block in parsed):
            raise DataError(
                f"shard {str(self.paths[shard])!r}: a block of another size than {self.block_size}; copy it again"
            )
        return parsed

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._readers:
                self._readers.popitem()[1].close()
