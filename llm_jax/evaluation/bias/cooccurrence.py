"""Co-occurrence of words for groups of people with target words, in any texts.

The log ratio is that of Bordia & Bowman (2019); PMI is that of Church & Hanks (1990).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.evaluation.significance.intervals import Interval, interval_of_sums
from llm_jax.evaluation.significance.sums import SEED, ItemSums
from llm_jax.types import ConfigError, DataError


class Cooccurrence(NamedTuple):
    """Counts of targets near words of groups.

    Attributes:
        groups: their names.
        targets: target words.
        near: [targets, groups], how often a target is within the window of a group's word.
        of_group: [groups], how many neighbours the words of each group have, whatever these are.
        of_target: [targets], how often each target occurs at all.
        words: number of words of all texts.
    """

    groups: tuple[str, ...]
    targets: tuple[str, ...]
    near: np.ndarray
    of_group: np.ndarray
    of_target: np.ndarray
    words: int


class AssociationBias(NamedTuple):
    """Which of two groups each target goes with.

    Attributes:
        log_ratio: [targets], log of P(target | first) / P(target | second) in nats; NaN where a
            count is 0 and nothing was added.
        mean: of the log ratios that exist.
        mean_absolute: mean size of those; 0 is unbiased.
        missing: targets without a log ratio.
    """

    log_ratio: np.ndarray
    mean: float
    mean_absolute: float
    missing: int


def cooccurrence(
    texts: Iterable[Sequence[str]],
    groups: Mapping[str, Iterable[str]],
    targets: Sequence[str],
    *,
    window: int = 10,
) -> Cooccurrence:
    """Counts targets within a window around the words of groups.

    A target counts once for each word of a group that has it within the window, on either side and
    inside one text.

    Args:
        texts: words of each text, as ``unicode_words`` gives them.
        groups: words of each group; no word may be of two.
        targets: words whose association is measured.
        window: words on each side.

    Raises:
        ConfigError: ``window`` is out of range.
        DataError: a word is of two groups, or a target is repeated or a word of a group.
    """
    if window < 1:
        raise ConfigError(f"window is {window}; it expects at least 1")
    group_of = _group_of(groups, targets)
    number = {target: at for at, target in enumerate(targets)}
    near = np.zeros((len(targets), len(groups)), np.int64)
    of_group = np.zeros(len(groups), np.int64)
    of_target = np.zeros(len(targets), np.int64)
    total = 0
    for words in texts:
        total += len(words)
        for at, word in enumerate(words):
            if word in number:
                of_target[number[word]] += 1
            if word not in group_of:
                continue
            group = group_of[word]
            around = [*words[max(0, at - window) : at], *words[at + 1 : at + 1 + window]]
            of_group[group] += len(around)
            for other in around:
                if other in number:
                    near[number[other], group] += 1
    return Cooccurrence(tuple(groups), tuple(targets), near, of_group, of_target, total)


def _group_of(groups: Mapping[str, Iterable[str]], targets: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for at, (name, words) in enumerate(groups.items()):
        for word in words:
            if found.get(word, at) != at:
                raise DataError(f"the word {word!r} of the group {name} is of another group too")
            found[word] = at
    if len(set(targets)) != len(targets) or not targets:
        raise DataError("targets are empty or repeat a word; give each of them once")
    shared = sorted(set(targets) & set(found))
    if shared:
        raise DataError(f"the targets {shared} are words of a group; leave them out of one")
    return found


def association_bias(
    counts: Cooccurrence, first: str, second: str, *, added: float = 0.0
) -> AssociationBias:
    """The log ratio of each target's frequency near the words of two groups.

    Args:
        counts: of ``cooccurrence``.
        first: name of a group; positive ratios go with it.
        second: name of the other.
        added: to each count of a target, against counts of 0; 0 leaves such targets missing.

    Raises:
        ConfigError: ``added`` is negative.
        DataError: there is no such group, or its words have no neighbours, or no target has a
            ratio.
    """
    if added < 0:
        raise ConfigError(f"added is {added}; it expects 0 or more")
    one, other = (_frequency(counts, name, added) for name in (first, second))
    known = (one > 0) & (other > 0)
    if not known.any():
        raise DataError(
            f"no target occurs near words of both {first} and {second}; give more text or more"
            " targets"
        )
    ratio = np.full(len(one), np.nan)
    ratio[known] = np.log(one[known] / other[known])
    return AssociationBias(
        log_ratio=ratio,
        mean=float(ratio[known].mean()),
        mean_absolute=float(np.abs(ratio[known]).mean()),
        missing=int((~known).sum()),
    )


def association_interval(
    texts: Sequence[Sequence[str]],
    groups: Mapping[str, Iterable[str]],
    targets: Sequence[str],
    *,
    window: int = 10,
    added: float = 0.5,
    resamples: int = 1000,
    seed: int = SEED,
) -> Interval:
    """The mean size of the log ratios of two groups, with its interval over texts.

    Args:
        texts: words of each.
        groups: words of the two groups.
        targets: words whose association is measured.
        window: words on each side.
        added: to each count of a target; above 0, so that every resample has every ratio.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ConfigError: an option is out of range.
        DataError: there are not two groups; as ``cooccurrence``; or the words of a group have no
            neighbours in some resample.
    """
    if added <= 0:
        raise ConfigError(f"added is {added}; it expects more than 0")
    if len(groups) != 2:
        raise DataError(f"there are {len(groups)} groups ({', '.join(groups)}); two are expected")
    rows = []
    for text in texts:
        counts = cooccurrence([text], groups, targets, window=window)
        rows.append(np.concatenate([counts.near.T.ravel(), counts.of_group]))
    size = len(targets)

    def mean_absolute(sums: np.ndarray) -> float:
        if not sums[-2:].all():
            return float("nan")
        near = sums[:-2].reshape(2, size) + added
        first, second = near / (sums[-2:, None] + added * size)
        return float(np.abs(np.log(first / second)).mean())

    sums = ItemSums(np.array(rows, np.int64).reshape(-1, 2 * size + 2), mean_absolute)
    return interval_of_sums(sums, resamples=resamples, seed=seed)


def _frequency(counts: Cooccurrence, name: str, added: float) -> np.ndarray:
    if name not in counts.groups:
        raise DataError(f"there is no group {name!r}; there are {', '.join(counts.groups)}")
    at = counts.groups.index(name)
    if not counts.of_group[at]:
        raise DataError(f"the words of the group {name} have no neighbours in the texts")
    return (counts.near[:, at] + added) / (counts.of_group[at] + added * len(counts.targets))


def pointwise_information(counts: Cooccurrence) -> np.ndarray:
    """PMI (nats) of each target with each group: [targets, groups].

    log of P(target near the group) / P(target). NaN where the target never occurs near the group:
    the limit of minus infinity says little of a small count.
    """
    of_group = np.maximum(counts.of_group, 1)
    near = counts.near / of_group
    overall = counts.of_target[:, None] / max(counts.words, 1)
    known = (counts.near > 0) & (overall > 0)
    found = np.full(near.shape, np.nan)
    found[known] = np.log((near / np.where(overall > 0, overall, 1.0))[known])
    return found
