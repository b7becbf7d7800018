"""Canaries: random texts put into training data, and how exposed they are (Carlini et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import NamedTuple

import numpy as np

from llm_jax.evaluation.significance.sums import SEED
from llm_jax.types import ConfigError, DataError

_PLACE = "{}"


class Canaries(NamedTuple):
    """Random texts of one form.

    Attributes:
        inserted: to put into the training data.
        references: of the same form, never to be trained on.
        space: number of texts of this form.
    """

    inserted: list[str]
    references: list[str]
    space: int


class Exposure(NamedTuple):
    """How exposed a canary is.

    Attributes:
        rank: of its loss among its own and those of the references; 1 is the lowest.
        exposure: log2 of the number of candidates minus log2 of the rank, in bits. About 1.44 in
            the mean where the canary was not memorized; ``most`` where no reference is likelier.
        most: largest possible exposure.
    """

    rank: int
    exposure: float
    most: float


def make_canaries(
    template: str,
    *,
    inserted: int = 1,
    references: int = 1023,
    alphabet: str = "0123456789",
    length: int = 9,
    seed: int = SEED,
) -> Canaries:
    """Different random texts: the template with random characters in its place.

    Args:
        template: with ``{}`` for the random part, such as ``The number is {}.``
        inserted: number of canaries.
        references: number of texts to compare with.
        alphabet: characters of the random part.
        length: their number.
        seed: of the choice.

    Raises:
        ConfigError: the template has no place, or there are fewer texts of this form than wanted.
    """
    if template.count(_PLACE) != 1:
        raise ConfigError(f"template is {template!r}; it expects one {_PLACE} for the random part")
    if len(set(alphabet)) != len(alphabet) or len(alphabet) < 2:
        raise ConfigError(f"alphabet is {alphabet!r}; it expects two or more different characters")
    if inserted < 1 or references < 1 or length < 1:
        raise ConfigError(
            f"inserted is {inserted}, references {references} and length {length}; each expects at"
            " least 1"
        )
    space = len(alphabet) ** length
    wanted = inserted + references
    if wanted > space:
        raise ConfigError(
            f"there are {space} texts of {length} characters of {alphabet!r}, and"
            f" inserted + references is {wanted}; raise length"
        )
    rng = np.random.default_rng(seed)
    chosen: dict[str, None] = {}
    while len(chosen) < wanted:
        drawn = rng.integers(len(alphabet), size=length)
        chosen["".join(alphabet[at] for at in drawn)] = None
    texts = [template.replace(_PLACE, part) for part in chosen]
    return Canaries(texts[:inserted], texts[inserted:], space)


def exposure(canary: float, references: Sequence[float] | np.ndarray) -> Exposure:
    """Exposure of a canary by the rank of its loss.

    Exact where the references are all other texts of the form; of a random part of them it is an
    estimate that cannot exceed log2 of their number.

    Args:
        canary: loss of the canary (nats; the sum over tokens, or the mean of texts of one length).
        references: losses of texts of the same form that were not trained on. One as low as the
            canary's ranks before it.

    Raises:
        DataError: there are no references, or a loss is NaN or infinite.
    """
    others = np.asarray(references, np.float64)
    if others.ndim != 1 or not len(others):
        raise DataError(f"references have the shape {others.shape}; losses [N] are expected")
    if not np.isfinite(canary) or not np.isfinite(others).all():
        raise DataError("a loss of the canary or of a reference is NaN or infinite")
    rank = 1 + int((others <= canary).sum())
    most = log2(len(others) + 1)
    return Exposure(rank, most - log2(rank), most)
