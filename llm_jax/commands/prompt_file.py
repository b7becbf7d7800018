"""Files of prompts: JSON lines with a prompt, messages or token ids, an id, and settings."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.api.decode_settings import decode_config
from llm_jax.config import DecodeConfig
from llm_jax.config.decode import decode_settings
from llm_jax.config.validate_decode import validate_decode
from llm_jax.types import ConfigError, DataError

SOURCES = ("prompt", "messages", "ids")


class PromptLine(NamedTuple):
    """One line of a file of prompts.

    Attributes:
        number: of the prompt, from 0 on; blank lines do not count.
        line: in the file, from 1 on.
        id: that the file gives it; None without.
        source: what is to be gone on from: a key of the line, of ``SOURCES``.
        value: of that key.
        config: settings of this line.
        has_seed: whether the line itself has a seed.
    """

    number: int
    line: int
    id: str | int | None
    source: str
    value: Any
    config: DecodeConfig
    has_seed: bool


def read_prompts(path: Path, content: bytes, base: DecodeConfig) -> list[PromptLine]:
    """The prompts of a file.

    Args:
        path: of the file, for messages.
        content: of the file.
        base: settings of lines that say nothing else.

    Raises:
        DataError: a line that is not an object with one source, or has an unknown key, a setting
            that cannot be, or an id that another line has. The message names the line.
    """
    found: list[PromptLine] = []
    lines_of_ids: dict[str | int, int] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        one = _prompt_line(_object(where, line), where, base)
        one = one._replace(number=len(found), line=number)
        if one.id is not None:
            if one.id in lines_of_ids:
                raise DataError(
                    f"{where}: id {one.id!r} is that of line {lines_of_ids[one.id]} too; give each"
                    " line an id of its own"
                )
            lines_of_ids[one.id] = number
        found.append(one)
    if not found:
        raise DataError(f"{path} has no prompts; give it a line such as " + '{"prompt": "Hello"}')
    return found


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} is {str(value)[:40]!r}; expected an object with a prompt")
    return value


def _prompt_line(value: dict[str, Any], where: str, base: DecodeConfig) -> PromptLine:
    sources = [key for key in SOURCES if key in value]
    if len(sources) != 1:
        given = " and ".join(sources) or "none of them"
        raise DataError(f"{where} has {given}; give one of {', '.join(SOURCES)}")
    (source,) = sources
    _check_source(source, value[source], where)
    id = value.get("id")
    if isinstance(id, bool) or not isinstance(id, str | int | None):
        raise DataError(f"{where}: id is {id!r}; it must be a text or a whole number")
    settings = {key: item for key, item in value.items() if key not in (source, "id")}
    return PromptLine(
        number=0,
        line=0,
        id=id,
        source=source,
        value=value[source],
        config=_config(settings, where, base),
        has_seed="seed" in settings,
    )


def _check_source(source: str, value: Any, where: str) -> None:
    if source == "prompt":
        fits = isinstance(value, str)
        expected = "a text"
    elif source == "ids":
        is_id = [isinstance(id, int) and not isinstance(id, bool) for id in _items(value)]
        fits = bool(is_id) and all(is_id)
        expected = "a list of token ids"
    else:
        messages = [isinstance(message, dict) for message in _items(value)]
        fits = bool(messages) and all(messages)
        expected = 'a list of messages such as {"role": "user", "content": "Hello"}'
    if not fits:
        raise DataError(f"{where}: {source} is {str(value)[:40]!r}; it must be {expected}")


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _config(settings: Mapping[str, Any], where: str, base: DecodeConfig) -> DecodeConfig:
    known = [*SOURCES, "id", *decode_settings()]
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise DataError(f"{where}: unknown key {name!r}; {hint}")
    try:
        config = decode_config(_with_token_ids(settings), base)
        validate_decode(config)
    except (ConfigError, TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error
    return config


def _with_token_ids(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """``logit_bias`` with numbers for keys, which are texts in JSON."""
    bias = settings.get("logit_bias")
    if not isinstance(bias, dict):
        return settings
    return {**settings, "logit_bias": {_as_id(key): value for key, value in bias.items()}}


def _as_id(key: str) -> int:
    try:
        return int(key)
    except ValueError:
        raise ConfigError(f"logit_bias has {key!r}; it must be a token id") from None
