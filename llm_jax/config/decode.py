"""Settings of decoding; the text under a field is its help.

Every field has a name of its own across the sections, so that a command line has one flag, and
``LanguageModel.generate`` one argument, for each.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from llm_jax.ranges import (
    Count,
    Finite,
    InnerShare,
    Natural,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
)

Phrase = str | tuple[int, ...]
"""Text, or token ids."""
Penalty = Annotated[float, Range(-2, 2)]
TokenId = Annotated[int, Range(0, 2**31 - 1)]


@dataclass(frozen=True)
class PenaltyConfig:
    """What tokens and n-grams lose for being in the text already."""

    repetition_penalty: Positive = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens in the prompt or the new
    text; 1 is off."""
    encoder_repetition_penalty: Positive = 1.0
    """More than 1 favours tokens of the prompt, or of what the encoder reads; 1 is off."""
    presence_penalty: Penalty = 0.0
    """Taken once off the logit of every token in the new text; 0 is off."""
    frequency_penalty: Penalty = 0.0
    """Taken off a token's logit for each time in the new text; 0 is off."""
    no_repeat_ngram_size: Natural = 0
    """No n-gram of this length comes twice, the prompt included; 0 is off."""
    encoder_no_repeat_ngram_size: Natural = 0
    """No n-gram of this length of the prompt, or of what the encoder reads, comes; 0 is off."""


@dataclass(frozen=True)
class TokenConfig:
    """Which tokens may come, and where."""

    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and a number that is added to its logit."""
    allowed_ids: tuple[TokenId, ...] = ()
    """The only tokens that may come; empty allows all."""
    suppress_ids: tuple[TokenId, ...] = ()
    """Tokens that never come."""
    begin_suppress_ids: tuple[TokenId, ...] = ()
    """Tokens that do not come first."""
    bad_words: tuple[Phrase, ...] = ()
    """Texts that never come, with and without a blank before them; or token ids."""
    sequence_bias: tuple[tuple[Phrase, float], ...] = ()
    """Pairs of a text (or token ids) and a number, which is added to the logit of its last token
    where the others have come."""
    forced_first_id: TokenId | None = None
    """The first new token."""
    forced_last_id: TokenId | None = None
    """The token at max_new_tokens."""
    min_new_tokens: Natural = 0
    """New tokens before one that ends the text may come. Texts that end it (stop) still do."""
    length_decay_start: Natural = 0
    """New tokens from which tokens that end the text get more likely."""
    length_decay_factor: Positive = 1.0
    """By how much, to the power of the tokens since; 1 is off."""


@dataclass(frozen=True)
class StopConfig:
    """What ends a text before max_new_tokens."""

    stop: tuple[str, ...] = ()
    """Texts that end the new text, wherever they come in it."""
    stop_ids: tuple[TokenId, ...] = ()
    """Tokens that end the text, beside those of the tokenizer."""
    include_stop: bool = False
    """Whether the text that ended it is a part of the new text."""
    ignore_eos: bool = False
    """Whether the tokenizer's own end tokens end nothing."""


@dataclass(frozen=True)
class WatermarkConfig:
    """A statistical mark in the choice of tokens, which ``watermark`` functions of ``ops`` find."""

    watermark_bias: NotNegative = 0.0
    """Added to the logits of the green tokens; 0 is off."""
    watermark_ratio: InnerShare = 0.25
    """Share of the vocabulary that is green."""
    watermark_key: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Which lists are drawn; whoever looks for the mark needs it."""
    watermark_width: Annotated[int, Range(1, 4)] = 1
    """Tokens before a place that choose its list."""


@dataclass(frozen=True)
class DecodeConfig:
    """How tokens are chosen. `order` names whose sequence of processors is followed."""

    max_new_tokens: Count = 128
    """Most tokens written."""
    temperature: NotNegative = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: Natural = 0
    """Keep the k most likely tokens (ties at the k-th are kept); 0 is off."""
    top_p: PositiveShare = 1.0
    """Keep the smallest set of most likely tokens whose mass reaches p; 1 is off."""
    min_p: Share = 0.0
    """Drop tokens less likely than min_p times the most likely one; 0 is off."""
    order: Literal["hf", "vllm"] = "hf"
    """hf: temperature, top-k, top-p, min-p. vllm: temperature, min-p, top-k, top-p."""
    seed: Seed = 0
    """The same seed and prompt give the same text, whatever else is in the batch."""
    typical_p: PositiveShare = 1.0
    """Keep tokens whose surprise is nearest to the expected one, up to this mass; 1 is off."""
    epsilon_cutoff: Annotated[float, Range(0, 1, high_open=True)] = 0.0
    """Drop tokens less likely than this; 0 is off."""
    eta_cutoff: Annotated[float, Range(0, 1, high_open=True)] = 0.0
    """Drop tokens less likely than a bound that falls with the entropy; 0 is off."""
    top_h: PositiveShare = 1.0
    """Keep most likely tokens while their entropy is at most this share of the whole; 1 is off."""
    renormalize: bool = False
    """Whether processed logits are made log-probabilities at the end."""
    guidance_scale: Finite = 1.0
    """Classifier-free guidance: above 1 moves away from what follows negative_prompt; 1 is off."""
    negative_prompt: Phrase = ""
    """What guidance moves away from; empty is the last token of the prompt alone."""
    contrastive_alpha: Share = 0.0
    """Contrastive search among the top_k tokens: weight of the distance from the text; 0 is off."""
    penalties: PenaltyConfig = PenaltyConfig()
    tokens: TokenConfig = TokenConfig()
    stops: StopConfig = StopConfig()
    watermark: WatermarkConfig = WatermarkConfig()


class DecodeSetting(NamedTuple):
    """A setting of decoding.

    Attributes:
        section: the field of ``DecodeConfig`` that it is in; empty for a field of its own.
        field: of the section's dataclass.
        owner: the dataclass.
    """

    section: str
    field: dataclasses.Field
    owner: type


@functools.cache
def decode_settings() -> dict[str, DecodeSetting]:
    """Every setting by its name alone."""
    found: dict[str, DecodeSetting] = {}
    for field in dataclasses.fields(DecodeConfig):
        if not dataclasses.is_dataclass(field.default):
            found[field.name] = DecodeSetting("", field, DecodeConfig)
            continue
        owner: Any = type(field.default)
        for inner in dataclasses.fields(owner):
            found[inner.name] = DecodeSetting(field.name, inner, owner)
    return found
