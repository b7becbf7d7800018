"""The model folder that a conversion writes, from source tensors that are read one at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from llm_jax import models
from llm_jax.checkpoints.manifest import names
from llm_jax.checkpoints.weights import SOURCE, WEIGHTS
from llm_jax.config import Config
from llm_jax.config.model import ModelConfig
from llm_jax.config.overrides import override
from llm_jax.config.saved import to_json
from llm_jax.config.sections import flatten
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.convert.tensors import Piece, Tensor
from llm_jax.files import new_folder, write_atomic
from llm_jax.progress import progress
from llm_jax.tensor_file import DTYPES
from llm_jax.tokenizers.import_tokenizer import Source, write_tokenizer
from llm_jax.types import ConfigError

# Types that parameters can have on disk.
TYPES = {"float32": DTYPES["F32"], "bfloat16": DTYPES["BF16"], "float16": DTYPES["F16"]}
# Default of data.seq_length, for continued training; the model's context may be far longer.
_SEQUENCE = 1024


class Conversion(NamedTuple):
    """A model to convert, whose tensors are not read yet.

    Attributes:
        name: Name of the model.
        model: Its config.
        shapes: Shape of every parameter, by path.
        types: Type of every parameter on disk, by path.
        tensors: The source tensors.
        read: Reads a source tensor.
        source: What is recorded about the source.
        tokenizer: Its tokenizer, or None.
    """

    name: str
    model: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, np.dtype]
    tensors: list[Tensor]
    read: Callable[[Tensor], np.ndarray]
    source: Mapping[str, Any]
    tokenizer: Source | None

    def parts(self) -> Iterator[tuple[Piece, np.ndarray]]:
        """Every part of every parameter, one tensor of the source after another."""
        total = sum(math.prod(tensor.shape) for tensor in self.tensors)
        with progress("converting", total=total) as bar:
            for tensor in self.tensors:
                yield from tensor.to_native(self.read(tensor))
                bar.advance(math.prod(tensor.shape))

    def config(self) -> Config:
        """The config of the converted model."""
        updates = {f"model.{key}": value for key, value in flatten(self.model).items()} | {
            "name": self.name,
            "data.seq_length": min(_SEQUENCE, self.model.max_length),
        }
        return override(Config(), updates, "conversion")


@lru_cache(maxsize=8)
def parameter_shapes(model: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Shape of every parameter, by path."""
    abstract = jax.eval_shape(models.build(model).init, jax.random.key(0))
    return MappingProxyType({name: array.shape for name, array in names(abstract).items()})


def type_named(dtype: str) -> np.dtype:
    """The type of that name.

    Raises:
        ConfigError: Parameters cannot have that type.
    """
    if dtype not in TYPES:
        raise ConfigError(f"dtype is {dtype!r}; supported are {', '.join(TYPES)}")
    return TYPES[dtype]


def check_tokenizer_fits(tokenizer: Source, model: ModelConfig, where: str) -> None:
    """Checks that the model has an embedding for every id; compiled code would take the embedding
    of another id.

    Raises:
        ConfigError: The tokenizer has more ids.
    """
    size = tokenizer.record.vocab_size
    if size > model.vocab_size:
        raise ConfigError(
            f"{where}: its tokenizer has {size:,} ids, and the model's embedding has"
            f" {model.vocab_size:,} rows; resize the embedding (resize_token_embeddings in"
            " transformers), or remove the tokens that were added"
        )


def write_model(out: Path, conversion: Conversion) -> None:
    """Writes the model folder ``out``."""
    entries = {path: (conversion.types[path], shape) for path, shape in conversion.shapes.items()}
    record = dict(conversion.source)
    # The unfinished file of weights comes first, so that a folder left by a killed conversion is
    # known by it.
    with new_folder(out), TensorWriter(out / WEIGHTS, entries) as file:
        if conversion.tokenizer is not None:
            written = write_tokenizer(conversion.tokenizer, out / "tokenizer")
            record["tokenizer"] = written.fingerprint
        for piece, part in conversion.parts():
            file.write(piece.path, part, piece.position)
    write_model_settings(out, record, conversion.config())


def write_model_settings(out: Path, source: Mapping[str, Any], config: Config) -> None:
    """Writes the files of a model folder beside its parameters and its tokenizer."""
    write_atomic(out / SOURCE, json_bytes(source))
    # Written last: a folder with a config.json is complete.
    write_atomic(out / "config.json", json_bytes(to_json(config)))


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """``data`` as an indented JSON file."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
