"""Paths of buckets: ``etils.epath`` paths whose methods ask the bucket each time.

An object appears whole, when its upload ends, and a bucket has no folders: there is one where an
object has its name as a prefix. Listings of earlier requests are not used, since other machines
write too. Every error is an ``OSError``, as of a file.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import glob
import io
import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeVar

from llm_jax.storage.failures import as_os_errors, status_of
from llm_jax.types import ConfigError

# Where TensorFlow is installed, epath would use its own file system, with other errors and retries.
os.environ.setdefault("EPATH_USE_TF", "false")
try:
    from etils.epath.gpath import PosixGPath
except ImportError as missing:
    raise ConfigError("gs:// needs the package etils: pip install 'llm_jax[gcs]'") from missing

T = TypeVar("T")
# Of a file that is read from its beginning to its end.
_READ_AHEAD = 8 << 20
_EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


class Stored(NamedTuple):
    """An object of a bucket.

    Attributes:
        size: in bytes.
        version: identifies the content: GCS's generation, or S3's tag.
        crc32c: checksum of the content; empty where the bucket gives none.
        md5: checksum of the content, hexadecimal; empty where the bucket gives none.
    """

    size: int
    version: str
    crc32c: str
    md5: str


class Stat(NamedTuple):
    """The part of ``os.stat_result`` that an object has."""

    st_size: int


@functools.cache
def file_system(scheme: str) -> Any:
    """fsspec's file system for ``gs`` or ``s3``.

    Raises:
        ConfigError: its package is not installed.
    """
    check_installed(scheme)
    import fsspec

    protocol = {"gs": "gcs", "s3": "s3"}[scheme]
    # Orbax lists folders of checkpoints with a file system of its own, and has to see what
    # tensorstore and other machines wrote.
    fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem(protocol, use_listings_cache=False)


@functools.cache
def check_installed(scheme: str) -> None:
    """Checks that paths of ``gs`` or ``s3`` can be used, before anything is done with them.

    Raises:
        ConfigError: a package is not installed.
    """
    package, extra = _EXTRAS[scheme]
    if find_spec(package) is None:
        raise ConfigError(
            f"{scheme}:// needs the package {package}, which is not installed: pip install"
            f" 'llm_jax[{extra}]'"
        )


class BucketPath(PosixGPath):  # type: ignore[misc]
    """A path of a bucket, with the methods of ``pathlib.Path`` that this project uses."""

    @property
    def scheme(self) -> str:
        return str(self).partition("://")[0]

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Calls a method of the file system with this path as its first argument; see ``run``."""
        return self.run(lambda system: getattr(system, method)(str(self), *args, **options))

    def run(self, action: Callable[[Any], T]) -> T:
        """The result of ``action`` with the file system, which is called once more with a new
        token where the bucket does not take the old one.

        Raises:
            OSError: the bucket refuses, or cannot be reached.
        """
        system = file_system(self.scheme)
        with as_os_errors(str(self)):
            try:
                return action(system)
            except Exception as error:
                if status_of(error) != 401 or not _forget_token(system):
                    raise
            return action(system)

    def stored(self) -> Stored:
        """What the bucket says of the object.

        Raises:
            FileNotFoundError: there is none.
        """
        info = self.call("info")
        if info.get("type") != "file":
            raise FileNotFoundError(2, "there is no such object", str(self))
        tag = str(info.get("ETag", "")).strip('"')
        md5 = base64.b64decode(info.get("md5Hash") or "").hex()
        # The tag of an object that S3 got in parts is no checksum of it.
        md5 = md5 or (tag if re.fullmatch("[0-9a-f]{32}", tag) else "")
        version = str(info.get("generation") or tag or info.get("LastModified"))
        return Stored(int(info["size"]), version, info.get("crc32c") or "", md5)

    def _kind(self) -> str:
        try:
            return str(self.call("info")["type"])
        except FileNotFoundError:
            return ""

    def exists(self, **_: Any) -> bool:
        return bool(self._kind())

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def stat(self, **_: Any) -> Any:
        return Stat(self.stored().size)

    def iterdir(self) -> Iterator[Any]:
        """What is directly below this path: nothing, also where ``mkdir`` was not called."""
        try:
            names = self.call("ls", detail=False)
        except FileNotFoundError:
            return
        for name in sorted(map(self._full, names)):
            # Some programs make an empty object with the folder's name.
            if name != str(self):
                yield type(self)(name)

    def glob(self, pattern: str, **_: Any) -> Iterator[Any]:
        whole = f"{glob.escape(str(self))}/{pattern}"
        found = self.run(lambda system: system.glob(whole))
        yield from (type(self)(name) for name in sorted(map(self._full, found)))

    def files(self) -> dict[str, int]:
        """The size of every object below this path, by its name relative to it."""
        found = self.call("find", detail=True)
        sizes = {self._full(name): int(info["size"]) for name, info in found.items()}
        inside = f"{str(self).rstrip('/')}/"
        return {
            name.removeprefix(inside): size
            for name, size in sorted(sizes.items())
            if name.startswith(inside)
        }

    def _full(self, name: str) -> str:
        return f"{self.scheme}://{name.rstrip('/')}"

    def open(self, mode: str = "r", **options: Any) -> Any:
        """The object for reading; objects are written whole, by ``write_bytes``."""
        if mode not in ("r", "rb"):
            raise io.UnsupportedOperation(f"{self} is opened with mode {mode!r}; use write_bytes")
        raw = io.BufferedReader(_Reader(self), _READ_AHEAD)
        if mode == "rb":
            return raw
        return io.TextIOWrapper(raw, encoding=options.get("encoding") or "utf-8")

    def read_bytes(self) -> bytes:
        return bytes(self.call("cat_file"))

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: bytes) -> int:
        """Writes the object: readers see the old content or the new one."""
        self.call("pipe_file", bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, **_: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def create(self, data: bytes) -> None:
        """Writes the object if there is none.

        The bucket decides between several writers: one succeeds.

        Raises:
            FileExistsError: there is one.
        """
        self.call("pipe_file", data, mode="create")

    def upload(self, local: str) -> None:
        """Writes the object from a local file."""
        self.run(lambda system: system.put_file(local, str(self)))

    def download(self, local: str) -> None:
        """Writes a local file from the object."""
        self.run(lambda system: system.get_file(str(self), local))

    def touch(self, **_: Any) -> None:
        self.write_bytes(b"")

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing but the check, since a bucket has no folders."""
        kind = "" if exist_ok and parents else self._kind()
        if kind == "file" or (kind and not exist_ok):
            raise FileExistsError(17, "the object exists already", str(self))

    def rmdir(self) -> None:
        """Nothing, since a folder without objects is none."""

    def unlink(self, missing_ok: bool = False) -> None:
        if not missing_ok:
            self.stored()
        # The second try of a request whose answer was lost finds nothing.
        with contextlib.suppress(FileNotFoundError):
            self.call("rm_file")

    def rmtree(self, missing_ok: bool = False) -> None:
        """Deletes every object below this path."""
        names = [f"{str(self).rstrip('/')}/{name}" for name in self.files()]
        for name in names:
            type(self)(name).unlink(missing_ok=True)

    def rename(self, target: Any) -> Any:
        raise io.UnsupportedOperation(f"{self}: a bucket cannot rename in one step")

    replace = rename

    def absolute(self) -> Any:
        return self

    def resolve(self, strict: bool = False) -> Any:
        return self


class _Reader(io.RawIOBase):
    """The bytes of an object, at any offset."""

    def __init__(self, path: BucketPath) -> None:
        self._path = path
        self._size = path.stored().size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._at + len(view), self._size)
        if end <= self._at:
            return 0
        data = self._path.call("cat_file", start=self._at, end=end)
        if len(data) != end - self._at:
            raise OSError(
                5, f"{len(data)} bytes came in place of {end - self._at}", str(self._path)
            )
        view[: len(data)] = data
        self._at = end
        return len(data)


def _forget_token(system: Any) -> bool:
    """Makes the next request fetch a new token; False where there is none to fetch."""
    holder = getattr(system, "credentials", None)
    credentials: Any = getattr(holder, "credentials", None)
    if credentials is None:
        return False
    credentials.token = None
    return True


def tried(action: Callable[[], T], times: int, again: type[Exception]) -> T:
    """The result of ``action``, which is called up to ``times`` times where it raises ``again``."""
    for left in reversed(range(times)):
        try:
            return action()
        except again:
            if left == 0:
                raise
    raise ValueError(f"times is {times}; it must be at least 1")
