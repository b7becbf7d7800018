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
    """Time making batches in the calling thread, shuffled, from shards on disk.

    Args:
        path: folder of shards.
        seq_length: row lengths; each must divide the shards' block size.
        batch_tokens: tokens of one batch.
        steps: batches in one timed block.
        repeats: timed blocks; the median counts.
    """
    method = f"  method: Loader.batch in one thread; median of {repeats} blocks of {steps} batches"
    lines = [f"bench data {path}", f"  {environment_text()}", method]
    for length in seq_length:
        loader = Loader(
            [path], seq_length=length, batch_size=max(batch_tokens // length, 1), seed=0
        )
        rates, step = [], 0
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in range(steps):
                loader.batch(step)
                step += 1
            rates.append(loader.batch_size * length * steps / (time.perf_counter() - started))
        loader.close()
        low, middle, high = (f(rates) / 1e6 for f in (min, statistics.median, max))
        lines.append(
            f"  rows of {length}: {middle:,.1f} M tokens/s (blocks from {low:,.1f} to {high:,.1f})"
        )
    return "\n".join(lines)
