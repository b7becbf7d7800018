"""Models from and to folders as Hugging Face's transformers has them, one tensor at a time in both
directions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from llm_jax import models
from llm_jax.checkpoints.manifest import names
from llm_jax.checkpoints.open_run import open_run
from llm_jax.checkpoints.weights import SOURCE, WEIGHTS, read_source
from llm_jax.config import Config
from llm_jax.config.model import ModelConfig
from llm_jax.config.overrides import load_config, nearest, override, to_json
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.family import Family, read_config, resolved, write_config
from llm_jax.convert.source import Tensors, family_of, read_json
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.convert.tensors import Piece, Tensor, check_names, tensors
from llm_jax.files import UNFINISHED_MODEL, check_folder, new_folder, write_atomic
from llm_jax.progress import note, progress
from llm_jax.tensor_file import DTYPES, TensorFile
from llm_jax.tokenizers.export_tokenizer import exported_files
from llm_jax.tokenizers.hf_config import GENERATION
from llm_jax.tokenizers.import_tokenizer import MODELS, Source, read_tokenizer, write_tokenizer
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError, DataError

# As transformers splits; a file of ours takes one tensor more than fits only where a tensor is
# larger than this.
_LARGEST_FILE = 5 * 10**9
TYPES = {"float32": DTYPES["F32"], "bfloat16": DTYPES["BF16"], "float16": DTYPES["F16"]}


def parameter_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter, by its path."""
    return {
        name: a.shape
        for name, a in names(jax.eval_shape(models.build(model).init, jax.random.key(0))).items()
    }


class Conversion(NamedTuple):
    """A model of another program, checked and ready to be read tensor by tensor.

    Attributes:
        name: of the source, which becomes the name in the config.
        model: its architecture.
        source: what ``source.json`` keeps of where it came from.
        wanted: its tensors.
        read: gives the contents of one of them.
        shapes: of each parameter, by path.
        types: on disk, of each parameter, by path.
        tokenizer: the one beside it, not written yet; None where there is none.
    """

    name: str
    model: ModelConfig
    source: Mapping[str, Any]
    wanted: list[Tensor]
    read: Callable[[Tensor], np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, np.dtype]
    tokenizer: Source | None

    def parts(self) -> Iterator[tuple[Piece, np.ndarray]]:
        """Every part of every parameter, one tensor of the source after another."""
        total = sum(math.prod(t.shape) for t in self.wanted)
        with progress("converting", total=total) as bar:
            for tensor in self.wanted:
                yield from tensor.to_ours(self.read(tensor))
                bar.advance(math.prod(tensor.shape))

    def config(self) -> Config:
        """The config of the converted model."""
        updates = {f"model.{key}": value for key, value in vars(self.model).items()} | {
            "name": self.name,
            "data.seq_length": min(1024, self.model.max_length),
        }
        return override(Config(), updates, "conversion")


def write_model(out: Path, conversion: Conversion) -> None:
    """Writes a model folder at ``out``."""
    entries = {path: (conversion.types[path], s) for path, s in conversion.shapes.items()}
    source = conversion.source
    # The unfinished file of weights is the first to be there, which shows what a kill left.
    with new_folder(out), TensorWriter(out / WEIGHTS, entries) as file:
        if conversion.tokenizer is not None:
            tokenizer = write_tokenizer(conversion.tokenizer, out / "tokenizer")
            source = {**source, "tokenizer": tokenizer.fingerprint}
        for piece, part in conversion.parts():
            file.write(piece.path, part, piece.index)
    write_model_settings(out, source, conversion.config())


def write_model_settings(out: Path, source: Mapping[str, Any], config: Config) -> None:
    """Writes what a model folder has beside its parameters and its tokenizer."""
    write_atomic(out / SOURCE, _json(source))
    # Last, since a folder with a config.json is a whole one.
    write_atomic(out / "config.json", _json(to_json(config)))


def type_named(dtype: str) -> np.dtype:
    """The type of that name. ConfigError for another one than parameters can have."""
    if dtype not in TYPES:
        raise ConfigError(f"dtype is {dtype!r}; there are {', '.join(TYPES)}")
    return TYPES[dtype]


def check_tokenizer_fits(source: Source, model: ModelConfig, where: str) -> None:
    """Raises ConfigError for a tokenizer with ids that the model has no embedding of: compiled code
    would take another one.
    """
    size = source.record.vocab_size
    if size > model.vocab_size:
        raise ConfigError(
            f"{where}: its tokenizer has {size:,} ids, and the model's embedding"
            f" {model.vocab_size:,} rows; resize the embedding (resize_token_embeddings in"
            " transformers), or remove the tokens that were added"
        )


def from_hf(
    path: Path,
    out: Path,
    *,
    max_length: int = 0,
    dtype: str = "",
    ignore: tuple[str, ...] = (),
    encoding: str = "",
) -> ModelConfig:
    """Converts the model in the folder ``path`` into the model folder ``out``; every tensor is used
    exactly once. The arguments are those of ``read_hf``.
    """
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
        path: folder with config.json, safetensors files and a tokenizer.
        max_length: a shorter context than the model's.
        dtype: of the parameters on disk, as in the source if not given.
        ignore: keys of config.json that are known to change nothing.
        encoding: of a tokenizer that is a file of ranks.

    Raises:
        ConfigError: a config that cannot be represented.
        DataError: files that are not what the config says.
    """
    theirs = read_json(path / "config.json")
    family = family_of(theirs, str(path / "config.json"))
    model, found = read_config(family, theirs, ignore, max_length), Tensors(path)
    shapes = parameter_shapes(model)
    wanted = tensors(family, model, shapes)
    stored = _stored_names(family, found, {t.name for t in wanted}, _beyond(theirs, model))
    check_names({name: found.shapes[theirs] for name, theirs in stored.items()}, wanted, str(path))
    types = _types(wanted, {name: found.dtypes[theirs] for name, theirs in stored.items()}, dtype)
    source = {"model_type": family.model_type, "config": theirs}
    if (path / GENERATION).is_file():
        source["generation"] = read_json(path / GENERATION)
    tokenizer = (
        read_tokenizer(path, encoding) if any((path / name).is_file() for name in MODELS) else None
    )
    if tokenizer is not None:
        check_tokenizer_fits(tokenizer, model, str(path))
    elif encoding:
        raise ConfigError(f"encoding is {encoding!r}, and {path} has no tokenizer; leave it out")
    return Conversion(
        path.resolve().name,
        model,
        source,
        wanted,
        lambda t: found.read(stored[t.name]),
        shapes,
        types,
        tokenizer,
    )


def _beyond(theirs: Mapping[str, Any], model: ModelConfig) -> tuple[str, ...]:
    """What names of layers begin with that predict tokens further on, which only training has
    (DeepSeek-V3, section 2.2).
    """
    more = theirs.get("num_nextn_predict_layers")
    return (
        tuple(f"model.layers.{model.num_layers + i}." for i in range(more))
        if isinstance(more, int) and 0 < more < 10
        else ()
    )


def _stored_names(
    family: Family, found: Tensors, wanted: set[str], beyond: tuple[str, ...]
) -> dict[str, str]:
    """The family's name of a tensor -> its name in the files, which may lack the prefix, have old
    endings, hold buffers or layers ``beyond`` the last, or repeat a tensor.
    """
    copies = {**family.copies, **family.duplicated_tensors}
    bare = bool(family.prefix) and not any(n.startswith(family.prefix) for n in found.shapes)
    out = {}
    for name in found.shapes:
        full = next(
            (
                name.removesuffix(old) + new
                for old, new in family.endings.items()
                if name.endswith(old)
            ),
            name,
        )
        full = family.prefix + full if bare and full not in wanted and full not in copies else full
        left_out = full.endswith(family.buffers or ("\0",)) or (beyond and full.startswith(beyond))
        if full in wanted or not left_out:
            out[full] = name
    for name, original in copies.items():
        if name not in wanted and name in out and original in out:
            if not np.array_equal(_bits(found.read(out[name])), _bits(found.read(out[original]))):
                has_own = any(row.source == name for row in family.rows)
                said = "config.json says tie_word_embeddings; set that to false"
                why = said if has_own else f"{family.model_type} has one for both here"
                raise DataError(f"{name} differs from {original}, but {why}")
            del out[name]
    return out


def _bits(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).reshape(-1).view(np.uint8)


def _types(wanted: list[Tensor], dtypes: Mapping[str, np.dtype], dtype: str) -> dict[str, np.dtype]:
    """Type of each parameter on disk: that of its tensors, or the one asked for."""
    asked, out = type_named(dtype) if dtype else None, {}
    for tensor in wanted:
        kind = asked or dtypes[tensor.name]
        if dtypes[tensor.name] not in TYPES.values():
            raise DataError(
                f"{tensor.name} is of type {dtypes[tensor.name]}; quantised weights are not read,"
                f" only {', '.join(TYPES)}"
            )
        for piece in tensor.pieces:
            if out.setdefault(piece.path, kind) != kind:
                raise DataError(
                    f"{tensor.name} is of type {kind}, other layers of it are {out[piece.path]};"
                    " convert with --dtype float32"
                )
    return out


def to_hf(
    path: Path, out: Path, *, family: str = "", dtype: str = "", step: int | None = None
) -> None:
    """Writes the model or run in the folder ``path`` as a model folder that transformers loads as
    its family.

    family: of a run trained here; a converted model has its own · dtype: of the written tensors, as
    they are stored if not given. Raises ConfigError where the family cannot say what the model
    does.
    """
    source = read_source(path)
    kind = family or source.get("model_type", "")
    if kind not in FAMILIES:
        unsaid = "does not say of which family it is: name one with --family"
        why = f"has no family {kind!r}{nearest(kind, FAMILIES)}" if kind else unsaid
        raise ConfigError(f"{path} {why}; there are {', '.join(sorted(FAMILIES))}")
    model, read = _reader(path, step)
    table = FAMILIES[kind]
    wanted = tensors(table, model, parameter_shapes(model))
    theirs = export_config(
        table, model, source.get("config", {}) if source.get("model_type") == kind else {}
    )
    if not model.tied_embeddings:
        own = {t.name: t for t in wanted}
        wanted += [
            own[original]._replace(name=name)
            for name, original in table.duplicated_tensors.items()
            if original in own
        ]
    if theirs.get("architectures") == [table.bare]:
        wanted = [t._replace(name=t.name.removeprefix(table.prefix)) for t in wanted]
    asked = type_named(dtype) if dtype else None
    check_folder(out, resumes=(UNFINISHED_MODEL,))
    tokenizer = exported_files(path / "tokenizer") if (path / "tokenizer").is_dir() else {}
    if not source.get("config"):
        theirs = {**_special_ids(path / "tokenizer"), **theirs}
    types = {t.name: asked or read(t.pieces[0]).dtype for t in wanted}
    kind_of_first = str(types[wanted[0].name])
    with new_folder(out):
        _write_files(out, wanted, types, read)
        for name, data in tokenizer.items():
            write_atomic(out / name, data)
        write_atomic(
            out / "config.json",
            _json({**theirs, "dtype": kind_of_first, "torch_dtype": kind_of_first}),
        )


def _special_ids(tokenizer: Path) -> dict[str, int | None]:
    """What their config says of tokens, for a model without theirs: without it programs take ids of
    the family's first model.
    """
    if not tokenizer.is_dir():
        return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    t = open_tokenizer(tokenizer)
    return {
        f"{name}_token_id": id if id >= 0 else None
        for name, id in (("bos", t.bos_id), ("eos", t.eos_id), ("pad", t.pad_id))
    }


def export_config(family: Family, model: ModelConfig, source: Mapping[str, Any]) -> dict[str, Any]:
    """Their config of a model: the one it came with where that still says what it is, else a new
    one. Rotations are said in the schema of old files and in that of new ones, so that old and new
    programs read them alike.
    """
    try:
        came_with = (
            resolved(read_config(family, source, tuple(source), model.max_length))
            if source
            else None
        )
    except ConfigError:
        came_with = None
    if came_with != resolved(model):
        # Bookkeeping such as token ids is kept.
        return {**source, **write_config(family, model)}
    rotation = next((c.write(model) for c in family.codecs if "rope_scaling" in c.keys), {})
    # What goes without saying in transformers is looked for by others: of DeepSeek-V3's router vLLM
    # takes no correction, llama.cpp a softmax where it is unsaid.
    beside = {
        key: value
        for key, value in rotation.items()
        if key not in ("rope_scaling", "rope_parameters")
    }
    out = {**family.implicit_defaults, **beside, **source}
    new, old = source.get("rope_parameters"), source.get("rope_scaling")
    if rotation and new and not old:
        main = new.get("full_attention", new)
        scaled = {
            key: value
            for key, value in main.items()
            if key not in ("rope_theta", "partial_rotary_factor")
        }
        kind = scaled.get("rope_type") or scaled.get("type") or "default"
        out["rope_scaling"] = None if kind == "default" else {**scaled, "type": kind}
    elif rotation and not new:
        written = rotation["rope_parameters"]
        main = written.get("full_attention", written)
        kind = (old or {}).get("rope_type") or (old or {}).get("type") or "default"
        scaled = {
            **(old or {}),
            "rope_type": kind,
            **{k: v for k, v in main.items() if k in _OF_BOTH},
        }
        out.setdefault("rope_scaling", None)
        out["rope_parameters"] = (
            {**written, "full_attention": scaled} if main is not written else scaled
        )
    return out


# Of a rotation, what old files say beside rope_scaling.
_OF_BOTH = ("rope_theta", "partial_rotary_factor")


def _reader(path: Path, step: int | None) -> tuple[ModelConfig, Callable[[Piece], np.ndarray]]:
    """The model in a folder, and what reads a piece of its parameters."""
    if (path / WEIGHTS).is_file() and (path / "config.json").is_file():
        if step is not None:
            raise ConfigError(
                f"{path} is a converted model, which has no steps; leave step {step} out"
            )
        file = TensorFile(path / WEIGHTS)
        return load_config(path / "config.json").model, lambda p: file.read(p.path)[p.index]
    run = open_run(path, step)
    arrays = names(run.params)
    return run.config.model, lambda p: np.asarray(arrays[p.path][p.index])


def _write_files(
    out: Path,
    wanted: list[Tensor],
    types: Mapping[str, np.dtype],
    read: Callable[[Piece], np.ndarray],
) -> None:
    """One safetensors file, or several with their index."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in wanted:
        nbytes = math.prod(tensor.shape) * types[tensor.name].itemsize
        if groups[-1] and size + nbytes > _LARGEST_FILE:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += nbytes
    several = len(groups) > 1
    files = [
        f"model-{i:05}-of-{len(groups):05}.safetensors" if several else "model.safetensors"
        for i in range(1, len(groups) + 1)
    ]
    for name, group in zip(files, groups):
        with TensorWriter(
            out / name, {t.name: (types[t.name], t.shape) for t in group}, {"format": "pt"}
        ) as file:
            for tensor in group:
                file.write(tensor.name, tensor.to_theirs(read))
    if several:
        total = sum(math.prod(t.shape) * types[t.name].itemsize for t in wanted)
        places = {t.name: name for name, group in zip(files, groups) for t in group}
        write_atomic(
            out / "model.safetensors.index.json",
            _json({"metadata": {"total_size": total}, "weight_map": places}),
        )


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
