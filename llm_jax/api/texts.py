"""Texts, or token ids in their place, as the rows of ids that a model reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.config import ModelConfig
from llm_jax.decode.text import prompt_ids
from llm_jax.tokenizers.tokenizer import Tokenizer, encoder_ids
from llm_jax.types import ConfigError

Ids = Sequence[int]
# Texts, or token ids in their place.
Texts = str | Ids | Sequence[str] | Sequence[Ids]


def is_ids(texts: Any) -> bool:
    """Whether token ids, or rows of them, were given in place of text."""
    if isinstance(texts, str):
        return False
    if isinstance(texts, np.ndarray | jax.Array):
        return True
    return len(texts) > 0 and not isinstance(texts[0], str)


def id_rows(ids: Any) -> tuple[list[Ids], bool]:
    """Token ids as rows, and whether a single row was given."""
    if len(ids) and np.ndim(ids[0]):
        return list(ids), False
    return [ids], True


def strings(texts: Any) -> list[str]:
    """Several texts. Raises ConfigError for an empty list, or for an item that is no text."""
    found = list(texts)
    if not found:
        raise ConfigError("the list of texts is empty; give at least one")
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise ConfigError(
                f"text {number} is {str(text)[:40]} ({type(text).__name__}); it must be a string"
                " like the first"
            )
    return found


class TextRows:
    """Makes the rows of ids that one model reads.

    Args:
        config: of the model.
        tokenizer: returns the model's tokenizer; called for texts only, not for ids.
    """

    def __init__(self, config: ModelConfig, tokenizer: Callable[[], Tokenizer]) -> None:
        self._config = config
        self._tokenizer = tokenizer

    def token_ids(self, text: str) -> list[int]:
        """The ids of a text, as ``LanguageModel.token_ids`` describes them."""
        m = self._config
        if m.encoder:
            return [m.start_token, *self._tokenizer().encode(text)]
        return prompt_ids(self._tokenizer(), text, encoder=not m.causal)

    def token_rows(self, text: Texts) -> tuple[list[Ids], bool]:
        """Token ids of each text, and whether a single text was given."""
        if isinstance(text, str):
            return [self.token_ids(text)], True
        if is_ids(text):
            return id_rows(text)
        return [self.token_ids(one) for one in strings(text)], False

    def encoder_rows(self, encoder: Texts | None, rows: int) -> list[Ids]:
        """Token ids of what the encoder reads beside each of ``rows`` rows; none without one.

        Raises:
            ConfigError: ``encoder`` is given to a model without an encoder, missing for a model
                that has one, or has another number of texts.
        """
        has = self._config.encoder
        if has and encoder is None:
            raise ConfigError(
                "model.encoder is 'on': the encoder reads a text of its own; give encoder"
            )
        if encoder is None:
            return []
        if not has:
            raise ConfigError("encoder is given, and this model has no encoder; leave it out")
        if isinstance(encoder, str):
            found: list[Ids] = list(encoder_ids(self._tokenizer(), [encoder]))
        elif is_ids(encoder):
            found = id_rows(encoder)[0]
        else:
            found = list(encoder_ids(self._tokenizer(), strings(encoder)))
        if len(found) != rows:
            raise ConfigError(f"encoder has {len(found)} texts, and text {rows}; give one for each")
        return found
