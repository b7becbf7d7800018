"""Output folders: what they hold, whether a command may write there, and atomic files."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.storage.paths import as_bucket, local_file, path_of
from llm_jax.types import DataError


class FolderKind(NamedTuple):
    """What a command writes into a folder.

    Attributes:
        name: for messages.
        marks: glob patterns of paths, any of which identifies the kind.
        key: of the JSON object in a mark that ends with ``.json``; a file without it is not of
            this kind.
        files: patterns of the names of all files that the command writes there, and deletes where
            it replaces its earlier output.
    """

    name: str
    marks: tuple[str, ...]
    key: str = ""
    files: tuple[str, ...] = ()


QUICKSTART = FolderKind("a quickstart", ("quickstart.json",))
TASK = FolderKind("a task that a model was trained for", ("task.json",))
# A finished checkpoint, an unfinished one, or a run that has none yet.
RUN = FolderKind(
    "a training run", ("checkpoints/*/manifest", "checkpoints/files_*.json", ".lock/*/owner.json")
)
MODEL = FolderKind("a converted model", ("params.safetensors",))
UNFINISHED_MODEL = FolderKind("an unfinished conversion", (".*.safetensors.partial",))
_SHARD_FILES = ("manifest.json", "plan.json", "tokens-*.array_record-*")
SHARDS = FolderKind(
    "token shards",
    _SHARD_FILES,
    key="format_version",
    files=(*_SHARD_FILES, "dataset_info.json", "features.json", "parts", "tokenizer"),
)
HUGGING_FACE_MODEL = FolderKind(
    "a Hugging Face model", ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")
)
_TOKENIZER_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "tokenizer.json",
    "imported.json",
)
TOKENIZER = FolderKind(
    "a tokenizer",
    _TOKENIZER_FILES,
    files=(
        *_TOKENIZER_FILES,
        "target.spm",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "*.tiktoken",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "generation_config.json",
        "chat_template.jinja",
    ),
)
# In the order in which a folder is matched.
KINDS = (QUICKSTART, TASK, RUN, MODEL, UNFINISHED_MODEL, SHARDS, HUGGING_FACE_MODEL, TOKENIZER)

# A newly formatted disk has this folder.
_LOST_AND_FOUND = "lost+found"
_NAMES_SHOWN = 5


def kind_of_folder(folder: Path) -> FolderKind | None:
    """The kind of a folder's content; None where it is not recognised, or there is none."""
    return next((kind for kind in KINDS if _is_kind(folder, kind)), None)


def _is_kind(folder: Path, kind: FolderKind) -> bool:
    return any(_has_key(path, kind.key) for mark in kind.marks for path in folder.glob(mark))


def _has_key(path: Path, key: str) -> bool:
    """Whether a JSON file is an object with ``key``; True for any other file."""
    if not key or path.suffix != ".json":
        return True
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and key in value


def check_folder(
    folder: Path,
    *,
    resumes: tuple[FolderKind, ...] = (),
    replaces: FolderKind | None = None,
    overwrite: bool = False,
    option: str = "out",
) -> FolderKind | None:
    """Checks that a command may write into a folder, and writes nothing.

    The folder must be new, empty but for hidden files, or hold what the command resumes or
    replaces.

    Args:
        folder: the folder, which need not exist.
        resumes: kinds that the command resumes.
        replaces: the kind that the command replaces with ``overwrite``.
        overwrite: whether the user asked to replace the content.
        option: name of the setting that names the folder, for messages.

    Returns:
        The kind of the content, one of ``resumes`` or ``replaces``; None for an empty or missing
        folder.

    Raises:
        DataError: the folder is a file or holds something else, which the message names.
    """
    folder = path_of(folder)
    kind, names = _content(folder, option)
    if kind is None and not names:
        return None
    if kind is not None and kind in resumes:
        return kind
    where = f"{option} {str(folder)!r}"
    if kind is not None and kind == replaces and overwrite:
        strangers = [
            name for name in names if not any(fnmatch.fnmatch(name, own) for own in kind.files)
        ]
        if strangers:
            raise DataError(
                f"{where} holds {kind.name} and other files ({_listed(strangers)}); choose another"
                " folder, or move them"
            )
        return kind
    what = kind.name if kind else "other files"
    shown = f" ({_listed(names)})" if names else ""
    remedy = "choose another folder"
    if kind is not None and kind == replaces:
        remedy = f"pass overwrite (--overwrite) to replace it, or {remedy}"
    raise DataError(f"{where} holds {what}{shown}; {remedy}")


def _content(folder: Path, option: str) -> tuple[FolderKind | None, list[str]]:
    """The kind of a folder's content and its visible names."""
    try:
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{option} {str(folder)!r} is a file; choose a folder")
        return kind_of_folder(folder), visible_names(folder)
    except OSError as error:
        raise DataError(
            f"{option} {str(folder)!r} cannot be read ({error.strerror}); choose another folder"
        ) from error


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (" …" if len(names) > _NAMES_SHOWN else "")


def visible_names(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones; empty where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(
        p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name != _LOST_AND_FOUND
    )


def make_folder(path: Path, option: str = "out") -> None:
    """Creates a folder and checks that files can be written there.

    Args:
        path: the folder.
        option: name of the setting that names it, for messages.

    Raises:
        DataError: the folder cannot be written.
    """
    path = path_of(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"{option} {str(path)!r} cannot be written ({error.strerror}); choose another folder"
        ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Creates a folder, and deletes what was written into it where the body fails.

    The command can then be run again.
    """
    path = path_of(path)
    existed = path.exists()
    before = set(path.iterdir()) if existed else set()
    make_folder(path)
    try:
        yield
    except BaseException:
        # An error while deleting must not hide the error that ended the body.
        with suppress(OSError):
            for child in set(path.iterdir()) - before:
                remove_tree(child)
            if not existed:
                path.rmdir()
        raise


def remove_tree(path: Path) -> None:
    """Deletes a file, or a folder with all that is in it, as far as it can be deleted."""
    remote = as_bucket(path)
    if remote is not None:
        remote.unlink(missing_ok=True)
        remote.rmtree()
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def file_sizes(folder: Path) -> dict[str, int]:
    """The size in bytes of every file below a folder, by its relative path."""
    remote = as_bucket(folder)
    if remote is not None:
        return remote.files()
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a value as a JSON file, in a folder that is created where it is missing.

    Raises:
        DataError: the file cannot be written.
    """
    path = path_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{str(path)!r} cannot be written ({error.strerror}); choose another folder"
        ) from error
    write_atomic(path, (json.dumps(value, indent=1) + "\n").encode())


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that a kill leaves either the old file or the new one.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        remote = as_bucket(path)
        if remote is not None:
            remote.write_bytes(data)
            return
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise DataError(
            f"{str(path)!r} cannot be written ({error.strerror}); free space or choose another"
            " folder"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A local file to write, which becomes ``path`` when the body ends without an error.

    A kill leaves either the old file or the new one, also in a bucket.

    Raises:
        OSError: the file cannot be stored.
    """
    remote = as_bucket(path)
    if remote is not None:
        from llm_jax.storage.local_files import uploaded

        with uploaded(remote) as local:
            yield local
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def local_folder(path: Path) -> Iterator[Path]:
    """A local folder to write: ``path`` itself, or one whose files are uploaded there when the
    body ends without an error.

    Raises:
        OSError: the files cannot be stored.
    """
    remote = as_bucket(path)
    if remote is None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    from llm_jax.storage.local_files import scratch_folder, upload

    with scratch_folder() as local:
        yield local
        for name in file_sizes(local):
            upload(local / name, remote / name)


@contextmanager
def readable_folder(path: Path) -> Iterator[Path]:
    """A local folder to read: ``path`` itself, or one with the files that a bucket has there.

    Raises:
        OSError: the bucket refuses.
        DataError: the cache has no room for the files.
    """
    remote = as_bucket(path)
    if remote is None:
        yield path
        return
    from llm_jax.storage.local_files import scratch_folder

    with scratch_folder() as local:
        for name in file_sizes(remote):
            link = local / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(local_file(remote / name))
        yield local
