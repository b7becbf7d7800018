"""Beam search from Python: prompts in, the best texts out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.search import EARLY_STOPPING, BeamConfig, validate_beams
from llm_jax.decode.beams.checks import check_settings, phrases_of
from llm_jax.decode.beams.constrained import Given, is_complete, search_constrained
from llm_jax.decode.beams.phrases import Phrases
from llm_jax.decode.beams.program import (
    BeamForm,
    BeamSettings,
    Found,
    Processor,
    kept,
    search_beams,
)
from llm_jax.decode.constrain.matchers import Matchers
from llm_jax.decode.constrained import check_rows
from llm_jax.decode.finite import cause
from llm_jax.decode.inputs import checked_ids, padded_rows
from llm_jax.decode.programs import BUCKET, padded
from llm_jax.decode.results import FinishReason
from llm_jax.decode.room import begins, fit
from llm_jax.host_memory import allocating
from llm_jax.models import Model
from llm_jax.ops.sampling.settings import Settings, off
from llm_jax.ranges import Count, check_value
from llm_jax.types import ConfigError, NonFiniteError, Params

Phrase = Sequence[Sequence[int]]
"""Alternatives, each of token ids; a text must contain one of them."""

_run = jax.jit(search_beams, static_argnames=("model", "form"))


class Hypothesis(NamedTuple):
    """A text that beam search found.

    Attributes:
        ids: the new tokens, without the stop token.
        score: the sum of log-probabilities, with that of the stop token, over the length penalty.
        finish_reason: "stop" at a stop token, or where its constraint lets no more come; "length"
            at the most new tokens.
    """

    ids: list[int]
    score: float
    finish_reason: FinishReason


class Prompts(NamedTuple):
    """Prompts as the program reads them.

    Attributes:
        tokens: int32 [B, T], padded on the right.
        lengths: int32 [B].
        room: tokens of a row that the cache has room for.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    room: int


def beam_search(
    model: Model,
    params: Params,
    prompts: Sequence[Sequence[int]],
    config: BeamConfig,
    *,
    max_new_tokens: int,
    settings: Settings | None = None,
    required: Sequence[Sequence[Phrase]] | None = None,
    order: str = "hf",
    own: Processor | None = None,
    matchers: Matchers | None = None,
) -> list[list[Hypothesis]]:
    """The best texts after each prompt.

    Compiles once for each model, number of prompts, padded length, padded ``max_new_tokens`` and
    form of the search (beams, groups, sample). On a mesh, call it within ``jax.set_mesh``; the
    number of prompts must divide over the batch axes.

    Args:
        model: the model.
        params: its parameters, as decoding reads them (``placement.compute_params``) or as they are
            stored.
        prompts: token ids of each row; with an encoder, what it reads.
        config: the search.
        max_new_tokens: most new tokens of a text.
        settings: of each prompt, such as stop ids, penalties and rules; with ``config.sample`` its
            filters and seeds too. None is all off: no stop token either.
        required: phrases of each prompt, in the place of ``config.required``.
        order: of the processors.
        own: the user's processor.
        matchers: the constraint of each prompt, or none; they stay as they are. None is a search
            without constraints.

    Returns:
        For each prompt ``config.returned`` texts, the best first; fewer where rules leave fewer.

    Raises:
        ConfigError: a setting is out of range or contradicts another, a prompt is empty or too
            long, or no text is possible; the message names the row, and the phrase that is missing,
            or why its constraint allows no token.
        NonFiniteError: logits are NaN or infinite.
    """
    vocabulary = jax.eval_shape(model.head, params).kernel.shape[0]
    check_value("max_new_tokens", max_new_tokens, Count)
    validate_beams(config)
    _check_number(config.beams, vocabulary, max_new_tokens)
    given = _padded_prompts(model, prompts, vocabulary, max_new_tokens)
    if settings is None:
        settings = off(len(prompts), vocabulary)
    check_settings(settings, (len(prompts), vocabulary), sample=config.sample)
    if matchers is not None:
        check_rows(settings, matchers, np.zeros(len(prompts), bool))
    phrases = phrases_of(
        [config.required] * len(prompts) if required is None else required,
        settings=settings,
        shape=(len(prompts), vocabulary),
        max_new_tokens=max_new_tokens,
    )
    form = BeamForm(
        beams=config.beams,
        groups=config.groups,
        sample=config.sample,
        keeps=_keeps(settings) if config.sample else (),
        cache_length=given.room,
        max_new_tokens=_rounded(max_new_tokens),
        order=order,
        own=own,
        passes=_passes(model, given.lengths, max_new_tokens),
    )
    of_search = _settings_of(config, len(prompts), phrases)
    settings = _with_most(settings, max_new_tokens)
    dead_ends: dict[int, str] = {}
    with _allocating(model, given, form):
        if matchers is None:
            out = _run(model, params, given.tokens, given.lengths, settings, of_search, form)
        else:
            out, dead_ends = search_constrained(
                model,
                Given(params, settings, of_search),
                given.tokens,
                given.lengths,
                form,
                matchers,
            )
        found = jax.device_get(out)
    _check_finite(found, params)
    _check_found(found, phrases, max_new_tokens, dead_ends)
    texts = [_hypotheses(found, row, config.returned) for row in range(len(prompts))]
    if matchers is None:
        return texts
    return [
        [_with_reason(text, matchers, row) for text in of_row] for row, of_row in enumerate(texts)
    ]


def _with_reason(text: Hypothesis, matchers: Matchers, row: int) -> Hypothesis:
    """The text; one that is complete has stopped, also at the most new tokens."""
    if text.finish_reason == "length" and is_complete(matchers, row, text.ids):
        return text._replace(finish_reason="stop")
    return text


def _with_most(settings: Settings, most: int) -> Settings:
    """``settings`` with at most ``most`` new tokens, and without weak types, for which the program
    would be compiled again.
    """
    max_new = jnp.minimum(settings.rules.max_new, most)
    settings = settings._replace(rules=settings.rules._replace(max_new=max_new))
    return jax.tree.map(lambda a: jnp.asarray(a, a.dtype), settings)


def _keeps(settings: Settings) -> tuple[int, ...]:
    """The values of ``program.kept`` that rows have."""
    return tuple(np.unique(kept(settings.rules.stop_ids)).tolist())


def _settings_of(config: BeamConfig, rows: int, phrases: Phrases | None) -> BeamSettings:
    """The settings of ``config`` as arrays [B]."""
    mode = EARLY_STOPPING.index(config.early_stopping)
    return BeamSettings(
        length_penalty=jnp.full((rows,), config.length_penalty, jnp.float32),
        early_stopping=jnp.full((rows,), mode, jnp.int32),
        diversity_penalty=jnp.full((rows,), config.diversity_penalty, jnp.float32),
        phrases=phrases,
    )


def _hypotheses(found: Found, row: int, returned: int) -> list[Hypothesis]:
    """The texts of a row as Python values."""
    texts = found.texts
    out = []
    for place in range(returned):
        score = float(texts.score[row, place])
        if score == -math.inf:
            break
        stopped = bool(texts.stopped[row, place])
        length = int(texts.length[row, place]) - stopped
        ids = texts.tokens[row, place, :length].tolist()
        out.append(Hypothesis(ids, score, "stop" if stopped else "length"))
    return out


def _check_finite(found: Found, params: Params) -> None:
    if found.failed.any():
        row = int(np.argmax(found.failed))
        raise NonFiniteError(
            f"row {row}: the logits of new token {int(found.steps)} are not finite (rows count from"
            f" 0, new tokens from 1); {cause(params)}"
        )


def _check_found(
    found: Found, phrases: Phrases | None, max_new_tokens: int, dead_ends: dict[int, str]
) -> None:
    """Raises ConfigError for a row without a text."""
    empty = np.flatnonzero(found.texts.score[:, 0] == -np.inf)
    if not empty.size:
        return
    row = int(empty[0])
    if phrases is not None and found.met is not None:
        lengths = np.asarray(phrases.lengths[row])
        missing = np.flatnonzero(~found.met[row] & (lengths.max(axis=1) > 0))
        if missing.size:
            phrase = int(missing[0])
            ids = np.asarray(phrases.ids[row, phrase, 0])
            raise ConfigError(
                f"row {row}: no text of at most {max_new_tokens} new tokens contains required"
                f" phrase {phrase}, {ids[ids >= 0].tolist()} (rows and phrases count from 0); raise"
                " max_new_tokens, allow its tokens, or require fewer phrases"
            )
    if dead_ends.get(row):
        raise ConfigError(f"row {row}: no token may come next: {dead_ends[row]}")
    raise ConfigError(
        f"row {row}: every continuation is banned before new token {int(found.steps)} (rows count"
        " from 0, new tokens from 1); allow more tokens"
    )


def _check_number(beams: int, vocabulary: int, most: int) -> None:
    """Raises ConfigError for more beams than there are texts."""
    # Of two tokens there are more texts of 32 than an int32 counts.
    texts = vocabulary ** min(most, 32)
    if beams > texts:
        raise ConfigError(
            f"beams is {beams}, and there are only {texts} texts of {most} new tokens from a"
            f" vocabulary of {vocabulary}; lower beams"
        )


def _padded_prompts(
    model: Model, prompts: Sequence[Sequence[int]], vocabulary: int, new: int
) -> Prompts:
    rows = [checked_ids(prompt, f"prompt {i}", vocabulary) for i, prompt in enumerate(prompts)]
    longest = max(map(len, rows), default=0)
    if longest == 0 or not all(map(len, rows)):
        raise ConfigError("a prompt is empty; begin it with the tokenizer's <s> at least")
    batch_of = partial(begins, model)
    if model.config.encoder is None:
        room = fit(longest, new, partial(model.init_cache, 1))
        width = padded(longest, room)
    else:
        start = batch_of(longest).inputs.ids.shape[1]
        room = fit(start, new, partial(model.init_cache, 1))
        width = fit(longest, 0, batch_of)
    return Prompts(*padded_rows(rows, width), room)


def _rounded(length: int) -> int:
    """The next multiple of ``BUCKET``."""
    return -(-length // BUCKET) * BUCKET


def _passes(model: Model, lengths: np.ndarray, new: int) -> bool:
    """Whether a text may pass the length at which rotations change while it is written."""
    switch = model.config.rope_switch
    # The last new token is not read.
    read = lengths + new - 1
    return bool(switch) and bool(np.any((lengths <= switch) & (read > switch)))


def _allocating(model: Model, given: Prompts, form: BeamForm) -> Any:
    """Turns a lack of memory into a ConfigError that names the rows and the cache's size."""
    rows = len(given.lengths) * form.beams
    encoder = {}
    if model.config.encoder is not None:
        encoder = {"encoder_length": given.tokens.shape[1]}
    cache = jax.eval_shape(partial(model.init_cache, rows, given.room, **encoder))
    size = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(cache))
    return allocating(
        f"{form.beams} beams of {len(given.lengths)} prompts, {given.room:,} tokens each, whose"
        f" cache takes {size / 2**30:,.2f} GiB",
        "give fewer or shorter prompts, or lower beams or max_new_tokens",
    )
