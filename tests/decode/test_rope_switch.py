"""Generation beyond the length at which a model's rotations change: token by token what full
forward passes say.
"""

import dataclasses

import jax
import numpy as np
import pytest
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import DecodeConfig, MeshConfig, ModelConfig, override
from llm_jax.decode import Generator
from llm_jax.decode.parity import check_parity
from llm_jax.models import rows_of
from llm_jax.sharding import make_mesh

SWITCH = 16
CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": 62,
        "num_layers": 2,
        "embed_dim": 32,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 48,
        "max_length": 128,
        "init_std": 0.3,
        "positions.scaling": "longrope",
        "positions.scaling.factor": 8.0,
        "positions.scaling.original_length": SWITCH,
        "positions.scaling.factors": (1.0, 2.0, 4.0, 8.0),
        "positions.scaling.short_factors": (1.0, 1.05, 1.1, 1.2),
        "embedding.tied": False,
    },
)
MODEL = models.build(CONFIG)
NEW = 8
GREEDY = DecodeConfig(max_new_tokens=NEW, temperature=0.0)
DRAWN = DecodeConfig(max_new_tokens=NEW)
# Rows that pass in the middle, at the first and at the last token that is read, rows that never do,
# and some that are beyond.
LENGTHS = [12, SWITCH, SWITCH - NEW + 2, SWITCH - NEW + 1, SWITCH + 1, 3, 13, 30]
PROMPTS = [np.random.default_rng(n).integers(0, 62, n).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def params():
    return random_parameters(MODEL)


@pytest.fixture(scope="module")
def generator(params):
    return Generator(MODEL, params)


FORWARD = jax.jit(lambda p, b: MODEL.logits(p, MODEL.apply(p, b).hidden))


def most_likely(params, row):
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, : len(row)] = row
    return int(FORWARD(params, rows_of(tokens, np.array([len(row)])))[0, len(row) - 1].argmax())


def test_every_token_is_the_full_forward_s(generator, params):
    written = generator.generate(PROMPTS, GREEDY)
    for prompt, new in zip(PROMPTS, written):
        row = list(prompt)
        for _ in range(NEW):
            row.append(most_likely(params, row))
        assert [*prompt, *new] == row


def test_a_stream_and_a_row_alone_are_the_row_of_the_batch(generator):
    for config in (GREEDY, DRAWN):
        together = generator.generate(PROMPTS, config, seeds=[7] * len(PROMPTS))
        alone = dataclasses.replace(config, seed=7)
        for prompt, new in zip(PROMPTS, together):
            assert list(generator.stream(prompt, alone)) == new
        assert generator.generate(PROMPTS[:1], alone) == together[:1]


def test_only_calls_that_pass_have_the_program_for_it(generator):
    lengths = np.array(LENGTHS)
    passes = [
        generator._calls._passes(lengths[i : i + 1], NEW, MODEL.config.rope_switch)
        for i in range(len(LENGTHS))
    ]
    assert passes == [True, True, True, False, False, False, True, False]


@pytest.mark.slow
def test_parity_goes_over_the_switch(params):
    """Against forward passes of rows up to it and of whole rows."""
    model = models.build(dataclasses.replace(CONFIG, init_std=0.1))
    params = random_parameters(model, std=0.1)
    rows = [np.random.default_rng(n).integers(0, 62, n).tolist() for n in (40, 23, 9, 17)]
    found = check_parity(model, params, rows, [10, 22, 1, 16])
    assert found.compared == 30 + 1 + 8 + 1
    assert found.difference <= 1e-5


@pytest.mark.mesh
@pytest.mark.slow
def test_on_a_mesh_the_same(generator, params):
    split = Generator(MODEL, params, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    assert split.generate(PROMPTS, GREEDY) == generator.generate(PROMPTS, GREEDY)
