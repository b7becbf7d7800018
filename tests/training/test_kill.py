"""Kill anywhere: a run that was killed or stopped, and started again with the same command, is the
uninterrupted run.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from jobs import (
    CHECKPOINT_EVERY,
    EVAL_EVERY,
    Moment,
    checkpointed,
    kill_until_done,
    make_job,
    make_shards,
    result,
    saving,
    steps_for,
    steps_on,
    wait_and_signal,
)

pytestmark = pytest.mark.process

STEPS = steps_for(5)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    return folder, make_shards(folder / "data"), folder / "cache"


@pytest.fixture(scope="module")
def uninterrupted(place):
    folder, shards, cache = place
    job = make_job(folder / "whole", shards, cache, STEPS)
    assert job.finish() == 0, job.log.read_text()
    return result(job)


def test_the_uninterrupted_run_is_whole(uninterrupted):
    assert [r["step"] for r in uninterrupted["train"]] == list(range(1, STEPS + 1))
    assert [r["step"] for r in uninterrupted["eval"]] == [5, 10, 15, 20, 21]
    assert uninterrupted["step"] == STEPS
    kinds = {name.split("/")[0] for name in uninterrupted["checksums"]}
    assert kinds == {"step", "params", "opt_state"}
    assert len({r["fingerprint"] for r in uninterrupted["train"]}) == STEPS


def same(killed: dict, whole: dict) -> None:
    """Bit for bit: json floats are written with all their digits."""
    assert [r["step"] for r in killed["train"]] == [r["step"] for r in whole["train"]]
    for a, b in zip(killed["train"], whole["train"]):
        assert a == b
    assert killed["eval"] == whole["eval"]
    assert killed["checksums"] == whole["checksums"]
    assert killed == whole


def test_five_kills_change_no_bit(place, uninterrupted):
    folder, shards, cache = place
    job = make_job(folder / "killed", shards, cache, STEPS)
    kills = kill_until_done(job, kills=5, seed=1)
    assert len(kills) == 5
    assert "going on from step" in job.log.read_text()
    same(result(job), uninterrupted)


def test_sigterm_and_ctrl_c_save_exit_and_say_how_to_go_on(place, uninterrupted):
    folder, shards, cache = place
    job = make_job(folder / "stopped", shards, cache, STEPS)
    for signum, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = checkpointed(job)
        process = job.start()
        assert wait_and_signal(job, process, steps_on(2), signum)
        assert process.wait(60) == status, job.log.read_text()
        log = job.log.read_text()
        stopped = checkpointed(job)
        assert before + 2 <= stopped < STEPS
        assert f"stopped at step {stopped} by {signal.Signals(signum).name}" in log
        assert f"the checkpoint of step {stopped} is saved" in log
        assert f"to go on: llm-jax train {job.config}" in log
        assert "Traceback" not in log
    assert job.finish() == 0
    assert f"going on from step {stopped}" in job.log.read_text()
    same(result(job), uninterrupted)


def test_a_kill_during_the_save_of_a_stop_keeps_the_newest_checkpoint(place, uninterrupted):
    """As where a machine is taken away before its last save is whole."""
    folder, shards, cache = place
    job = make_job(folder / "short", shards, cache, STEPS)
    process = job.start()
    saved_once = Moment("saved", lambda job, begun: checkpointed(job) > begun, 0.0)
    assert wait_and_signal(job, process, saved_once, signal.SIGTERM)
    before = checkpointed(job)
    saved = files(job.out / "checkpoints" / str(before))
    while process.poll() is None and not saving(job, before):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, job.log.read_text()
    kept = checkpointed(job)
    assert kept >= before >= CHECKPOINT_EVERY
    assert files(job.out / "checkpoints" / str(before)) == saved
    assert job.finish() == 0, job.log.read_text()
    assert f"going on from step {kept}" in job.log.read_text()
    same(result(job), uninterrupted)


def handles_sigterm(process) -> bool:
    """The process has a handler for SIGTERM: bit 14 of the mask that the kernel shows."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return bool(
        int(next(line.split()[1] for line in lines if line.startswith("SigCgt")), 16)
        >> (signal.SIGTERM - 1)
        & 1
    )


def files(folder: Path) -> dict[Path, bytes]:
    """Of a checkpoint."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def finished(folder: Path) -> dict[Path, bytes]:
    """The files of every checkpoint; a save that the kill has cut short is no checkpoint."""
    found = [files(step) for step in folder.iterdir() if step.name.isdigit()]
    return {path: data for one in found for path, data in one.items()}


def test_a_stop_during_the_start_ends_it_and_leaves_everything_as_it_was(place, uninterrupted):
    """While it imports, while it restores, and while it compiles, with nothing cached."""
    folder, shards, cache = place
    job = make_job(folder / "start", shards, cache, STEPS)
    process = job.start()
    assert wait_and_signal(
        job,
        process,
        Moment("saved", lambda job, begun: checkpointed(job) > begun, 0.0),
        signal.SIGKILL,
    )
    process.wait()
    before, saved = checkpointed(job), finished(job.out / "checkpoints")
    moments = {
        "import": lambda process, log: handles_sigterm(process),
        "restore": lambda process, log: "job: 1 cpu device(s)" in log,
        "compile": lambda process, log: "going on from step" in log,
    }
    for signum, (name, reached) in zip(
        (signal.SIGTERM, signal.SIGINT, signal.SIGTERM), moments.items()
    ):
        begun, deadline = len(job.log.read_text()), time.monotonic() + 60
        process = (job._replace(cache=folder / "empty") if name == "compile" else job).start()
        while not reached(process, job.log.read_text()[begun:]):
            assert process.poll() is None and time.monotonic() < deadline, (
                name,
                job.log.read_text(),
            )
            time.sleep(0.005)
        process.send_signal(signum)
        assert process.wait(60) == 128 + signum, job.log.read_text()
        log = job.log.read_text()[begun:]
        text = (
            f"stopped by {signal.Signals(signum).name} before the first step; the checkpoints are"
            " as they were"
        )
        assert f"{text}\nto go on: llm-jax train {job.config}" in log and "Traceback" not in log
        assert saved == finished(job.out / "checkpoints")
    assert job.finish() == 0
    assert f"going on from step {before}" in job.log.read_text()[begun + len(log) :]
    same(result(job), uninterrupted)


def test_a_disk_that_fills_up_ends_the_run_and_once_freed_it_goes_on(place, uninterrupted):
    folder, shards, cache = place
    job = make_job(folder / "full", shards, cache, STEPS)
    process = job.start()
    assert wait_and_signal(job, process, steps_on(2 * EVAL_EVERY), signal.SIGKILL)
    process.wait()
    before = checkpointed(job)
    status, log = job.run_on_a_full_disk(
        largest_file=20_000
    )  # a checkpoint's arrays are larger, the records of the steps are not
    assert status == 2, log
    error = log[log.rindex("llm-jax train: error: ") :]  # orbax's own tracebacks come before it
    assert f"could not save step {before + CHECKPOINT_EVERY}" in error
    assert f"the newest intact checkpoint is step {before}" in error
    assert "free space or repair the folder, and run the same command" in error
    assert checkpointed(job) == before
    assert job.finish() == 0, job.log.read_text()
    assert f"going on from step {before}" in job.log.read_text()
    same(result(job), uninterrupted)


def test_a_finished_run_is_left_alone(place, uninterrupted):
    folder, shards, cache = place
    job = make_job(folder / "whole", shards, cache, STEPS)
    assert job.finish() == 0
    assert f"already at step {STEPS} of {STEPS}: nothing to train" in job.log.read_text()
    same(result(job), uninterrupted)
