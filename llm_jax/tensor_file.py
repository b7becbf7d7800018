"""Reads safetensors files: the header is checked first, and tensors are mapped one at a time.

The format: https://github.com/huggingface/safetensors#format. A header is untrusted input: lengths,
types, shapes, offsets, gaps and overlaps are checked against the size of the file, and nothing
larger than the file is allocated.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from llm_jax.storage.paths import local_file, path_of
from llm_jax.types import DataError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# As in the reference implementation.
_LONGEST_HEADER = 100_000_000
_DIMENSIONS = 16


class Stored(NamedTuple):
    """A tensor of a file: its type, its shape, and the byte at which it starts."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """A safetensors file for reading.

    Attributes:
        path: of the file.
        tensors: by name.
        metadata: the file's strings.
    """

    def __init__(self, path: str | Path) -> None:
        """Reads and checks the header.

        Raises:
            DataError: the file cannot be read, or a byte of it belongs to no tensor or to several;
                the message names the file and the fault.
        """
        self.path = path_of(path)
        try:
            self._local = local_file(self.path)
            size = self._local.stat().st_size
            with self._local.open("rb") as file:
                header = self._header(file.read(8), size)
                raw = file.read(header)
        except OSError as error:
            raise DataError(f"{str(self.path)!r} cannot be read ({error.strerror})") from error
        self.metadata, self.tensors = self._parse(raw, 8 + header, size)

    def read(self, name: str) -> np.ndarray:
        """A tensor mapped from the file, not writable; only the parts that are read use memory."""
        stored = self.tensors[name]
        if not stored.nbytes:
            return np.zeros(stored.shape, stored.dtype)
        return np.memmap(self._local, stored.dtype, "r", stored.start, stored.shape)

    def _bad(self, what: str) -> DataError:
        return DataError(
            f"{str(self.path)!r} is not an intact safetensors file: {what}; fetch or write it again"
        )

    def _header(self, first: bytes, size: int) -> int:
        if len(first) < 8:
            raise self._bad(
                f"it has {size} bytes, fewer than the 8 that every such file begins with"
            )
        length = int.from_bytes(first, "little")
        if length > min(size - 8, _LONGEST_HEADER):
            raise self._bad(
                f"its header would have {length:,} bytes, the file has {size:,} (at most"
                f" {_LONGEST_HEADER:,} are read)"
            )
        return length

    def _parse(self, raw: bytes, start: int, size: int) -> tuple[dict[str, str], dict[str, Stored]]:
        """Metadata and tensors of a header.

        Args:
            raw: the header.
            start: byte at which the tensors begin.
            size: bytes of the file.
        """
        try:
            header = json.loads(raw.decode("utf-8"), object_pairs_hook=self._unique)
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
            raise self._bad(f"its header is not valid JSON ({str(error)[:100]})") from error
        if not isinstance(header, dict):
            raise self._bad("its header is not a JSON object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise self._bad("its __metadata__ is not an object of strings")
        found = {name: self._stored(name, entry, start, size) for name, entry in header.items()}
        self._check_cover(found, start, size)
        return metadata, found

    def _check_cover(self, found: dict[str, Stored], start: int, size: int) -> None:
        """Raises DataError unless the tensors cover the bytes from start to size exactly once."""
        end = start
        last = "the header"
        for name, stored in sorted(found.items(), key=lambda item: (item[1].start, item[1].nbytes)):
            if stored.start != end:
                how = "overlaps" if stored.start < end else "leaves a gap after"
                raise self._bad(
                    f"tensor {name!r} at byte {stored.start:,} {how} {last}, which ends at {end:,}"
                )
            end = stored.start + stored.nbytes
            last = repr(name)
        if end != size:
            raise self._bad(f"its tensors end at byte {end:,} and the file at {size:,}")

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object, whose keys must differ."""
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise self._bad(f"{twice!r} is there twice in its header")
        return out

    def _stored(self, name: str, entry: Any, start: int, size: int) -> Stored:
        """A tensor's entry in the header; ``start`` and ``size`` as in ``_parse``."""
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._bad(f"tensor {name!r} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise self._bad(
                f"tensor {name!r} has the type {dtype!r}; there are {', '.join(DTYPES)}"
            )
        for what, numbers in (("shape", shape), ("data_offsets", offsets)):
            if not _is_sizes(numbers):
                raise self._bad(
                    f"tensor {name!r} has the {what} {str(numbers)[:80]}, which is not a list of"
                    " sizes"
                )
        if math.prod(n for n in shape if n) >= 2**62 or not name.isprintable():
            raise self._bad(
                f"tensor {name[:80]!r} of shape {shape} has a name that cannot be printed, or is"
                " too large"
            )
        stored = Stored(DTYPES[dtype], tuple(shape), start + offsets[0] if offsets else 0)
        matches = len(offsets) == 2 and offsets[1] - offsets[0] == stored.nbytes
        if not matches or start + offsets[1] > size:
            raise self._bad(
                f"tensor {name!r} of shape {shape} and type {dtype} has {stored.nbytes:,} bytes,"
                f" but data_offsets {offsets}"
            )
        return stored


def _is_sizes(numbers: Any) -> bool:
    """Whether a JSON value is a list of sizes that a tensor can have."""
    if not isinstance(numbers, list) or len(numbers) > _DIMENSIONS:
        return False
    return all(type(n) is int and 0 <= n < 2**63 for n in numbers)
