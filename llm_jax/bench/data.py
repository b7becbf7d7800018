"""``llm-jax bench data``: tokens/s of the loader."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from llm_jax.data.loading.loader import Loader
from llm_jax.ranges import Count, checked
from llm_jax.training.environment import environment_text


@checked
def bench_data(
    path: Path,
    seq_length: tuple[Count, ...] = (256, 2048),
    batch_tokens: Count = 65536,
    steps: Count = 30,
    repeats: Count = 5,
) -> str:
    """Time the loader: shuffled batches from shards on disk, in the calling thread.

    Args:
        path: folder of shards.
        seq_length: row lengths; each must divide the shards' block size.
        batch_tokens: tokens of one batch.
        steps: batches in one timed block.
        repeats: timed blocks; the median counts.
    """
    lines = [
        f"bench data {path}",
        f"  {environment_text()}",
        f"  method: Loader.batch in one thread; median of {repeats} blocks of {steps} batches",
    ]
    for length in seq_length:
        rates = _rates(path, length, max(batch_tokens // length, 1), steps=steps, repeats=repeats)
        low, middle, high = (f(rates) / 1e6 for f in (min, statistics.median, max))
        lines.append(
            f"  rows of {length}: {middle:,.1f} M tokens/s (blocks from {low:,.1f} to {high:,.1f})"
        )
    return "\n".join(lines)


def _rates(
    path: Path, seq_length: int, batch_size: int, *, steps: int, repeats: int
) -> list[float]:
    """Tokens/s of each timed block."""
    loader = Loader([path], seq_length=seq_length, batch_size=batch_size, seed=0)
    rates = []
    for block in range(repeats):
        started = time.perf_counter()
        for step in range(block * steps, (block + 1) * steps):
            loader.batch(step)
        rates.append(batch_size * seq_length * steps / (time.perf_counter() - started))
    loader.close()
    return rates
