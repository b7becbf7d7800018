"""``llm-jax bench decode``: cached greedy decoding of a config's model with random weights, beside
its memory roofline.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import jax
import numpy as np

from llm_jax import models
from llm_jax.config import Config, DecodeConfig
from llm_jax.config.overrides import override, parse_assignments
from llm_jax.config.saved import load_config
from llm_jax.decode import Generator
from llm_jax.ranges import Count, checked
from llm_jax.training.bandwidth import measure_bandwidth
from llm_jax.training.environment import environment_text
from llm_jax.types import ConfigError


class _Timing(NamedTuple):
    """What is timed.

    prompt: tokens of each prompt.
    new_tokens: tokens written per row, at least 2.
    repeats: timed runs.
    vocab_size: of the model.
    """

    prompt: int
    new_tokens: int
    repeats: int
    vocab_size: int


@checked
def bench_decode(
    config: str = "configs/tiny_cpu.py",
    set: tuple[str, ...] = (),
    *,
    batch: tuple[Count, ...] = (1, 8),
    prompt: Count = 64,
    new_tokens: Count = 64,
    repeats: Count = 5,
    vocab_size: Count = 4096,
) -> str:
    """Time greedy decoding; one compiled loop per batch size.

    Args:
        config: a configs/*.py file or a saved config.json.
        set: changed settings, as section.key=value.
        batch: batch sizes.
        prompt: tokens of each prompt.
        new_tokens: tokens written per row, at least 2.
        repeats: timed runs; the median counts.
        vocab_size: tokens of the vocabulary, where the config leaves it to the tokenizer.
    """
    if new_tokens < 2:
        raise ConfigError(
            f"new_tokens is {new_tokens}: the first token is timed with the prompt, so that no"
            " step is left to time; set it to 2 or more"
        )
    loaded = _load(config, set, vocab_size)
    execution = models.resolve_execution(loaded.execution, loaded.model)
    model = models.build(loaded.model, execution)
    params = jax.jit(model.init)(jax.random.key(0))
    generator = Generator(model, params, layers=execution.layers)
    bandwidth = measure_bandwidth()
    weight_bytes = sum(x.nbytes for x in jax.tree.leaves(generator.params))
    lines = [
        f"bench decode {config} {' '.join(set)}",
        f"  {environment_text()}",
        (
            f"  method: {prompt} prompt tokens, {new_tokens} greedy tokens per row; median of"
            f" {repeats} runs; the time of the same"
        ),
        "  prompts with one new token is taken off, so that prefill does not count",
        (
            f"  roofline: {weight_bytes / 1e6:,.1f} MB of weights and the cache read per step, at"
            f" {bandwidth / 1e9:,.1f} GB/s measured by a copy"
        ),
    ]
    timing = _Timing(prompt, new_tokens, repeats, loaded.model.vocab_size)
    for rows in batch:
        step = _step_seconds(generator, rows, timing)
        least = (weight_bytes + _cache_bytes(model, rows, prompt + new_tokens)) / bandwidth
        lines.append(
            f"  batch {rows}: {rows / step:,.1f} tokens/s, {step * 1e3:.2f} ms per step,"
            f" {least / step:.0%} of the roofline"
        )
    return "\n".join(lines)


def _load(path: str, settings: tuple[str, ...], vocab_size: int) -> Config:
    """The config with a known vocabulary.

    Raises:
        ConfigError: its model has an encoder.
    """
    config = parse_assignments(load_config(path), settings)
    if config.model.encoder:
        raise ConfigError(
            "model.encoder is 'on': the roofline of bench decode counts"
            " the bytes that a decoder reads, without an encoder; use a config without one"
        )
    if config.model.vocab_size == 0:
        return override(config, {"model.vocab_size": vocab_size})
    return config


def _cache_bytes(model: models.Model, rows: int, length: int) -> int:
    """Bytes of the cache of ``rows`` rows of ``length`` tokens."""
    cache = jax.eval_shape(lambda: model.init_cache(rows, length))
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(cache))


def _step_seconds(generator: Generator, rows: int, timing: _Timing) -> float:
    """Median seconds of a step: of all new tokens but the first, divided by their number."""
    shape = (rows, timing.prompt)
    prompts = np.random.default_rng(0).integers(0, timing.vocab_size, shape).tolist()
    long = DecodeConfig(max_new_tokens=timing.new_tokens, temperature=0.0)
    short = DecodeConfig(max_new_tokens=1, temperature=0.0)
    times: dict[DecodeConfig, list[float]] = {long: [], short: []}
    # The first run of each compiles, and is not counted.
    for repeat in range(timing.repeats + 1):
        for settings, kept in times.items():
            started = time.perf_counter()
            generator.generate(prompts, settings)
            if repeat > 0:
                kept.append(time.perf_counter() - started)
    seconds = statistics.median(times[long]) - statistics.median(times[short])
    return seconds / (timing.new_tokens - 1)
