"""Models from GGUF files, de-quantized, with their tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.config.model import ModelConfig
from llm_jax.config.overrides import nearest
from llm_jax.convert.config_json import read_config
from llm_jax.convert.families.gguf import ARCHITECTURES, KEEPING_BLANKS
from llm_jax.convert.gguf import GgufFile, open_gguf
from llm_jax.convert.gguf_tokenizer import tokenizer_json
from llm_jax.convert.gguf_vocabulary import chat_template, end_tokens, special_tokens
from llm_jax.convert.model_folder import (
    Conversion,
    check_tokenizer_fits,
    parameter_shapes,
    type_named,
    write_model,
)
from llm_jax.convert.tensors import check_names, tensors
from llm_jax.files import UNFINISHED_MODEL, check_folder
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers.import_tokenizer import Source, Specials, source_of_json
from llm_jax.types import ConfigError, DataError

# Tensors that are rotation factors and no parameters -> key under which the tables read them.
_FACTORS = {
    "rope_freqs.weight": "rope_factors",
    "rope_factors_long.weight": "rope_factors_long",
    "rope_factors_short.weight": "rope_factors_short",
}
_EMBEDDING = "token_embd.weight"


def from_gguf(
    path: Path,
    out: Path,
    *,
    max_length: int = 0,
    dtype: str = "float32",
    pre: str = "",
    ignore: tuple[str, ...] = (),
) -> ModelConfig:
    """Converts a GGUF file to the model folder ``out``, with its tokenizer and chat template. The
    other arguments, and the errors, are those of ``read_gguf``.
    """
    conversion = read_gguf(path, max_length=max_length, dtype=dtype, pre=pre, ignore=ignore)
    out = path_of(out)
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
        path: The GGUF file.
        max_length: A shorter context than the model's, in tokens. 0 keeps the model's context.
        dtype: Type of the parameters on disk. Quantized tensors are de-quantized.
        pre: Name of the pre-tokenizer, for a file that does not have it.
        ignore: Metadata keys that are known to change nothing.

    Raises:
        ConfigError: The architecture or a key cannot be represented.
        DataError: The contents of the file do not fit its metadata.
    """
    kind = type_named(dtype)
    file = open_gguf(path)
    architecture = _architecture(file)
    family = ARCHITECTURES[architecture]
    model = read_config(family, _config(file, architecture), ignore, max_length)
    shapes = parameter_shapes(model)
    wanted = tensors(family, model, shapes)
    found = {name: t.shape for name, t in file.tensors.items() if name not in _FACTORS}
    check_names(found, wanted, str(path))
    try:
        tokenizer = _tokenizer(file, pre, KEEPING_BLANKS.get(architecture))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    check_tokenizer_fits(tokenizer, model, str(path))
    scalars = {
        key: value
        for key, value in file.metadata.items()
        if isinstance(value, str | int | float | bool)
    }
    return Conversion(
        name=path.stem,
        model=model,
        shapes=shapes,
        types={piece.path: kind for tensor in wanted for piece in tensor.pieces},
        tensors=wanted,
        read=lambda tensor: file.read(tensor.name),
        source={"model_type": "", "gguf": scalars},
        tokenizer=tokenizer,
    )


def _architecture(file: GgufFile) -> str:
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        near = nearest(name, ARCHITECTURES) if isinstance(name, str) else ""
        raise ConfigError(
            f"{file.path}: general.architecture is {name!r}{near}; supported are"
            f" {', '.join(ARCHITECTURES)}"
        )
    return name


def _config(file: GgufFile, architecture: str) -> dict[str, Any]:
    """The architecture's own metadata keys, and what only the tensors show."""
    prefix = f"{architecture}."
    out = {}
    for key, value in file.metadata.items():
        name = key.removeprefix(prefix)
        # Rotation factors are read from tensors and never from metadata.
        if key.startswith(prefix) and name not in _FACTORS.values():
            out[name] = _shortest(value)
    if _EMBEDDING not in file.tensors:
        raise DataError(
            f"{file.path} has no tensor {_EMBEDDING!r}, so it is not a language model, or only a"
            " part of one; name the file of the whole model"
        )
    out["vocab_size"] = file.tensors[_EMBEDDING].shape[0]
    out["tied"] = "output.weight" not in file.tensors
    for tensor, key in _FACTORS.items():
        if tensor in file.tensors:
            out[key] = [_shortest(float(x)) for x in file.read(tensor).reshape(-1)]
    return out


def _shortest(value: Any) -> Any:
    """A float32 as the shortest decimal number that rounds to it, so that 1e-6 is 1e-6 and not the
    double nearest to the float32.
    """
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value


def _tokenizer(file: GgufFile, pre: str, keeping: tuple[str, ...] | None) -> Source:
    special = special_tokens(file.metadata, pre or None)
    specials = Specials(
        bos=_or_none(special.bos),
        eos=end_tokens(file.metadata),
        pad=_or_none(special.pad),
        unk=_or_none(special.unk),
        add_bos=special.add_bos,
        add_eos=special.add_eos,
    )
    description = tokenizer_json(file.metadata, pre or None, keeping)
    return source_of_json(description, specials, chat_template(file.metadata))


def _or_none(id: int | None) -> int:
    """The id, or -1, which stands for no token."""
    return -1 if id is None else id
