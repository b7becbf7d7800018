"""Settings of decoding, as keyword arguments."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, TypedDict

from llm_jax.config import DecodeConfig
from llm_jax.types import ConfigError


class DecodeSettings(TypedDict, total=False):
    """The fields of ``DecodeConfig``, with its defaults."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    order: Literal["hf", "vllm"]
    seed: int


def decode_config(settings: Mapping[str, Any]) -> DecodeConfig:
    """The settings as a ``DecodeConfig``. Raises ConfigError for a name that it does not have."""
    known = [f.name for f in fields(DecodeConfig)]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"unknown setting of decoding {name!r}; {hint}")
    return DecodeConfig(**settings)
