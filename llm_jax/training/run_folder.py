"""The folder of a run, and the settings that are written there before the first step."""

from __future__ import annotations

import json
from pathlib import Path

from llm_jax.config import Config
from llm_jax.config.saved import to_json
from llm_jax.files import write_atomic
from llm_jax.storage.paths import path_of
from llm_jax.types import ConfigError


def run_folder(config: Config) -> Path:
    """Where a run leaves its files."""
    return path_of(config.train.out or f"runs/{config.name}")


def write_settings(config: Config) -> None:
    """Writes ``config.json`` and ``tokenizer/`` into the run's folder.

    Raises:
        ConfigError: the folder cannot be written.
        DataError: the tokenizer of the data cannot be read.
    """
    from llm_jax.tokenizers.open_tokenizer import tokenizer_files

    folder = run_folder(config)
    try:
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"train.out {str(folder)!r} cannot be written: {error.strerror}; choose another folder"
        ) from error
    for name, data in tokenizer_files(path_of(config.data.path[0]) / "tokenizer").items():
        write_atomic(folder / "tokenizer" / name, data)
    write_atomic(folder / "config.json", json.dumps(to_json(config), indent=1).encode() + b"\n")
