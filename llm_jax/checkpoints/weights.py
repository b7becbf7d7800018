"""A model without training state: a folder with config, parameters and tokenizer.

The parameters are one safetensors file, each under its path. They are stored in the type they were
converted in; ``read_weights`` gives them in the type of the model, without loss where that is
wider.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.checkpoints.checkpoint import CheckpointError, MismatchError
from llm_jax.checkpoints.manifest import names
from llm_jax.tensor_file import TensorFile
from llm_jax.types import Params

WEIGHTS = "params.safetensors"
SOURCE = "source.json"


def read_source(folder: Path) -> dict[str, Any]:
    """What ``convert`` wrote about a model's origin; empty for a folder without it.

    Raises:
        CheckpointError: the file is not a JSON object.
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
    """The parameters of a model folder; each device reads only its part.

    Args:
        folder: of the model.
        abstract: the parameters as ShapeDtypeStructs with the shardings to place them in.

    Raises:
        MismatchError: names or shapes differ from those of the config; the message lists them.
        CheckpointError: a tensor is not of floating point.
    """
    file = TensorFile(folder / WEIGHTS)
    _check_shapes(folder, file, names(abstract))
    integers = [name for name, tensor in file.tensors.items() if tensor.dtype.kind in "iub"]
    if integers:
        raise CheckpointError(
            f"{folder}: {integers[0]} is of type {file.tensors[integers[0]].dtype}; parameters must"
            " be of floating point"
        )
    return place_weights(file.read, abstract)


def place_weights(read: Callable[[str], np.ndarray], abstract: Params) -> Params:
    """The parameters that ``read`` gives by path, in the types and on the devices that ``abstract``
    (ShapeDtypeStructs with shardings) says.
    """

    def place(path: tuple[Any, ...], like: jax.ShapeDtypeStruct) -> jax.Array:
        array = read(jax.tree_util.keystr(path, simple=True, separator="/"))

        def part(index: Any) -> np.ndarray:
            return np.asarray(array[index]).astype(like.dtype)

        return jax.make_array_from_callback(like.shape, like.sharding, part)

    return jax.tree_util.tree_map_with_path(place, abstract)


def _check_shapes(folder: Path, file: TensorFile, wanted: dict[str, Any]) -> None:
    """Raises MismatchError where the tensors of a file are not those of the config."""
    found = {name: tensor.shape for name, tensor in file.tensors.items()}
    expected = {name: leaf.shape for name, leaf in wanted.items()}
    different = [
        f"{name}: {_shape_text(found.get(name))} in {WEIGHTS},"
        f" {_shape_text(expected.get(name))} by config.json"
        for name in sorted(found | expected)
        if found.get(name) != expected.get(name)
    ]
    if different:
        raise MismatchError(
            f"{folder} does not hold the model of its config.json; convert it again:\n  "
            + "\n  ".join(different[:10])
        )


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
