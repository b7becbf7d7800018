"""Errors of a bucket as ``OSError``, with a text that names the fix.

Libraries of buckets raise exceptions of many packages. What handles a file that cannot be read or
written handles ``OSError`` and shows its ``strerror``; so this module makes one of each of them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

# Packages whose exceptions are answers of a bucket, or of the network to it.
_PACKAGES = ("gcsfs", "google", "aiohttp", "requests", "urllib3", "botocore", "s3fs")
_NOT_KNOWN = (
    "401 Unauthorized: no valid credentials; run `gcloud auth application-default login`, or give"
    " the machine a service account, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
)
_NOT_ALLOWED = (
    "403 Forbidden: these credentials may not do that; give their account the role Storage Object"
    " Admin on the bucket"
)
_NO_KEYS_OF_S3 = (
    "403 Forbidden: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of an account that may use the"
    " bucket"
)


@contextmanager
def as_os_errors(path: str) -> Iterator[None]:
    """Raises ``OSError`` in place of what the libraries of buckets raise.

    Args:
        path: what the body reads or writes.
    """
    try:
        yield
    except Exception as error:
        if not _is_answer(error):
            raise
        _raise(error, path)


def status_of(error: BaseException) -> int:
    """The HTTP status that an exception stands for; 0 where it stands for none."""
    for name in ("code", "status"):
        value = getattr(error, name, None)
        if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            return int(value)
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return 403
    return 401 if type(error).__module__.startswith("google.auth") else 0


def _is_answer(error: Exception) -> bool:
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError | TimeoutError) or package in _PACKAGES


def _raise(error: Exception, path: str) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        raise FileNotFoundError(errno.ENOENT, "there is no such bucket or object", path) from error
    if isinstance(error, FileExistsError):
        raise FileExistsError(errno.EEXIST, "the object exists already", path) from error
    status = status_of(error)
    if status == 401:
        raise PermissionError(errno.EACCES, _NOT_KNOWN, path) from error
    if status == 403 or isinstance(error, PermissionError):
        text = _NO_KEYS_OF_S3 if path.startswith("s3://") else _NOT_ALLOWED
        raise PermissionError(errno.EACCES, text, path) from error
    if isinstance(error, OSError) and error.strerror:
        raise error
    said = " ".join(str(error).split())[:200] or type(error).__name__
    if status == 429 or status >= 500:
        said = f"the bucket answered {status} to every try; run it again later ({said})"
    raise OSError(errno.EIO, said, path) from error
