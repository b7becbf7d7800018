"""Settings of drafts, which speculative decoding verifies; the text under a field is its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from llm_jax.config.decode import DecodeConfig
from llm_jax.ranges import Count, Natural, Range, check_fields
from llm_jax.types import ConfigError

Kind = Literal["model", "lookup", "early_exit"]
_NGRAM = 3


@dataclass(frozen=True)
class DraftConfig:
    """Where the tokens come from that the model verifies several at a time."""

    kind: Kind = "lookup"
    """model: another model of the same vocabulary. lookup: what followed the latest tokens when
    they came before. early_exit: the model's own first layers."""
    tokens: Annotated[int, Range(1, 64)] = 4
    """Tokens that are drafted before the model verifies them."""
    ngram: Count = _NGRAM
    """Most latest tokens that lookup searches for."""
    layers: Natural = 0
    """First layers that make an early exit."""


def parse_draft(text: str, tokens: int | None = None) -> tuple[DraftConfig, str]:
    """A draft as a command line has it.

    Args:
        text: ``lookup``, ``lookup:NGRAM``, ``early_exit:LAYERS``, or the path of a run.
        tokens: drafted before they are verified; None is the default.

    Returns:
        The settings, and the path of the run; empty for the other kinds.

    Raises:
        ConfigError: the text is none of these.
    """
    kind, _, number = text.partition(":")
    given = {} if tokens is None else {"tokens": tokens}
    if kind not in ("lookup", "early_exit"):
        if not text:
            raise ConfigError(
                "draft is empty; give lookup, early_exit:LAYERS, or the path of a run"
            )
        return _checked(DraftConfig(kind="model", **given)), text
    if kind == "lookup" and number == "":
        return _checked(DraftConfig(kind="lookup", **given)), ""
    if not number.isdecimal():
        raise ConfigError(
            f"draft is {text!r}; give lookup, lookup:3 (most tokens that are searched for),"
            " early_exit:4 (first layers), or the path of a run"
        )
    if kind == "lookup":
        return _checked(DraftConfig(kind="lookup", ngram=int(number), **given)), ""
    return _checked(DraftConfig(kind="early_exit", layers=int(number), **given)), ""


def _checked(draft: DraftConfig) -> DraftConfig:
    validate_draft(draft)
    return draft


def validate_draft(d: DraftConfig) -> None:
    """Raises ConfigError for settings outside their range, or that contradict each other."""
    check_fields(d)
    kinds = get_args(Kind)
    if d.kind not in kinds:
        raise ConfigError(f"kind of draft is {d.kind!r}; use {', '.join(kinds)}")
    if d.kind == "early_exit" and not d.layers:
        raise ConfigError(
            "kind of draft is early_exit and layers 0; set layers to how many of the model's first"
            " layers draft"
        )
    if d.kind != "early_exit" and d.layers:
        raise ConfigError(
            f"kind of draft is {d.kind} and layers {d.layers}, which only early_exit reads; leave"
            " layers out, or set kind to early_exit"
        )
    if d.kind != "lookup" and d.ngram != _NGRAM:
        raise ConfigError(
            f"kind of draft is {d.kind} and ngram {d.ngram}, which only lookup reads; leave ngram"
            " out, or set kind to lookup"
        )


def check_with_draft(config: DecodeConfig, row: int) -> None:
    """Raises ConfigError where a row's settings cannot be had with a draft."""
    if config.contrastive_alpha:
        raise ConfigError(
            f"row {row}: contrastive_alpha is {config.contrastive_alpha}, and contrastive search"
            " chooses by hidden states, which no draft has; leave out contrastive_alpha or the"
            " draft"
        )
