"""All that changes logits before a token is chosen, in the order of a preset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically, vary_like, vary_together
from llm_jax.ops.precision import widened
from llm_jax.ops.sampling.guidance import guide
from llm_jax.ops.sampling.history import History
from llm_jax.ops.sampling.lengths import force_token, length_decay, min_new_tokens
from llm_jax.ops.sampling.penalties import (
    encoder_repetition_penalty,
    frequency_penalty,
    presence_penalty,
    repetition_penalty,
    token_counts,
)
from llm_jax.ops.sampling.sequences import (
    encoder_no_repeat_ngram,
    no_repeat_ngram,
    sequence_bias,
)
from llm_jax.ops.sampling.settings import Settings
from llm_jax.ops.sampling.tokens import (
    allow_tokens,
    logit_bias,
    mask_words,
    remove_invalid,
    renormalize,
)
from llm_jax.ops.sampling.warp import check_order, filtered, only_best
from llm_jax.ops.sampling.watermark import watermark

PROCESSORS = {
    "hf": (
        "guidance",
        "bias",
        "sequence_bias",
        "encoder_repetition",
        "repetition",
        "frequency_and_presence",
        "ngram",
        "encoder_ngram",
        "min_new",
        "forced_first",
        "forced_last",
        "remove_invalid",
        "decay",
        "allowed",
        "begin_allowed",
    ),
    "vllm": (
        "guidance",
        "remove_invalid",
        "allowed",
        "begin_allowed",
        "sequence_bias",
        "min_new",
        "bias",
        "repetition",
        "frequency_and_presence",
        "encoder_repetition",
        "ngram",
        "encoder_ngram",
        "forced_first",
        "forced_last",
        "decay",
    ),
}
"""What comes before the user's own processor, the temperature and the filters of ``ORDERS``; the
watermark and the renormalization come after them. An engine's own processors stand in its order.
"""

Stage = tuple[Array, Callable[[Array], Array]]
"""Whether a row uses a processor, and the processor."""


def process(
    logits: Array,
    settings: Settings,
    history: History,
    *,
    order: str = "hf",
    own: Callable[[Array, History], Array] | None = None,
    unconditional: Array | None = None,
    warp: bool = True,
    keep: int = 1,
) -> Array:
    """The logits of the distribution to draw the next token from.

    Whatever the settings, it is one program; a processor that no row uses is skipped at run time,
    and no row depends on the settings of another.

    Args:
        logits: [B, V]; for beams, log-probabilities.
        settings: of each row.
        history: the text of each row.
        order: of processors and filters, a key of ``PROCESSORS`` and ``ORDERS``.
        own: a user's processor, a pure function of logits [B, V] and the history; it comes before
            the temperature.
        unconditional: [B, V], for guidance: the logits without the prompt. Without them
            ``settings.guidance`` has no effect; the caller makes sure that it is off.
        warp: whether temperature and filters apply. Beams that do not sample leave them out, and
            with them the choice of the most likely token at temperature 0.
        keep: tokens that each filter leaves at least; for beams that sample, the larger of 2 and
            1 + the number of stop tokens.

    Returns:
        [B, V] in float32, or in float64 for logits of float64. At temperature 0, only the most
        likely token of a row is left. A row whose tokens are all forbidden is -inf throughout:
        ``all_banned`` finds it, and ``categorical`` draws ``ALL_BANNED`` for it. Nothing else
        makes -inf of a row, and NaN comes from NaN alone.

    Raises:
        ValueError: the order is unknown, or shapes disagree.
    """
    check_order(order)
    _check_shapes(logits, settings, history)

    def run(
        logits: Array, settings: Settings, history: History, unconditional: Array | None
    ) -> Array:
        logits, settings, history, unconditional = vary_together(
            (widened(logits), settings, history, unconditional)
        )
        stages = _stages(settings, history, unconditional)
        logits = _where_used(_in_turn([stages[name] for name in PROCESSORS[order]]), logits)
        if own is not None:
            logits = vary_like(_checked(own(logits, history), logits), logits)
        if warp:
            logits = filtered(logits, settings.filters, order=order, keep=keep)
        logits = _where_used(_watermark(settings, history), logits)
        if warp:
            logits = _where_used(_greedy(settings), logits)
        return _where_used(_renormalize(settings), logits)

    spec = explicit_spec(logits)
    return place_automatically(run, spec, logits, settings, history, unconditional)


def _where_used(stage: Stage, logits: Array) -> Array:
    used, run = stage
    return jax.lax.cond(used, run, lambda z: z, logits)


def _in_turn(stages: list[Stage]) -> Stage:
    """Several processors as one, which is skipped where no row uses any of them."""

    def run(logits: Array) -> Array:
        for stage in stages:
            logits = _where_used(stage, logits)
        return logits

    return jnp.any(jnp.stack([used for used, _ in stages])), run


def _stages(settings: Settings, history: History, unconditional: Array | None) -> dict[str, Stage]:
    stages = {
        **_of_tokens(settings, history),
        **_of_penalties(settings, history),
        **_of_lengths(settings, history),
    }
    guidance = settings.guidance
    if unconditional is None:
        stages["guidance"] = jnp.array(False), lambda z: z
    else:
        stages["guidance"] = (
            jnp.any(guidance != 1),
            lambda z: jnp.where(guidance[:, None] != 1, guide(z, unconditional, guidance), z),
        )
    return stages


def _of_tokens(settings: Settings, history: History) -> dict[str, Stage]:
    rules = settings.rules
    invalid = settings.remove_invalid
    every = jnp.uint32(2**32 - 1)
    # The tokens that may not begin a text come first after one that is forced.
    begins = history.generated == (rules.forced_first >= 0)
    begin = jnp.where(begins[:, None], rules.begin_allowed, every)
    return {
        "bias": (jnp.any(rules.bias != 0), lambda z: logit_bias(z, rules.bias)),
        "sequence_bias": (
            jnp.any(rules.sequence_bias != 0),
            lambda z: sequence_bias(z, rules.sequence_ids, rules.sequence_bias, history),
        ),
        "allowed": (jnp.any(rules.allowed != every), lambda z: allow_tokens(z, rules.allowed)),
        "begin_allowed": (jnp.any(begin != every), lambda z: allow_tokens(z, begin)),
        "remove_invalid": (
            jnp.any(invalid),
            lambda z: jnp.where(invalid[:, None], remove_invalid(z), z),
        ),
    }


def _of_penalties(settings: Settings, history: History) -> dict[str, Stage]:
    p = settings.penalties

    def repetition(logits: Array) -> Array:
        counts = token_counts(history.ids, history.is_token, logits.shape[1])
        return repetition_penalty(logits, counts, p.repetition)

    def encoder_repetition(logits: Array) -> Array:
        counts = token_counts(history.source_ids, history.is_source, logits.shape[1])
        return encoder_repetition_penalty(logits, counts, p.encoder_repetition)

    def frequency_and_presence(logits: Array) -> Array:
        counts = token_counts(history.ids, history.is_new, logits.shape[1])
        logits = frequency_penalty(logits, counts, p.frequency)
        return presence_penalty(logits, counts, p.presence)

    return {
        "repetition": (jnp.any(p.repetition != 1), repetition),
        "encoder_repetition": (jnp.any(p.encoder_repetition != 1), encoder_repetition),
        "frequency_and_presence": (
            jnp.any((p.frequency != 0) | (p.presence != 0)),
            frequency_and_presence,
        ),
        "ngram": (jnp.any(p.ngram > 0), lambda z: no_repeat_ngram(z, history, p.ngram)),
        "encoder_ngram": (
            jnp.any(p.encoder_ngram > 0),
            lambda z: encoder_no_repeat_ngram(z, history, p.encoder_ngram),
        ),
    }


def _of_lengths(settings: Settings, history: History) -> dict[str, Stage]:
    rules = settings.rules
    new = history.generated
    first = (new == 0) & (rules.forced_first >= 0)
    last = (new == rules.max_new - 1) & (rules.forced_last >= 0)
    decays = (rules.decay_factor != 1) & (new > rules.decay_start)
    return {
        "min_new": (
            jnp.any(new < rules.min_new),
            lambda z: min_new_tokens(z, rules.stop_ids, new, rules.min_new),
        ),
        "forced_first": (jnp.any(first), lambda z: force_token(z, rules.forced_first, first)),
        "forced_last": (jnp.any(last), lambda z: force_token(z, rules.forced_last, last)),
        "decay": (
            jnp.any(decays),
            lambda z: length_decay(z, rules.stop_ids, new, rules.decay_start, rules.decay_factor),
        ),
    }


def _watermark(settings: Settings, history: History) -> Stage:
    marks = settings.watermark
    return jnp.any(marks.bias != 0), lambda z: watermark(z, history, **marks._asdict())


def _greedy(settings: Settings) -> Stage:
    filters = settings.filters
    return jnp.any(filters.temperature == 0), lambda z: only_best(z, filters, z)


def _renormalize(settings: Settings) -> Stage:
    asked = settings.renormalize
    return jnp.any(asked), lambda z: jnp.where(asked[:, None], renormalize(z), z)


def _checked(logits: Any, given: Array) -> Array:
    if logits.shape != given.shape or logits.dtype != given.dtype:
        raise ValueError(
            f"one's own processor returned {logits.dtype} {logits.shape}; it must return logits as"
            f" it gets them, {given.dtype} {given.shape}"
        )
    return logits


def _check_shapes(logits: Array, settings: Settings, history: History) -> None:
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {logits.shape}; expected [B, V]")
    rows, vocab_size = logits.shape
    for path, leaf in jax.tree.leaves_with_path((settings, history)):
        if leaf.ndim == 0 or leaf.shape[0] != rows:
            name = jax.tree_util.keystr(path[1:]).lstrip(".")
            raise ValueError(
                f"{name} has shape {leaf.shape} for logits {logits.shape}; its first axis must be"
                f" the {rows} rows"
            )
    words = mask_words(vocab_size)
    rules = settings.rules
    expected = {"bias": vocab_size, "allowed": words, "begin_allowed": words}
    for name, width in expected.items():
        if getattr(rules, name).shape != (rows, width):
            raise ValueError(
                f"rules.{name} has shape {getattr(rules, name).shape}; expected {(rows, width)} for"
                f" a vocabulary of {vocab_size}"
            )
