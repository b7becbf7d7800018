"""safetensors files for writing, one part of a tensor at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import jax
import ml_dtypes
import numpy as np

from llm_jax.tensor_file import DTYPES, Stored
from llm_jax.types import DataError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FLOATS = {dtype for name, dtype in DTYPES.items() if name.startswith(("F", "BF"))}
# Bytes laid out and written at once; of wide rows at least as many as fill a line of a processor's
# cache, which turning them reads whole.
_PIECE, _ROWS = 1 << 20, 16
# One thread writes at a time, as fast as about two lay out.
_THREADS = min(4, os.cpu_count() or 1)


class TensorWriter:
    """Writes a safetensors file part by part; use it as a context manager. The file has its name
    only once it is whole.

    tensors: name -> (type, shape). Raises DataError for a type that the format lacks, or when the
    file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        tensors: Mapping[str, tuple[Any, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ):
        self.path, self._partial = Path(path), Path(path).with_name(f".{Path(path).name}.partial")
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._tensors: dict[str, Stored] = {}
        end = 0
        for name, (kind, shape) in tensors.items():
            dtype = np.dtype(kind)
            if dtype not in _NAMES:
                raise DataError(
                    f"tensor {name!r} has the type {dtype}, which safetensors files lack; there are"
                    f" {', '.join(DTYPES)}"
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
        self._data, self._waiting = (
            8 + len(raw),
            {name: math.prod(s.shape) for name, s in self._tensors.items()},
        )
        self._pool, self._turn = ThreadPoolExecutor(_THREADS), Lock()
        try:
            self._file = os.open(self._partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
            os.ftruncate(self._file, self._data + end)
            os.pwrite(self._file, len(raw).to_bytes(8, "little") + raw, 0)
        except OSError as error:
            raise DataError(
                f"{str(self.path)!r} cannot be written ({error.strerror}); choose another folder"
            ) from error

    def write(self, name: str, part: np.ndarray, index: tuple[int, ...] = ()) -> None:
        """The part of the tensor at ``index`` along its first axes, cast to its type. Each part is
        written once.

        It goes in pieces that stay in a processor's cache: while one is written, other cores lay
        out the next, and no copy of the part is ever made.
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
            list(self._pool.map(lambda piece: self._write_piece(*piece, stored.dtype), pieces))
        except OSError as error:
            raise DataError(
                f"{str(self.path)!r} cannot be written ({error.strerror}); free space or choose"
                " another folder"
            ) from error
        self._waiting[name] -= part.size

    def _write_piece(self, part: np.ndarray, at: int, dtype: np.dtype) -> None:
        piece = part if part.flags.c_contiguous else _in_order(part)
        if piece.dtype != dtype:
            with np.errstate(over="ignore"):
                piece = piece.astype(dtype)
            smaller = ml_dtypes.finfo(dtype).max < ml_dtypes.finfo(part.dtype).max
            if smaller and np.isinf(piece).any() and not np.isinf(part).any():
                raise DataError(
                    f"numbers of {self.path.name} are too large for {dtype}; write it as bfloat16"
                    " or float32"
                )
        view = memoryview(piece.reshape(-1).view(np.uint8))
        # One writes at a time: two in one file would wait for each other in the kernel, and burn
        # their cores.
        with self._turn:
            while view:
                done = os.pwrite(self._file, view, at)
                view, at = view[done:], at + done

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown()
        os.close(self._file)
        left = [name for name, elements in self._waiting.items() if elements]
        if kind is not None or left:
            self._partial.unlink(missing_ok=True)
            if kind is None:
                raise ValueError(f"{self.path.name}: {left[0]!r} was not written once and whole")
            return
        os.replace(self._partial, self.path)


def _pieces(part: np.ndarray, at: int, itemsize: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pieces of ``part`` that follow one another in the file, and where each begins."""
    row = part[0].size * itemsize if part.ndim and len(part) else 0
    if part.ndim < 2 or row * len(part) <= _PIECE:
        yield part, at
    elif part.ndim > 2 and row > _PIECE:
        for i, inner in enumerate(part):
            yield from _pieces(inner, at + i * row, itemsize)
    else:
        step = max(_PIECE // row, _ROWS)
        for i in range(0, len(part), step):
            yield part[i : i + step], at + i * row


def _in_order(x: np.ndarray) -> np.ndarray:
    """``x`` with its last axis the densest. XLA turns arrays several times faster than numpy, and
    does not hold Python's lock meanwhile; it has no types of 8 bytes, and no CPU where
    JAX_PLATFORMS leaves that out.
    """
    platforms = jax.config.jax_platforms
    if x.dtype.itemsize > 4 or (platforms and "cpu" not in platforms.split(",")):
        return np.ascontiguousarray(x)
    bits = jax.device_put(x.view(f"u{x.dtype.itemsize}"), jax.local_devices(backend="cpu")[0])
    return np.asarray(bits).view(x.dtype)
