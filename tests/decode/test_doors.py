"""What generation accepts: token ids, stops, seeds and settings, each checked where it comes in."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.validate_decode import validate_decode
from llm_jax.decode import Generator
from llm_jax.ops import row_keys
from llm_jax.types import ConfigError

CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": 61,
        "num_layers": 1,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 64,
        "init_std": 0.3,
    },
)
PROMPT = [1, 2, 3]
GREEDY = DecodeConfig(max_new_tokens=8, temperature=0.0)
DRAWN = DecodeConfig(max_new_tokens=8)


MODEL = models.build(CONFIG)


@pytest.fixture(scope="module")
def params():
    return random_parameters(MODEL)


@pytest.fixture(scope="module")
def generator(params):
    return Generator(MODEL, params)


def test_stops_of_the_constructor_hold_in_every_call(generator, params):
    free = generator.generate([PROMPT], GREEDY)[0]
    stop, other = free[3], free[1]
    stopping = Generator(MODEL, params, stop_ids=[stop])
    until = free[: free.index(stop)]
    assert stopping.generate([PROMPT], GREEDY) == [until]
    assert list(stopping.stream(PROMPT, GREEDY)) == until
    # A call's own take their place; none at all is a choice, too.
    assert stopping.generate([PROMPT], GREEDY, stop_ids=()) == [free]
    assert list(stopping.stream(PROMPT, GREEDY, stop_ids=[])) == free
    assert stopping.generate([PROMPT], GREEDY, stop_ids=[other]) == [free[: free.index(other)]]


BAD_IDS = {
    "below": ([1, -1], r"has -1 at place 1; this model has the ids 0 to 60"),
    "beyond": ([61], r"has 61 at place 0; this model has the ids 0 to 60"),
    "far beyond": ([2**63], r"has 9223372036854775808 at place 0; this"),
    "longer than any type": ([2**70], ".*must be a sequence of whole numbers"),
    "a fraction": ([1, 2.0], r"is \[1, 2.0\]; it must be a sequence of whole numbers"),
    "not a number": ([float("nan")], ".*must be a sequence of whole numbers"),
    "text": ("abc", "is abc; it must be a sequence of whole numbers"),
    "truth values": ([True], ".*must be a sequence of whole numbers"),
    "rows": ([[1], [2]], ".*must be a sequence of whole numbers"),
    "ragged rows": ([[1], [2, 3]], ".*must be a sequence of whole numbers"),
}


@pytest.mark.parametrize("ids, message", BAD_IDS.values(), ids=BAD_IDS)
def test_what_is_no_id_is_refused_at_every_door(generator, params, ids, message):
    with pytest.raises(ConfigError, match=f"^prompt 1 {message}"):
        generator.generate([PROMPT, ids], GREEDY)
    with pytest.raises(ConfigError, match=f"^prompt 0 {message}"):
        generator.stream(ids, GREEDY)
    for call in (
        lambda: generator.generate([PROMPT], GREEDY, stop_ids=ids),
        lambda: generator.stream(PROMPT, GREEDY, stop_ids=ids),
        lambda: Generator(MODEL, params, stop_ids=ids),
    ):
        with pytest.raises(ConfigError, match=f"^stop_ids {message}"):
            call()


def test_ids_may_be_of_any_whole_type(generator):
    wanted = generator.generate([PROMPT], GREEDY)
    for kind in (np.int64, np.uint16):
        assert generator.generate([np.array(PROMPT, kind)], GREEDY) == wanted
    assert generator.generate(np.array([PROMPT]), GREEDY) == wanted
    assert generator.generate([[0, 60]], GREEDY) != wanted


def test_seeds_are_of_64_bits(generator):
    seeds = [5, 5 + 2**32, 5 + 2**33, 2**64 - 1, 2**32 - 1, 5]
    texts = generator.generate([PROMPT] * 6, DRAWN, seeds=seeds)
    assert texts[0] == texts[5]
    assert len({tuple(text) for text in texts}) == 5
    top = dataclasses.replace(DRAWN, seed=2**64 - 1)
    assert generator.generate([PROMPT], top) == [texts[3]]
    assert list(generator.stream(PROMPT, top)) == texts[3]


def test_seeds_of_32_bits_give_the_keys_that_they_gave():
    seeds, positions = np.array([0, 5, 2**32 - 1], np.uint32), np.array([7, 8, 9])
    wanted = [jax.random.fold_in(jax.random.key(s), p) for s, p in zip(seeds, positions)]
    data = [jax.random.key_data(key) for key in wanted]
    halves = jnp.stack([jnp.zeros(3, jnp.uint32), jnp.asarray(seeds)], axis=1)
    np.testing.assert_array_equal(jax.random.key_data(row_keys(seeds, positions)), data)
    np.testing.assert_array_equal(jax.random.key_data(row_keys(halves, positions)), data)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, None, "1"])
def test_other_seeds_are_refused(generator, seed):
    with pytest.raises(ConfigError, match="the seed of row 1 is .*; it must be "):
        generator.generate([PROMPT] * 2, DRAWN, seeds=[0, seed])
    with pytest.raises(ConfigError, match="^seed is "):
        generator.generate([PROMPT], dataclasses.replace(DRAWN, seed=seed))


def test_a_seed_whose_rows_would_pass_64_bits_is_refused(generator):
    with pytest.raises(ConfigError, match="the seed of row 1 is 18446744073709551616"):
        generator.generate([PROMPT] * 2, dataclasses.replace(DRAWN, seed=2**64 - 1))


BAD_SETTINGS = [
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": float("inf")}, "temperature is inf"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"temperature": 1e-40}, "temperature is 1e-40; it must be 0 .*at least 1e-06"),
    ({"top_p": float("nan")}, "top_p is nan"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"min_p": float("nan")}, "min_p is nan"),
    ({"min_p": 1.1}, "min_p is 1.1"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_k": 2**31}, "top_k is 2147483648"),
    ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0; it must be a whole number"),
    ({"max_new_tokens": 2**31}, "at most 2147483647"),
    ({"max_new_tokens": True}, "max_new_tokens is True"),
    ({"order": "best"}, "order is 'best'; use hf or vllm"),
]


@pytest.mark.parametrize("more, message", BAD_SETTINGS)
def test_settings_outside_their_range_are_refused(generator, more, message):
    config = dataclasses.replace(GREEDY, **more)
    with pytest.raises(ConfigError, match=message):
        validate_decode(config)
    for call in (
        lambda: generator.generate([PROMPT], config),
        lambda: generator.stream(PROMPT, config),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_the_ends_of_the_ranges_are_within_them(generator):
    low = DecodeConfig(max_new_tokens=1, temperature=1e-6, top_k=0, top_p=1e-9, min_p=0.0)
    high = DecodeConfig(max_new_tokens=1, temperature=1e30, top_k=2**31 - 1, top_p=1.0, min_p=1.0)
    for config in (low, high):
        assert 0 <= generator.generate([PROMPT], config)[0][0] < 61
