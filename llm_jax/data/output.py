"""Writing results: folders that can be written, files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from llm_jax.types import DataError


def make_folder(path: Path) -> None:
    """Create the folder, or raise DataError with the reason it cannot be written."""
    # As a Path, gs://bucket/x is the local folder gs:/bucket/x, lost with the machine.
    if path.parts and path.parts[0].endswith(":"):
        raise DataError(f"out {str(path)!r} names a bucket, which is written through a folder where it is mounted, such as /mnt/bucket")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"out {str(path)!r} cannot be written ({error.strerror}); choose another folder") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write so that a kill leaves the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"{str(path)!r} cannot be written ({error.strerror}); free space or choose another folder"
        ) from error
