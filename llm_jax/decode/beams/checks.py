"""What a search is asked for beside its config, checked: settings of each row, required phrases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from llm_jax.decode.beams.phrases import Phrases
from llm_jax.decode.inputs import checked_ids
from llm_jax.ops.sampling.settings import Settings, off
from llm_jax.types import ConfigError

Required = Sequence[Sequence[Sequence[Sequence[int]]]]


def check_settings(settings: Settings, shape: tuple[int, int], *, sample: bool) -> None:
    """Checks the settings of rows against the search.

    Args:
        settings: of each prompt.
        shape: B and V.
        sample: whether continuations are drawn.

    Raises:
        ConfigError: they are of another shape, or beam search would not follow one of them.
    """
    if settings.rules.bias.shape != shape:
        raise ConfigError(
            f"settings are for {settings.rules.bias.shape} rows and tokens; this call has {shape}"
        )
    guided = np.flatnonzero(np.asarray(settings.guidance) != 1)
    if guided.size:
        row = int(guided[0])
        raise ConfigError(
            f"row {row}: guidance is {float(settings.guidance[row])}; beam search has no"
            " unconditional row, so set guidance to 1"
        )
    temperature = np.asarray(settings.filters.temperature)
    cold = np.flatnonzero(temperature == 0)
    if sample and cold.size:
        raise ConfigError(
            f"row {cold[0]}: temperature is 0 and sample is set; a temperature of 0 draws nothing,"
            " so raise it, or unset sample"
        )
    if not sample:
        _check_no_filters(settings)


def _check_no_filters(settings: Settings) -> None:
    """Raises ConfigError for a filter that is on, since only drawing reads filters."""
    rows = settings.rules.bias.shape[0]
    neutral = off(rows, 1).filters
    for name, value, none in zip(neutral._fields, settings.filters, neutral):
        given = np.asarray(value)
        is_on = given != np.asarray(none)
        if name == "temperature":
            # A temperature of 0 asks for the most likely text, which is what a search finds.
            is_on &= given != 0
        if is_on.any():
            row = int(np.argmax(is_on))
            raise ConfigError(
                f"row {row}: {name} is {given[row].item()} and sample is not set; beam search reads"
                f" it only where it draws, so set sample, or leave {name} out"
            )


def phrases_of(
    required: Required, *, settings: Settings, shape: tuple[int, int], max_new_tokens: int
) -> Phrases | None:
    """Required phrases as arrays; None where no row has any.

    Args:
        required: for each row its phrases, for each phrase its alternatives.
        settings: of each row.
        shape: B and V.
        max_new_tokens: most new tokens.

    Raises:
        ConfigError: phrases are not one list for each row, a phrase or an alternative is empty or
            comes twice, has an id that the model does not have, or can be in no text.
    """
    rows, vocabulary = shape
    if len(required) != rows:
        raise ConfigError(
            f"{len(required)} lists of required phrases for {rows} prompts; give one each"
        )
    checked = [_checked(phrases, row, vocabulary) for row, phrases in enumerate(required)]
    if not any(checked):
        return None
    stop_ids = np.asarray(settings.rules.stop_ids)
    most = np.minimum(np.asarray(settings.rules.max_new), max_new_tokens)
    for row, phrases in enumerate(checked):
        _check_possible(phrases, row, stop_ids[row], int(most[row]))
    alternatives = [
        alternative for phrases in checked for phrase in phrases for alternative in phrase
    ]
    # Powers of two, so that few shapes are compiled.
    number = _power_of_two(map(len, checked))
    choices = _power_of_two(len(phrase) for phrases in checked for phrase in phrases)
    width = _power_of_two(map(len, alternatives))
    ids = np.full((rows, number, choices, width), -1, np.int32)
    for row, phrases in enumerate(checked):
        for i, phrase in enumerate(phrases):
            for j, alternative in enumerate(phrase):
                ids[row, i, j, : len(alternative)] = alternative
    return Phrases(jnp.asarray(ids))


def _power_of_two(sizes: Iterable[int]) -> int:
    """The smallest that is not below any of the sizes."""
    return 1 << (max(sizes) - 1).bit_length()


def _checked(
    phrases: Sequence[Sequence[Sequence[int]]], row: int, vocabulary: int
) -> list[list[np.ndarray]]:
    """The phrases of a row as arrays."""
    out = []
    seen: dict[tuple, int] = {}
    for i, phrase in enumerate(phrases):
        name = f"required phrase {i} of row {row}"
        if len(phrase) == 0:
            raise ConfigError(f"{name} has no alternatives; leave it out, or give token ids")
        alternatives = []
        for alternative in phrase:
            ids = checked_ids(alternative, name, vocabulary)
            if ids.size == 0:
                raise ConfigError(f"{name} has an alternative without tokens; leave it out")
            alternatives.append(ids)
        key = tuple(sorted(tuple(ids.tolist()) for ids in alternatives))
        if key in seen:
            raise ConfigError(f"{name} is the same as phrase {seen[key]}; give it once")
        seen[key] = i
        out.append(alternatives)
    return out


def _check_possible(
    phrases: list[list[np.ndarray]], row: int, stop_ids: np.ndarray, most: int
) -> None:
    """Raises ConfigError for a phrase that no text of the row can contain."""
    for i, phrase in enumerate(phrases):
        name = f"required phrase {i} of row {row}"
        shortest = min(map(len, phrase))
        if shortest > most:
            raise ConfigError(
                f"{name} has {shortest} tokens, and a text at most {most} new ones; raise"
                " max_new_tokens"
            )
        for alternative in phrase:
            stops = np.intersect1d(alternative, stop_ids)
            if stops.size:
                raise ConfigError(
                    f"{name} has the stop id {stops[0]}, which ends a text; leave it out"
                )
