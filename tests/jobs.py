"""Small training jobs in processes of their own, and killing them: for the tests and for
``scripts/kill_campaign.py``.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from words import WORDS

from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.training.metrics import read_metrics

# What must be the same in a killed run; the other numbers of a record are speeds.
EXACT = ("loss", "accuracy", "grad_norm", "param_norm", "learning_rate", "tokens", "fingerprint")
EVAL_EVERY, CHECKPOINT_EVERY = 5, 3


def write_text(path: Path, documents: int, seed: int) -> Path:
    """A .jsonl file of made-up documents of 5 to 80 words, no two the same."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for i in range(documents):
            words = " ".join(rng.choice(WORDS, int(rng.integers(5, 80))))
            file.write(json.dumps({"text": f"Story {seed}.{i}\n\n{words}.\n"}) + "\n")
    return path


def make_shards(folder: Path) -> tuple[Path, Path]:
    """Two folders of shards, of different sizes, made with one tokenizer of 300 tokens."""
    texts = [
        write_text(folder / f"{name}.jsonl", n, seed)
        for seed, (name, n) in enumerate([("one", 200), ("two", 120)])
    ]
    train_tokenizer(tuple(map(str, texts)), folder / "tokenizer", vocab_size=300)
    for text in texts:
        prepare(
            (str(text),),
            folder / "tokenizer",
            folder / text.stem,
            block_size=256,
            workers=1,
            validation_fraction=0.2,
        )
    return folder / "one", folder / "two"


def settings(shards: tuple[Path, ...], out: Path, steps: int) -> dict[str, Any]:
    """Everything that a resume can get wrong: packing, a mixture, accumulation, dropout, Adam, a
    decaying schedule.
    """
    return {
        "name": "job",
        "model.num_layers": 1,
        "model.embed_dim": 32,
        "model.attention.num_heads": 2,
        "model.mlp.hidden_dim": 64,
        "model.max_length": 128,
        "model.dropout": 0.1,
        "data.path": tuple(map(str, shards)),
        "data.weights": (0.7, 0.3),
        "data.seq_length": 128,
        "data.batch_size": 8,
        "data.seed": 3,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 4,
        "train.out": str(out),
        "train.steps": steps,
        "train.accumulation": 2,
        "train.z_loss": 1e-4,
        "train.eval_every": EVAL_EVERY,
        "train.checkpoint_every": CHECKPOINT_EVERY,
        "train.keep": 2,
        "train.peak_tflops": 1.0,
    }


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """A config file with these settings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "from llm_jax.config import Config\nfrom llm_jax.config.overrides import override\n\n\n"
        f"def config() -> Config:\n    return override(Config(), {values!r})\n"
    )
    return path


def environment(cache: Path) -> dict[str, str]:
    """One CPU device and a persistent compilation cache, since starting is most of such a short
    run.
    """
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COLUMNS": "200",
    }


class Job(NamedTuple):
    """A run of ``llm-jax train``, as one types it."""

    config: Path
    out: Path
    cache: Path

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "llm_jax.cli", "train", str(self.config)]

    def start(self) -> subprocess.Popen:
        """The process; what it prints is appended to a log beside the config."""
        with self.log.open("a") as log:
            return subprocess.Popen(
                self.command, env=environment(self.cache), stdout=log, stderr=log
            )

    def run_on_a_full_disk(self, largest_file: int) -> tuple[int, str]:
        """Run it with no file allowed to grow beyond so many bytes: the exit status and what it
        printed.
        """

        def limit():
            return resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        ended = subprocess.run(
            self.command,
            env=environment(self.cache),
            capture_output=True,
            text=True,
            preexec_fn=limit,
            timeout=180,
        )
        return ended.returncode, ended.stdout + ended.stderr

    def finish(self, timeout: float = 180.0) -> int:
        """Run it to its end; the exit status."""
        return self.start().wait(timeout)

    @property
    def log(self) -> Path:
        return self.config.parent / f"{self.config.stem}.log"

    def records(self, kind: str = "train") -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        return [r for r in read_metrics(path) if r["kind"] == kind] if path.exists() else []

    def steps(self) -> int:
        """The last step in the metrics."""
        records = self.records()
        return records[-1]["step"] if records else 0


def make_job(folder: Path, shards: tuple[Path, ...], cache: Path, steps: int) -> Job:
    """A job of this many steps in a folder of its own."""
    out = folder / "run"
    return Job(write_config(folder / "job.py", settings(shards, out, steps)), out, cache)


def result(job: Job) -> dict[str, Any]:
    """All that must be the same whatever happened on the way: every step's numbers, evaluations,
    checksums of the state.
    """
    last = max(int(p.name) for p in (job.out / "checkpoints").iterdir() if p.name.isdigit())
    manifest = json.loads(
        (job.out / "checkpoints" / str(last) / "manifest" / "metadata").read_text()
    )
    return {
        "train": [{"step": r["step"], **{k: r[k] for k in EXACT}} for r in job.records()],
        "eval": [{k: r[k] for k in ("step", "loss", "accuracy")} for r in job.records("eval")],
        "step": last,
        "checksums": manifest["checksums"],
    }


class Moment(NamedTuple):
    """When to kill: what is waited for in a running job, then how many seconds more."""

    name: str
    reached: Callable[[Job, int], bool]
    delay: float


def steps_on(n: int, delay: float = 0.0) -> Moment:
    """``n`` steps after the checkpoint that the job went on from."""
    return Moment(f"{n} steps on", lambda job, begun: job.steps() >= begun + n, delay)


def saving(job: Job, _: int) -> bool:
    """Orbax writes into a temporary folder beside the finished checkpoints."""
    folder = job.out / "checkpoints"
    return folder.is_dir() and any("tmp" in p.name for p in folder.iterdir())


def _evaluating(job: Job, begun: int) -> bool:
    """The last record is of a step after which the model is evaluated, and nothing says that it has
    been.
    """
    records = [r for kind in ("train", "eval") for r in job.records(kind)]
    last = max((r["step"] for r in records), default=0)
    return last > begun and last % EVAL_EVERY == 0 and [r["step"] for r in records].count(last) == 1


def moments(seed: int) -> Iterator[Moment]:
    """Endless, in turn: right after the start, while stepping, while saving, while evaluating,
    after a save; each at random.
    """
    rng = random.Random(seed)
    while True:
        yield Moment("starting", lambda job, begun: True, rng.uniform(0.0, 5.0))
        yield Moment("saved", lambda job, begun: checkpointed(job) > begun, rng.uniform(0.0, 0.05))
        yield Moment("saving", saving, rng.uniform(0.0, 0.03))
        yield Moment("evaluating", _evaluating, rng.uniform(0.0, 0.03))
        yield steps_on(rng.randint(1, 2 * CHECKPOINT_EVERY), rng.uniform(0.0, 0.05))


def checkpointed(job: Job) -> int:
    """The newest step with a finished checkpoint: where the next start goes on from."""
    folder = job.out / "checkpoints"
    return (
        max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
        if folder.is_dir()
        else 0
    )


def wait_and_signal(
    job: Job, process: subprocess.Popen, moment: Moment, signum: int, timeout: float = 180.0
) -> bool:
    """Sends the signal at the moment; False when the process had ended before."""
    begun, deadline = checkpointed(job), time.monotonic() + timeout
    # What a killed process had written beyond its checkpoint is dropped at the next start; wait
    # until that has happened.
    while process.poll() is None and moment.name != "starting" and job.steps() > begun:
        time.sleep(0.002)
    while process.poll() is None and not moment.reached(job, begun):
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"{moment.name} was not reached in {timeout} s; see {job.log}")
        time.sleep(0.002)
    time.sleep(moment.delay)
    if process.poll() is not None:
        return False
    process.send_signal(signum)
    return True


def steps_for(kills: int) -> int:
    """Steps enough for this many kills of ``moments``: a fifth of them come long after a
    checkpoint.
    """
    return 21 + 4 * max(kills - 5, 0)


def kill_until_done(
    job: Job, kills: int, seed: int, say: Callable[[str], None] = print
) -> list[str]:
    """Start the job again and again, SIGKILL it ``kills`` times, then let it end. The moments, with
    the step reached.

    Raises RuntimeError when the job failed by itself or ended before it was killed often enough.
    """
    done: list[str] = []
    for moment in moments(seed):
        process = job.start()
        if len(done) == kills:
            break
        sent = wait_and_signal(job, process, moment, signal.SIGKILL)
        status = process.wait()
        if sent and status == -signal.SIGKILL:
            done.append(f"{moment.name}, step {job.steps()}, checkpoint {checkpointed(job)}")
            say(f"kill {len(done)}: {done[-1]}")
        else:
            raise RuntimeError(
                f"the job ended with status {status} after {len(done)} of {kills} kills; see"
                f" {job.log}"
            )
    status = process.wait()
    if status:
        raise RuntimeError(f"the job ended with status {status} after {kills} kills; see {job.log}")
    return done
