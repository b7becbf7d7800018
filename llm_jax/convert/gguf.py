"""Reading GGUF files (versions 2 and 3, little endian): metadata, and tensors one at a time as
float32.

Opening a file reads its header alone (see ``gguf_header``). Reading a tensor allocates its result
and a few megabytes.
"""

from __future__ import annotations

import difflib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.convert.gguf_blocks import BLOCK_TYPES, BlockType, dequantize
from llm_jax.convert.gguf_header import GgufTensor, HeaderReader
from llm_jax.storage.paths import local_file, path_of
from llm_jax.types import DataError

# Weights that are de-quantized at a time: temporaries of a few megabytes, which stay in the cache.
_CHUNK = 1 << 18
_KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}


class GgufFile:
    """A GGUF file whose header was read (see ``open_gguf``).

    Attributes:
        path: The file.
        version: Version of its format.
        metadata: Key -> int, float, bool or str. An array of numbers is a numpy array; an array of
            strings or of arrays is a list.
        tensors: Name -> GgufTensor, in the order of the file.
    """

    def __init__(
        self, path: Path, version: int, metadata: dict[str, Any], tensors: dict[str, GgufTensor]
    ):
        self.path = path
        self.version = version
        self.metadata = metadata
        self.tensors = tensors

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Reads a tensor as float32, de-quantized. Widening float16 and bfloat16 is exact.

        Args:
            name: One of ``tensors``.
            rows: A slice with step 1 of the first dimension; only its bytes are read.

        Raises:
            DataError: There is no such tensor, the slice has a step or cuts a block, or the file
                has changed since it was opened.
        """
        tensor = self._tensor(name)
        kind = _KINDS[tensor.type]
        shape = tensor.shape
        start = 0
        if rows is not None:
            shape, start = self._rows(tensor, kind, rows)
        out = np.empty(shape, np.float32)
        try:
            self._read_into(out.reshape(-1), tensor, kind, start)
        except OSError as error:
            raise self._error(
                f"tensor {name!r} cannot be read ({error.strerror}); check the file's permissions"
                " and the disk"
            ) from error
        return out

    def _read_into(self, flat: np.ndarray, tensor: GgufTensor, kind: BlockType, start: int) -> None:
        """Fills ``flat`` with the weights of a tensor from the index ``start`` on."""
        step = _CHUNK // kind.size * kind.size
        with local_file(self.path).open("rb") as file:
            file.seek(tensor.offset + start // kind.size * kind.nbytes)
            for begin in range(0, flat.size, step):
                part = flat[begin : begin + step]
                nbytes = part.size // kind.size * kind.nbytes
                raw = file.read(nbytes)
                if len(raw) != nbytes:
                    raise self._error(
                        f"tensor {tensor.name!r} ends before its {tensor.nbytes:,} bytes; the file"
                        " has changed since it was opened: open it again"
                    )
                part[:] = dequantize(raw, kind)

    def _tensor(self, name: str) -> GgufTensor:
        if name not in self.tensors:
            near = difflib.get_close_matches(name, self.tensors, 3)
            advice = f"nearest: {', '.join(near)}" if near else "see .tensors for those it has"
            raise self._error(f"has no tensor {name!r}; {advice}")
        return self.tensors[name]

    def _rows(
        self, tensor: GgufTensor, kind: BlockType, rows: slice
    ) -> tuple[tuple[int, ...], int]:
        """Shape of a slice of rows, and the index of its first weight."""
        if not tensor.shape or rows.step not in (None, 1):
            raise self._error(
                f"rows={rows} of tensor {tensor.name!r} of shape {tensor.shape}: only a slice with"
                " step 1 of a first dimension can be read"
            )
        start, stop, _ = rows.indices(tensor.shape[0])
        stop = max(start, stop)
        length = math.prod(tensor.shape[1:])
        # This happens only in one dimension, where a block spans rows.
        if start * length % kind.size or stop * length % kind.size:
            raise self._error(
                f"rows={rows} of tensor {tensor.name!r} cuts a {kind.name} block of {kind.size};"
                f" begin and end at multiples of {kind.size}"
            )
        return (stop - start, *tensor.shape[1:]), start * length

    def _error(self, text: str) -> DataError:
        return DataError(f"gguf {str(self.path)!r}: {text}")


def open_gguf(path: str | Path) -> GgufFile:
    """Reads and checks a file's header; no tensor is read.

    Raises:
        DataError: The path is not a file, not GGUF, big endian, of another version, or one part of
            several; or a count, length, type, dimension, offset or alignment cannot be true; or a
            tensor has an unknown or unsupported type.
    """
    path = path_of(path)
    if not path.is_file():
        raise DataError(f"gguf {str(path)!r} is not a file; name a .gguf file")
    try:
        with local_file(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = HeaderReader(path, file, size).read()
    except OSError as error:
        raise DataError(
            f"gguf {str(path)!r} cannot be read ({error.strerror}); check its permissions, or"
            " download it again"
        ) from error
    return GgufFile(path, header.version, header.metadata, header.tensors)
