"""Reading GGUF files (versions 2 and 3, little endian): metadata, and tensors one at a time as
float32.

Layout, from ggml's ``docs/gguf.md``: ``GGUF``, a version, how many tensors and how many keys there
are, the keys with typed values, the tensors with name, dimensions, type and offset, padding to
``general.alignment``, then the data.

A file comes from anywhere, so every number in it is checked against what is left of the file before
anything is allocated for it, and whatever cannot be true is a DataError that names the file, the
thing, its value and the fix. Opening reads the header alone and allocates some ten times its bytes
(Python's strings); reading a tensor allocates its result and a few megabytes.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
import reprlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from llm_jax.convert.gguf_blocks import BLOCK_TYPES, OTHER_TYPES, BlockType, dequantize
from llm_jax.types import DataError

# Weights that are de-quantised at a time: temporaries of a few megabytes, which stay in the cache.
_CHUNK = 1 << 18
_MAX_DIMENSIONS, _MAX_NESTING, _MAX_KEY = 4, 4, 65535
_DAMAGED = "the file is damaged or cut short; fetch it again"
_BOOL, _STRING, _ARRAY = 7, 8, 9
# A hostile name or value may fill the file; an error shows its beginning.
_shorten = reprlib.Repr()
_shorten.maxstring = _shorten.maxother = 120
_show = _shorten.repr
_KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}
# By the number in the file.
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    _BOOL: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
# The fewest bytes that an element, a key with its value, or a tensor's entry can take in the
# header.
_LEAST = {**{number: int(code[2]) for number, code in _NUMBERS.items()}, _STRING: 8, _ARRAY: 12}
_LEAST_KEY, _LEAST_TENSOR = 13, 24


class GgufTensor(NamedTuple):
    """Where a tensor lies: ``shape`` in numpy's order (GGUF's reversed), ``offset`` and ``nbytes``
    in bytes of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GgufFile:
    """An open file's header. See ``open_gguf``.

    path, version: the file and its format's version.
    metadata: key -> int, float, bool, str; an array of numbers is a numpy array, one of strings or
        arrays a list.
    tensors: name -> GgufTensor, in the order of the file.
    """

    def __init__(
        self, path: Path, version: int, metadata: dict[str, Any], tensors: dict[str, GgufTensor]
    ):
        self.path, self.version, self.metadata, self.tensors = path, version, metadata, tensors

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor as float32, de-quantised; float16 and bfloat16 are widened, which is exact.

        Args:
            name: one of ``tensors``.
            rows: a slice with step 1 of the first dimension, as numpy would take it; only its bytes
                are read.

        Raises:
            DataError: no such tensor, a slice that cuts a block or has a step, a file that has
                changed since it was opened.
        """
        tensor = self._tensor(name)
        kind = _KINDS[tensor.type]
        shape, start = tensor.shape, 0
        if rows is not None:
            shape, start = self._rows(tensor, kind, rows)
        out = np.empty(shape, np.float32)
        flat = out.reshape(-1)
        step = _CHUNK // kind.size * kind.size
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.offset + start // kind.size * kind.nbytes)
                for begin in range(0, flat.size, step):
                    part = flat[begin : begin + step]
                    wanted = part.size // kind.size * kind.nbytes
                    raw = file.read(wanted)
                    if len(raw) != wanted:
                        raise self._error(
                            f"tensor {name!r} ends before its {tensor.nbytes:,} bytes; the file has"
                            " changed since it was opened: open it again"
                        )
                    part[:] = dequantize(raw, kind)
        except OSError as error:
            raise self._error(
                f"tensor {name!r} cannot be read ({error.strerror}); mend the file's permissions or"
                " disk"
            ) from error
        return out

    def _tensor(self, name: str) -> GgufTensor:
        if name not in self.tensors:
            near = difflib.get_close_matches(name, self.tensors, 3)
            raise self._error(
                f"has no tensor {name!r}; "
                + (f"nearest: {', '.join(near)}" if near else "see .tensors for those it has")
            )
        return self.tensors[name]

    def _rows(
        self, tensor: GgufTensor, kind: BlockType, rows: slice
    ) -> tuple[tuple[int, ...], int]:
        """Shape of a slice of rows and its first weight's index."""
        if not tensor.shape or rows.step not in (None, 1):
            raise self._error(
                f"rows={rows} of tensor {tensor.name!r} of shape {tensor.shape}: only a slice with"
                " step 1 of a first dimension can be read"
            )
        start, stop, _ = rows.indices(tensor.shape[0])
        length = math.prod(tensor.shape[1:])
        stop = max(start, stop)
        # Only in one dimension, where a block spans rows.
        if start * length % kind.size or stop * length % kind.size:
            raise self._error(
                f"rows={rows} of tensor {tensor.name!r} cuts a {kind.name} block of {kind.size};"
                f" begin and end at multiples of {kind.size}"
            )
        return (stop - start, *tensor.shape[1:]), start * length

    def _error(self, text: str) -> DataError:
        return DataError(f"gguf {str(self.path)!r}: {text}")


def open_gguf(path: str | Path) -> GgufFile:
    """Read and check a file's header; no tensor is read.

    Raises:
        DataError: not a file, not GGUF, big endian or another version, one part of several, or any
            count, length, type, dimension, offset or alignment that cannot be true (with its
            value); a tensor of an unknown or unsupported type.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"gguf {str(path)!r} is no file; name a .gguf file")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _Header(path, file, size).read()
    except OSError as error:
        raise DataError(
            f"gguf {str(path)!r} cannot be read ({error.strerror}); mend its permissions or fetch"
            " it again"
        ) from error


class _Header:
    """A place in a file that never goes past its end, whatever the numbers there say."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self.file, self.at, self.size = path, file, 0, size

    def fail(self, text: str) -> NoReturn:
        raise DataError(f"gguf {str(self.path)!r}: {text}")

    def read(self) -> GgufFile:
        version = self.version()
        tensor_count, key_count = (
            self.number("<u8", "the number of tensors"),
            self.number("<u8", "the number of keys"),
        )
        self.bounded(key_count, _LEAST_KEY, "the number of keys")
        metadata = {}
        for index in range(key_count):
            key = self.string(f"key {index}", _MAX_KEY)
            if key in metadata:
                self.fail(f"key {_show(key)} is there twice; convert the model again")
            metadata[key] = self.value(
                self.number("<u4", f"the type of key {_show(key)}"), f"key {_show(key)}", 0
            )
        self.bounded(tensor_count, _LEAST_TENSOR, "the number of tensors")
        tensors = {}
        for index in range(tensor_count):
            tensor = self.tensor(index)
            if tensor.name in tensors:
                self.fail(f"tensor {_show(tensor.name)} is there twice; convert the model again")
            tensors[tensor.name] = tensor
        self.refuse_part(metadata)
        return GgufFile(
            self.path, version, metadata, self.placed(tensors, self.alignment(metadata))
        )

    def version(self) -> int:
        magic = self.take(4, "the magic")
        if magic != b"GGUF":
            self.fail(f"begins with {magic!r}, not b'GGUF'; name a .gguf file")
        raw = self.take(4, "the version")
        version = int.from_bytes(raw, "little")
        if version not in (2, 3):
            if int.from_bytes(raw, "big") in (1, 2, 3):
                self.fail(
                    "is big endian, and only little endian files are read; convert the model again"
                    " for little endian"
                )
            self.fail(
                f"has version {version}, and 2 and 3 are read; convert the model again with a"
                " current converter"
            )
        return version

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            self.fail(
                f"{what} at byte {self.at:,} needs {count:,} bytes, and {self.size - self.at:,} are"
                f" left; {_DAMAGED}"
            )
        self.at += count
        raw = self.file.read(count)
        if len(raw) != count:
            self.fail("has grown shorter while it was read; wait until it is whole")
        return raw

    def bounded(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things of at least ``least`` bytes each that the rest of the file
        cannot hold.
        """
        left = self.size - self.at
        if count > left // least:
            self.fail(
                f"{what} is {count:,}, and the {left:,} bytes that are left hold at most"
                f" {left // least:,}; {_DAMAGED}"
            )

    def number(self, code: str, what: str) -> Any:
        return np.frombuffer(self.take(int(code[2]), what), code)[0].item()

    def string(self, what: str, most: int | None = None) -> str:
        at = self.at
        length = int.from_bytes(self.take(8, f"the length of {what}"), "little")
        if most is not None and length > most:
            self.fail(
                f"{what} at byte {at:,} has {length:,} bytes, and at most {most:,} are allowed;"
                f" {_DAMAGED}"
            )
        raw = self.take(length, what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.fail(
                f"{what} at byte {at:,} is no UTF-8 ({error.reason} at byte {error.start});"
                f" {_DAMAGED}"
            )

    def value(self, kind: int, what: str, depth: int) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what, depth + 1)
        if kind not in _NUMBERS:
            self.fail(f"{what} has value type {kind}, and 0 to 12 are known; {_DAMAGED}")
        number = self.number(_NUMBERS[kind], what)
        return self.boolean(np.array(number), what).item() if kind == _BOOL else number

    def array(self, what: str, depth: int) -> np.ndarray | list:
        if depth > _MAX_NESTING:
            self.fail(f"{what} nests arrays deeper than {_MAX_NESTING}; {_DAMAGED}")
        kind, count = (
            self.number("<u4", f"the element type of {what}"),
            self.number("<u8", f"the length of {what}"),
        )
        if kind not in _LEAST:
            self.fail(
                f"{what} has elements of value type {kind}, and 0 to 12 are known; {_DAMAGED}"
            )
        self.bounded(count, _LEAST[kind], f"the length of {what}")
        if kind == _STRING:
            return [self.string(what) for _ in range(count)]
        if kind == _ARRAY:
            return [self.array(what, depth + 1) for _ in range(count)]
        array = np.frombuffer(self.take(count * _LEAST[kind], what), _NUMBERS[kind])
        return self.boolean(array, what) if kind == _BOOL else array

    def boolean(self, array: np.ndarray, what: str) -> np.ndarray:
        if array.size and array.max() > 1:
            self.fail(
                f"{what} is a boolean with value {array.max()}, and only 0 and 1 are; {_DAMAGED}"
            )
        return array.astype(bool)

    def tensor(self, index: int) -> GgufTensor:
        """One entry, its offset still counted from where the data begins."""
        name = self.string(f"the name of tensor {index}", _MAX_KEY)
        what = f"tensor {_show(name)}"
        rank = self.number("<u4", f"the rank of {what}")
        if rank > _MAX_DIMENSIONS:
            self.fail(
                f"{what} has {rank} dimensions, and at most {_MAX_DIMENSIONS} are allowed;"
                f" {_DAMAGED}"
            )
        shape = tuple(self.number("<u8", f"a dimension of {what}") for _ in range(rank))[::-1]
        number, offset = (
            self.number("<u4", f"the type of {what}"),
            self.number("<u8", f"the offset of {what}"),
        )
        kind = BLOCK_TYPES.get(number)
        if kind is None:
            known = ", ".join(kind.name for kind in BLOCK_TYPES.values())
            self.fail(
                f"{what} has type {OTHER_TYPES.get(number, 'unknown')} ({number}), and {known} are"
                " read; quantize to one of these"
            )
        if 0 in shape:
            self.fail(f"{what} has shape {shape}, which holds nothing; convert the model again")
        if kind.size > 1 and (not shape or shape[-1] % kind.size):
            self.fail(
                f"{what} has shape {shape}, and {kind.name} needs a last dimension divisible by"
                f" {kind.size}; {_DAMAGED}"
            )
        nbytes = math.prod(shape) // kind.size * kind.nbytes
        if nbytes > self.size:
            self.fail(
                f"{what} of shape {shape} and type {kind.name} needs {nbytes:,} bytes, and the file"
                f" has {self.size:,}; {_DAMAGED}"
            )
        return GgufTensor(name, shape, kind.name, offset, nbytes)

    def alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            self.fail(
                f"general.alignment is {_show(alignment)}, and must be a power of two; convert the"
                " model again"
            )
        return alignment

    def refuse_part(self, metadata: dict[str, Any]) -> None:
        parts = metadata.get("split.count", 1)
        if type(parts) is not int or parts > 1:
            self.fail(
                f"is one of several parts (split.count {_show(parts)}); merge the parts into one"
                " file (gguf-split --merge)"
            )

    def placed(self, tensors: dict[str, GgufTensor], alignment: int) -> dict[str, GgufTensor]:
        """The tensors with offsets from the start of the file, after checking that they lie in it,
        aligned and apart.
        """
        start = -(-self.at // alignment) * alignment
        for tensor in tensors.values():
            if tensor.offset % alignment:
                self.fail(
                    f"tensor {_show(tensor.name)} has offset {tensor.offset:,}, no multiple of the"
                    f" alignment {alignment}; {_DAMAGED}"
                )
            end = start + tensor.offset + tensor.nbytes
            if end > self.size:
                self.fail(
                    f"tensor {_show(tensor.name)} ends at byte {end:,}, and the file has"
                    f" {self.size:,}; {_DAMAGED}"
                )
        for one, other in itertools.pairwise(
            sorted(tensors.values(), key=lambda tensor: tensor.offset)
        ):
            if one.offset + one.nbytes > other.offset:
                self.fail(
                    f"tensors {_show(one.name)} (offset {one.offset:,}, {one.nbytes:,} bytes) and"
                    f" {_show(other.name)} (offset {other.offset:,}) overlap; {_DAMAGED}"
                )
        return {
            tensor.name: tensor._replace(offset=start + tensor.offset)
            for tensor in tensors.values()
        }
