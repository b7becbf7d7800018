"""With one decode shape, a request's tokens and log-probabilities are the same to the bit alone and
in any batch, in any slot, and beside rows that finish early.
"""

import dataclasses

import numpy as np
import pytest
from compile_counts import nothing_compiled
from pairwise import parametrize
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.decode import PenaltyConfig, StopConfig
from llm_jax.decode import Generator
from llm_jax.decode.fixed_shape import DecodeShape
from llm_jax.decode.requests import Wanted
from llm_jax.types import ConfigError

V = 509
CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": V,
        "num_layers": 2,
        "embed_dim": 96,
        "attention.num_heads": 6,
        "attention.num_kv_heads": 3,
        "attention.window_pattern": (24, 0),
        "mlp.hidden_dim": 160,
        "max_length": 256,
        "init_std": 0.2,
    },
)
SHAPE = DecodeShape(rows=8, length=128, chunk=16)
WANTED = Wanted(logprobs=2)
DRAWN = DecodeConfig(max_new_tokens=6, seed=7)
KINDS = [
    DRAWN,
    dataclasses.replace(DRAWN, temperature=0.0),
    dataclasses.replace(DRAWN, top_p=0.8, penalties=PenaltyConfig(repetition_penalty=1.3)),
]


@pytest.fixture(scope="module")
def generator():
    model = models.build(CONFIG)
    return Generator(model, random_parameters(model), shape=SHAPE)


def others(number):
    """Requests of many lengths; some finish at once."""
    rng = np.random.default_rng(number)
    prompts = [rng.integers(0, V, rng.integers(1, 90)).tolist() for _ in range(number)]
    lengths = rng.integers(1, 24, number)
    configs = [
        dataclasses.replace(
            DRAWN,
            max_new_tokens=int(n),
            temperature=float(rng.choice([0.0, 0.7, 1.0])),
            stops=StopConfig(stop_ids=tuple(range(0, V, 3)) if i % 3 == 0 else ()),
        )
        for i, n in enumerate(lengths)
    ]
    return prompts, configs


@parametrize("length", [[1], [16], [37]], by_default=[[37]])
def test_a_request_is_the_same_to_the_bit_in_any_batch(generator, length):
    prompt = np.random.default_rng(length).integers(0, V, length).tolist()
    for config in KINDS:
        ((alone,),) = generator.complete([prompt], config, WANTED, seeds=[7])
        for rows in (2, 4, 7, 64):
            prompts, configs = others(rows)
            slots = {0, rows - 1, rows // 2}
            for slot in slots:
                prompts[slot] = prompt
                configs[slot] = config
            seeds = [7 if i in slots else i for i in range(rows)]
            found = generator.complete(prompts, configs, WANTED, seeds=seeds)
            for slot in slots:
                assert found[slot] == [alone]


def test_it_is_what_other_shapes_give_within_rounding(generator):
    prompts, configs = others(5)
    free = Generator(generator.model, random_parameters(generator.model))
    ours = generator.complete(prompts, configs, WANTED)
    theirs = free.complete(prompts, configs, WANTED)
    for (one,), (other,) in zip(ours, theirs):
        assert one.ids == other.ids
        for a, b in zip(one.scores, other.scores):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_a_stream_and_samples_have_the_same_bits(generator):
    prompt = [1, 2, 3]
    ((alone,),) = generator.complete([prompt], DRAWN, WANTED)
    assert tuple(generator.stream_scored(prompt, DRAWN, WANTED)) == alone.scores
    (samples,) = generator.complete([prompt], DRAWN, WANTED._replace(samples=3))
    apart = generator.complete([prompt] * 3, DRAWN, WANTED, seeds=[7, 8, 9])
    assert samples == [only for (only,) in apart]


def test_one_program_serves_every_batch(generator):
    generator.generate([[1]], DRAWN)
    prompts, configs = others(11)
    plain = [dataclasses.replace(c, stops=StopConfig()) for c in configs]
    with nothing_compiled():
        generator.generate(prompts, plain)


def test_rows_with_guidance_run_beside_others(generator):
    guided = dataclasses.replace(DRAWN, guidance_scale=2.0)
    both = generator.generate([[1, 2], [3, 4]], [guided, DRAWN], seeds=[7, 7])
    assert both == [
        generator.generate([[1, 2]], guided, seeds=[7])[0],
        generator.generate([[3, 4]], DRAWN, seeds=[7])[0],
    ]


def test_shapes_that_cannot_be_are_refused(generator):
    model, params = generator.model, random_parameters(generator.model)
    for shape, message in (
        (DecodeShape(rows=1, length=64), "shape.rows is 1; a product of one row"),
        (DecodeShape(rows=8, length=257), "shape.length is 257, and the model's max_length 256"),
        (DecodeShape(rows=8, length=64, chunk=0), "shape.chunk is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            Generator(model, params, shape=shape)
    with pytest.raises(ConfigError, match=r"prompt of 123 tokens .* do not fit shape.length 128"):
        generator.generate([[1] * 123], DRAWN)
