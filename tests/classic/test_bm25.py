"""BM25 against its formula, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llm_jax.classic import learn_bm25
from llm_jax.types import ConfigError

DOCUMENTS = ["the cat sat", "the dog and the cat", "a bird"]
LENGTHS = [3, 5, 2]


def of_word(document: int, count: int, having: int, k1: float, b: float) -> float:
    idf = math.log(1 + (3 - having + 0.5) / (having + 0.5))
    length = LENGTHS[document] / (sum(LENGTHS) / 3)
    return idf * count * (k1 + 1) / (count + k1 * (1 - b + b * length))


@pytest.mark.parametrize("k1, b", [(1.2, 0.75), (0.5, 0.0)])
def test_scores_are_those_of_the_formula(k1, b):
    found = learn_bm25(DOCUMENTS, k1, b).scores(["the cat", "bird bird", "unknown"])
    the = [of_word(0, 1, 2, k1, b), of_word(1, 2, 2, k1, b), 0]
    cat = [of_word(0, 1, 2, k1, b), of_word(1, 1, 2, k1, b), 0]
    bird = [0, 0, 2 * of_word(2, 1, 1, k1, b)]
    np.testing.assert_allclose(found, [np.add(the, cat), bird, [0, 0, 0]], rtol=1e-12)


def test_settings_out_of_range_are_refused():
    for settings in ((-1.0, 0.5), (1.0, 1.5)):
        with pytest.raises(ConfigError, match="k1 must be at least 0, and b from 0 to 1"):
            learn_bm25(DOCUMENTS, *settings)
