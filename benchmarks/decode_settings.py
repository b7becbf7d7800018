"""What each setting of decoding costs: milliseconds of ``process`` and of the draw, beside a step.

The logits are random, of V tokens, with 256 tokens of history a row; every setting is on in all
rows. The step is that of a random model of SmolLM-135M's shape in float32, measured in the same
process: the time that writing 17 tokens takes longer than writing one, divided by 16.

    python benchmarks/decode_settings.py [--rows 1 8] [--vocabulary 49152] [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax import models
from llm_jax.api.decode_settings import decode_config
from llm_jax.config import Config, override
from llm_jax.decode import Generator
from llm_jax.decode.loop import draw
from llm_jax.decode.settings import Rows, settings_of
from llm_jax.ops.sampling import History, Settings, history_of, process

SHAPE = {
    "num_layers": 30,
    "embed_dim": 576,
    "attention.num_heads": 9,
    "attention.num_kv_heads": 3,
    "mlp.hidden_dim": 1536,
    "max_length": 2048,
}
TOKENS = 256
STOP = 2
ALL_FILTERS = {
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.95,
    "min_p": 0.02,
    "typical_p": 0.95,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "top_h": 0.9,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy (temperature 0)": {"temperature": 0.0},
    "nothing": {},
    "temperature": {"temperature": 0.8},
    "top_k 50": {"top_k": 50},
    "top_k 500": {"top_k": 500},
    "top_p": {"top_p": 0.95},
    "top_k 50, top_p": {"top_k": 50, "top_p": 0.95},
    "min_p": {"min_p": 0.02},
    "typical_p": {"typical_p": 0.95},
    "epsilon_cutoff": {"epsilon_cutoff": 3e-4},
    "eta_cutoff": {"eta_cutoff": 3e-4},
    "top_h": {"top_h": 0.9},
    "all filters": ALL_FILTERS,
    "repetition_penalty": {"repetition_penalty": 1.2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.2},
    "presence_penalty": {"presence_penalty": 0.5},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 3},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 3},
    "logit_bias": {"logit_bias": ((5, 1.0),)},
    "allowed_ids": {"allowed_ids": tuple(range(1000))},
    "suppress_ids": {"suppress_ids": (5, 6)},
    "bad_words, sequence_bias": {"bad_words": ((5, 6),)},
    "min_new_tokens": {"min_new_tokens": 128},
    "length_decay_factor": {"length_decay_factor": 1.1},
    "watermark_bias": {"watermark_bias": 2.0},
    "renormalize": {"renormalize": True},
}


def settings_with(given: dict[str, Any], rows: int, vocabulary: int) -> Settings:
    config = decode_config(given)
    return settings_of(Rows([config] * rows, list(range(rows)), [[STOP]] * rows), vocabulary)


def history(rows: int, vocabulary: int) -> History:
    ids = np.random.default_rng(0).integers(3, vocabulary, (rows, TOKENS))
    prompt = jnp.full((rows,), TOKENS // 2)
    begun = history_of(jnp.asarray(ids[:, : TOKENS // 2]), prompt, 2 * TOKENS)
    return begun.append(jnp.asarray(ids[:, TOKENS // 2 :]), prompt)


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def step_seconds(rows: int, vocabulary: int, rounds: int) -> float:
    """Median time of a greedy step of the model."""
    values = {f"model.{name}": size for name, size in {**SHAPE, "vocab_size": vocabulary}.items()}
    model = models.build(override(Config(), values).model)
    generator = Generator(model, jax.jit(model.init)(jax.random.key(0)))
    prompts = [[5] * 32] * rows

    def write(new: int) -> float:
        config = decode_config({"temperature": 0.0, "max_new_tokens": new})
        return seconds(lambda: generator.generate(prompts, config))

    for new in (1, 17):
        write(new)
    found = [(write(17) - write(1)) / 16 for _ in range(rounds)]
    return statistics.median(found)


def sampler_seconds(rows: int, vocabulary: int, rounds: int) -> dict[str, float]:
    """Median time of the choice of tokens with each of ``SETTINGS``; they take turns."""
    logits = 3 * jax.random.normal(jax.random.key(1), (rows, vocabulary))
    text = history(rows, vocabulary)
    compiled = jax.jit(_chosen)
    calls = {
        name: partial(compiled, logits, settings_with(given, rows, vocabulary), text)
        for name, given in SETTINGS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(min(seconds(call) for _ in range(3)))
    return {name: statistics.median(found) for name, found in times.items()}


def _chosen(logits: Array, settings: Settings, text: History) -> Array:
    return draw(process(logits, settings, text), settings, text.length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    steps = {}
    found = {}
    for rows in args.rows:
        found[rows] = sampler_seconds(rows, args.vocabulary, args.rounds)
        steps[rows] = step_seconds(rows, args.vocabulary, max(args.rounds // 3, 1))
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, jax {jax.__version__}, load {load:.0f}, V {args.vocabulary:,}\n")
    print("| setting | " + " | ".join(f"{rows} rows, ms | of a step" for rows in args.rows) + " |")
    print("|---|" + "---|---|" * len(args.rows))
    whole = [f"{1e3 * steps[rows]:.1f} | 100 %" for rows in args.rows]
    print(f"| a step of the model | {' | '.join(whole)} |")
    for name in SETTINGS:
        cells = [
            f"{1e3 * found[rows][name]:.2f} | {found[rows][name] / steps[rows]:.1%}"
            for rows in args.rows
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
