"""What is in a model, whoever wrote it: its tensors with shapes and sizes; of two, what differs,
path by path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm_jax.checkpoints.manifest import names
from llm_jax.checkpoints.open_run import open_run
from llm_jax.checkpoints.weights import WEIGHTS
from llm_jax.convert.gguf import open_gguf
from llm_jax.convert.source import Tensors
from llm_jax.tensor_file import TensorFile
from llm_jax.types import DataError


class Entry(NamedTuple):
    """shape, name of the type, bytes, and what reads it."""

    shape: tuple[int, ...]
    kind: str
    nbytes: int
    read: Callable[[], np.ndarray]


def entries(path: Path) -> dict[str, Entry]:
    """Tensors by name of a run, a converted model, a folder of transformers', a .safetensors or a
    .gguf file. DataError for others.
    """
    if path.is_file() and path.suffix == ".gguf":
        gguf = open_gguf(path)
        return {
            n: Entry(t.shape, t.type, t.nbytes, lambda n=n: gguf.read(n))
            for n, t in gguf.tensors.items()
        }
    file = path / WEIGHTS if (path / WEIGHTS).is_file() else path
    if file.is_file():
        one = TensorFile(file)
        return {
            n: Entry(t.shape, str(t.dtype), t.nbytes, lambda n=n: one.read(n))
            for n, t in one.tensors.items()
        }
    if (path / "checkpoints").is_dir():
        arrays = names(open_run(path).params)
        return {
            n: Entry(a.shape, str(a.dtype), a.nbytes, lambda a=a: np.asarray(a))
            for n, a in arrays.items()
        }
    if not path.is_dir():
        raise DataError(
            f"{str(path)!r} is no folder of a run or a model, and no .safetensors or .gguf file"
        )
    found = Tensors(path)

    def size(n):
        return int(np.prod(found.shapes[n])) * found.dtypes[n].itemsize

    return {
        n: Entry(s, str(found.dtypes[n]), size(n), lambda n=n: found.read(n))
        for n, s in found.shapes.items()
    }


def tree(found: Mapping[str, Entry]) -> str:
    """Every tensor in a line, and how many parameters and bytes there are."""
    width = max(map(len, found), default=0)
    lines = [
        f"  {n:{width}}  {e.kind:9} {list(e.shape)!s:24} {e.nbytes / 1e6:12,.3f} MB"
        for n, e in found.items()
    ]
    parameters, nbytes = (
        sum(int(np.prod(e.shape)) for e in found.values()),
        sum(e.nbytes for e in found.values()),
    )
    return "\n".join(
        [*lines, f"  {len(found):,} tensors, {parameters:,} parameters, {nbytes / 1e6:,.1f} MB"]
    )


def differences(a: Mapping[str, Entry], b: Mapping[str, Entry]) -> str:
    """Names that only one has, other shapes or types, and of values the largest difference; the
    last line says how many are equal.
    """
    lines = [f"  only in the first   {n} {list(a[n].shape)}" for n in a if n not in b]
    lines += [f"  only in the second  {n} {list(b[n].shape)}" for n in b if n not in a]
    equal = 0
    for n in (n for n in a if n in b):
        x, y = a[n], b[n]
        if x.shape != y.shape:
            lines.append(f"  shape               {n} {list(x.shape)} and {list(y.shape)}")
            continue
        p, q = (np.asarray(e.read()) for e in (x, y))
        if p.dtype == q.dtype and p.tobytes() == q.tobytes():
            equal += 1
            continue
        gap = np.abs(p.astype(np.float64) - q.astype(np.float64))
        kinds = "" if x.kind == y.kind else f", {x.kind} and {y.kind}"
        lines.append(
            f"  values              {n} differ by up to {gap.max():.3g} (mean"
            f" {gap.mean():.3g}){kinds}"
        )
    return "\n".join(
        [*lines, f"  {equal:,} of {len(a.keys() | b.keys()):,} tensors are equal to the last bit"]
    )
