"""From text to an exported model with every path in a bucket: killed at any request, with requests
that fail, with tokens that expire. The result is bit for bit that of a run in a local folder.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from bucket_server import BUCKET, Fault, Request
from jobs import Job, make_job, make_shards, result, settings, write_config

from llm_jax.bench.report import write_report
from llm_jax.checkpoints.checkpoint import Checkpoints
from llm_jax.cli import main
from llm_jax.data.shards.store import read_manifest
from llm_jax.files import file_sizes
from llm_jax.storage.local_files import FOLDER
from llm_jax.storage.paths import path_of

pytestmark = pytest.mark.process

# gcsfs renews a token this long before its end.
RENEWAL = 300.0
STEPS = 9
MANY_STEPS = 60


class Place(NamedTuple):
    """The same text, shards and configs in a folder and in a bucket."""

    folder: object
    bucket: object
    shards: tuple

    @property
    def cache(self):
        return self.folder / "cache"

    def job(self, name: str, steps: int) -> Job:
        """A job whose shards and run folder are in the bucket."""
        out = self.bucket / name
        shards = (self.bucket / "one", self.bucket / "two")
        values = settings(shards, out, steps)
        return Job(write_config(self.folder / name / "job.py", values), out, self.cache)

    @functools.cache  # noqa: B019
    def whole(self, steps: int) -> dict:
        """The result of the job in a local folder, never interrupted."""
        job = make_job(self.folder / f"local{steps}", self.shards, self.cache, steps)
        assert job.finish() == 0, job.log.read_text()
        return result(job)


@pytest.fixture(scope="module")
def place(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bucket")
    os.environ[FOLDER] = str(folder / "buckets")
    bucket = path_of(f"gs://{BUCKET}/campaign")
    yield Place(folder, bucket, make_shards(folder / "data"))
    del os.environ[FOLDER]


def call(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def prepared(place):
    """Shards that were prepared in the bucket, as ``make_shards`` does in a folder."""
    data = place.folder / "data"
    for name in ("one", "two"):
        (place.bucket / "text" / f"{name}.jsonl").upload(str(data / f"{name}.jsonl"))
        words = ("--input", place.bucket / "text" / f"{name}.jsonl")
        options = ("--block-size", 256, "--workers", 1, "--validation-fraction", 0.2)
        out = ("--tokenizer", data / "tokenizer", "--out", place.bucket / name)
        assert call("data", "prepare", *words, *out, *options) == 0
    return place


def test_shards_of_a_bucket_are_those_of_a_folder(prepared):
    for name, folder in zip(("one", "two"), prepared.shards):
        there = prepared.bucket / name
        assert read_manifest(there)["shards"] == read_manifest(folder)["shards"]
        assert file_sizes(there).keys() == file_sizes(folder).keys()


class Moment(NamedTuple):
    """At which request a job is killed."""

    name: str
    applies: Callable[[Request], bool]


def _of(part: str, method: str = "") -> Callable[[Request], bool]:
    return lambda r: part in r.name and (r.uploads if method == "upload" else r.method == method)


# In an order in which each start gets on.
MOMENTS = (
    Moment("deleting an old checkpoint", _of("checkpoints/", "DELETE")),
    Moment("writing arrays", _of("/d/", "upload")),
    Moment("committing", _of("commit_success.txt", "upload")),
    Moment("any request", lambda r: True),
    Moment("reading a checkpoint", lambda r: "checkpoints/" in r.name and r.method == "GET"),
    Moment("sealing", _of("checkpoints/files_", "upload")),
    Moment("taking the folder", _of(".lock/", "upload")),
    Moment("writing records", _of("metrics.jsonl", "upload")),
)


def kill_at(server, job: Job, moment: Moment, number: int, before: bool) -> bool:
    """Starts a job and kills it at the n-th request of a kind; False where it ends by itself.

    Args:
        server: that the requests go to.
        job: the job.
        moment: the kind of request.
        number: n.
        before: whether the bucket has not done what was asked for.
    """
    process = job.start()
    seen = [0]

    def applies(request: Request) -> bool:
        if moment.applies(request):
            seen[0] += 1
            if seen[0] == number:
                process.send_signal(signal.SIGKILL)
                return before
        return False

    with server.failing(Fault(applies, status=503)):
        return process.wait(600) == -signal.SIGKILL


@pytest.mark.parametrize(
    "kills, steps", [(3, STEPS), pytest.param(20, MANY_STEPS, marks=pytest.mark.slow)]
)
def test_kills_and_failing_requests_change_no_bit(server, prepared, kills, steps, capsys):
    job = prepared.job(f"killed{kills}", steps)
    rng = random.Random(kills)
    with troubled(server, rng):
        for n in range(kills):
            moment = MOMENTS[n % len(MOMENTS)]
            number = rng.randint(1, 200 if moment.name == "any request" else 3)
            assert kill_at(server, job, moment, number, before=rng.random() < 0.5), moment.name
        assert job.finish(600) == 0, job.log.read_text()
    assert result(job) == prepared.whole(steps)
    _use(prepared, job, capsys)


class troubled:
    """What a network and a busy bucket do to some of the requests."""

    def __init__(self, server, rng: random.Random) -> None:
        faults = (
            Fault(lambda r: rng.random() < 0.01, status=429),
            Fault(lambda r: rng.random() < 0.01, status=503),
            Fault(lambda r: r.uploads and rng.random() < 0.02, status=500),
            # Done, but the answer is lost.
            Fault(lambda r: r.uploads and rng.random() < 0.01, status=503, done=True),
            Fault(lambda r: r.method == "DELETE" and rng.random() < 0.02, status=503, done=True),
            Fault(lambda r: r.downloads and rng.random() < 0.03, cut=0.5),
            Fault(lambda r: rng.random() < 0.01, delay=0.3),
        )
        self._held = [server.failing(fault) for fault in faults]

    def __enter__(self):
        for held in self._held:
            held.__enter__()

    def __exit__(self, *error):
        for held in self._held:
            held.__exit__(*error)


def _use(place: Place, job: Job, capsys) -> None:
    """A run of the bucket is evaluated, writes text, is exported, and has a report."""
    capsys.readouterr()
    assert call("eval", job.out, "--data", place.bucket / "one", "--no-baselines") == 0
    assert "perplexity" in capsys.readouterr().out
    assert call("generate", job.out, "--prompt", "Story", "--max-new-tokens", 4) == 0
    assert capsys.readouterr().out.strip()
    exported = place.bucket / f"{job.out.name}-hf"
    assert call("convert", "to-hf", job.out, "--out", exported, "--family", "llama") == 0
    assert {"config.json", "model.safetensors"} <= file_sizes(exported).keys()
    assert call("convert", "from-hf", exported, "--out", place.bucket / "back") == 0
    assert call("convert", "inspect", exported, place.bucket / "back") in (0, 1)
    assert "<html" in write_report(job.out).read_text()


def test_shards_are_read_from_the_bucket_itself(prepared, monkeypatch, capsys):
    monkeypatch.setenv("LLM_JAX_BUCKET_SHARDS", "native")
    assert call("data", "inspect", prepared.bucket / "one") == 0
    native = capsys.readouterr().out
    monkeypatch.setenv("LLM_JAX_BUCKET_SHARDS", "cache")
    assert call("data", "inspect", prepared.bucket / "one") == 0
    assert native == capsys.readouterr().out
    assert "Story" in native


def test_a_token_that_expires_and_uploads_that_fail(server, prepared, monkeypatch):
    """A save that the bucket refuses ends the run with the newest checkpoint as it was."""
    job = prepared.job("refused", STEPS)
    refused = Fault(lambda r: r.uploads and "checkpoints/6/" in r.name, status=403)
    with server.failing(refused) as counted:
        assert _finish_with_tokens(server, job, monkeypatch) == 2, job.log.read_text()
    assert counted[0]
    log = job.log.read_text()
    assert "could not save step 6" in log
    assert "the newest intact checkpoint is step 3; see that this machine may write" in log
    assert _steps(job) == [3]
    assert _finish_with_tokens(server, job, monkeypatch) == 0, job.log.read_text()
    assert "going on from step 3" in job.log.read_text()
    assert result(job) == prepared.whole(STEPS)


def _finish_with_tokens(server, job: Job, monkeypatch) -> int:
    """The exit status of a job on a machine whose tokens end after two seconds."""
    before = server.issued
    with monkeypatch.context() as patched:
        for name, value in server.machine.items():
            patched.setenv(name, value)
        patched.setattr(server, "lifetime", RENEWAL + 2)
        status = job.finish(600)
    assert server.issued > before + 2
    return status


def test_kill_during_an_emergency_save_keeps_the_newest_checkpoint(server, prepared):
    """SIGTERM, and SIGKILL before the arrays are stored: nothing is half-written."""
    job = prepared.job("emergency", MANY_STEPS)
    saved = 3
    process = job.start()
    _wait(process, lambda: (job.out / "checkpoints" / "files_3.json").exists())
    with server.failing(Fault(lambda r: r.uploads and "checkpoints/" in r.name, delay=2.0)):
        process.send_signal(signal.SIGTERM)
        kept = _steps(job)
        _wait(process, lambda: any(step not in kept for step in _folders(job)))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    left = _steps(job)
    assert max(left) >= saved
    assert server.names(f"campaign/emergency/checkpoints/{max(left)}/")
    checkpoints = Checkpoints(job.out / "checkpoints", 2, "", [])
    checkpoints.delete_unfinished()
    assert sorted(_folders(job)) == left
    checkpoints.close()


def _steps(job: Job) -> list[int]:
    found = (job.out / "checkpoints").glob("*/commit_success.txt")
    return sorted(int(path.parent.name) for path in found)


def _folders(job: Job) -> Iterator[int]:
    return (int(p.name) for p in (job.out / "checkpoints").iterdir() if p.name.isdigit())


def _wait(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
