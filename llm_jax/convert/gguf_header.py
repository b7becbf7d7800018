"""The header of GGUF files (versions 2 and 3, little endian): metadata, and where each tensor lies.

Layout, from ggml's ``docs/gguf.md``: ``GGUF``, a version, the number of tensors and of keys, the
keys with typed values, the tensors with name, dimensions, type and offset, padding to
``general.alignment``, then the data.

A file may come from anywhere, so every number in it is checked against the rest of the file before
anything is allocated for it. Whatever cannot be true is a DataError that names the file, the
thing, its value and the fix. A header takes about ten times its size in memory (Python's strings).
"""

from __future__ import annotations

import itertools
import math
import reprlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from llm_jax.convert.gguf_blocks import BLOCK_TYPES, OTHER_TYPES
from llm_jax.types import DataError

_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_MAX_KEY = 65535
_DEFAULT_ALIGNMENT = 32
_DAMAGED = "the file is damaged or incomplete; download it again"
_AGAIN = "convert the model again"
# Types of values that are no numbers, or no plain ones.
_BOOL = 7
_STRING = 8
_ARRAY = 9
# Value type in the file -> numpy's name of the number.
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
# The fewest bytes of an element, of a key with its value, and of a tensor's entry.
_MIN_BYTES = {**{kind: int(code[2]) for kind, code in _NUMBERS.items()}, _STRING: 8, _ARRAY: 12}
_MIN_KEY_BYTES = 13
_MIN_TENSOR_BYTES = 24
# A hostile name or value may fill the file; an error shows its beginning.
_shortener = reprlib.Repr()
_shortener.maxstring = 120
_shortener.maxother = 120
_show = _shortener.repr


class GgufTensor(NamedTuple):
    """Where a tensor lies in a file.

    Attributes:
        name: Its name.
        shape: Its shape in numpy's order, the reverse of GGUF's.
        type: Name of its block format.
        offset: Its first byte in the file.
        nbytes: Its size in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class Header(NamedTuple):
    """The header of a file, as attributes of ``GgufFile``."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class HeaderReader:
    """Reads the header of an open file, never past the file's end.

    Args:
        path: Name of the file, for messages.
        file: The file, at its start.
        size: Size of the file in bytes.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path = path
        self.file = file
        self.size = size
        self.at = 0

    def _fail(self, text: str) -> NoReturn:
        raise DataError(f"gguf {str(self.path)!r}: {text}")

    def read(self) -> Header:
        """The header.

        Raises:
            DataError: As ``open_gguf``.
        """
        version = self._version()
        tensor_count = self._number("<u8", "the number of tensors")
        key_count = self._number("<u8", "the number of keys")
        metadata = self._metadata(key_count)
        self._check_count(tensor_count, _MIN_TENSOR_BYTES, "the number of tensors")
        tensors: dict[str, GgufTensor] = {}
        for index in range(tensor_count):
            tensor = self._tensor(index)
            if tensor.name in tensors:
                self._fail(f"tensor {_show(tensor.name)} appears twice; {_AGAIN}")
            tensors[tensor.name] = tensor
        self._check_complete(metadata)
        return Header(version, metadata, self._placed(tensors, self._alignment(metadata)))

    def _version(self) -> int:
        magic = self._take(4, "the magic")
        if magic != b"GGUF":
            self._fail(f"begins with {magic!r}, not b'GGUF'; name a .gguf file")
        raw = self._take(4, "the version")
        version = int.from_bytes(raw, "little")
        if version in (2, 3):
            return version
        if int.from_bytes(raw, "big") in (1, 2, 3):
            self._fail(
                "is big endian, and only little endian files are read; convert the model again for"
                " little endian"
            )
        self._fail(
            f"has version {version}, and versions 2 and 3 are supported; convert the model again"
            " with a current converter"
        )

    def _metadata(self, count: int) -> dict[str, Any]:
        self._check_count(count, _MIN_KEY_BYTES, "the number of keys")
        metadata: dict[str, Any] = {}
        for index in range(count):
            key = self._string(f"key {index}", _MAX_KEY)
            what = f"key {_show(key)}"
            if key in metadata:
                self._fail(f"{what} appears twice; {_AGAIN}")
            kind = self._number("<u4", f"the type of {what}")
            metadata[key] = self._value(kind, what, 0)
        return metadata

    def _take(self, count: int, what: str) -> bytes:
        left = self.size - self.at
        if count > left:
            self._fail(
                f"{what} at byte {self.at:,} needs {count:,} bytes, and {left:,} are left;"
                f" {_DAMAGED}"
            )
        self.at += count
        raw = self.file.read(count)
        if len(raw) != count:
            self._fail("became shorter while it was read; wait until it is complete")
        return raw

    def _check_count(self, count: int, min_bytes: int, what: str) -> None:
        """Refuses a count of things, of at least ``min_bytes`` each, that the rest of the file
        cannot hold.
        """
        left = self.size - self.at
        if count > left // min_bytes:
            self._fail(
                f"{what} is {count:,}, and the {left:,} bytes that are left hold at most"
                f" {left // min_bytes:,}; {_DAMAGED}"
            )

    def _number(self, code: str, what: str) -> Any:
        return np.frombuffer(self._take(int(code[2]), what), code)[0].item()

    def _string(self, what: str, max_bytes: int | None = None) -> str:
        at = self.at
        length = int.from_bytes(self._take(8, f"the length of {what}"), "little")
        if max_bytes is not None and length > max_bytes:
            self._fail(
                f"{what} at byte {at:,} has {length:,} bytes, and at most {max_bytes:,} are"
                f" allowed; {_DAMAGED}"
            )
        raw = self._take(length, what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self._fail(
                f"{what} at byte {at:,} is not valid UTF-8 ({error.reason} at byte {error.start});"
                f" {_DAMAGED}"
            )

    def _value(self, kind: int, what: str, depth: int) -> Any:
        if kind == _STRING:
            return self._string(what)
        if kind == _ARRAY:
            return self._array(what, depth + 1)
        if kind not in _NUMBERS:
            self._fail(f"{what} has value type {kind}, and 0 to 12 are known; {_DAMAGED}")
        number = self._number(_NUMBERS[kind], what)
        return self._boolean(np.array(number), what).item() if kind == _BOOL else number

    def _array(self, what: str, depth: int) -> np.ndarray | list:
        if depth > _MAX_NESTING:
            self._fail(f"{what} nests arrays deeper than {_MAX_NESTING}; {_DAMAGED}")
        kind = self._number("<u4", f"the element type of {what}")
        count = self._number("<u8", f"the length of {what}")
        if kind not in _MIN_BYTES:
            self._fail(
                f"{what} has elements of value type {kind}, and 0 to 12 are known; {_DAMAGED}"
            )
        self._check_count(count, _MIN_BYTES[kind], f"the length of {what}")
        if kind == _STRING:
            return [self._string(what) for _ in range(count)]
        if kind == _ARRAY:
            return [self._array(what, depth + 1) for _ in range(count)]
        array = np.frombuffer(self._take(count * _MIN_BYTES[kind], what), _NUMBERS[kind])
        return self._boolean(array, what) if kind == _BOOL else array

    def _boolean(self, array: np.ndarray, what: str) -> np.ndarray:
        if array.size and array.max() > 1:
            self._fail(
                f"{what} is a boolean with value {array.max()}, and only 0 and 1 are allowed;"
                f" {_DAMAGED}"
            )
        return array.astype(bool)

    def _tensor(self, index: int) -> GgufTensor:
        """One tensor's entry. Its offset counts from the start of the data, not of the file."""
        name = self._string(f"the name of tensor {index}", _MAX_KEY)
        what = f"tensor {_show(name)}"
        rank = self._number("<u4", f"the rank of {what}")
        if rank > _MAX_DIMENSIONS:
            self._fail(
                f"{what} has {rank} dimensions, and at most {_MAX_DIMENSIONS} are allowed;"
                f" {_DAMAGED}"
            )
        shape = tuple(self._number("<u8", f"a dimension of {what}") for _ in range(rank))[::-1]
        number = self._number("<u4", f"the type of {what}")
        offset = self._number("<u8", f"the offset of {what}")
        kind = BLOCK_TYPES.get(number)
        if kind is None:
            known = ", ".join(kind.name for kind in BLOCK_TYPES.values())
            self._fail(
                f"{what} has type {OTHER_TYPES.get(number, 'unknown')} ({number}), and {known} are"
                " supported; quantize the model to one of these"
            )
        if 0 in shape:
            self._fail(f"{what} has shape {shape}, which has no elements; {_AGAIN}")
        if kind.size > 1 and (not shape or shape[-1] % kind.size):
            self._fail(
                f"{what} has shape {shape}, and {kind.name} needs a last dimension divisible by"
                f" {kind.size}; {_DAMAGED}"
            )
        nbytes = math.prod(shape) // kind.size * kind.nbytes
        if nbytes > self.size:
            self._fail(
                f"{what} of shape {shape} and type {kind.name} needs {nbytes:,} bytes, and the file"
                f" has {self.size:,}; {_DAMAGED}"
            )
        return GgufTensor(name, shape, kind.name, offset, nbytes)

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            self._fail(
                f"general.alignment is {_show(alignment)}, and must be a power of two; {_AGAIN}"
            )
        return alignment

    def _check_complete(self, metadata: dict[str, Any]) -> None:
        """Refuses a file that is one part of several."""
        parts = metadata.get("split.count", 1)
        if type(parts) is not int or parts > 1:
            self._fail(
                f"is one of several parts (split.count {_show(parts)}); merge the parts into one"
                " file (gguf-split --merge)"
            )

    def _placed(self, tensors: dict[str, GgufTensor], alignment: int) -> dict[str, GgufTensor]:
        """The tensors with offsets from the start of the file, after checking that they are
        aligned, within the file and apart.
        """
        start = -(-self.at // alignment) * alignment
        for tensor in tensors.values():
            if tensor.offset % alignment:
                self._fail(
                    f"tensor {_show(tensor.name)} has offset {tensor.offset:,}, which is not a"
                    f" multiple of the alignment {alignment}; {_DAMAGED}"
                )
            end = start + tensor.offset + tensor.nbytes
            if end > self.size:
                self._fail(
                    f"tensor {_show(tensor.name)} ends at byte {end:,}, and the file has"
                    f" {self.size:,}; {_DAMAGED}"
                )
        by_offset = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for one, other in itertools.pairwise(by_offset):
            if one.offset + one.nbytes > other.offset:
                self._fail(
                    f"tensors {_show(one.name)} (offset {one.offset:,}, {one.nbytes:,} bytes) and"
                    f" {_show(other.name)} (offset {other.offset:,}) overlap; {_DAMAGED}"
                )
        return {
            name: tensor._replace(offset=start + tensor.offset) for name, tensor in tensors.items()
        }
