"""Models from and to folders of Hugging Face's transformers, one tensor at a time in both
directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.checkpoints.manifest import names
from llm_jax.checkpoints.open_run import open_run
from llm_jax.checkpoints.weights import WEIGHTS, read_source
from llm_jax.config.model import ModelConfig
from llm_jax.config.overrides import nearest
from llm_jax.config.saved import load_config
from llm_jax.convert.config_json import read_config
from llm_jax.convert.export_config import export_config
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.family import Family
from llm_jax.convert.fold import folded
from llm_jax.convert.model_folder import (
    TYPES,
    Conversion,
    check_tokenizer_fits,
    json_bytes,
    parameter_shapes,
    type_named,
    write_model,
)
from llm_jax.convert.source import INDEX_FILE, SINGLE_FILE, Tensors, family_of, read_json
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.convert.tensors import Piece, Tensor, check_names, tensors
from llm_jax.files import UNFINISHED_MODEL, check_folder, new_folder, write_atomic
from llm_jax.progress import note
from llm_jax.storage.paths import path_of
from llm_jax.tensor_file import TensorFile
from llm_jax.tokenizers.export_tokenizer import exported_files
from llm_jax.tokenizers.hf_config import GENERATION
from llm_jax.tokenizers.import_tokenizer import MODELS, Source, read_tokenizer
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError, DataError

# Bytes of one safetensors file, as in transformers. A larger tensor gets a file of its own.
_MAX_FILE = 5 * 10**9
# More layers for multi-token prediction than any model has.
_MAX_PREDICTION_LAYERS = 10


def from_hf(
    path: Path,
    out: Path,
    *,
    max_length: int = 0,
    dtype: str = "",
    ignore: tuple[str, ...] = (),
    encoding: str = "",
) -> ModelConfig:
    """Converts a folder of transformers to the model folder ``out``. Every tensor is used exactly
    once. The other arguments, and the errors, are those of ``read_hf``.
    """
    out = path_of(out)
    conversion = read_hf(path, max_length=max_length, dtype=dtype, ignore=ignore, encoding=encoding)
    check_folder(out, resumes=(UNFINISHED_MODEL,))
    if conversion.tokenizer is None:
        note(f"{path} has no tokenizer: {out} takes token ids (generate --ids)")
    write_model(out, conversion)
    return conversion.model


def read_hf(
    path: Path,
    *,
    max_length: int = 0,
    dtype: str = "",
    ignore: tuple[str, ...] = (),
    encoding: str = "",
) -> Conversion:
    """The model in a folder of transformers, checked, its tensors not read yet.

    Args:
        path: The folder, with config.json, safetensors files and a tokenizer.
        max_length: A shorter context than the model's, in tokens. 0 keeps the model's context.
        dtype: Type of the parameters on disk; empty keeps that of the source.
        ignore: Keys of config.json that are known to change nothing.
        encoding: Encoding of a tokenizer that is a file of ranks.

    Raises:
        ConfigError: The config cannot be represented.
        DataError: The files do not fit the config.
    """
    config = read_json(path / "config.json")
    family = family_of(config, str(path / "config.json"))
    model = read_config(family, config, ignore, max_length)
    found = Tensors(path)
    shapes = parameter_shapes(model)
    wanted = tensors(family, model, shapes)
    stored = _stored_names(
        family, found, {t.name for t in wanted}, _prediction_layers(config, model)
    )
    check_names({full: found.shapes[name] for full, name in stored.items()}, wanted, str(path))
    dtypes = {full: found.dtypes[name] for full, name in stored.items()}
    source = {"model_type": family.model_type, "config": config}
    if (path / GENERATION).is_file():
        source["generation"] = read_json(path / GENERATION)
    return Conversion(
        name=path.resolve().name,
        model=model,
        shapes=shapes,
        types=_types(wanted, dtypes, dtype),
        tensors=wanted,
        read=lambda tensor: found.read(stored[tensor.name]),
        source=source,
        tokenizer=_tokenizer(path, model, encoding),
    )


def _tokenizer(path: Path, model: ModelConfig, encoding: str) -> Source | None:
    """The tokenizer of the folder ``path``, or None where it has none."""
    if any((path / name).is_file() for name in MODELS):
        tokenizer = read_tokenizer(path, encoding)
        check_tokenizer_fits(tokenizer, model, str(path))
        return tokenizer
    if encoding:
        raise ConfigError(f"encoding is {encoding!r}, and {path} has no tokenizer; leave it out")
    return None


def _prediction_layers(config: Mapping[str, Any], model: ModelConfig) -> tuple[str, ...]:
    """Prefixes of the layers for multi-token prediction, which only training uses (DeepSeek-V3,
    section 2.2).
    """
    count = config.get("num_nextn_predict_layers")
    if not isinstance(count, int) or not 0 < count < _MAX_PREDICTION_LAYERS:
        return ()
    return tuple(f"model.layers.{model.num_layers + i}." for i in range(count))


def _stored_names(
    family: Family, found: Tensors, wanted: set[str], ignored_prefixes: tuple[str, ...]
) -> dict[str, str]:
    """The family's name of each tensor -> its name in the files.

    Names in the files may lack the prefix or have old endings. The files may also hold buffers,
    tensors with ``ignored_prefixes`` and repeated tensors, which are left out.

    Raises:
        DataError: A tensor should repeat another one and differs from it.
    """
    copies = {**family.copies, **family.duplicated_tensors}
    bare = bool(family.prefix) and not any(n.startswith(family.prefix) for n in found.shapes)
    out = {}
    for name in found.shapes:
        full = _with_present_ending(family, name)
        if bare and full not in wanted and full not in copies:
            full = family.prefix + full
        ignored = bool(family.buffers) and full.endswith(family.buffers)
        ignored = ignored or full.startswith(ignored_prefixes)
        if full in wanted or not ignored:
            out[full] = name
    for name, original in copies.items():
        if name not in wanted and name in out and original in out:
            _check_copy(family, found, (name, out[name]), (original, out[original]))
            del out[name]
    return out


def _with_present_ending(family: Family, name: str) -> str:
    for old, new in family.endings.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _check_copy(
    family: Family, found: Tensors, copy: tuple[str, str], original: tuple[str, str]
) -> None:
    """Raises DataError where two tensors, each (name in the family, name in the files), differ."""
    if np.array_equal(_bytes_of(found.read(copy[1])), _bytes_of(found.read(original[1]))):
        return
    if any(row.source == copy[0] for row in family.rows):
        reason = "config.json has tie_word_embeddings true; set it to false"
    else:
        reason = f"{family.model_type} has one parameter for both"
    raise DataError(f"{copy[0]} differs from {original[0]}, but {reason}")


def _bytes_of(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).reshape(-1).view(np.uint8)


def _types(wanted: list[Tensor], dtypes: Mapping[str, np.dtype], dtype: str) -> dict[str, np.dtype]:
    """Type of each parameter on disk.

    Args:
        wanted: The source tensors.
        dtypes: Type of each source tensor.
        dtype: Name of the type to use; empty keeps that of the source.

    Raises:
        DataError: A tensor has an unsupported type, or slices of one parameter have several types.
    """
    chosen = type_named(dtype) if dtype else None
    out: dict[str, np.dtype] = {}
    for tensor in wanted:
        stored = dtypes[tensor.name]
        if stored not in TYPES.values():
            raise DataError(
                f"{tensor.name} is of type {stored}, and quantized weights cannot be read;"
                f" supported are {', '.join(TYPES)}"
            )
        kind = chosen or stored
        for piece in tensor.pieces:
            if out.setdefault(piece.path, kind) != kind:
                raise DataError(
                    f"{tensor.name} is of type {kind}, and other layers of it are of type"
                    f" {out[piece.path]}; convert with --dtype float32"
                )
    return out


def to_hf(
    path: Path, out: Path, *, family: str = "", dtype: str = "", step: int | None = None
) -> None:
    """Exports a model to a folder that transformers loads.

    Args:
        path: Folder of a converted model or of a run.
        out: Folder to write.
        family: Family to export to. A converted model has its own; a run needs it.
        dtype: Type of the written tensors; empty keeps the type on disk.
        step: Step of a run; None is its newest one.

    Raises:
        ConfigError: The family cannot represent the model.
    """
    path = path_of(path)
    out = path_of(out)
    source = read_source(path)
    kind = family or source.get("model_type", "")
    _check_family(kind, path)
    table = FAMILIES[kind]
    model, read = folded(*_reader(path, step))
    own_config = source.get("config", {}) if source.get("model_type") == kind else {}
    wanted = tensors(table, model, parameter_shapes(model))
    config = export_config(table, model, own_config)
    wanted = _with_written_names(table, wanted, model, config)
    chosen = type_named(dtype) if dtype else None
    check_folder(out, resumes=(UNFINISHED_MODEL,))
    has_tokenizer = (path / "tokenizer").is_dir()
    tokenizer = exported_files(path / "tokenizer") if has_tokenizer else {}
    if not source.get("config"):
        config = {**_special_ids(path / "tokenizer"), **config}
    types = {t.name: chosen or read(t.pieces[0]).dtype for t in wanted}
    first_type = str(types[wanted[0].name])
    config = {**config, "dtype": first_type, "torch_dtype": first_type}
    with new_folder(out):
        _write_files(out, wanted, types, read)
        for name, data in tokenizer.items():
            write_atomic(out / name, data)
        write_atomic(out / "config.json", json_bytes(config))


def _check_family(kind: str, path: Path) -> None:
    if kind in FAMILIES:
        return
    known = f"supported are {', '.join(sorted(FAMILIES))}"
    if not kind:
        raise ConfigError(f"{path} does not name its family: set one with --family; {known}")
    raise ConfigError(f"{path} has no family {kind!r}{nearest(kind, FAMILIES)}; {known}")


def _with_written_names(
    family: Family, wanted: list[Tensor], model: ModelConfig, config: Mapping[str, Any]
) -> list[Tensor]:
    """The tensors to export: with duplicates where embeddings are not tied, and without the prefix
    where the model has no head.
    """
    if not model.embedding.tied:
        by_name = {tensor.name: tensor for tensor in wanted}
        wanted = wanted + [
            by_name[original]._replace(name=name)
            for name, original in family.duplicated_tensors.items()
            if original in by_name
        ]
    if config.get("architectures") == [family.bare]:
        wanted = [t._replace(name=t.name.removeprefix(family.prefix)) for t in wanted]
    return wanted


def _special_ids(folder: Path) -> dict[str, int | None]:
    """Token ids for the config of a model that was not converted. Without them programs use the ids
    of the family's first model.
    """
    names = ("bos", "eos", "pad")
    if not folder.is_dir():
        return {f"{name}_token_id": None for name in names}
    tokenizer = open_tokenizer(folder)
    ids = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    return {f"{name}_token_id": id if id >= 0 else None for name, id in zip(names, ids)}


def _reader(path: Path, step: int | None) -> tuple[ModelConfig, Callable[[Piece], np.ndarray]]:
    """The config of the model in a folder, and a function that reads a piece of a parameter."""
    if (path / WEIGHTS).is_file() and (path / "config.json").is_file():
        if step is not None:
            raise ConfigError(
                f"{path} is a converted model, which has no steps; leave step {step} out"
            )
        file = TensorFile(path / WEIGHTS)
        model = load_config(path / "config.json").model
        return model, lambda piece: file.read(piece.path)[piece.position]
    run = open_run(path, step)
    arrays = names(run.params)
    return run.config.model, lambda piece: np.asarray(arrays[piece.path][piece.position])


def _write_files(
    out: Path,
    wanted: list[Tensor],
    types: Mapping[str, np.dtype],
    read: Callable[[Piece], np.ndarray],
) -> None:
    """Writes one safetensors file, or several and their index."""
    sizes = {t.name: math.prod(t.shape) * types[t.name].itemsize for t in wanted}
    groups = _file_groups(wanted, sizes)
    if len(groups) == 1:
        files = [SINGLE_FILE]
    else:
        files = [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    for name, group in zip(files, groups):
        entries = {t.name: (types[t.name], t.shape) for t in group}
        with TensorWriter(out / name, entries, {"format": "pt"}) as file:
            for tensor in group:
                file.write(tensor.name, tensor.to_source(read))
    if len(groups) > 1:
        places = {t.name: name for name, group in zip(files, groups) for t in group}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        write_atomic(out / INDEX_FILE, json_bytes(index))


def _file_groups(wanted: list[Tensor], sizes: Mapping[str, int]) -> list[list[Tensor]]:
    """The tensors of each file. ``sizes`` are in bytes."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in wanted:
        if groups[-1] and size + sizes[tensor.name] > _MAX_FILE:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += sizes[tensor.name]
    return groups
