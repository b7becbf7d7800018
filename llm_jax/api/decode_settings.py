"""Settings of decoding, as keyword arguments: the fields of ``DecodeConfig`` and its sections."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, TypedDict

from llm_jax.config import DecodeConfig
from llm_jax.config.decode import Phrase, decode_settings
from llm_jax.types import ConfigError


class DecodeSettings(TypedDict, total=False):
    """The fields of ``DecodeConfig`` and of its sections, with its defaults."""

    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    order: Literal["hf", "vllm"]
    seed: int
    typical_p: float
    epsilon_cutoff: float
    eta_cutoff: float
    top_h: float
    renormalize: bool
    guidance_scale: float
    negative_prompt: Phrase
    contrastive_alpha: float
    repetition_penalty: float
    encoder_repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    no_repeat_ngram_size: int
    encoder_no_repeat_ngram_size: int
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...]
    allowed_ids: tuple[int, ...]
    suppress_ids: tuple[int, ...]
    begin_suppress_ids: tuple[int, ...]
    bad_words: tuple[Phrase, ...]
    sequence_bias: Mapping[Phrase, float] | tuple[tuple[Phrase, float], ...]
    forced_first_id: int | None
    forced_last_id: int | None
    min_new_tokens: int
    length_decay_start: int
    length_decay_factor: float
    stop: str | tuple[str, ...]
    stop_ids: tuple[int, ...]
    include_stop: bool
    ignore_eos: bool
    watermark_bias: float
    watermark_ratio: float
    watermark_key: int
    watermark_width: int


def decode_config(
    settings: Mapping[str, Any],
    base: DecodeConfig = DecodeConfig(),  # noqa: B008 (frozen)
) -> DecodeConfig:
    """``base`` with settings given by their names alone, whatever section they are in.

    Lists are taken for tuples, a mapping for pairs, and one text for ``stop``.

    Raises:
        ConfigError: a name that ``DecodeConfig`` does not have.
    """
    known = decode_settings()
    by_section: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"unknown setting of decoding {name!r}; {hint}")
        by_section.setdefault(known[name].section, {})[name] = _as_tuples(name, value)
    changed = by_section.pop("", {})
    for section, values in by_section.items():
        changed[section] = replace(getattr(base, section), **values)
    return replace(base, **changed)


def _as_tuples(name: str, value: Any) -> Any:
    if name == "stop" and isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(value.items())
    if isinstance(value, list | tuple):
        return tuple(tuple(each) if isinstance(each, list) else each for each in value)
    return value
