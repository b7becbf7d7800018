"""A model of another program read into memory, and a model in memory written as a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llm_jax.checkpoints.manifest import names
from llm_jax.checkpoints.open_run import Run, placed_model
from llm_jax.checkpoints.weights import SOURCE, WEIGHTS, place_weights, read_source
from llm_jax.config import MeshConfig
from llm_jax.convert.model_folder import Conversion, write_model_settings
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.files import UNFINISHED_MODEL, check_folder, new_folder, write_atomic, write_json
from llm_jax.tensor_file import TensorFile
from llm_jax.tokenizers.import_tokenizer import write_tokenizer
from llm_jax.tokenizers.open_tokenizer import tokenizer_files, tokenizer_fingerprint


def open_conversion(conversion: Conversion, folder: Path, mesh: MeshConfig | None = None) -> Run:
    """The model with its parameters on ``mesh`` (default: one device).

    Only the tokenizer and ``source.json`` are written, to ``folder``, which must stay as long as
    the model is used.
    """
    source = dict(conversion.source)
    if conversion.tokenizer is not None:
        written = write_tokenizer(conversion.tokenizer, folder / "tokenizer")
        source["tokenizer"] = written.fingerprint
    write_json(folder / SOURCE, source)
    arrays = {
        path: np.empty(shape, conversion.types[path]) for path, shape in conversion.shapes.items()
    }
    for piece, part in conversion.parts():
        arrays[piece.path][piece.position] = part
    config = conversion.config()
    placed, model, abstract = placed_model(config, mesh)
    return Run(folder, 0, config, placed, model, place_weights(arrays.pop, abstract))


def stored_types(folder: Path) -> dict[str, np.dtype]:
    """Type of each parameter in a model folder, by path; empty for a run, which has none."""
    if not (folder / WEIGHTS).is_file():
        return {}
    return {name: stored.dtype for name, stored in TensorFile(folder / WEIGHTS).tensors.items()}


def save_model(out: Path, run: Run, types: Mapping[str, np.dtype]) -> None:
    """Writes a model in memory as the model folder ``out``.

    Args:
        out: the folder, new or empty.
        run: the model.
        types: on disk, of each parameter, by path; what is not in it keeps its type in memory.
    """
    arrays = names(run.params)
    entries = {path: (types.get(path, a.dtype), a.shape) for path, a in arrays.items()}
    source = {"model_type": "", **read_source(run.folder)}
    check_folder(out, resumes=(UNFINISHED_MODEL,))
    with new_folder(out), TensorWriter(out / WEIGHTS, entries) as file:
        if (run.folder / "tokenizer").is_dir():
            source["tokenizer"] = tokenizer_fingerprint(run.folder / "tokenizer")
            (out / "tokenizer").mkdir()
            for name, data in tokenizer_files(run.folder / "tokenizer").items():
                write_atomic(out / "tokenizer" / name, data)
        for path, array in arrays.items():
            file.write(path, np.asarray(array))
    write_model_settings(out, source, run.config)
