"""The lock of a run's folder: one process writes there, and an error names it to a second one.

The lock uses ``mkdir`` only, which is atomic on local disks, NFS and buckets mounted by FUSE;
``flock`` does not work on all of them. ``.lock/`` in the folder has one numbered folder for each
owner so far. The highest number is the last owner's, and the process that creates the next number
succeeds it. If two processes take over from a dead owner, one of them fails to create the number.
A process that is so late that a higher number exists gives way.

In a ``gs://`` bucket, which has no folders, a number is created with its object ``owner.json``: it
is written on the condition that there is none, and the bucket decides between several writers.

A killed owner is recognized on its own machine at once, by its process id and start time, and from
another machine by its heartbeat: an owner rewrites a file every ``BEAT`` seconds, and an owner
whose file has not changed for ``SILENT`` seconds is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.files import remove_tree, write_atomic
from llm_jax.progress import note
from llm_jax.storage.paths import as_bucket, is_bucket, path_of
from llm_jax.types import ConfigError, DataError

LOCK = ".lock"
OWNER = "owner.json"
BEATS = "beat.json"
RELEASED = "released"
BEAT = 15.0
"""Seconds between two heartbeats of an owner."""
SILENT = 90.0
"""Seconds without a heartbeat after which an owner on another machine is gone; a mounted bucket may
show the old content of a file for 60 seconds.
"""


class Owner(NamedTuple):
    """The process that holds a lock.

    Attributes:
        token: unique to this lock.
        host: name of the machine.
        machine: identifies the boot and the process namespace that ``pid`` belongs to.
        pid: the process id.
        started: start time of the process in clock ticks since boot, which distinguishes it from a
            later process with the same id.
        folder: path of the locked folder on that machine, which distinguishes the lock from a copy
            of it.
        since: when the lock was taken.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    folder: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class FolderLock:
    """Holds a folder until ``close``.

    Of a run on many hosts, only process 0 takes the lock; the others write when it allows them to.

    Args:
        folder: the folder; made if it does not exist.
        option: name of the setting that has the folder, for messages.
        beat: seconds between two heartbeats, see ``BEAT``.
        silent: seconds without a heartbeat, see ``SILENT``.

    Raises:
        ConfigError: another process holds the folder, or it cannot be written.
    """

    def __init__(
        self, folder: Path, *, option: str = "train.out", beat: float = BEAT, silent: float = SILENT
    ) -> None:
        self.folder = path_of(folder)
        self._option = option
        self._beat = beat
        self._me = _this_process(self.folder)
        self._stop = threading.Event()
        self._taken_by = ""
        self._kept = False
        try:
            self._place = self._acquire(silent)
        except OSError as error:
            raise ConfigError(
                f"{option} {str(folder)!r} cannot be written: {error.strerror}; choose another"
                " folder"
            ) from error
        self._thread = threading.Thread(target=self._beat_on, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that no other process has taken the folder over after ``SILENT`` seconds.

        Reads the folder, so that a process that was suspended finds out before it writes.

        Raises:
            ConfigError: another process has taken it over.
        """
        with contextlib.suppress(OSError):
            self._look()
        if self._taken_by:
            raise ConfigError(
                f"{self._option} {str(self.folder)!r} was taken over by {self._taken_by}; this"
                " process writes nothing more"
            )

    def keep(self) -> None:
        """Let ``close`` leave the folder locked until this process ends."""
        self._kept = True

    def close(self) -> None:
        """Release the folder."""
        if self._kept:
            return
        self._stop.set()
        # The process must end even if the file system hangs.
        self._thread.join(timeout=5.0)
        if not self._taken_by:
            # If the mark cannot be written, the next process finds that this one has ended.
            with contextlib.suppress(DataError):
                write_atomic(self._place / RELEASED, b"")

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acquire(self, silent: float) -> Path:
        lock = self.folder / LOCK
        lock.mkdir(parents=True, exist_ok=True)
        last = _last_number(lock)
        while True:
            if last and not self._is_free(lock / str(last), silent):
                newest = _last_number(lock)
                if newest > last:
                    # Another process took the folder over while this one waited for a heartbeat.
                    last = newest
                    continue
                raise ConfigError(
                    f"{self._option} {str(self.folder)!r} is in use by {_who(lock / str(last))};"
                    " wait for it to end, stop it, or choose another folder"
                )
            try:
                return self._take(lock, last + 1)
            except FileExistsError:
                # A mounted bucket may not list a folder that another process has just made.
                last = max(last + 1, _last_number(lock))

    def _take(self, lock: Path, number: int) -> Path:
        """Become the owner of that number.

        Raises:
            FileExistsError: another process is.
        """
        place = lock / str(number)
        self._claim(lock, place)
        try:
            if _last_number(lock) > number:
                # This process is late: there have been owners since the one that it saw.
                raise FileExistsError(place)
            _write_beat(place, self._me.token, 0)
        except BaseException:
            remove_tree(place)
            raise
        for older in _numbers(lock):
            if older < number:
                remove_tree(lock / str(older))
        return place

    def _claim(self, lock: Path, place: Path) -> None:
        """Make ``place``, with the name of this process.

        Raises:
            FileExistsError: another process has made it.
        """
        owner = _json(self._me._asdict())
        remote = as_bucket(place / OWNER)
        if remote is not None:
            _create(remote, owner)
            return
        # Written before ``mkdir``: a process that is killed between ``mkdir`` and the end of a
        # write would leave an owner that cannot be distinguished from a living one.
        prepared = lock / f"{self._me.token}.json"
        write_atomic(prepared, owner)
        try:
            place.mkdir()
            prepared.replace(place / OWNER)
        finally:
            prepared.unlink(missing_ok=True)

    def _is_free(self, place: Path, silent: float) -> bool:
        """Whether the owner at ``place`` has released the folder or is gone."""
        if (place / RELEASED).exists():
            return True
        owner = _read_owner(place)
        if (
            owner is not None
            and owner.machine == self._me.machine
            and owner.folder == self._me.folder
        ):
            return not _runs(owner.pid, owner.started)
        note(
            f"{self.folder}: in use by {_who(place)}; waiting up to {silent:g} s for its next sign"
            " of life"
        )
        return _is_silent(place, silent)

    def _beat_on(self) -> None:
        number = 0
        while not self._stop.wait(self._beat):
            number += 1
            # A full disk, or a mounted one that fails for a moment, must not end the heartbeat.
            with contextlib.suppress(DataError, OSError):
                self._look()
                if self._taken_by:
                    return
                _write_beat(self._place, self._me.token, number)

    def _look(self) -> None:
        """Record which process has taken the folder over, if one has."""
        lock = self.folder / LOCK
        last = _last_number(lock)
        if last > int(self._place.name):
            self._taken_by = _who(lock / str(last))


def _create(remote: Any, owner: bytes) -> None:
    """Write an object of a bucket if there is none.

    Raises:
        FileExistsError: another process has written it.
    """
    try:
        remote.create(owner)
    except FileExistsError:
        # The bucket may have written it and its answer was lost, so that it was asked again; a
        # token is of one lock only.
        if remote.read_bytes() != owner:
            raise


def _is_silent(place: Path, silent: float) -> bool:
    """Whether the heartbeat at ``place`` does not change for ``silent`` seconds.

    Only this machine's clock counts: those of two machines may differ.
    """
    first = _read(place / BEATS)
    end = time.monotonic() + silent
    while time.monotonic() < end:
        time.sleep(min(1.0, silent / 10))
        if (place / RELEASED).exists():
            return True
        if _read(place / BEATS) != first:
            return False
    return True


def _this_process(folder: Path) -> Owner:
    pid = os.getpid()
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Owner(
        uuid.uuid4().hex,
        socket.gethostname(),
        _machine(),
        pid,
        _start_time(pid),
        str(folder) if is_bucket(folder) else os.path.realpath(folder),
        now,
    )


def _machine() -> str:
    """Identifies the machine, its boot and, in a container, the namespace of process ids."""
    parts = [socket.gethostname(), _read(Path("/proc/sys/kernel/random/boot_id")).strip()]
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _start_time(pid: int) -> str:
    """Field 22 of ``/proc/PID/stat``, see proc(5); empty without /proc.

    Fields are counted after the name in brackets, which may contain blanks.
    """
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _runs(pid: int, started: str) -> bool:
    try:
        # A process of another user exists.
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return not (stat and stat[0] == "Z") and _start_time(pid) == started


def _numbers(lock: Path) -> set[int]:
    return {int(p.name) for p in lock.iterdir() if p.name.isdigit()}


def _last_number(lock: Path) -> int:
    return max(_numbers(lock), default=0)


def _read(path: Path) -> str:
    """The text of a small file; empty if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _read_owner(place: Path) -> Owner | None:
    """The owner at ``place``; None if its file is missing or damaged."""
    try:
        return Owner(**json.loads(_read(place / OWNER)))
    except (ValueError, TypeError):
        return None


def _who(place: Path) -> str:
    """The owner at ``place``, for people."""
    return str(_read_owner(place) or "a process that has not said who it is")


def _write_beat(place: Path, token: str, number: int) -> None:
    write_atomic(place / BEATS, _json({"token": token, "beat": number}))


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data) + "\n").encode()
