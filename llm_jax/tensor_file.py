"""safetensors files: a header that is checked before anything else is read, tensors read and written one part at a time.

The format: https://github.com/huggingface/safetensors#format. A header is untrusted input: lengths, types, shapes, offsets, gaps and
overlaps are checked against the size of the file, and nothing larger than the file is ever allocated.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llm_jax.types import DataError

DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2), "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32), "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FLOATS = {dtype for name, dtype in DTYPES.items() if name.startswith(("F", "BF"))}
# As in the reference implementation.
_LONGEST_HEADER = 100_000_000
_DIMENSIONS = 16
# Bytes laid out and written at once, and the side of the squares in which an array is turned: both stay in a processor's caches.
_PIECE, _SQUARE = 4 << 20, 128


class Stored(NamedTuple):
    """A tensor of a file: its type, its shape, and the byte at which it starts."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file for reading. ``tensors``: what it holds, by name; ``metadata``: its strings.

    Raises DataError, naming the file and what is wrong, unless every byte of it belongs to exactly one tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file:
                header = self._header(file.read(8), size)
                raw = file.read(header)
        except OSError as error:
            raise DataError(f"{str(self.path)!r} cannot be read ({error.strerror})") from error
        self.metadata, self.tensors = self._parse(raw, 8 + header, size)

    def read(self, name: str) -> np.ndarray:
        """The tensor, mapped from the file and not writable; memory is used for the parts that are touched, as long as it lives."""
        stored = self.tensors[name]
        if not stored.nbytes:
            return np.zeros(stored.shape, stored.dtype)
        return np.memmap(self.path, stored.dtype, "r", stored.start, stored.shape)

    def _bad(self, what: str) -> DataError:
        return DataError(f"{str(self.path)!r} is no intact safetensors file: {what}; fetch or write it again")

    def _header(self, first: bytes, size: int) -> int:
        if len(first) < 8:
            raise self._bad(f"it has {size} bytes, fewer than the 8 that every such file begins with")
        length = int.from_bytes(first, "little")
        if length > min(size - 8, _LONGEST_HEADER):
            raise self._bad(f"its header would have {length:,} bytes, the file has {size:,} (at most {_LONGEST_HEADER:,} are read)")
        return length

    def _parse(self, raw: bytes, start: int, size: int) -> tuple[dict[str, str], dict[str, Stored]]:
        try:
            header = json.loads(raw.decode("utf-8"), object_pairs_hook=self._unique)
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise self._bad(f"its header is no JSON ({str(error)[:100]})") from error
        if not isinstance(header, dict):
            raise self._bad("its header is no JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self._bad("its __metadata__ is no object of strings")
        found = {name: self._stored(name, entry, start, size) for name, entry in header.items()}
        end, last = start, "the header"
        for name, stored in sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)):
            if stored.start != end:
                how = "overlaps" if stored.start < end else "leaves a gap after"
                raise self._bad(f"tensor {name!r} at byte {stored.start:,} {how} {last}, which ends at {end:,}")
            end, last = stored.start + stored.nbytes, repr(name)
        if end != size:
            raise self._bad(f"its tensors end at byte {end:,} and the file at {size:,}")
        return metadata, found

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            raise self._bad(f"{next(n for n in names if names.count(n) > 1)!r} is there twice in its header")
        return out

    def _stored(self, name: str, entry: Any, start: int, size: int) -> Stored:
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._bad(f"tensor {name!r} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self._bad(f"tensor {name!r} has the type {dtype!r}; there are {', '.join(DTYPES)}")
        for what, numbers in (("shape", shape), ("data_offsets", offsets)):
            if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or len(numbers) > _DIMENSIONS:
                raise self._bad(f"tensor {name!r} has the {what} {str(numbers)[:80]}, which is no list of sizes")
        if math.prod(n for n in shape if n) >= 2**62 or not name.isprintable():
            raise self._bad(f"tensor {name[:80]!r} has a name or a shape, {shape}, that none can have")
        stored = Stored(DTYPES[dtype], tuple(shape), start + offsets[0] if offsets else 0)
        if len(offsets) != 2 or offsets[1] - offsets[0] != stored.nbytes or start + offsets[1] > size:
            raise self._bad(f"tensor {name!r} of shape {shape} and type {dtype} has {stored.nbytes:,} bytes, but data_offsets {offsets}")
        return stored


class TensorWriter:
    """Writes a safetensors file part by part; use it as a context manager. The file has its name only once it is whole.

    tensors: name -> (type, shape). Raises DataError for a type that the format lacks, or when the file cannot be written.
    """

    def __init__(self, path: str | Path, tensors: Mapping[str, tuple[Any, tuple[int, ...]]], metadata: Mapping[str, str] | None = None):
        self.path, self._partial = Path(path), Path(path).with_name(f".{Path(path).name}.partial")
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._tensors: dict[str, Stored] = {}
        end = 0
        for name, (kind, shape) in tensors.items():
            dtype = np.dtype(kind)
            if dtype not in _NAMES:
                raise DataError(f"tensor {name!r} has the type {dtype}, which safetensors files lack; there are {', '.join(DTYPES)}")
            stored = Stored(dtype, tuple(map(int, shape)), end)
            end += stored.nbytes
            header[name] = {"dtype": _NAMES[dtype], "shape": list(stored.shape), "data_offsets": [stored.start, end]}
            self._tensors[name] = stored
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self._data, self._waiting = 8 + len(raw), {name: math.prod(s.shape) for name, s in self._tensors.items()}
        self._pool = ThreadPoolExecutor(os.cpu_count())
        try:
            self._file = os.open(self._partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
            os.ftruncate(self._file, self._data + end)
            os.pwrite(self._file, len(raw).to_bytes(8, "little") + raw, 0)
        except OSError as error:
            raise DataError(f"{str(self.path)!r} cannot be written ({error.strerror}); choose another folder") from error

    def write(self, name: str, part: np.ndarray, index: tuple[int, ...] = ()) -> None:
        """The part of the tensor at ``index`` along its first axes, cast to its type. Each part is written once.

        It goes in pieces of a few megabytes, of which each core lays one out in the order of the file and writes it: no copy of the part
        is ever made.
        """
        stored = self._tensors[name]
        castable = part.dtype == stored.dtype or {part.dtype, stored.dtype} <= _FLOATS
        if not castable or part.shape != stored.shape[len(index) :]:
            raise ValueError(f"{name}{list(index)} is {part.dtype}{part.shape}, the file has {stored.dtype}{stored.shape}")
        place = int(np.ravel_multi_index(index, stored.shape[: len(index)])) if index else 0
        at = self._data + stored.start + place * part.size * stored.dtype.itemsize
        try:
            pieces = _pieces(np.asarray(part), at, stored.dtype.itemsize)
            list(self._pool.map(lambda piece: self._write_piece(*piece, stored.dtype), pieces))
        except OSError as error:
            raise DataError(f"{str(self.path)!r} cannot be written ({error.strerror}); free space or choose another folder") from error
        self._waiting[name] -= part.size

    def _write_piece(self, piece: np.ndarray, at: int, dtype: np.dtype) -> None:
        if piece.dtype != dtype or not piece.flags.c_contiguous:
            whole, piece = piece, np.empty(piece.shape, dtype)
            with np.errstate(over="ignore"):
                _copy(whole, piece)
            if dtype.itemsize < whole.dtype.itemsize and np.isinf(piece).any() and not np.isinf(whole).any():
                raise DataError(f"numbers of {self.path.name} are too large for {dtype}; write it as bfloat16 or float32")
        view = memoryview(piece.reshape(-1).view(np.uint8))
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
    elif row > _PIECE:
        for i, inner in enumerate(part):
            yield from _pieces(inner, at + i * row, itemsize)
    else:
        step = _PIECE // row
        for i in range(0, len(part), step):
            yield part[i : i + step], at + i * row


def _copy(source: np.ndarray, to: np.ndarray) -> None:
    """``to[...] = source``, square by square where what is together in the one is apart in the other."""
    near = min((i for i, n in enumerate(source.shape) if n > 1), key=lambda i: abs(source.strides[i]), default=source.ndim - 1)
    if near == source.ndim - 1:
        to[...] = source
        return
    for i in range(0, source.shape[near], _SQUARE):
        for j in range(0, source.shape[-1], _SQUARE):
            square = tuple(
                slice(i, i + _SQUARE) if axis == near else slice(j, j + _SQUARE) if axis == source.ndim - 1 else slice(None)
                for axis in range(source.ndim)
            )
            to[square] = source[square]
