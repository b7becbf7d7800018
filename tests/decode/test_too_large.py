"""Caches that no machine has room for: every driver refuses them, and none waits for ever."""

from __future__ import annotations

import functools

import jax
import pytest

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.search import BeamConfig
from llm_jax.decode import Generator
from llm_jax.types import ConfigError

TOKENS = 2_000_000_000
MANY = DecodeConfig(max_new_tokens=TOKENS - 2)
PROMPT = [1, 2]


@functools.cache
def generator() -> Generator:
    small = {
        "vocab_size": 384,
        "num_layers": 1,
        "embed_dim": 64,
        "attention.num_heads": 1,
        "mlp.hidden_dim": 8,
        "max_length": 2**31 - 1,
    }
    model = models.build(override(ModelConfig(), small))
    return Generator(model, model.init(jax.random.key(0)))


def complete() -> None:
    generator().complete([PROMPT], MANY)


def stream() -> None:
    next(generator().stream(PROMPT, MANY))


def search() -> None:
    generator().search([PROMPT], MANY, BeamConfig(beams=1))


def constraint():
    pytest.importorskip("llguidance", reason="needs the extra: pip install -e '.[constrain]'")
    from constrained_rows import vocabulary_of

    from llm_jax.decode.constrain import Matchers, Regex, compile_constraint

    vocabulary = vocabulary_of("byte-level")
    return Matchers(vocabulary, [compile_constraint(Regex("(ab)*"), vocabulary)])


def complete_constrained() -> None:
    generator().complete_constrained([PROMPT], MANY, constraint(), stop_ids=[2])


def search_constrained() -> None:
    generator().search([PROMPT], MANY, BeamConfig(beams=1), matchers=constraint(), stop_ids=[2])


DRIVERS = (complete, stream, search, complete_constrained, search_constrained)


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.__name__)
def test_a_cache_of_more_than_the_machine_has_is_refused_with_its_size(driver):
    with pytest.raises(
        ConfigError, match=r"not enough memory for .*2,000,000,000 tokens.* 953\.67 GiB"
    ):
        driver()
