"""What fits in the grace after SIGTERM: seconds to save a training state of a given size.

    python benchmarks/emergency_save.py [--gigabytes 1] [--rounds 3] [--out FOLDER]

A stop saves after the running step, so what it needs is a step and the seconds printed here. The
state has the arrays of a run with AdamW: parameters and two moments, float32, in matrices of 16 MB.
``started`` is until ``save`` returns (checksums, copies of the arrays), ``saved`` until the
checkpoint is committed and sealed. A plain file of the same size, written and synced, is the disk's
own part. ``--out gs://bucket/folder`` measures a bucket.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from llm_jax.checkpoints.checkpoint import Checkpoints
from llm_jax.config import Config
from llm_jax.storage.paths import is_bucket, path_of
from llm_jax.training.state import SavedState

GRACE = 15.0
WIDTH = 2048


def make_state(nbytes: int) -> SavedState:
    """A state of about so many bytes: parameters and two moments."""
    matrices = max(1, nbytes // (3 * 4 * WIDTH * WIDTH))
    keys = jax.random.split(jax.random.key(0), 3 * matrices)
    trees = []
    for part in range(3):
        own = keys[part * matrices : (part + 1) * matrices]
        trees.append({str(i): jax.random.normal(key, (WIDTH, WIDTH)) for i, key in enumerate(own)})
    params, first, second = trees
    state = SavedState(jnp.zeros((), jnp.int32), params, {"mu": first, "nu": second})
    return jax.block_until_ready(state)


class Seconds(NamedTuple):
    """Of one save.

    Attributes:
        started: until ``save`` returns.
        whole: until the checkpoint is committed.
        processor: of all threads; what a busy machine changes least.
    """

    started: float
    whole: float
    processor: float


def seconds_of_a_save(folder: Path, state: SavedState, rounds: int) -> list[Seconds]:
    """The seconds of each round."""
    checkpoints = Checkpoints(folder, 1, "tokenizer", ["data"])
    found = []
    for step in range(1, rounds + 2):
        start = time.perf_counter()
        processor = time.process_time()
        checkpoints.save(step, state, Config())
        started = time.perf_counter() - start
        checkpoints.wait()
        whole = time.perf_counter() - start
        found.append(Seconds(started, whole, time.process_time() - processor))
    checkpoints.close()
    # The first one compiles the checksums, as the first save of a run does.
    return found[1:]


def seconds_of_a_file(folder: Path, nbytes: int) -> float:
    """Seconds to write and sync a file of zeros."""
    path = folder / "plain"
    start = time.perf_counter()
    with path.open("wb") as file:
        chunk = bytes(16 << 20)
        for _ in range(nbytes // len(chunk)):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="", help="a new folder; temporary if not given")
    options = parser.parse_args()
    state = make_state(int(options.gigabytes * 1e9))
    size = sum(array.nbytes for array in jax.tree.leaves(state))
    with tempfile.TemporaryDirectory() as temporary:
        folder = path_of(options.out or temporary)
        saves = seconds_of_a_save(folder / "checkpoints", state, options.rounds)
        started = statistics.median(save.started for save in saves)
        whole = statistics.median(save.whole for save in saves)
        slowest = max(save.whole for save in saves)
        processor = statistics.median(save.processor for save in saves)
        print(f"{size / 1e9:.2f} GB of state, {len(saves)} rounds, load {os.getloadavg()[0]:.1f}")
        print(f"save returns after     {started:6.2f} s")
        print(f"checkpoint is whole    {whole:6.2f} s, slowest {slowest:.2f} s")
        print(f"processor seconds      {processor:6.2f} s")
        if not is_bucket(folder):
            print(f"a plain file, synced   {seconds_of_a_file(folder, size):6.2f} s")
        print(f"in {GRACE:.0f} s at this speed   {size / whole * GRACE / 1e9:6.2f} GB")


if __name__ == "__main__":
    main()
