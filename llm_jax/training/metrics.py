"""Metrics of a run, written as JSON lines and as TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_jax.files import write_atomic
from llm_jax.storage.paths import as_bucket, is_bucket
from llm_jax.types import ConfigError

# Seconds after which the records are uploaded, for those who watch a run in a bucket.
_STORE_EVERY = 60.0


def perplexity_per(nll: float, count: float) -> float | None:
    """exp(nll / count); None if ``count`` is 0 or the value is too large for a float."""
    if not count:
        return None
    try:
        return math.exp(nll / count)
    except OverflowError:
        return None


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and their numbers to TensorBoard event files in
    ``tensorboard/``.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        """Opens the files of a run.

        Records after ``resume_step``, which a killed run wrote after its last checkpoint, are
        dropped.
        """
        self.path = folder / "metrics.jsonl"
        self._closing = contextlib.ExitStack()
        self._folder = folder
        if is_bucket(folder):
            from llm_jax.storage.local_files import scratch_folder

            # A bucket cannot append: the files are written on this machine and uploaded whole.
            self._folder = self._closing.enter_context(scratch_folder())
        self._open(resume_step)

    def _open(self, resume_step: int) -> None:
        kept = []
        # A run that goes back has records that are not uploaded yet.
        before = self._local if self._local.exists() else self.path
        if before.exists():
            kept = [r for r in read_metrics(before) if r["step"] <= resume_step]
        text = "".join(_line(r) for r in kept)
        write_atomic(self._local, text.encode())
        self._file = self._local.open("a", buffering=1)
        self._board = _EventFile(self._folder / "tensorboard", resume_step + 1)
        self._upload()

    @property
    def _local(self) -> Path:
        """The file of this machine that records are appended to."""
        return self._folder / self.path.name

    def _upload(self) -> None:
        """Stores the files as they are now, where the run is in a bucket."""
        self._stored = time.monotonic()
        remote = as_bucket(self.path.parent)
        if remote is None:
            return
        from llm_jax.storage.local_files import upload

        upload(self._local, remote / self.path.name)
        self._board.flush()
        upload(self._board.path, remote / "tensorboard" / self._board.path.name)

    def go_back(self, step: int) -> None:
        """Drops the records after ``step``, from which the run resumes."""
        for file in (self._file, self._board):
            file.close()
        self._open(step)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one record: ``{"kind": kind, "step": step, **values}``.

        Raises:
            ConfigError: the file cannot be written, for example because the disk is full.
        """
        numbers = {
            f"{kind}/{k}": v for k, v in values.items() if isinstance(v, float) and math.isfinite(v)
        }
        with self._writing(step):
            self._file.write(_line({"kind": kind, "step": step, **values}))
            self._board.write(step, numbers)
            if time.monotonic() - self._stored > _STORE_EVERY:
                self._upload()

    def sync(self, step: int) -> None:
        """Returns when all records so far are stored.

        The file is closed and opened again, since a mounted bucket is only certain to have a file
        that was closed: a streaming gcsfuse does not finish an object at fsync.
        """
        with self._writing(step):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = self._local.open("a", buffering=1)
            self._upload()

    @contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"step {step}: cannot write {self.path}: {error.strerror}; free space and run the"
                " same command to go on from the newest checkpoint"
            ) from error

    def close(self) -> None:
        """Closes the files. Records that a full disk did not take are lost, as after a kill."""
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                file.close()
        with contextlib.suppress(OSError):
            self._upload()
        self._closing.close()


class SilentWriter:
    """Writes nothing: every process but the first has it, since one writes for all."""

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def sync(self, step: int) -> None:
        """Nothing."""

    def go_back(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _EventFile:
    """A TensorBoard event file, written without a thread: that of tensorboardX's own writer dies
    on a full disk.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # Imported here: a machine that only benchmarks or imports the step does not need it.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._scalar = scalar
        self._flushed = time.monotonic()
        self._closed = False
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self._records = RecordWriter(str(self.path))
        self._put(file_version="brain.Event:2")
        # TensorBoard drops the events of earlier files from this step on.
        self._put(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def _put(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._put(step=step, summary=self._scalar(name, value))
        if time.monotonic() - self._flushed > 30:
            self.flush()

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        if not self._closed:
            self._records.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._closed = True
        self._records.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, without a last line that a kill cut short."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
