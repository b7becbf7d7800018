"""Checks of the settings of decoding: ranges, and settings that contradict each other."""

from __future__ import annotations

from typing import get_args, get_type_hints

from llm_jax.config.decode import DecodeConfig, Phrase, StopConfig, TokenConfig, decode_settings
from llm_jax.config.validate_model import require
from llm_jax.ranges import check_value, hints_of

# Dividing logits by less than this would make them infinite.
_LEAST_TEMPERATURE = 1e-6


def validate_decode(d: DecodeConfig) -> None:
    """Raises ConfigError for settings outside their range, or that contradict each other."""
    for name, setting in decode_settings().items():
        section = getattr(d, setting.section) if setting.section else d
        check_value(name, getattr(section, name), hints_of(setting.owner)[name])
    require(
        d.temperature == 0 or d.temperature >= _LEAST_TEMPERATURE,
        f"temperature is {d.temperature}; it must be 0 (greedy) or at least {_LEAST_TEMPERATURE:g}",
    )
    orders = get_args(get_type_hints(DecodeConfig)["order"])
    require(d.order in orders, f"order is {d.order!r}; use {' or '.join(orders)}")
    require(
        d.guidance_scale != 1 or not d.negative_prompt,
        f"negative_prompt is {d.negative_prompt!r} and guidance_scale 1, which is off; set"
        " guidance_scale above 1, or leave negative_prompt out",
    )
    _check_tokens(d.tokens, d.max_new_tokens)
    _check_stops(d.stops)
    if d.contrastive_alpha:
        _check_contrastive(d)


def _check_tokens(t: TokenConfig, most: int) -> None:
    require(
        t.min_new_tokens <= most,
        f"min_new_tokens is {t.min_new_tokens} and max_new_tokens {most}; lower min_new_tokens",
    )
    for setting, value in (
        ("forced_first_id", t.forced_first_id),
        ("forced_last_id", t.forced_last_id),
    ):
        banned = value is not None and (
            value in t.suppress_ids or (t.allowed_ids and value not in t.allowed_ids)
        )
        require(
            not banned,
            f"{setting} is {value}, which suppress_ids or allowed_ids ban; change one of them",
        )
    for phrase in t.bad_words:
        _check_phrase("bad_words", phrase)
    for name, pairs in (("logit_bias", t.logit_bias), ("sequence_bias", t.sequence_bias)):
        for pair in pairs:
            fits = isinstance(pair, tuple) and len(pair) == 2
            number = fits and isinstance(pair[1], int | float) and not isinstance(pair[1], bool)
            require(
                bool(number) and pair[1] < float("inf"),
                f"{name} has {pair!r}; give pairs such as (15, -2.0), the number finite or -inf",
            )
    for phrase, _ in t.sequence_bias:
        _check_phrase("sequence_bias", phrase)


def _check_phrase(name: str, phrase: Phrase) -> None:
    require(
        isinstance(phrase, str | tuple) and len(phrase) > 0,
        f"{name} has {phrase!r}; give texts that are not empty, or tuples of token ids",
    )


def _check_stops(s: StopConfig) -> None:
    require(
        not isinstance(s.stop, str),
        f"stop is the text {s.stop!r}; give a tuple of texts, as ({s.stop!r},)",
    )
    for text in s.stop:
        require(
            isinstance(text, str) and text != "",
            f"stop has {text!r}; give texts that are not empty",
        )


def _check_contrastive(d: DecodeConfig) -> None:
    require(
        d.top_k >= 2,
        f"contrastive_alpha is {d.contrastive_alpha} and top_k {d.top_k}; contrastive search"
        " chooses among the top_k tokens, so set top_k to 2 or more (4 to 8 are usual)",
    )
    unread = {
        "temperature": d.temperature not in (0, 1),
        "top_p": d.top_p != 1,
        "min_p": d.min_p != 0,
        "typical_p": d.typical_p != 1,
        "epsilon_cutoff": d.epsilon_cutoff != 0,
        "eta_cutoff": d.eta_cutoff != 0,
        "top_h": d.top_h != 1,
        "guidance_scale": d.guidance_scale != 1,
        "watermark_bias": d.watermark.watermark_bias != 0,
    }
    given = [name for name, is_given in unread.items() if is_given]
    require(
        not given,
        f"{', '.join(given)}: contrastive search (contrastive_alpha {d.contrastive_alpha}) does not"
        " draw, and reads no such setting; leave out one of them",
    )
