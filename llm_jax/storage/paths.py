"""Paths from text: the one place where a path is made from what a user gave.

``path_of("runs/x")`` is a ``pathlib.Path``; ``path_of("gs://bucket/x")`` is a ``BucketPath``, which
has the methods of a ``pathlib.Path`` that this project uses. Nothing about buckets is imported
before the first path of a bucket is made.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

from llm_jax.types import ConfigError

if TYPE_CHECKING:
    from llm_jax.storage.bucket_path import BucketPath

Place = str | os.PathLike[str]
"""What a user may give for a path."""

BUCKETS = {"gs": "Google Cloud Storage", "s3": "Amazon S3"}
# A pathlib.Path of gs://bucket/x has lost a slash; no folder of the machine is meant by it.
_BUCKET = re.compile(r"(gs|s3):/+(.*)", re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def path_of(place: Place) -> Path:
    """The path that a text, a ``pathlib.Path`` or a path of a bucket names.

    Raises:
        ConfigError: the text is of another kind of storage, names no bucket, or a package for
            buckets is missing; the message names the fix.
    """
    text = os.fspath(place)
    check_place(text)
    bucket = _BUCKET.fullmatch(text)
    if bucket is None:
        return Path(text)
    from llm_jax.storage.bucket_path import BucketPath, check_installed

    check_installed(bucket[1])
    return cast(Path, BucketPath(f"{bucket[1]}://{bucket[2]}"))


def check_place(text: str, name: str = "") -> None:
    """Checks that a text names a folder or file of this machine or of a bucket; imports nothing.

    Args:
        text: the path.
        name: of the setting that has the path, for the message.

    Raises:
        ConfigError: it names another kind of storage, or no bucket.
    """
    given = f"{name} is {text!r}" if name else f"path {text!r}"
    bucket = _BUCKET.fullmatch(text)
    if bucket is not None:
        if not bucket[2].strip("/"):
            raise ConfigError(f"{given} names no bucket; give {bucket[1]}://BUCKET/FOLDER")
        return
    scheme = _SCHEME.match(text)
    if scheme is not None:
        raise ConfigError(
            f"{given}, and {scheme[1]}:// cannot be read or written; give a folder, gs:// or s3://"
        )


def is_bucket(path: Place) -> bool:
    """Whether a path is of a bucket."""
    return _BUCKET.fullmatch(os.fspath(path)) is not None


def bucket_refusal(error: BaseException) -> str:
    """What a bucket says no to, as text; empty where an exception is not of a bucket."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return ""
    return f"{error.filename}: {error.strerror}" if is_bucket(error.filename) else ""


def local_file(path: Place) -> Path:
    """A file of this machine with the content of ``path``: itself, or a bucket's copy in the cache.

    Raises:
        OSError: there is no such file, or the bucket refuses.
        DataError: the cache has no room for it.
    """
    remote = as_bucket(path)
    if remote is None:
        return path_of(path)
    from llm_jax.storage.local_files import local_copy

    return local_copy(remote)


def as_bucket(path: Place) -> BucketPath | None:
    """The path as one of a bucket; None for a path of this machine."""
    return cast("BucketPath", path_of(path)) if is_bucket(path) else None
