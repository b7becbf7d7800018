"""WEAT (Caliskan et al. 2017) and SEAT (May et al. 2019): associations in any embeddings.

SEAT is the same test with embeddings of sentences such as "This is a rose.".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from llm_jax.evaluation.bias.records import read_json
from llm_jax.evaluation.significance.sums import SEED
from llm_jax.types import Array, ConfigError, DataError

Deviation = Literal["sample", "population"]
# Sums of the same associations in another order differ by rounding.
_ROUNDING = 1e-12
# Partitions drawn at once.
_BLOCK = 10_000
_SETS = ("first_target", "second_target", "first_attribute", "second_attribute")


class WordSet(NamedTuple):
    """Words of one kind, such as flowers."""

    name: str
    words: tuple[str, ...]


class WeatTest(NamedTuple):
    """Two sets of targets and two of attributes."""

    first_target: WordSet
    second_target: WordSet
    first_attribute: WordSet
    second_attribute: WordSet

    @property
    def name(self) -> str:
        targets = f"{self.first_target.name}/{self.second_target.name}"
        return f"{targets} with {self.first_attribute.name}/{self.second_attribute.name}"


class WeatResult(NamedTuple):
    """Whether two sets of targets differ in their association with two sets of attributes.

    Attributes:
        effect_size: difference of mean associations over their standard deviation, -2 to 2;
            positive where the first targets go with the first attributes.
        p_value: one-sided: the share of partitions of the targets whose statistic is at least the
            measured one.
        exact: all partitions were counted; otherwise seeded samples of them.
        partitions: their number.
        statistic: sum of associations of the first targets minus those of the second.
    """

    effect_size: float
    p_value: float
    exact: bool
    partitions: int
    statistic: float


class Embedded(NamedTuple):
    """The embeddings of a test's words.

    Attributes:
        sets: [words, D] of both targets, then of both attributes.
        missing: words without an embedding, by the name of their set; they are left out.
    """

    sets: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    missing: dict[str, list[str]]


def read_weat(path: str | Path) -> list[WeatTest]:
    """Tests of a JSON file: a list of objects with first_target, second_target, first_attribute and
    second_attribute, each with name, words and maybe remove (words to leave out).

    Raises:
        DataError: a set is missing or has no words.
    """
    value = read_json(path)
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: a list of tests is expected")
    return [
        WeatTest(*(_word_set(f"{path}, test {number}", each, name) for name in _SETS))
        for number, each in enumerate(value, 1)
    ]


def _word_set(where: str, test: Any, name: str) -> WordSet:
    found = test.get(name) if isinstance(test, dict) else None
    if not isinstance(found, dict) or not found.get("words") or not found.get("name"):
        raise DataError(f"{where}: {name} is {found!r}; a name and words are expected")
    dropped = set(found.get("remove", ()))
    return WordSet(found["name"], tuple(word for word in found["words"] if word not in dropped))


def embed_words(test: WeatTest, vectors: Mapping[str, Array]) -> Embedded:
    """The embeddings of a test's words, without the words that have none.

    Raises:
        DataError: fewer than two words of a set have an embedding.
    """
    missing: dict[str, list[str]] = {}
    arrays = []
    for words in test:
        known = [word for word in words.words if word in vectors]
        missing[words.name] = [word for word in words.words if word not in vectors]
        if len(known) < 2:
            raise DataError(
                f"{len(known)} of the {len(words.words)} words of {words.name} have an embedding;"
                " two at least are expected"
            )
        arrays.append(np.stack([np.asarray(vectors[word], np.float64) for word in known]))
    return Embedded((arrays[0], arrays[1], arrays[2], arrays[3]), missing)


def embed_sentences(test: WeatTest, vectors: Mapping[str, Array], template: str) -> Embedded:
    """SEAT: the embeddings of the sentences that ``template`` makes of the words.

    Args:
        test: whose words are put in.
        vectors: embedding of each sentence.
        template: such as ``This is {}.``

    Raises:
        ConfigError: the template has no place for the word.
        DataError: fewer than two sentences of a set have an embedding.
    """
    return embed_words(sentences_of(test, template), vectors)


def sentences_of(test: WeatTest, template: str) -> WeatTest:
    """The test with a sentence for each word: what an encoder is to embed.

    Raises:
        ConfigError: the template has no place for the word.
    """
    if template.count("{}") != 1:
        raise ConfigError(f"template is {template!r}; it expects one {{}} for the word")
    return WeatTest(
        *(
            WordSet(each.name, tuple(template.replace("{}", word) for word in each.words))
            for each in test
        )
    )


def weat(
    sets: Sequence[Array],
    *,
    samples: int = 100_000,
    exact_up_to: int = 200_000,
    deviation: Deviation = "sample",
    seed: int = SEED,
) -> WeatResult:
    """The association test on embeddings.

    The association of a target is its mean cosine with the first attributes minus that with the
    second.

    Args:
        sets: [words, D] of the first and second targets and the first and second attributes.
        samples: partitions drawn where there are too many to count.
        exact_up_to: largest number of partitions that are all counted.
        deviation: of the effect size: ``sample`` divides by n - 1, ``population`` by n.
        seed: of the samples.

    Raises:
        ConfigError: an option is out of range.
        DataError: a set is empty, has a vector of length 0, or values that are not finite; or all
            associations are equal.
    """
    if len(sets) != 4:
        raise DataError(
            f"there are {len(sets)} sets; two of targets and two of attributes expected"
        )
    if deviation not in get_args(Deviation):
        raise ConfigError(f"deviation is {deviation!r}; it expects sample or population")
    if samples < 1:
        raise ConfigError(f"samples is {samples}; it expects at least 1")
    unit = [_unit(name, each) for name, each in zip(_SETS, sets, strict=True)]
    first = _associations(unit[0], unit[2], unit[3])
    second = _associations(unit[1], unit[2], unit[3])
    both = np.concatenate([first, second])
    spread = both.std(ddof=int(deviation == "sample")) if len(both) > 2 else 0.0
    if spread <= _ROUNDING:
        raise DataError(
            "all targets have the same association with the attributes; there is no effect to"
            " measure"
        )
    total = comb(len(both), len(first))
    exact = total <= exact_up_to
    if exact:
        larger, tried = _count_all(both, len(first)), total
        p_value = larger / tried
    else:
        larger, tried = _count_sampled(both, len(first), samples, seed), samples
        # The measured partition is one of the possible ones.
        p_value = (larger + 1) / (tried + 1)
    return WeatResult(
        effect_size=float((first.mean() - second.mean()) / spread),
        p_value=p_value,
        exact=exact,
        partitions=tried,
        statistic=float(first.sum() - second.sum()),
    )


def _unit(name: str, vectors: Array) -> np.ndarray:
    array = np.asarray(vectors, np.float64)
    if array.ndim != 2 or not len(array):
        raise DataError(f"{name} has the shape {array.shape}; [words, D] is expected")
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    wrong = ~(np.isfinite(lengths) & (lengths > 0))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"{name}[{at}] has the length {lengths[at, 0]}; a vector with a direction is expected"
        )
    return array / lengths


def _associations(targets: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (targets @ first.T).mean(axis=1) - (targets @ second.T).mean(axis=1)


def _count_all(both: np.ndarray, size: int) -> int:
    least = both[:size].sum() - _ROUNDING
    parts = combinations(range(len(both)), size)
    # The total is the same for all partitions, so the sum of one part orders their statistics.
    return sum(bool(both[list(part)].sum() >= least) for part in parts)


def _count_sampled(both: np.ndarray, size: int, samples: int, seed: int) -> int:
    rng = np.random.default_rng(seed)
    least = both[:size].sum() - _ROUNDING
    larger = 0
    for start in range(0, samples, _BLOCK):
        rows = np.tile(both, (min(_BLOCK, samples - start), 1))
        sums = rng.permuted(rows, axis=1)[:, :size].sum(axis=1)
        larger += int((sums >= least).sum())
    return larger
