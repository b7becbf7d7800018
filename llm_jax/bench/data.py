"""``llm-jax bench data``: tokens/s of the loader."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from llm_jax.training.environment import environment_text
from llm_jax.data.loader import Loader


def bench_data(path: Path, seq_length: tuple[int, ...] = (256, 2048), batch_tokens: int = 65536, steps: int = 30, repeats: int = 5) -> str:
    """Time making batches in the calling thread, shuffled, from shards on disk.

    Args:
        path: folder of shards.
        seq_length: row lengths; each must divide the shards' block size.
        batch_tokens: tokens of one batch.
        steps: batches in one timed block.
        repeats: timed blocks; the median counts.
    """
    lines = [f"bench data {path}", f"  {environment_text()}", f"  method: Loader.batch in one thread; median of {repeats} blocks of {steps} batches"]
    for length in seq_length:
        loader = Loader([path], seq_length=length, batch_size=max(batch_tokens // length, 1), seed=0)
        rates, step = [], 0
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in range(steps):
                loader.batch(step)
                step += 1
            rates.append(loader.batch_size * length * steps / (time.perf_counter() - started))
        loader.close()
        lines.append(f"  rows of {length}: {statistics.median(rates) / 1e6:,.1f} M tokens/s (blocks from {min(rates) / 1e6:,.1f} to {max(rates) / 1e6:,.1f})")
    return "\n".join(lines)
