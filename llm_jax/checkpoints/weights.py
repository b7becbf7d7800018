"""A model without a training state: a folder with its config, its parameters in one safetensors
file by their paths, its tokenizer.

Parameters keep the type they came in; ``read_weights`` gives them in the type the model has, which
loses nothing where that is wider.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.checkpoints.checkpoint import CheckpointError, MismatchError, names
from llm_jax.tensor_file import TensorFile
from llm_jax.types import Params

WEIGHTS = "params.safetensors"
SOURCE = "source.json"


def read_source(folder: Path) -> dict[str, Any]:
    """What ``convert`` wrote about where a model came from; empty for a folder without it. Raises
    CheckpointError.
    """
    path = folder / SOURCE
    if not path.is_file():
        return {}
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not valid JSON ({error}); convert the model again"
        ) from error
    if not isinstance(source, dict):
        raise CheckpointError(
            f"{path} holds {type(source).__name__}, expected an object; convert the model again"
        )
    return source


def read_weights(folder: Path, abstract: Params) -> Params:
    """The parameters of a model folder, placed as ``abstract`` (ShapeDtypeStructs with shardings)
    says; each device's part is read by itself.

    Raises CheckpointError for a file that is not what the config says, listing names and shapes
    that differ.
    """
    file, wanted = TensorFile(folder / WEIGHTS), names(abstract)
    found, want = (
        {n: t.shape for n, t in file.tensors.items()},
        {n: a.shape for n, a in wanted.items()},
    )
    if found != want:

        def text(shape):
            return "absent" if shape is None else str(list(shape))

        lines = [
            f"{n}: {text(found.get(n))} in {WEIGHTS}, {text(want.get(n))} by config.json"
            for n in sorted(found | want)
            if found.get(n) != want.get(n)
        ]
        raise MismatchError(
            f"{folder} does not hold the model of its config.json; convert it again:\n  "
            + "\n  ".join(lines[:10])
        )
    integers = [n for n, t in file.tensors.items() if t.dtype.kind in "iub"]
    if integers:
        raise CheckpointError(
            f"{folder}: {integers[0]} is of type {file.tensors[integers[0]].dtype}; parameters are"
            " floating-point"
        )

    return place_weights(file.read, abstract)


def place_weights(read: Callable[[str], np.ndarray], abstract: Params) -> Params:
    """The parameters that ``read`` gives by path, in the types and on the devices that ``abstract``
    (ShapeDtypeStructs with shardings) says.
    """

    def place(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
        array = read(jax.tree_util.keystr(path, simple=True, separator="/"))

        def part(index: tuple[slice, ...]) -> np.ndarray:
            return np.asarray(array[index]).astype(like.dtype)

        return jax.make_array_from_callback(like.shape, like.sharding, part)

    return jax.tree_util.tree_map_with_path(place, abstract)
