"""A conversation and its settings: what ``llm-jax chat`` keeps, saves and loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_jax.api.decode_settings import decode_config
from llm_jax.config.decode import decode_settings
from llm_jax.config.explain import help_of_field
from llm_jax.config.validate_decode import validate_decode
from llm_jax.files import write_json
from llm_jax.types import ConfigError, DataError

_KEYS = ("system", "messages", "settings")


@dataclass
class Conversation:
    """Messages, with what the model is told before them and how its tokens are chosen.

    Attributes:
        system: system message; None without.
        messages: of the user and the assistant, in turn.
        settings: of decoding, by their names.
        file: where it was saved to or loaded from last.
    """

    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None

    def ask(self, text: str) -> None:
        """Adds a message of the user."""
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Adds the answer to the last message."""
        self.messages.append({"role": "assistant", "content": text})

    def undo(self) -> bool:
        """Takes back the last message of the user with its answer; False where there is none."""
        while self.messages:
            if self.messages.pop()["role"] == "user":
                return True
        return False

    def set(self, name: str, text: str) -> None:
        """Sets a setting of decoding to a JSON value, or to a text.

        Raises:
            ConfigError: there is no such setting, or it cannot have the value.
        """
        settings = {**self.settings, name: _value(name, text)}
        check_settings(settings)
        self.settings = settings

    def shown(self, name: str) -> str:
        """A setting with its value and meaning. Raises ConfigError for an unknown name."""
        known = decode_settings()
        if name not in known:
            decode_config({name: None})
        setting = known[name]
        value = self.settings.get(name, setting.field.default)
        return f"{name} = {value!r}  {help_of_field(setting.owner, name)}"

    def save(self, path: Path) -> None:
        """Writes the conversation as JSON.

        Raises:
            DataError: the file holds something that this conversation was not read from, or cannot
                be written.
        """
        if path.exists() and (self.file is None or path.resolve() != self.file.resolve()):
            raise DataError(f"{path} exists; give the name of a new file")
        record = {name: getattr(self, name) for name in _KEYS}
        write_json(path, record)
        self.file = path


def load_conversation(path: Path) -> Conversation:
    """The conversation that ``save`` wrote.

    Raises:
        DataError: the file cannot be read, or is no conversation.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if not _is_conversation(value):
        raise DataError(f"{path} is no conversation that /save wrote")
    try:
        check_settings(value["settings"])
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error
    return Conversation(**value, file=path)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for settings that cannot be."""
    try:
        validate_decode(decode_config(settings))
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{dict(settings)} cannot be settings of decoding: {error}") from error


def _is_conversation(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != set(_KEYS):
        return False
    messages = value["messages"]
    turns = ("user", "assistant")
    return (
        isinstance(value["system"], str | None)
        and isinstance(value["settings"], dict)
        and isinstance(messages, list)
        and len(messages) % 2 == 0
        and all(
            isinstance(one, dict)
            and one.keys() == {"role", "content"}
            and one["role"] == turns[number % 2]
            and isinstance(one["content"], str)
            for number, one in enumerate(messages)
        )
    )


def _value(name: str, text: str) -> Any:
    """The value that a text gives: JSON, or the text itself where it is none."""
    setting = decode_settings().get(name)
    if setting is not None and isinstance(setting.field.default, str):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    is_list = setting is not None and isinstance(setting.field.default, tuple)
    return [value] if is_list and not isinstance(value, list | dict) else value
