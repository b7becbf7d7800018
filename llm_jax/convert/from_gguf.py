"""Models from GGUF files, de-quantised, with their tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.config.model import ModelConfig
from llm_jax.config.overrides import nearest
from llm_jax.convert.families.gguf import ARCHITECTURES, KEEPING_BLANKS
from llm_jax.convert.family import read_config
from llm_jax.convert.gguf import GgufFile, open_gguf
from llm_jax.convert.gguf_tokenizer import chat_template, end_tokens, special_tokens, tokenizer_json
from llm_jax.convert.hf import (
    Conversion,
    check_tokenizer_fits,
    parameter_shapes,
    type_named,
    write_model,
)
from llm_jax.convert.tensors import Tensor, check_names, tensors
from llm_jax.files import UNFINISHED_MODEL, check_folder
from llm_jax.tokenizers.import_tokenizer import Source, Specials, source_of_json
from llm_jax.types import ConfigError, DataError

# Tensors that are no weights; of the metadata that the tables read.
_FACTORS = {
    "rope_freqs.weight": "rope_factors",
    "rope_factors_long.weight": "rope_factors_long",
    "rope_factors_short.weight": "rope_factors_short",
}


def from_gguf(
    path: Path,
    out: Path,
    *,
    max_length: int = 0,
    dtype: str = "float32",
    pre: str = "",
    ignore: tuple[str, ...] = (),
) -> ModelConfig:
    """Converts a GGUF file into the model folder ``out``, its tensors de-quantised, its tokenizer
    and chat template beside them. The arguments are those of ``read_gguf``.
    """
    conversion = read_gguf(path, max_length=max_length, dtype=dtype, pre=pre, ignore=ignore)
    check_folder(out, resumes=(UNFINISHED_MODEL,))
    write_model(out, conversion)
    return conversion.model


def read_gguf(
    path: Path,
    *,
    max_length: int = 0,
    dtype: str = "float32",
    pre: str = "",
    ignore: tuple[str, ...] = (),
) -> Conversion:
    """The model in a GGUF file, checked, its tensors not read yet.

    Args:
        path: the file.
        max_length: a shorter context than the model's.
        dtype: of the parameters on disk.
        pre: name of the pre-tokenizer, for a file that does not say.
        ignore: metadata keys that are known to change nothing.

    Raises:
        ConfigError: an architecture or a key that cannot be represented.
        DataError: a file that does not hold what its metadata says.
    """
    kind, file = type_named(dtype), open_gguf(path)
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        near = nearest(name, ARCHITECTURES) if isinstance(name, str) else ""
        raise ConfigError(
            f"{path}: general.architecture is {name!r}{near}; supported are"
            f" {', '.join(ARCHITECTURES)}"
        )
    family = ARCHITECTURES[name]
    model = read_config(family, _config(file, name), ignore, max_length)
    shapes = parameter_shapes(model)
    wanted = tensors(family, model, shapes)
    check_names(
        {n: t.shape for n, t in file.tensors.items() if n not in _FACTORS}, wanted, str(path)
    )
    try:
        tokenizer = _tokenizer(file, pre, KEEPING_BLANKS.get(name))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    check_tokenizer_fits(tokenizer, model, str(path))
    types = {piece.path: kind for tensor in wanted for piece in tensor.pieces}
    source: dict[str, Any] = {"model_type": ""}
    source["gguf"] = {
        k: v for k, v in file.metadata.items() if isinstance(v, str | int | float | bool)
    }

    def read(tensor: Tensor) -> np.ndarray:
        return file.read(tensor.name)

    return Conversion(path.stem, model, source, wanted, read, shapes, types, tokenizer)


def _config(file: GgufFile, name: str) -> dict[str, Any]:
    """The architecture's own keys, and what the tensors say."""
    out = {
        k.removeprefix(f"{name}."): _shortest(v)
        for k, v in file.metadata.items()
        if k.startswith(f"{name}.")
    }
    # These are tensors.
    out = {k: v for k, v in out.items() if k not in _FACTORS.values()}
    if "token_embd.weight" not in file.tensors:
        raise DataError(
            f"{file.path}: there is no tensor 'token_embd.weight'; this is no language model, or"
            " only part of one"
        )
    out |= {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tied": "output.weight" not in file.tensors,
    }
    out |= {
        key: [_shortest(float(x)) for x in file.read(tensor).reshape(-1)]
        for tensor, key in _FACTORS.items()
        if tensor in file.tensors
    }
    return out


def _shortest(value: Any) -> Any:
    """A float32 as the shortest number that it is of: 0.000001 and not the double next to it."""
    return (
        float(str(np.float32(value)))
        if isinstance(value, float) and float(np.float32(value)) == value
        else value
    )


def _tokenizer(file: GgufFile, pre: str, keeping: tuple[str, ...] | None) -> Source:
    special = special_tokens(file.metadata, pre or None)
    bos, pad, unk = (-1 if id is None else id for id in (special.bos, special.pad, special.unk))
    specials = Specials(
        bos=bos,
        eos=end_tokens(file.metadata),
        pad=pad,
        unk=unk,
        add_bos=special.add_bos,
        add_eos=special.add_eos,
    )
    return source_of_json(
        tokenizer_json(file.metadata, pre or None, keeping), specials, chat_template(file.metadata)
    )
