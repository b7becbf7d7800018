"""``llm_jax.load``: whatever holds a model, opened."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from llm_jax.api.language_model import LanguageModel
from llm_jax.checkpoints.open_run import open_run
from llm_jax.config import MeshConfig
from llm_jax.convert.from_gguf import read_gguf
from llm_jax.convert.hf import read_hf
from llm_jax.convert.in_memory import open_conversion, stored_types
from llm_jax.convert.model_folder import Conversion
from llm_jax.ranges import Natural, checked
from llm_jax.storage.paths import path_of
from llm_jax.types import ConfigError


@checked
def load(
    path: str | Path,
    step: Natural | None = None,
    *,
    mesh: MeshConfig | None = None,
    max_length: Natural = 0,
    dtype: str = "",
    ignore: tuple[str, ...] = (),
    encoding: str = "",
    pre: str = "",
) -> LanguageModel:
    """Opens a model: ``llm_jax.load("runs/quickstart").generate("Return a")``.

    Args:
        path: folder of a run, of a model that ``llm-jax convert`` wrote or of transformers
            (config.json, safetensors, tokenizer), or a GGUF file. The last two are converted in
            memory.
        step: which checkpoint of a run; the newest if not given.
        mesh: how the parameters are spread over devices; default: on one device.
        max_length: a shorter context than that of a model of another program; 0 keeps it.
        dtype: float32, bfloat16 or float16: type of such a model's parameters, where ``save``
            writes them; empty keeps theirs (GGUF: float32).
        ignore: keys of such a model's config that are known to change nothing.
        encoding: of a transformers folder whose tokenizer is a file of ranks.
        pre: how the tokenizer of a GGUF file cuts text, where the file does not say.

    Returns:
        The model with its parameters and tokenizer.

    Raises:
        CheckpointError: no model there, or a damaged one.
        ConfigError: a model that cannot be represented, or an argument that does not apply.
        DataError: files that are not what they should be.
    """
    path = path_of(path)
    options = {
        "max_length": max_length,
        "dtype": dtype,
        "ignore": ignore,
        "encoding": encoding,
        "pre": pre,
    }
    given = {name: value for name, value in options.items() if value}
    if path.is_file():
        return _converted(_gguf(path, step, given), mesh)
    if _is_transformers(path):
        return _converted(_transformers(path, step, given), mesh)
    _refuse(given, (), f"{path} is a run or a model that was converted already")
    return LanguageModel(open_run(path, step, mesh), stored_types(path))


def _gguf(path: Path, step: int | None, given: dict[str, Any]) -> Conversion:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(
                f"{path} is not a GGUF file; give a GGUF file, or the folder of a model"
            )
    _refuse(given, ("max_length", "dtype", "ignore", "pre"), f"{path} is a GGUF file", step)
    return read_gguf(path, **given)


def _transformers(path: Path, step: int | None, given: dict[str, Any]) -> Conversion:
    allowed = ("max_length", "dtype", "ignore", "encoding")
    _refuse(given, allowed, f"{path} is a folder of transformers", step)
    return read_hf(path, **given)


def _refuse(
    given: dict[str, Any], allowed: tuple[str, ...], what: str, step: int | None = None
) -> None:
    """Raises ConfigError for an argument that nothing would read."""
    if step is not None:
        raise ConfigError(f"step is {step}, and {what}, which has no steps; leave step out")
    for name, value in given.items():
        if name not in allowed:
            raise ConfigError(f"{name} is {value!r}, and {what}: nothing reads it; leave it out")


def _is_transformers(path: Path) -> bool:
    """Whether a folder's config.json is one of transformers: it names a type of model."""
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Absent or damaged: what opens a run says so.
        return False
    return isinstance(found, dict) and "model_type" in found


def _converted(conversion: Conversion, mesh: MeshConfig | None) -> LanguageModel:
    folder = tempfile.TemporaryDirectory(prefix="llm_jax-")
    run = open_conversion(conversion, Path(folder.name), mesh)
    return LanguageModel(run, conversion.types, owner=folder)
