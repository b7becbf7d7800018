"""Texts within the settings of decoding as token ids, and stop texts within what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from llm_jax.config.decode import DecodeConfig, Phrase
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import ConfigError


def with_ids(config: DecodeConfig, tokenizer: Tokenizer) -> DecodeConfig:
    """The settings with token ids in place of the texts of ``bad_words`` and ``sequence_bias``.

    A text is banned, or gets its bias, with and without a blank before it.

    Raises:
        ConfigError: a text that is no token.
    """
    tokens = config.tokens
    bad_words = [ids for phrase in tokens.bad_words for ids in both_forms(phrase, tokenizer)]
    biased = [
        (ids, bias)
        for phrase, bias in tokens.sequence_bias
        for ids in both_forms(phrase, tokenizer)
    ]
    changed = replace(tokens, bad_words=tuple(bad_words), sequence_bias=tuple(biased))
    return replace(config, tokens=changed)


def both_forms(phrase: Phrase, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The ids of a text within another, without and with a blank before it; ids as they are.

    Raises:
        ConfigError: a text that is no token.
    """
    if not isinstance(phrase, str):
        return [tuple(phrase)]
    found = (_inner_ids(phrase, tokenizer), tuple(tokenizer.encode(f" {phrase.lstrip()}")))
    ids = list(dict.fromkeys(each for each in found if each))
    if not ids:
        raise ConfigError(f"the text {phrase!r} is no token of this tokenizer; leave it out")
    return ids


def _inner_ids(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids of a text right after another, without the blank that encoding puts at a start."""
    if not tokenizer.adds_prefix:
        return tuple(tokenizer.encode(text))
    # A newline takes the blank of the start.
    before = tokenizer.encode("\n")
    whole = tokenizer.encode(f"\n{text}")
    return tuple(whole[len(before) :]) if whole[: len(before)] == before else ()


class Found(NamedTuple):
    """A stop text in a text.

    Attributes:
        stop: the stop text.
        begin: where it begins.
        end: where it ends.
    """

    stop: str
    begin: int
    end: int


def first_stop(text: str, stops: Sequence[str]) -> Found | None:
    """The stop text that ends first in a text, the longest among those that end there."""
    places = [(text.find(stop), stop) for stop in stops]
    found = [Found(stop, at, at + len(stop)) for at, stop in places if at >= 0]
    return min(found, key=lambda f: (f.end, f.begin), default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text that may begin a stop text."""
    longest = max(map(len, stops), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        end = text[-size:]
        if any(stop.startswith(end) for stop in stops):
            return size
    return 0


class StopStream:
    """Text as it becomes certain that it comes before every stop text.

    Args:
        stops: the stop texts.
        include: whether the stop text that ends the text is part of it.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = stops
        self._include = include
        self._held = ""
        self.stop: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain now."""
        if self.stop is not None:
            return ""
        self._held += text
        found = first_stop(self._held, self._stops)
        if found is not None:
            self.stop = found.stop
            certain = self._held[: found.end if self._include else found.begin]
            self._held = ""
            return certain
        kept = held_back(self._held, self._stops)
        certain = self._held[: len(self._held) - kept]
        self._held = self._held[len(certain) :]
        return certain

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        rest = self._held
        self._held = ""
        return rest
