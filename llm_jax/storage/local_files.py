"""Local files for what lies in a bucket: copies to read, in a bounded cache, and files to upload.

    ~/.cache/llm_jax/buckets/        LLM_JAX_BUCKET_CACHE
        copies/KEY/NAME              copies; the key is of the object's address and version
        copies/KEY.lock              held by the process that fetches it
        processes/ID/lock            held by a process as long as it lives
        processes/ID/uses            the keys that it uses, which nobody evicts
        processes/ID/…               files that it writes, before they are uploaded

One process of a machine fetches an object, and the others wait for it. A copy gets its name when
its size and its checksum are those that the bucket names. The cache holds
``LLM_JAX_BUCKET_CACHE_GB`` (default 100); copies that were used longest ago make room.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.storage.bucket_path import BucketPath, Stored, tried
from llm_jax.types import ConfigError, DataError

FOLDER = "LLM_JAX_BUCKET_CACHE"
LIMIT = "LLM_JAX_BUCKET_CACHE_GB"
_DEFAULT_GB = 100.0
_TRIES = 3
_CHUNK = 16 << 20


class _DamagedError(OSError):
    """A copy that is not what the bucket has."""


class _Process(NamedTuple):
    """The part of the cache that this process holds.

    Attributes:
        pid: its id, which differs in a process that was forked from it.
        folder: its folder.
        lock: the open lock file.
    """

    pid: int
    folder: Path
    lock: int


def local_copy(remote: BucketPath) -> Path:
    """A local file with the content of an object.

    A copy stays while this process lives. An object that has changed is fetched anew.

    Raises:
        OSError: there is no such object, or the bucket refuses.
        DataError: the cache has no room for it.
    """
    stored = remote.stored()
    root = cache_folder()
    key = hashlib.sha256(f"{remote}\n{stored.version}\n{stored.size}".encode()).hexdigest()[:32]
    place = root / "copies" / key / remote.name
    _use(root, key)
    with _locked(root / "copies" / f"{key}.lock"):
        if not place.is_file() or place.stat().st_size != stored.size:
            with _room(root, place.parent, stored.size, str(remote)):
                tried(lambda: _fetch(remote, stored, place), _TRIES, _DamagedError)
        os.utime(place)
    return place


@contextmanager
def uploaded(path: BucketPath) -> Iterator[Path]:
    """A local file to write; it becomes the object ``path`` when the body ends without an error.

    Raises:
        OSError: the bucket refuses, or cannot be reached.
    """
    with scratch_folder() as folder:
        local = folder / path.name
        yield local
        upload(local, path)


def upload(local: Path, path: BucketPath) -> None:
    """Copies a file into a bucket; the object appears whole, with the checksum of the file.

    Raises:
        OSError: the bucket refuses, cannot be reached, or got other bytes.
    """
    tried(lambda: _upload(local, path), _TRIES, _DamagedError)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new local folder, which is deleted after the body or, after a kill, by another process."""
    folder = _process(str(cache_folder()), os.getpid()).folder / uuid.uuid4().hex
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cache_folder() -> Path:
    """The folder of the cache, made where it is missing.

    Raises:
        ConfigError: it cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get(FOLDER) or os.path.join(base, "llm_jax", "buckets")).absolute()
    try:
        for name in ("copies", "processes"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the cache of buckets {str(folder)!r} cannot be made ({error.strerror}); set {FOLDER}"
            " to a folder of this machine"
        ) from error
    return folder


def cache_limit() -> int:
    """Bytes that the cache may hold.

    Raises:
        ConfigError: ``LLM_JAX_BUCKET_CACHE_GB`` is not a positive number.
    """
    text = os.environ.get(LIMIT) or str(_DEFAULT_GB)
    with contextlib.suppress(ValueError):
        limit = float(text) * 1e9
        if 0 < limit < 1e18:
            return int(limit)
    raise ConfigError(f"{LIMIT} is {text!r}; set it to a number of gigabytes, such as 200")


def _upload(local: Path, path: BucketPath) -> None:
    path.upload(str(local))
    stored = path.stored()
    if not _is_intact(local, stored):
        path.unlink(missing_ok=True)
        raise _DamagedError(5, "the upload arrived damaged, and was deleted", str(path))


def _fetch(remote: BucketPath, stored: Stored, place: Path) -> None:
    partial = place.with_name(f".{place.name}.partial")
    try:
        remote.download(str(partial))
        if not _is_intact(partial, stored):
            raise _DamagedError(
                5, f"the copy of {stored.size:,} bytes arrived damaged; try again", str(remote)
            )
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)


def _is_intact(local: Path, stored: Stored) -> bool:
    """Whether a file has the size and the checksum of an object."""
    if local.stat().st_size != stored.size:
        return False
    if stored.crc32c:
        return _crc32c(local) == stored.crc32c
    if stored.md5:
        with local.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest() == stored.md5
    return True


def _crc32c(local: Path) -> str:
    """The checksum as Cloud Storage writes it."""
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with local.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    return base64.b64encode(checksum.digest()).decode()


@contextmanager
def _room(root: Path, folder: Path, size: int, name: str) -> Iterator[None]:
    """Evicts copies until ``size`` bytes fit, and counts them as used while the body fills them.

    Args:
        root: of the cache.
        folder: of the new copy.
        size: of the new copy.
        name: of the object, for messages.

    Raises:
        DataError: they do not fit.
    """
    reserved = folder / ".reserved"
    with _locked(root / "evict.lock"):
        _evict(root, size, name)
        folder.mkdir(parents=True, exist_ok=True)
        with reserved.open("wb") as file:
            # A file of that length that takes no space.
            file.truncate(size)
    try:
        yield
    finally:
        reserved.unlink(missing_ok=True)


def _evict(root: Path, size: int, name: str) -> None:
    limit = cache_limit()
    used = _used_keys(root)
    copies = _copies(root)
    total = sum(copy.size for copy in copies)
    for copy in copies:
        if total + size <= limit:
            break
        if copy.key not in used:
            shutil.rmtree(root / "copies" / copy.key)
            total -= copy.size
    if total + size > limit:
        raise DataError(
            f"{name!r} has {size:,} bytes, and the cache {str(root)!r} holds {total:,} bytes in use"
            f" of {limit:,}; set {LIMIT} to more"
        )
    free = shutil.disk_usage(root).free
    if size > free:
        raise DataError(
            f"{name!r} has {size:,} bytes, and the disk of the cache {str(root)!r} has {free:,}"
            f" free; set {FOLDER} to a folder on a larger disk"
        )


class _Copy(NamedTuple):
    """A copy in the cache."""

    used: float
    key: str
    size: int


def _copies(root: Path) -> list[_Copy]:
    """All copies, those that were used longest ago first."""
    found = []
    for folder in (root / "copies").iterdir():
        if folder.is_dir():
            files = [file.stat() for file in folder.iterdir()]
            # Of a copy that is being fetched: the file that reserves its space, and a part of it.
            size = max((file.st_size for file in files), default=0)
            found.append(_Copy(max((f.st_mtime for f in files), default=0.0), folder.name, size))
    return sorted(found)


def _use(root: Path, key: str) -> None:
    """Notes that this process uses a copy, before it looks whether there is one."""
    process = _process(str(root), os.getpid())
    with (process.folder / "uses").open("a") as uses:
        uses.write(f"{key}\n")


def _used_keys(root: Path) -> set[str]:
    """The keys that living processes use. Folders of dead processes are deleted."""
    used: set[str] = set()
    for folder in (root / "processes").iterdir():
        if _is_alive(folder):
            with contextlib.suppress(FileNotFoundError):
                used.update((folder / "uses").read_text().split())
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return used


def _is_alive(folder: Path) -> bool:
    """Whether the process of a folder lives: it holds its lock from before the folder has a
    name until it ends.
    """
    try:
        file = os.open(folder / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


@functools.cache
def _process(root: str, pid: int) -> _Process:
    """The folder of this process, made at its first use."""
    place = Path(root) / "processes" / f"{pid}-{uuid.uuid4().hex}"
    preparing = Path(root) / f".{place.name}"
    preparing.mkdir()
    lock = os.open(preparing / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    preparing.rename(place)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return _Process(pid, place, lock)


@contextmanager
def _locked(path: Path) -> Iterator[Any]:
    """Holds a file that one process of the machine holds at a time."""
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
