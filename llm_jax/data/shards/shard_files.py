"""The files of shards, of this machine or of a bucket.

A shard of a bucket is fetched whole into the cache (``storage.local_files``) when it is first read.
Where the shards that are read are more than the cache may hold, ``array_record`` reads them from
the bucket itself, which takes one request for each record.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_jax.files import file_sizes
from llm_jax.progress import note
from llm_jax.storage.paths import is_bucket, local_file
from llm_jax.types import ConfigError, DataError

CHOICE = "LLM_JAX_BUCKET_SHARDS"
"""Environment variable: ``cache`` or ``native``; empty is ``cache`` for shards that fit it."""


def check_sizes(folder: Path, shards: Sequence[dict[str, Any]]) -> None:
    """Compares the sizes of shard files with the manifest.

    Args:
        folder: of the shards.
        shards: their records in the manifest.

    Raises:
        DataError: a file is missing, truncated or changed.
    """
    # One request for a bucket's folder, not one for each file.
    sizes = file_sizes(folder) if is_bucket(folder) else None
    for shard in shards:
        path = folder / shard["file"]
        if sizes is None:
            size = path.stat().st_size if path.is_file() else None
        else:
            size = sizes.get(shard["file"])
        if size is None:
            raise DataError(
                f"shard {str(path)!r} is missing; copy it again or prepare the data again"
            )
        if size != shard["bytes"]:
            state = "truncated" if size < shard["bytes"] else "changed"
            raise DataError(
                f"shard {str(path)!r} is {state}: {size} bytes, the manifest says"
                f" {shard['bytes']}; copy it again"
            )


def reads_natively(folder: Path, nbytes: int) -> bool:
    """Whether shards are read from the bucket itself.

    Args:
        folder: of the shards.
        nbytes: of all shards that are read.

    Raises:
        ConfigError: ``LLM_JAX_BUCKET_SHARDS`` is not one of its values, or asks for what
            array_record cannot read.
    """
    if not is_bucket(folder):
        return False
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "cache", "native"):
        raise ConfigError(f"{CHOICE} is {choice!r}; set it to cache or native, or leave it out")
    can = str(folder).startswith("gs://")
    if choice == "native" and not can:
        raise ConfigError(
            f"{CHOICE} is 'native', and array_record reads gs:// alone; use cache for {folder}"
        )
    if choice or not can:
        return choice == "native"
    from llm_jax.storage.local_files import LIMIT, cache_limit

    if nbytes <= cache_limit():
        return False
    note(
        f"{folder}: {nbytes / 1e9:.1f} GB of shards do not fit the cache of"
        f" {cache_limit() / 1e9:g} GB, and each record is read from the bucket, which is slower;"
        f" {LIMIT} sets another size"
    )
    return True


def readable_name(path: Path, native: bool) -> str:
    """What array_record opens for a shard.

    Raises:
        OSError: a copy cannot be fetched.
        DataError: the cache has no room for a copy.
    """
    return str(path) if native else str(local_file(path))
