"""Loader speed: tokens per second of ``Loader.batch`` in one thread, for several row lengths.

    python benchmarks/loader.py [--megatokens 8] [--seconds 3] [--rounds 5]

Shards of random tokens (documents of about 500) are written to a temporary folder; batches of about
64k tokens are then made one after another, without prefetch, pinned to one core. Row lengths and
cache settings take turns, round by round; the median of the rounds is printed. "cold" is without
the cache of decoded blocks (every row reads its record again), "cached" with all blocks in it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from llm_jax.data.loading.loader import Loader, row_fingerprints
from llm_jax.data.shards import records, store
from llm_jax.files import write_atomic

BLOCK = 2048
VOCAB = 32000
LENGTHS = (64, 256, 1024, 2048)
CACHES = {"cold": 0, "cached": 1 << 30}


def write_data(folder: Path, tokens: int) -> None:
    """Shards of random tokens with a manifest, as ``prepare`` would leave them."""
    rng = np.random.default_rng(0)
    files = []
    for index in range(4):
        stream = rng.integers(4, VOCAB, tokens // 4).astype(np.uint16)
        starts = np.unique(np.concatenate([[0], rng.integers(0, len(stream), len(stream) // 500)]))
        path = folder / store.shard_name("train", index)
        blocks = records.write_shard(path, stream, starts, BLOCK, 0)
        files.append(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "tokens": len(stream),
                "blocks": blocks,
                "documents": len(starts),
            }
        )
    tokenizer = {"fingerprint": "0" * 64, "vocab_size": VOCAB, "special_ids": {"pad": 0}}
    manifest = {
        "format_version": store.FORMAT_VERSION,
        "block_size": BLOCK,
        "tokenizer": tokenizer,
        "shards": {"train": files},
    }
    write_atomic(folder / store.MANIFEST, store.json_bytes(manifest))


def rate(loader: Loader, seconds: float) -> float:
    """Tokens per second over about ``seconds``."""
    start = time.perf_counter()
    step = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        row_fingerprints(loader.batch(step), loader.indices(step))
        step += 1
    return step * loader.batch_size * loader.seq_length / elapsed


def measure(folder: str, seconds: float, rounds: int) -> dict[tuple[int, str], list[float]]:
    """Tokens per second by row length and cache, one figure a round; the cases take turns."""
    cases = {
        (length, name): Loader(
            [folder],
            seq_length=length,
            batch_size=65536 // length,
            seed=0,
            cache_bytes=cache,
        )
        for length in LENGTHS
        for name, cache in CACHES.items()
    }
    for (_, name), loader in cases.items():
        for step in range(loader.steps_per_epoch if name == "cached" else 1):
            loader.batch(step)
    rates: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, loader in cases.items():
            rates[case].append(rate(loader, seconds))
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megatokens", type=float, default=8)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(__doc__.strip(), "\n")
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), int(args.megatokens * 1e6))
        rates = measure(folder, args.seconds, args.rounds)
    print(
        f"{'T':>6} {'cold Mtok/s':>14} {'cached Mtok/s':>14}   one core, fingerprint included,"
        f" medians of {args.rounds}"
    )
    for length in LENGTHS:
        cold, cached = (statistics.median(rates[length, name]) / 1e6 for name in CACHES)
        print(f"{length:>6} {cold:>14.1f} {cached:>14.1f}")


if __name__ == "__main__":
    main()
