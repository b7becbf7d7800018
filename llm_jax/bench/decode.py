"""``llm-jax bench decode``: cached greedy decoding of a config's model with random weights, beside
its memory roofline.
"""

from __future__ import annotations

import statistics
import time

import jax
import numpy as np

from llm_jax import models
from llm_jax.config import DecodeConfig
from llm_jax.config.overrides import override, parse_assignments
from llm_jax.config.saved import load_config
from llm_jax.decode import Generator
from llm_jax.ranges import Count, checked
from llm_jax.training.bandwidth import measure_bandwidth
from llm_jax.training.environment import environment_text
from llm_jax.types import ConfigError


@checked
def bench_decode(
    config: str = "configs/tiny_cpu.py",
    set: tuple[str, ...] = (),
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
        new_tokens: tokens written per row.
        repeats: timed runs; the median counts.
        vocab_size: tokens of the vocabulary, where the config leaves it to the tokenizer.
    """
    loaded = parse_assignments(load_config(config), set)
    if loaded.model.vocab_size == 0:
        loaded = override(loaded, {"model.vocab_size": vocab_size})
    if loaded.model.encoder:
        raise ConfigError(
            "model.encoder is 'on': bench decode counts what a"
            " decoder alone reads, and would be wrong; bench a model without an encoder"
        )
    model = models.build(loaded.model, loaded.execution)
    generator = Generator(model, jax.jit(model.init)(jax.random.key(0)))
    bandwidth = measure_bandwidth()
    weights = sum(x.nbytes for x in jax.tree.leaves(generator.params))
    lines = [
        f"bench decode {config} {' '.join(set)}",
        f"  {environment_text()}",
        (
            f"  method: {prompt} prompt tokens, {new_tokens} greedy tokens per row; median of"
            f" {repeats} runs; the time of the same"
        ),
        "  prompts with one new token is taken off, so that prefill does not count",
        (
            f"  roofline: {weights / 1e6:,.1f} MB of weights and the cache read per step, at"
            f" {bandwidth / 1e9:,.1f} GB/s measured by a copy"
        ),
    ]
    for rows in batch:
        seconds = _decode_seconds(
            generator, rows, prompt, new_tokens, repeats, loaded.model.vocab_size
        )
        cache = jax.eval_shape(lambda rows=rows: model.init_cache(rows, prompt + new_tokens))
        ideal = (
            weights + sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(cache))
        ) / bandwidth
        step = seconds / (new_tokens - 1)
        lines.append(
            f"  batch {rows}: {rows / step:,.1f} tokens/s, {step * 1e3:.2f} ms per step,"
            f" {ideal / step:.0%} of the roofline"
        )
    return "\n".join(lines)


def _decode_seconds(
    generator: Generator, rows: int, prompt: int, new_tokens: int, repeats: int, vocab_size: int
) -> float:
    """Median seconds of all but the first new token."""
    prompts = np.random.default_rng(0).integers(0, vocab_size, (rows, prompt)).tolist()
    configs = [DecodeConfig(max_new_tokens=n, temperature=0.0) for n in (new_tokens, 1)]
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for c, kept in zip(configs, times):
            started = time.perf_counter()
            generator.generate(prompts, c)
            if repeat > 0:
                kept.append(time.perf_counter() - started)
    return statistics.median(times[0]) - statistics.median(times[1])
