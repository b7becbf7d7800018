"""Contrastive search against its definition, written out with full forward passes."""

import dataclasses

import jax
import numpy as np
import pytest
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.decode import PenaltyConfig, StopConfig
from llm_jax.decode import Generator
from llm_jax.decode.requests import Wanted
from llm_jax.models import rows_of
from llm_jax.types import ConfigError

CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": 31,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 24,
        "attention.window_pattern": (5, 0),
        "max_length": 32,
        "init_std": 0.5,
    },
)
PROMPTS = [[1, 2, 3], [7]]
SEARCH = DecodeConfig(max_new_tokens=7, top_k=4, contrastive_alpha=0.6)


@pytest.fixture(scope="module")
def generator():
    model = models.build(CONFIG)
    return Generator(model, random_parameters(model))


@pytest.fixture(scope="module")
def forward(generator):
    model = generator.model

    @jax.jit
    def run(tokens, lengths):
        hidden = model.apply(generator.params, rows_of(tokens, lengths)).hidden
        return hidden, model.logits(generator.params, hidden)

    def of(row):
        tokens = np.zeros((1, 16), np.int32)
        tokens[0, : len(row)] = row
        hidden, logits = run(tokens, np.array([len(row)]))
        return np.asarray(hidden)[0, : len(row)], np.asarray(logits)[0, len(row) - 1]

    return of


def by_definition(forward, prompt, alpha, k, new):
    row = list(prompt)
    for _ in range(new):
        hidden, logits = forward(row)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        best = np.argsort(-p, kind="stable")[:k]

        def score(token, hidden=hidden, p=p, row=row):
            ours = forward([*row, token])[0][-1]
            norms = np.linalg.norm(hidden, axis=1) * np.linalg.norm(ours)
            return (1 - alpha) * p[token] - alpha * np.max(hidden @ ours / norms)

        row.append(int(max(best, key=score)))
    return row[len(prompt) :]


def test_each_token_is_likely_and_unlike_the_text(generator, forward):
    """Rows with an alpha and a k of their own, in one batch and alone."""
    rows = [SEARCH, dataclasses.replace(SEARCH, contrastive_alpha=0.2, top_k=2)]
    written = generator.generate(PROMPTS, rows)
    for prompt, config, ours in zip(PROMPTS, rows, written):
        wanted = by_definition(forward, prompt, config.contrastive_alpha, config.top_k, 7)
        assert ours == wanted
        assert generator.generate([prompt], config) == [wanted]
        assert list(generator.stream(prompt, config)) == wanted
    greedy = dataclasses.replace(SEARCH, top_k=0, contrastive_alpha=0.0, temperature=0.0)
    assert written != generator.generate(PROMPTS, greedy)
    almost = dataclasses.replace(SEARCH, contrastive_alpha=1e-9)
    assert generator.generate(PROMPTS, almost) == generator.generate(PROMPTS, greedy)


def test_processors_stops_and_scores_are_those_of_every_driver(generator):
    (free,) = generator.complete([PROMPTS[0]], SEARCH, Wanted(logprobs=1))[0]
    assert len(free.scores) == 7 and free.finish_reason == "length"
    stop = free.ids[3]
    ends = dataclasses.replace(SEARCH, stops=StopConfig(stop_ids=(stop,)))
    until = free.ids[: free.ids.index(stop)]
    assert generator.generate([PROMPTS[0]], ends) == [until]
    once = dataclasses.replace(SEARCH, penalties=PenaltyConfig(no_repeat_ngram_size=1))
    written = generator.generate([PROMPTS[0]], once)[0]
    assert len({*PROMPTS[0], *written}) == 10


def test_what_does_not_go_with_it_is_refused(generator):
    plain = dataclasses.replace(SEARCH, contrastive_alpha=0.0)
    with pytest.raises(ConfigError, match="contrastive_alpha of row 1 is 0"):
        generator.generate(PROMPTS, [SEARCH, plain])
    with pytest.raises(ConfigError, match="samples is 2, and contrastive search gives one text"):
        generator.complete(PROMPTS, SEARCH, Wanted(samples=2))
