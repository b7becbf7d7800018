"""Shards: token blocks in ``array_record`` files that are a tensorflow-datasets dataset, with a
manifest beside them.

A folder of shards:

    manifest.json                      counts, sources, options, tokenizer; written last, so its
                                       presence means that the folder is complete
    dataset_info.json features.json    metadata for tensorflow-datasets
    tokens-train.array_record-00000 …  blocks; one file per shard and split
    tokenizer/                         a copy of the tokenizer

The documents of a shard, each ``<s> … </s>``, form one stream of tokens, which is cut into blocks.
A record is one block:

    tokens  [block_size + 1]  uint16 (vocabularies up to 65,536) or int32; the last one is the
                              first token of the next block, so that every token of a document is
                              predicted once, wherever the blocks end
    starts  [n] int32         offsets in [0, block_size] where a document begins
    length  scalar            number of ``tokens`` that are not padding, at most block_size + 1;
                              only the last block of a shard has padding

A document continues from block to block of a shard, never into another shard. Shards of pairs of
texts have other records, which ``data.shards.pairs`` describes, and ``"kind": "pairs"`` in their
manifest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.data.shards.records import parse_record, token_dtype
from llm_jax.data.shards.shard_files import check_sizes, readable_name, reads_natively
from llm_jax.storage.paths import as_bucket, is_bucket, path_of
from llm_jax.types import DataError

FORMAT_VERSION = 1
DATASET = "tokens"
MANIFEST = "manifest.json"
FILENAME_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
_OPEN_FILES = 256


def shard_name(split: str, index: int) -> str:
    """File name of a shard, by the convention of tensorflow-datasets."""
    return f"{DATASET}-{split}.array_record-{index:05}"


def features(manifest: dict[str, Any]) -> Any:
    """The ``FeaturesDict`` of tensorflow-datasets for the records of a manifest."""
    import tensorflow_datasets as tfds

    dtype = token_dtype(manifest["tokenizer"]["vocab_size"]).type
    block_size = manifest["block_size"]
    array = functools.partial(tfds.features.Tensor, encoding="bytes")
    offsets = array(shape=(None,), dtype=np.int32)
    if kind_of_shards(manifest) == "pairs":
        fields = {
            "encoder_tokens": array(shape=(manifest["encoder_block_size"],), dtype=dtype),
            "tokens": array(shape=(block_size,), dtype=dtype),
            "encoder_starts": offsets,
            "starts": offsets,
        }
    else:
        fields = {
            "tokens": array(shape=(block_size + 1,), dtype=dtype),
            "starts": offsets,
            "length": tfds.features.Scalar(np.int32),
        }
    return tfds.features.FeaturesDict(fields)


def write_dataset_info(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the two files by which ``tfds.builder_from_directory(folder)`` reads the shards."""
    remote = as_bucket(folder)
    if remote is None:
        _write_dataset_info(folder, manifest)
        return
    from llm_jax.storage.local_files import scratch_folder, upload

    with scratch_folder() as scratch:
        # tfds takes a version from the folder's name, and looks for files with the shards' names.
        local = scratch / folder.name
        local.mkdir()
        for shards in manifest["shards"].values():
            for shard in shards:
                (local / shard["file"]).touch()
        _write_dataset_info(local, manifest)
        for path in local.glob("*.json"):
            upload(path, remote / path.name)


def _write_dataset_info(folder: Path, manifest: dict[str, Any]) -> None:
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
            splits.append(
                tfds.core.SplitInfo(
                    name=name,
                    shard_lengths=[shard["blocks"] for shard in shards],
                    num_bytes=sum(shard["bytes"] for shard in shards),
                    filename_template=names.replace(split=name),
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
    """Indented JSON in UTF-8; the same bytes for the same value."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        DataError: there is none, it is damaged, or it has another format version.
    """
    path = path_of(folder) / MANIFEST
    if not path.is_file():
        unfinished = (path_of(folder) / "parts").is_dir()
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
    """sha256 (hex) of all that shards are a function of: equal fingerprints mean equal shards.

    The paths of the shards and of their sources do not enter.
    """
    # The names of held-out files are paths too; the counts of the splits identify the division.
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
    """Kind of the records: ``"text"`` or ``"pairs"``."""
    return manifest.get("kind", "text")


def check_tokenizer(path: str | Path, manifest: dict[str, Any], fingerprint: str | None) -> None:
    """Check that shards were made with a tokenizer.

    Args:
        path: folder of the shards, for the error.
        manifest: of the folder.
        fingerprint: of the tokenizer; None for any.

    Raises:
        DataError: they were made with another one.
    """
    made_with = manifest["tokenizer"]["fingerprint"]
    if fingerprint is not None and fingerprint != made_with:
        raise DataError(
            f"data {str(path)!r} was made with tokenizer {made_with[:16]}…, this run's is"
            f" {fingerprint[:16]}…; use the tokenizer/ folder beside the shards, or prepare the"
            " data again"
        )


class ShardReader:
    """Random access to the blocks of one split. Thread-safe.

    Size and number of records of every file are compared with the manifest when it is opened, so
    that a damaged copy is found at once.

    Args:
        folder: folder of shards.
        split: ``"train"`` or ``"validation"``.
        kind: kind of the records, as ``kind_of_shards`` returns it.
        parse: parses a record, given the dtype of its tokens; the result has ``tokens``
            [block_size + ``width``].
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
        self.folder = path_of(folder)
        self.split = split
        self._parse = parse
        self._width = width
        self.manifest = read_manifest(self.folder)
        _check_kind(self.folder, self.manifest, kind)
        shards = _shards_of(self.folder, self.manifest, split)
        self.paths = [self.folder / s["file"] for s in shards]
        self.block_size: int = self.manifest["block_size"]
        self.dtype = token_dtype(self.manifest["tokenizer"]["vocab_size"])
        self.shard_tokens = np.array([s["tokens"] for s in shards], np.int64)
        self._readers: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._blocks = [s["blocks"] for s in shards]
        check_sizes(self.folder, shards)
        self._native = reads_natively(self.folder, sum(s["bytes"] for s in shards))
        if not is_bucket(self.folder):
            # Those of a bucket are fetched, opened and counted when they are first read.
            for index in range(len(shards)):
                self._reader(index)

    def _reader(self, index: int) -> Any:
        """The open reader of a shard; the least recently used one is closed beyond a limit."""
        from array_record.python.array_record_module import ArrayRecordReader

        if index in self._readers:
            self._readers.move_to_end(index)
            return self._readers[index]
        try:
            reader = ArrayRecordReader(
                readable_name(self.paths[index], self._native),
                options="readahead_buffer_size:0",
                file_reader_buffer_size=32768,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError(
                f"shard {str(self.paths[index])!r} cannot be read ({error}); copy it again"
            ) from error
        records = reader.num_records()
        if records != self._blocks[index]:
            raise DataError(
                f"shard {str(self.paths[index])!r}: {records} records, the manifest says"
                f" {self._blocks[index]}; copy it again"
            )
        self._readers[index] = reader
        if len(self._readers) > _OPEN_FILES:
            self._readers.popitem(last=False)[1].close()
        return reader

    def read(self, shard: int, blocks: Sequence[int]) -> list[Any]:
        """The given blocks of one shard, as ``parse`` returns them.

        Raises:
            DataError: a record cannot be read or parsed, or has another length.
        """
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


def _check_kind(folder: Path, manifest: dict[str, Any], kind: str) -> None:
    found = kind_of_shards(manifest)
    if found == kind:
        return
    if found == "pairs":
        fix = "set data.objective to pairs"
    elif found == "examples":
        fix = f"set data.objective to {manifest['options']['task']}"
    else:
        fix = "prepare pairs with --encoder-field"
    raise DataError(f"data {str(folder)!r} holds {found}, and data.objective wants {kind}; {fix}")


def _shards_of(folder: Path, manifest: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """The records of the manifest for the shards of a split."""
    if split not in manifest["shards"]:
        raise DataError(
            f"data {str(folder)!r}: no split {split!r}; there are {sorted(manifest['shards'])}"
        )
    shards = manifest["shards"][split]
    if not shards:
        raise DataError(
            f"data {str(folder)!r}: split {split!r} is empty; prepare it with a larger"
            " validation_fraction"
        )
    return shards
