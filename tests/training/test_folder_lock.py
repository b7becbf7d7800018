"""One process holds a run's folder; a dead one loses it, and nobody else does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_jax.checkpoints import folder_lock
from llm_jax.checkpoints.folder_lock import BEATS, OWNER, FolderLock
from llm_jax.types import ConfigError, DataError

HOLD = """
import sys, time
from llm_jax.checkpoints.folder_lock import FolderLock
lock = FolderLock(sys.argv[1])
print("held", flush=True)
time.sleep(100)
"""


@contextmanager
def other_process(folder: Path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def no_waiting(monkeypatch):
    """Fails where the lock cannot tell at once whether its owner lives."""

    def wait(*_):
        raise AssertionError("waited for a sign of life")

    monkeypatch.setattr(folder_lock, "_is_silent", wait)


def place_of(folder: Path) -> Path:
    return max((folder / ".lock").iterdir(), key=lambda p: int(p.name))


def change_owner(folder: Path, **fields) -> None:
    path = place_of(folder) / OWNER
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_second_is_told_who_holds_the_folder(tmp_path, no_waiting):
    with other_process(tmp_path / "run") as process:
        with pytest.raises(ConfigError) as caught:
            FolderLock(tmp_path / "run")
        since = json.loads((place_of(tmp_path / "run") / OWNER).read_text())["since"]
        said = (
            f"train.out {str(tmp_path / 'run')!r} is in use by process {process.pid} on"
            f" {os.uname().nodename}, since {since}; "
        )
        assert str(caught.value).startswith(said)


def test_a_killed_owner_loses_it_at_once(tmp_path, no_waiting):
    with other_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        # Not waited for: it stays in the process table as a zombie, which holds nothing any more.
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        FolderLock(tmp_path).close()
        process.wait()
        FolderLock(tmp_path).close()


def test_a_released_folder_is_free_at_once_on_any_machine(tmp_path, no_waiting):
    FolderLock(tmp_path).close()
    change_owner(tmp_path, machine="another")
    with FolderLock(tmp_path) as lock:
        lock.check()
    assert [p.name for p in (tmp_path / ".lock").iterdir()] == ["2"]


def test_a_later_process_of_the_same_id_is_not_the_owner(tmp_path, no_waiting):
    with FolderLock(tmp_path):
        change_owner(tmp_path, started="1")
        FolderLock(tmp_path).close()


def test_an_owner_on_another_machine_keeps_it_as_long_as_it_gives_signs_of_life(tmp_path):
    with FolderLock(tmp_path, beat=0.05):
        change_owner(tmp_path, machine="another", host="worker-7")
        with pytest.raises(ConfigError, match=r"in use by process \d+ on worker-7, since"):
            FolderLock(tmp_path, silent=20.0)


@pytest.mark.parametrize("damage", ["silent", "no owner", "owner cut short"])
def test_a_silent_owner_on_another_machine_is_gone(tmp_path, damage):
    with FolderLock(tmp_path, beat=1000.0):
        change_owner(tmp_path, machine="another")
        path = place_of(tmp_path) / OWNER
        if damage == "no owner":
            path.unlink()
        elif damage == "owner cut short":
            path.write_text(path.read_text()[:20])
        FolderLock(tmp_path, silent=0.3).close()


def test_one_that_was_taken_over_writes_nothing_more(tmp_path):
    lock = FolderLock(tmp_path, beat=0.05)
    lock.check()
    change_owner(tmp_path, started="1")
    with FolderLock(tmp_path, beat=1000.0):
        deadline = time.monotonic() + 20
        with pytest.raises(
            ConfigError,
            match=r"was taken over by process \d+ on .*; this process writes nothing more",
        ):
            while time.monotonic() < deadline:
                lock.check()
                time.sleep(0.02)
        lock.close()
        # The one that lost it does not release it for the other.
        with pytest.raises(ConfigError, match="is in use by"):
            FolderLock(tmp_path)


def test_the_copy_of_a_folder_in_use_is_free(tmp_path):
    with FolderLock(tmp_path / "run", beat=1000.0):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        FolderLock(tmp_path / "copy", silent=0.3).close()
        with pytest.raises(ConfigError, match="is in use by"):
            FolderLock(tmp_path / "run")


def at_once(number: int, act: Callable[[], object]) -> list[object]:
    """What ``act`` returns or raises in ``number`` threads that start together."""
    barrier, results = threading.Barrier(number), []

    def run() -> None:
        barrier.wait()
        try:
            results.append(act())
        except ConfigError as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("before", ["new", "dead owner"])
def test_of_many_that_come_at_once_one_gets_it(tmp_path, before, monkeypatch):
    # A lock whose owner file is still to come is seen as silent by those who look meanwhile: they
    # wait, as they should.
    for n in range(6):
        folder = tmp_path / str(n)
        if before == "dead owner":
            FolderLock(folder, beat=1000.0)
            change_owner(folder, started="1")
        results = at_once(6, lambda folder=folder: FolderLock(folder, beat=0.05, silent=5.0))
        held = [r for r in results if isinstance(r, FolderLock)]
        assert len(held) == 1 and all(
            isinstance(r, ConfigError) for r in results if r is not held[0]
        ), results
        held[0].close()


def test_a_mounted_bucket_that_lists_late_gives_nobody_the_same_number(tmp_path, monkeypatch):
    with FolderLock(tmp_path):
        number = folder_lock._last_number
        seen = iter([0])
        monkeypatch.setattr(folder_lock, "_last_number", lambda lock: next(seen, number(lock)))
        with pytest.raises(ConfigError, match="is in use by"):
            FolderLock(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"train\.out .*run' cannot be written: Not a directory"):
        FolderLock(tmp_path / "file" / "run")

    def full(path, data):
        raise DataError(f"{path} cannot be written (No space left on device)")

    monkeypatch.setattr(folder_lock, "write_atomic", full)
    with pytest.raises(DataError, match="No space left"):
        FolderLock(tmp_path / "run")
    monkeypatch.undo()
    # Nothing is left that the next one would have to wait for.
    FolderLock(tmp_path / "run", silent=1000.0).close()


def test_a_full_disk_ends_no_run_that_only_beats(tmp_path, monkeypatch):
    with FolderLock(tmp_path, beat=0.02) as lock:
        monkeypatch.setattr(
            folder_lock, "write_atomic", lambda *_: (_ for _ in ()).throw(DataError("full"))
        )
        time.sleep(0.1)
        monkeypatch.undo()
        before = (place_of(tmp_path) / BEATS).read_text()
        deadline = time.monotonic() + 20
        while (place_of(tmp_path) / BEATS).read_text() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lock.check()


def test_a_file_system_that_fails_for_a_moment_does_not_end_the_beat(tmp_path, monkeypatch):
    number, failures = folder_lock._last_number, iter([OSError(116, "Stale file handle")] * 2)

    def sometimes(lock):
        if (failure := next(failures, None)) is not None:
            raise failure
        return number(lock)

    with FolderLock(tmp_path, beat=0.02) as lock:
        monkeypatch.setattr(folder_lock, "_last_number", sometimes)
        before = (place_of(tmp_path) / BEATS).read_text()
        deadline = time.monotonic() + 20
        while (place_of(tmp_path) / BEATS).read_text() == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        lock.check()


def test_one_that_comes_too_late_gives_way(tmp_path):
    late = FolderLock(tmp_path, beat=1000.0)
    change_owner(tmp_path, started="1")
    # It saw the first owner dead, and meanwhile the second one came and went and the third holds
    # the folder.
    FolderLock(tmp_path, beat=1000.0).close()
    with FolderLock(tmp_path, beat=1000.0) as holder:
        with pytest.raises(FileExistsError):
            late._take(tmp_path / ".lock", 2)
        holder.check()
        assert [p.name for p in (tmp_path / ".lock").iterdir()] == ["3"]


def test_check_looks_for_itself(tmp_path):
    """A process that has just woken up, whose beat has not come yet."""
    lock = FolderLock(tmp_path, beat=1000.0)
    change_owner(tmp_path, started="1")
    with (
        FolderLock(tmp_path, beat=1000.0),
        pytest.raises(ConfigError, match="was taken over by process"),
    ):
        lock.check()


def test_who_waits_for_a_dead_owner_is_told_of_the_one_that_came_first(tmp_path, monkeypatch):
    FolderLock(tmp_path, beat=1000.0)
    change_owner(tmp_path, machine="another")
    silent = folder_lock._is_silent

    def meanwhile(place, seconds):
        monkeypatch.setattr(folder_lock, "_is_silent", silent)
        FolderLock(tmp_path, beat=1000.0, silent=0.1)
        return silent(place, seconds)

    monkeypatch.setattr(folder_lock, "_is_silent", meanwhile)
    with pytest.raises(
        ConfigError, match=rf"in use by process {os.getpid()} on {os.uname().nodename}, since"
    ):
        FolderLock(tmp_path, silent=5.0)


KILLED_WHILE_TAKING = """
import itertools, os, sys
from llm_jax.checkpoints import folder_lock
real, calls = folder_lock.write_atomic, itertools.count()
def killed(path, data):
    if next(calls) == int(sys.argv[2]):
        os._exit(9)
    real(path, data)
folder_lock.write_atomic = killed
folder_lock.FolderLock(sys.argv[1])
print("held")
"""


@pytest.mark.parametrize("writes", [0, 1])
def test_a_process_killed_while_it_takes_the_folder_is_known_to_be_gone(
    tmp_path, no_waiting, writes
):
    command = [sys.executable, "-c", KILLED_WHILE_TAKING, str(tmp_path), str(writes)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 9 and "held" not in ended.stdout, ended.stderr
    FolderLock(tmp_path).close()
