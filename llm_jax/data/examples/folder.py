"""A folder of examples: one example a row, with its labels, where shards have packed documents.

    manifest.json         as that of shards, with ``"kind": "examples"``; written last
    examples-train.npz    the examples of a split, one file for each
    tokenizer/            a copy of the tokenizer

The texts of an example are segments 1, 2, … of its row, so that none attends to another.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm_jax.data.shards.store import (
    FORMAT_VERSION,
    MANIFEST,
    check_tokenizer,
    json_bytes,
    kind_of_shards,
    read_manifest,
)
from llm_jax.files import make_folder, write_atomic
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers.open_tokenizer import tokenizer_files
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import Batch, DataError, Tokens

KIND = "examples"


class Examples(NamedTuple):
    """The examples of a split.

    Attributes:
        tokens: int32 [sum of lengths], all texts one after the other.
        lengths: int32 [n, k], tokens of the k texts of each example.
        labels: int32 [n], the class of each example, or None.
        token_labels: int32 as ``tokens``, the class of each token, -1 where it does not count; or
            None.
        token_types: int32 as ``tokens``, or None.
        text_ids: int32 [n, k], equal for texts that are equal; or None.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None = None
    token_labels: np.ndarray | None = None
    token_types: np.ndarray | None = None
    text_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return int(self.lengths.sum(axis=1).max())


def flat(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Rows of numbers one after the other, int32."""
    return np.array([number for row in rows for number in row], np.int32)


def write_examples(
    folder: Path,
    splits: dict[str, Examples],
    *,
    task: str,
    tokenizer: Tokenizer,
    options: dict[str, Any],
) -> None:
    """Writes a folder of examples.

    Args:
        folder: where; what it holds of the same names is replaced.
        splits: the examples of ``train`` and ``validation``.
        task: the objective that they are for.
        tokenizer: that made their tokens.
        options: what else they were made with; part of their fingerprint.

    Raises:
        DataError: a split has no examples.
    """
    make_folder(folder)
    make_folder(folder / "tokenizer")
    shards = {}
    for split, examples in splits.items():
        if not len(examples):
            raise DataError(f"there are no examples for the split {split!r}; give at least one")
        data = _npz(examples)
        name = f"examples-{split}.npz"
        write_atomic(folder / name, data)
        shards[split] = [
            {
                "file": name,
                "blocks": len(examples),
                "tokens": len(examples.tokens),
                "bytes": len(data),
                "sha256": hashlib.sha256(_content(examples)).hexdigest(),
            }
        ]
    for name, data in tokenizer_files(tokenizer.path).items():
        write_atomic(folder / "tokenizer" / name, data)
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": KIND,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "options": {"task": task, **options},
        "sources": [],
        "shards": shards,
    }
    write_atomic(folder / MANIFEST, json_bytes(manifest))


def _arrays(examples: Examples) -> dict[str, np.ndarray]:
    return {name: array for name, array in examples._asdict().items() if array is not None}


def _npz(examples: Examples) -> bytes:
    file = io.BytesIO()
    arrays: dict[str, Any] = _arrays(examples)
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _content(examples: Examples) -> bytes:
    """What the examples are, whatever the compression."""
    return b"".join(name.encode() + a.tobytes() for name, a in _arrays(examples).items())


class ExampleRows:
    """The examples of one split of a folder, by index, each in a row of its own.

    Args:
        path: folder of examples.
        split: ``"train"`` or ``"validation"``.
        seq_length: T, at least the tokens of the longest example.
        task: the objective that they must be for.
        tokenizer_fingerprint: of the tokenizer that they must be made with; None for any.

    Raises:
        DataError: no such examples, those of another objective or tokenizer, or longer ones.
    """

    def __init__(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        *,
        task: str,
        tokenizer_fingerprint: str | None = None,
    ):
        folder = path_of(path)
        self.manifest = read_manifest(folder)
        self._check_kind(folder, task)
        check_tokenizer(path, self.manifest, tokenizer_fingerprint)
        self.examples = _read(folder, self.manifest, split)
        if self.examples.longest > seq_length:
            raise DataError(
                f"data {str(path)!r}: an example has {self.examples.longest} tokens, and"
                f" data.seq_length is {seq_length}; set it to at least that"
            )
        self.seq_length = seq_length
        ends = np.cumsum(self.examples.lengths.sum(axis=1))
        self._starts = np.concatenate([[0], ends])

    def _check_kind(self, folder: Path, task: str) -> None:
        found = kind_of_shards(self.manifest)
        own = self.manifest["options"].get("task")
        if found != KIND:
            raise DataError(
                f"data {str(folder)!r} holds {found}, and data.objective is {task!r}, which wants"
                " examples; `llm-jax task` prepares them"
            )
        if own != task:
            raise DataError(
                f"data {str(folder)!r} holds examples for data.objective {own!r}, and it is"
                f" {task!r}; set it to that"
            )

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return len(self.examples.tokens)

    @property
    def reader(self) -> ExampleRows:
        """What ``close`` closes, which is nothing: the examples are in memory."""
        return self

    def close(self) -> None:
        """There is no open file."""

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The given examples, [rows, T].

        Labels of rows and ids of texts are ``extras``. Targets are the labels of tokens where there
        are some, and ``loss_mask`` marks those that count; else they are the tokens themselves, and
        it marks those that are not padding.
        """
        e = self.examples
        chosen = np.asarray(rows, np.int64)
        segments, positions = self._segments(chosen)
        ids = self._padded(e.tokens, chosen)
        types = None if e.token_types is None else self._padded(e.token_types, chosen)
        targets = ids
        counted = segments != 0
        if e.token_labels is not None:
            labels = self._padded(e.token_labels, chosen, fill=-1)
            counted = labels >= 0
            targets = np.where(counted, labels, 0).astype(np.int32)
        extras = {}
        if e.labels is not None:
            extras["labels"] = e.labels[chosen]
        if e.text_ids is not None:
            extras["text_ids"] = e.text_ids[chosen]
        return Batch(
            inputs=Tokens(ids, segments, positions, token_types=types),
            targets=targets,
            loss_mask=counted,
            extras=extras or None,
        )

    def _padded(self, values: np.ndarray, rows: np.ndarray, fill: int = 0) -> np.ndarray:
        out = np.full((len(rows), self.seq_length), fill, np.int32)
        for row, index in zip(out, rows):
            own = values[self._starts[index] : self._starts[index + 1]]
            row[: len(own)] = own
        return out

    def _segments(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment ids and positions, int32 [rows, T]."""
        segments = np.zeros((len(rows), self.seq_length), np.int32)
        positions = np.zeros_like(segments)
        for at, index in enumerate(rows):
            lengths = self.examples.lengths[index]
            total = int(lengths.sum())
            segments[at, :total] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
            positions[at, :total] = np.concatenate([np.arange(n) for n in lengths])
        return segments, positions


def _read(folder: Path, manifest: dict[str, Any], split: str) -> Examples:
    shards = manifest["shards"].get(split)
    if not shards:
        raise DataError(f"data {str(folder)!r}: no split {split!r}; give held-out examples")
    path = folder / shards[0]["file"]
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            examples = Examples(**{name: file[name] for name in file.files})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"examples {str(path)!r} cannot be read ({error}); prepare them again"
        ) from error
    if hashlib.sha256(_content(examples)).hexdigest() != shards[0]["sha256"]:
        raise DataError(f"examples {str(path)!r} are damaged; prepare them again")
    return examples
