"""The tensors of a model in any format, with shapes and sizes; the differences of two models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_jax.checkpoints.manifest import names
from llm_jax.checkpoints.open_run import open_run
from llm_jax.checkpoints.weights import WEIGHTS
from llm_jax.convert.gguf import open_gguf
from llm_jax.convert.source import Tensors
from llm_jax.storage.paths import path_of
from llm_jax.tensor_file import TensorFile
from llm_jax.types import DataError


class Entry(NamedTuple):
    """A tensor on disk.

    Attributes:
        shape: Its shape.
        kind: Name of its type.
        nbytes: Its size in bytes.
        read: Reads it.
    """

    shape: tuple[int, ...]
    kind: str
    nbytes: int
    read: Callable[[], np.ndarray]


def entries(path: Path) -> dict[str, Entry]:
    """The tensors by name.

    Args:
        path: Folder of a run, of a converted model or of transformers; or a .safetensors or .gguf
            file.

    Raises:
        DataError: ``path`` is none of these.
    """
    path = path_of(path)
    if path.is_file() and path.suffix == ".gguf":
        return _of_gguf(path)
    file = path / WEIGHTS if (path / WEIGHTS).is_file() else path
    if file.is_file():
        return _of_safetensors(file)
    if (path / "checkpoints").is_dir():
        return _of_run(path)
    if not path.is_dir():
        raise DataError(
            f"{str(path)!r} is not the folder of a run or a model, nor a .safetensors or .gguf file"
        )
    return _of_folder(path)


def _of_gguf(path: Path) -> dict[str, Entry]:
    file = open_gguf(path)
    return {
        name: Entry(tensor.shape, tensor.type, tensor.nbytes, partial(file.read, name))
        for name, tensor in file.tensors.items()
    }


def _of_safetensors(path: Path) -> dict[str, Entry]:
    file = TensorFile(path)
    return {
        name: Entry(tensor.shape, str(tensor.dtype), tensor.nbytes, partial(file.read, name))
        for name, tensor in file.tensors.items()
    }


def _of_run(path: Path) -> dict[str, Entry]:
    return {
        name: Entry(array.shape, str(array.dtype), array.nbytes, partial(np.asarray, array))
        for name, array in names(open_run(path).params).items()
    }


def _of_folder(path: Path) -> dict[str, Entry]:
    found = Tensors(path)
    out = {}
    for name, shape in found.shapes.items():
        dtype = found.dtypes[name]
        nbytes = math.prod(shape) * dtype.itemsize
        out[name] = Entry(shape, str(dtype), nbytes, partial(found.read, name))
    return out


def tree(found: Mapping[str, Entry]) -> str:
    """A line for each tensor, and the total number of parameters and bytes."""
    width = max(map(len, found), default=0)
    lines = [
        f"  {name:{width}}  {entry.kind:9} {list(entry.shape)!s:24} {entry.nbytes / 1e6:12,.3f} MB"
        for name, entry in found.items()
    ]
    parameters = sum(math.prod(entry.shape) for entry in found.values())
    nbytes = sum(entry.nbytes for entry in found.values())
    total = f"  {len(found):,} tensors, {parameters:,} parameters, {nbytes / 1e6:,.1f} MB"
    return "\n".join([*lines, total])


def differences(a: Mapping[str, Entry], b: Mapping[str, Entry]) -> str:
    """Lists the tensors that only one model has, and those with another shape, type or values.

    The last line counts the tensors that are equal bit for bit.
    """
    lines = [f"  only in the first   {n} {list(a[n].shape)}" for n in a if n not in b]
    lines += [f"  only in the second  {n} {list(b[n].shape)}" for n in b if n not in a]
    equal = 0
    for name in a:
        if name not in b:
            continue
        line = _difference(name, a[name], b[name])
        if line:
            lines.append(line)
        else:
            equal += 1
    total = len(a.keys() | b.keys())
    return "\n".join([*lines, f"  {equal:,} of {total:,} tensors are equal to the last bit"])


def _difference(name: str, a: Entry, b: Entry) -> str:
    """A line on how two tensors differ; empty where they are equal."""
    if a.shape != b.shape:
        return f"  shape               {name} {list(a.shape)} and {list(b.shape)}"
    x = np.asarray(a.read())
    y = np.asarray(b.read())
    if x.dtype == y.dtype and x.tobytes() == y.tobytes():
        return ""
    gap = np.abs(x.astype(np.float64) - y.astype(np.float64))
    kinds = "" if a.kind == b.kind else f", {a.kind} and {b.kind}"
    return (
        f"  values              {name} differ by up to {gap.max():.3g} (mean {gap.mean():.3g})"
        f"{kinds}"
    )
