"""Shards: token blocks in ``array_record`` files that are a tensorflow-datasets dataset, with a
manifest beside them.

A folder of shards:

    manifest.json                      counts, sources, options, tokenizer; written last, so its
                                       presence means "complete"
    dataset_info.json features.json    what tensorflow-datasets reads
    tokens-train.array_record-00000 …  blocks; one file per shard and split
    tokenizer/                         a copy of the tokenizer, so that the folder explains itself

The documents of a shard, each ``<s> … </s>``, lie end to end in one stream of tokens that is cut
into blocks. A record is one block:

    tokens  [block_size + 1]  uint16 (vocabularies up to 65,536) or int32; the last one is the
                              token that follows the block, so that every pair of neighbours in a
                              document is trained on once, whatever the block borders
    starts  [n] int32         offsets in [0, block_size] where a document begins
    length  scalar            how many entries of ``tokens`` are real, at most block_size + 1; the
                              rest is padding (end of a shard)

A document goes on from block to block of a shard, never into another shard. Shards of pairs of
texts have other records: see ``data.shards.pairs``; their manifest says ``"kind": "pairs"``.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.data.shards.records import parse_record, token_dtype
from llm_jax.types import DataError

FORMAT_VERSION = 1
DATASET = "tokens"
MANIFEST = "manifest.json"
FILENAME_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
_OPEN_FILES = 256


def shard_name(split: str, index: int) -> str:
    """File name of a shard, as tensorflow-datasets will look for it."""
    return f"{DATASET}-{split}.array_record-{index:05}"


def features(manifest: dict[str, Any]):
    """The tensorflow-datasets features of a record."""
    import tensorflow_datasets as tfds

    dtype = token_dtype(manifest["tokenizer"]["vocab_size"]).type

    def row(length):
        return tfds.features.Tensor(shape=(length,), dtype=dtype, encoding="bytes")

    offsets = tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes")
    if kind_of_shards(manifest) == "pairs":
        tokens = {
            "encoder_tokens": row(manifest["encoder_block_size"]),
            "tokens": row(manifest["block_size"]),
        }
        return tfds.features.FeaturesDict({**tokens, "encoder_starts": offsets, "starts": offsets})
    return tfds.features.FeaturesDict(
        {
            "tokens": row(manifest["block_size"] + 1),
            "starts": offsets,
            "length": tfds.features.Scalar(np.int32),
        }
    )


def write_dataset_info(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the two files by which ``tfds.builder_from_directory(folder)`` reads the shards."""
    import tensorflow_datasets as tfds

    names = tfds.core.ShardedFileTemplate(
        data_dir=str(folder),
        template=FILENAME_TEMPLATE,
        dataset_name=DATASET,
        filetype_suffix="array_record",
    )
    splits = []
    for name, shards in manifest["shards"].items():
        if shards:
            lengths, size = [s["blocks"] for s in shards], sum(s["bytes"] for s in shards)
            template = names.replace(split=name)
            splits.append(
                tfds.core.SplitInfo(
                    name=name, shard_lengths=lengths, num_bytes=size, filename_template=template
                )
            )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features(manifest),
        split_infos=splits,
        filename_template=names,
        check_data=False,
        description="Token blocks; see manifest.json.",
    )


def json_bytes(value: Any) -> bytes:
    """Readable JSON, always the same for the same value."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards. Raises DataError if there is none, or of another format
    version.
    """
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
        raise DataError(
            f"data {str(path)!r}: damaged manifest ({error}); prepare the data again"
        ) from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"data {str(path)!r}: format version {manifest.get('format_version')}, expected"
            f" {FORMAT_VERSION}; prepare it again"
        )
    return manifest


def shards_fingerprint(manifest: dict[str, Any]) -> str:
    """sha256 (hex) of what shards are a function of: equal fingerprints, equal shards, wherever
    they and their sources lie.
    """
    # Paths say where the text was, and the held-out files' names which it was; the splits' counts
    # say how it was divided.
    options = {name: value for name, value in manifest["options"].items() if name != "validation"}
    sources = [
        {name: value for name, value in source.items() if name != "path"}
        for source in manifest["sources"]
    ]
    identity = {
        "format_version": manifest["format_version"],
        "tokenizer": manifest["tokenizer"],
        "options": options,
        "sources": sources,
        "shards": manifest["shards"],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def kind_of_shards(manifest: dict[str, Any]) -> str:
    """``"text"``, or ``"pairs"`` where a record holds pairs of texts."""
    return manifest.get("kind", "text")


def check_tokenizer(path: str | Path, manifest: dict[str, Any], fingerprint: str | None) -> None:
    """Raise DataError unless the shards were made with this tokenizer; None is any."""
    made_with = manifest["tokenizer"]["fingerprint"]
    if fingerprint not in (None, made_with):
        raise DataError(
            f"data {str(path)!r} was made with tokenizer {made_with[:16]}…, this run's is"
            f" {fingerprint[:16]}…; use the tokenizer/ folder beside the shards, or prepare the"
            " data again"
        )


class ShardReader:
    """Random access to the blocks of one split. Thread-safe.

    Opening compares every file with the manifest (size and number of records), so that a damaged
    copy is found at once.

    Args:
        folder: folder of shards.
        split: ``"train"`` or ``"validation"``.
        kind: what records hold, as in ``kind_of_shards``.
        parse: a record as an object with ``tokens`` [``width``].
        width: length of a record's tokens beyond the block size.

    Raises:
        DataError: no manifest, records of another kind, no such split, or a shard that is missing,
            truncated or unreadable.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        kind: str = "text",
        parse: Callable[[bytes, np.dtype], Any] = parse_record,
        width: int = 1,
    ):
        self.folder, self.split, self._parse, self._width = Path(folder), split, parse, width
        self.manifest = read_manifest(self.folder)
        if (is_kind := kind_of_shards(self.manifest)) != kind:
            raise DataError(
                f"data {str(folder)!r} holds {is_kind}, and data.objective wants {kind}; "
                + (
                    "set data.objective to pairs"
                    if is_kind == "pairs"
                    else "prepare pairs with --encoder-field"
                )
            )
        if split not in self.manifest["shards"]:
            raise DataError(
                f"data {str(folder)!r}: no split {split!r}; there are"
                f" {sorted(self.manifest['shards'])}"
            )
        shards = self.manifest["shards"][split]
        if not shards:
            raise DataError(
                f"data {str(folder)!r}: split {split!r} is empty; prepare it with a larger"
                " validation_fraction"
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
                    f"shard {str(self.paths[index])!r}: {records} records, the manifest says"
                    f" {shard['blocks']}; copy it again"
                )

    def _check_size(self, path: Path, expected: int) -> None:
        if not path.is_file():
            raise DataError(
                f"shard {str(path)!r} is missing; copy it again or prepare the data again"
            )
        if (size := path.stat().st_size) != expected:
            what = "truncated" if size < expected else "changed"
            raise DataError(
                f"shard {str(path)!r} is {what}: {size} bytes, the manifest says {expected}; copy"
                " it again"
            )

    def _reader(self, index: int):
        from array_record.python.array_record_module import ArrayRecordReader

        if index in self._readers:
            self._readers.move_to_end(index)
            return self._readers[index]
        try:
            reader = ArrayRecordReader(
                str(self.paths[index]),
                options="readahead_buffer_size:0",
                file_reader_buffer_size=32768,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(
                f"shard {str(self.paths[index])!r} cannot be read ({error}); copy it again"
            ) from error
        self._readers[index] = reader
        if len(self._readers) > _OPEN_FILES:
            self._readers.popitem(last=False)[1].close()
        return reader

    def read(self, shard: int, blocks: Sequence[int]) -> list[Any]:
        """The given blocks of one shard file."""
        try:
            with self._lock:
                records = self._reader(shard).read(list(blocks))
            parsed = [self._parse(record, self.dtype) for record in records]
        except (RuntimeError, ValueError, IndexError, KeyError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"shard {str(self.paths[shard])!r}: record unreadable ({error}); copy it again"
            ) from error
        if any(len(block.tokens) != self.block_size + self._width for block in parsed):
            raise DataError(
                f"shard {str(self.paths[shard])!r}: a block of another size than {self.block_size};"
                " copy it again"
            )
        return parsed

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._readers:
                self._readers.popitem()[1].close()
