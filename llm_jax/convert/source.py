"""Somebody else's model folder: its config, and its tensors over one safetensors file or several.
Untrusted: nothing in it is run.
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

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LARGEST_JSON = 50_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. DataError for a file that is missing, very large, or something
    else.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise DataError(
                f"{str(path)!r} has {path.stat().st_size:,} bytes; a JSON file of a model has at"
                f" most {_LARGEST_JSON:,}"
            )
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is no JSON ({str(error)[:100]})") from error
    if not isinstance(data, dict):
        raise DataError(f"{str(path)!r} holds no JSON object")
    return data


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family that a config file names. ConfigError, listing those supported, for another one or
    another head.
    """
    kind, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or kind not in FAMILIES:
        near = nearest(kind, FAMILIES) if isinstance(kind, str) else ""
        raise ConfigError(
            f"{where}: model_type is {kind!r}{near}; supported are {', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[kind]
    if classes and classes not in ([name] for name in family.architectures):
        among = ", ".join(family.architectures)
        raise ConfigError(
            f"{where}: architectures is {classes!r}; of {kind} only {among}"
            f" {'are' if ', ' in among else 'is'} supported"
        )
    return family


class Tensors:
    """All tensors of a folder: ``shapes`` by name, ``read(name)`` maps one.

    Raises DataError for a folder without safetensors files, one with pickles only, or files that do
    not fit the index.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, TensorFile] = {}
        places = _places(folder)
        for name in sorted(set(places.values())) or [_ONE]:
            file = TensorFile(folder / name)
            elsewhere = [n for n in file.tensors if places.get(n, name) != name]
            if wrong := elsewhere or [
                n for n, place in places.items() if place == name and n not in file.tensors
            ]:
                raise DataError(
                    f"{_INDEX} of {str(folder)!r} has another file for tensor {wrong[0]!r} than"
                    f" {name}; fetch both again"
                )
            self._files |= dict.fromkeys(file.tensors, file)
        self.shapes = {name: file.tensors[name].shape for name, file in self._files.items()}
        self.dtypes = {name: file.tensors[name].dtype for name, file in self._files.items()}

    def read(self, name: str) -> np.ndarray:
        return self._files[name].read(name)


def _places(folder: Path) -> dict[str, str]:
    """The file of each tensor, {} where there is one for all. DataError for a folder without
    safetensors files, or with both.
    """
    one, several = (folder / _ONE).is_file(), (folder / _INDEX).is_file()
    if one and several:
        raise DataError(
            f"{str(folder)!r} has both {_ONE} and {_INDEX}, which may be different models; remove"
            " one of them"
        )
    if several:
        places = read_json(folder / _INDEX).get("weight_map")
        names = (
            set(places.values())
            if isinstance(places, dict) and all(isinstance(f, str) for f in places.values())
            else set()
        )
        if not names or any(Path(n).name != n or not n.endswith(".safetensors") for n in names):
            raise DataError(
                f"{str(folder / _INDEX)!r} has no weight_map from tensors to .safetensors files"
                " beside it"
            )
        return dict(places)
    if one:
        return {}
    pickles = (
        sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES) if folder.is_dir() else []
    )
    if pickles:
        raise DataError(
            f"{str(folder)!r} has only {pickles[0]}, a pickle, which runs whatever code is in it"
            f" when it is read; get the model as {_ONE}, or save it so where you trust it"
        )
    raise DataError(f"{str(folder)!r} has neither {_ONE} nor {_INDEX}")
