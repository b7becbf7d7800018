"""A source model's folder: its config, and its tensors in one safetensors file or several.

The folder is untrusted: nothing in it is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.config.overrides import nearest
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.family import Family
from llm_jax.tensor_file import TensorFile
from llm_jax.types import ConfigError, DataError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_JSON = 50_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataError: The file is missing or very large, or does not hold a JSON object.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_JSON:
            raise DataError(
                f"{str(path)!r} has {size:,} bytes; a JSON file of a model has at most"
                f" {_MAX_JSON:,}"
            )
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not valid JSON ({str(error)[:100]})") from error
    if not isinstance(data, dict):
        raise DataError(f"{str(path)!r} does not hold a JSON object")
    return data


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family that a config file names.

    Args:
        config: Contents of the file.
        where: Name of the file, for messages.

    Raises:
        ConfigError: The family or the architecture is not supported; the message lists those that
            are.
    """
    kind = config.get("model_type")
    architectures = config.get("architectures")
    if not isinstance(kind, str) or kind not in FAMILIES:
        near = nearest(kind, FAMILIES) if isinstance(kind, str) else ""
        raise ConfigError(
            f"{where}: model_type is {kind!r}{near}; supported are {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[kind]
    if architectures and architectures not in ([name] for name in family.architectures):
        known = ", ".join(family.architectures)
        verb = "are" if len(family.architectures) > 1 else "is"
        raise ConfigError(
            f"{where}: architectures is {architectures!r}; of {kind} only {known} {verb} supported"
        )
    return family


class Tensors:
    """All tensors of a folder.

    Attributes:
        shapes: Name -> shape.
        dtypes: Name -> type.

    Raises:
        DataError: The folder has no safetensors files, or files that do not agree with its index.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, TensorFile] = {}
        places = _places(folder)
        for name in sorted(set(places.values())) or [SINGLE_FILE]:
            file = TensorFile(folder / name)
            _check_index(folder, places, name, file)
            self._files |= dict.fromkeys(file.tensors, file)
        self.shapes = {name: file.tensors[name].shape for name, file in self._files.items()}
        self.dtypes = {name: file.tensors[name].dtype for name, file in self._files.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, as a view of the file."""
        return self._files[name].read(name)


def _check_index(folder: Path, places: Mapping[str, str], name: str, file: TensorFile) -> None:
    """Raises DataError where the index and the file ``name`` disagree on a tensor."""
    unlisted = [tensor for tensor in file.tensors if places.get(tensor, name) != name]
    absent = [
        tensor for tensor, place in places.items() if place == name and tensor not in file.tensors
    ]
    wrong = unlisted or absent
    if wrong:
        raise DataError(
            f"{INDEX_FILE} of {str(folder)!r} has another file for tensor {wrong[0]!r} than {name};"
            " download both again"
        )


def _places(folder: Path) -> dict[str, str]:
    """Tensor -> name of its file; empty where the folder has one file.

    Raises:
        DataError: The folder has no safetensors files, or both a single file and an index.
    """
    single = (folder / SINGLE_FILE).is_file()
    indexed = (folder / INDEX_FILE).is_file()
    if single and indexed:
        raise DataError(
            f"{str(folder)!r} has both {SINGLE_FILE} and {INDEX_FILE}, which may be different"
            " models; remove one of them"
        )
    if indexed:
        return _read_index(folder / INDEX_FILE)
    if single:
        return {}
    entries = folder.iterdir() if folder.is_dir() else ()
    pickles = sorted(entry.name for entry in entries if entry.suffix in _PICKLES)
    if pickles:
        raise DataError(
            f"{str(folder)!r} has only {pickles[0]}, a pickle file, and loading a pickle runs the"
            f" code in it; get the model as {SINGLE_FILE}, or save it in that format on a machine"
            " where you trust it"
        )
    raise DataError(f"{str(folder)!r} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def _read_index(path: Path) -> dict[str, str]:
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(map(_is_place, places.values())):
        raise DataError(
            f"{str(path)!r} has no weight_map from tensors to .safetensors files beside it"
        )
    return dict(places)


def _is_place(name: Any) -> bool:
    """Whether a value names a safetensors file, without a folder."""
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
