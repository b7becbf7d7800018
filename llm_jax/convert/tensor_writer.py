"""Writing safetensors files, one part of a tensor at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import jax
import ml_dtypes
import numpy as np

from llm_jax.storage.paths import as_bucket, is_bucket, path_of
from llm_jax.tensor_file import DTYPES, Stored
from llm_jax.types import DataError

if TYPE_CHECKING:
    from llm_jax.storage.bucket_path import BucketPath

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FLOATS = {dtype for name, dtype in DTYPES.items() if name.startswith(("F", "BF"))}
# Bytes that are laid out and written at once.
_PIECE = 1 << 20
# A piece of wide rows has at least this many: they fill the cache lines that a transposition reads.
_MIN_ROWS = 16
# One thread writes at a time, about as fast as two threads lay out pieces.
_THREADS = min(4, os.cpu_count() or 1)


class TensorWriter:
    """Writes a safetensors file part by part; use it as a context manager.

    The file gets its name when it is complete.

    Args:
        path: The file.
        tensors: Name -> (type, shape).
        metadata: Strings for the file's ``__metadata__``.

    Raises:
        DataError: The format lacks a type, or the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        tensors: Mapping[str, tuple[Any, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ):
        self.path = path_of(path)
        # In a bucket: an object that marks the folder, while the file is written on this machine.
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._closing = ExitStack()
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._tensors: dict[str, Stored] = {}
        end = 0
        for name, (kind, shape) in tensors.items():
            dtype = np.dtype(kind)
            if dtype not in _NAMES:
                raise DataError(
                    f"tensor {name!r} has the type {dtype}, which safetensors files lack;"
                    f" supported are {', '.join(DTYPES)}"
                )
            stored = Stored(dtype, tuple(map(int, shape)), end)
            end += stored.nbytes
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(stored.shape),
                "data_offsets": [stored.start, end],
            }
            self._tensors[name] = stored
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self._data = 8 + len(raw)
        # Elements of each tensor that are not written yet.
        self._waiting = {name: math.prod(s.shape) for name, s in self._tensors.items()}
        self._pool = ThreadPoolExecutor(_THREADS)
        self._turn = Lock()
        try:
            self._local = self._begin()
            self._file = os.open(self._local, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
            os.ftruncate(self._file, self._data + end)
            os.pwrite(self._file, len(raw).to_bytes(8, "little") + raw, 0)
        except OSError as error:
            self._closing.close()
            raise self._unwritable(error) from error

    def write(self, name: str, part: np.ndarray, index: tuple[int, ...] = ()) -> None:
        """Writes one part of a tensor, cast to the tensor's type. Each part is written once.

        The part goes in pieces that fit a processor's cache: while one piece is written, other
        cores lay out the next ones, and the part is never copied as a whole.

        Args:
            name: Name of the tensor.
            part: The part.
            index: Indices of the part along the tensor's first axes.
        """
        stored = self._tensors[name]
        castable = part.dtype == stored.dtype or {part.dtype, stored.dtype} <= _FLOATS
        if not castable or part.shape != stored.shape[len(index) :]:
            raise ValueError(
                f"{name}{list(index)} is {part.dtype}{part.shape}, the file has"
                f" {stored.dtype}{stored.shape}"
            )
        place = int(np.ravel_multi_index(index, stored.shape[: len(index)])) if index else 0
        at = self._data + stored.start + place * part.size * stored.dtype.itemsize
        try:
            pieces = _pieces(np.asarray(part), at, stored.dtype.itemsize)
            list(self._pool.map(partial(self._write_piece, stored.dtype), pieces))
        except OSError as error:
            raise self._unwritable(error) from error
        self._waiting[name] -= part.size

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"{str(self.path)!r} cannot be written ({error.strerror}); free space or choose another"
            " folder"
        )

    def _write_piece(self, dtype: np.dtype, place: tuple[np.ndarray, int]) -> None:
        """Writes (array, offset in the file)."""
        part, at = place
        piece = part if part.flags.c_contiguous else _in_order(part)
        if piece.dtype != dtype:
            with np.errstate(over="ignore"):
                piece = piece.astype(dtype)
            smaller = ml_dtypes.finfo(dtype).max < ml_dtypes.finfo(part.dtype).max
            if smaller and np.isinf(piece).any() and not np.isinf(part).any():
                raise DataError(
                    f"values of {self.path.name} are too large for {dtype}; write the file as"
                    " bfloat16 or float32"
                )
        view = memoryview(piece.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        # One thread writes at a time: two writing one file spin on a lock in the kernel.
        with self._turn:
            while view:
                done = os.pwrite(self._file, view, at)
                view = view[done:]
                at += done

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown()
        os.close(self._file)
        left = [name for name, elements in self._waiting.items() if elements]
        if kind is not None or left:
            self._closing.close()
            self._partial.unlink(missing_ok=True)
            if kind is None:
                raise ValueError(f"{self.path.name}: {left[0]!r} was not written exactly once")
            return
        remote = as_bucket(self.path)
        if remote is None:
            os.replace(self._partial, self.path)
            return
        with self._closing:
            self._store(remote)

    def _begin(self) -> Path:
        """The file of this machine that is written."""
        if not is_bucket(self.path):
            return self._partial
        from llm_jax.storage.local_files import scratch_folder

        self._partial.write_bytes(b"")
        return self._closing.enter_context(scratch_folder()) / self.path.name

    def _store(self, remote: BucketPath) -> None:
        from llm_jax.storage.local_files import upload

        try:
            upload(self._local, remote)
            self._partial.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error


def _pieces(part: np.ndarray, at: int, itemsize: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of ``part`` that follow one another in the file, and the offset of each in bytes."""
    row = part[0].size * itemsize if part.ndim and len(part) else 0
    if part.ndim < 2 or row * len(part) <= _PIECE:
        yield part, at
    elif part.ndim > 2 and row > _PIECE:
        for i, inner in enumerate(part):
            yield from _pieces(inner, at + i * row, itemsize)
    else:
        step = max(_PIECE // row, _MIN_ROWS)
        for i in range(0, len(part), step):
            yield part[i : i + step], at + i * row


def _in_order(x: np.ndarray) -> np.ndarray:
    """A contiguous copy of ``x``. XLA transposes arrays several times faster than numpy and without
    Python's lock; numpy does it for types of 8 bytes, which XLA lacks by default, and where
    JAX_PLATFORMS leaves the CPU out.
    """
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if x.dtype.itemsize > 4 or (platforms and "cpu" not in platforms.split(",")):
        return np.ascontiguousarray(x)
    bits = jax.device_put(x.view(f"u{x.dtype.itemsize}"), jax.local_devices(backend="cpu")[0])
    return np.asarray(bits).view(x.dtype)
