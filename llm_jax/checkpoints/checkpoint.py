"""Exact checkpoints: orbax writes them, and a manifest with checksums verifies what is read.

A checkpoint is the train state and a manifest of its arrays, the resolved config, and the
fingerprints of tokenizer and shards.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from llm_jax.checkpoints.manifest import (
    checksums,
    digest,
    manifest_differences,
    names,
    shapes_and_dtypes,
    slots_may_differ,
)
from llm_jax.config import Config
from llm_jax.config.saved import from_json, to_json
from llm_jax.files import file_sizes, remove_tree, write_atomic
from llm_jax.storage.paths import is_bucket, path_of
from llm_jax.types import DataError, Params

FORMAT = 2
# In place of an array that a restored checkpoint does not have.
MISSING = ocp.PLACEHOLDER
# The last object of a checkpoint in a bucket.
_COMMITTED = "commit_success.txt"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or used for this run; the message names the fix."""


class MismatchError(CheckpointError):
    """A checkpoint of another model, optimizer, tokenizer or run."""


class Checkpoints:
    """The checkpoints of one run.

    Saving is asynchronous: errors of a save surface at the next call.
    """

    def __init__(
        self, folder: Path, keep: int = 3, tokenizer: str = "", data: Sequence[str] = ()
    ) -> None:
        """Args:
        folder: where the checkpoints are.
        keep: how many are kept.
        tokenizer: fingerprint of the run's tokenizer.
        data: fingerprint of each folder of its shards.
        """
        self.folder = path_of(folder).absolute()
        self.tokenizer = tokenizer
        self.data = list(data)
        self._saving = -1
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            atomicity_options=ocp.options.AtomicityOptions(mode=_commit_mode(self.folder)),
        )
        try:
            self._manager = ocp.CheckpointManager(str(self.folder), options=options)
        except OSError as error:
            raise CheckpointError(
                f"cannot write to {self.folder}: {error}; choose another train.out"
            ) from error

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, oldest first."""
        # The manager's reload() forgets the step of a save that is running, and then keeps one
        # checkpoint too many.
        if is_bucket(self.folder):
            names = [path.parent.name for path in self.folder.glob(f"*/{_COMMITTED}")]
            return sorted(int(name) for name in names if name.isdigit())
        return sorted(ocp.utils.checkpoint_steps(self.folder))

    def delete_unfinished(self) -> None:
        """Deletes what a killed save left in a bucket.

        Only the process that holds the run's folder may call this: the save that another process
        is writing is unfinished too.

        Raises:
            CheckpointError: it cannot be deleted.
        """
        if not is_bucket(self.folder):
            return
        finished = self.steps()
        for path in self.folder.iterdir():
            if path.name.isdigit() and int(path.name) not in finished:
                self._guard(functools.partial(remove_tree, path), int(path.name))

    def save(self, step: int, state: Any, config: Config) -> None:
        """Starts writing ``state`` as step ``step`` and returns before it is on disk.

        Raises:
            CheckpointError: this or an earlier save failed.
        """
        manifest = {
            "format": FORMAT,
            "step": step,
            "arrays": shapes_and_dtypes(state),
            "checksums": {k: int(v) for k, v in jax.device_get(checksums(state)).items()},
            "config": to_json(config),
            "tokenizer": self.tokenizer,
            "data": self.data,
        }
        manifest["sha256"] = digest(manifest)
        self.wait()
        if step in self.steps():
            # restore_newest reported this checkpoint as damaged and skipped it.
            self._guard(lambda: self._manager.delete(step), step)
            self._seal_path(step).unlink(missing_ok=True)
        self._saving = step
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), manifest=ocp.args.JsonSave(manifest)
        )
        self._guard(lambda: self._manager.save(step, args=items, force=True), step)

    def wait(self) -> None:
        """Waits until every save is on disk.

        Raises:
            CheckpointError: a save failed.
        """
        self._guard(self._manager.wait_until_finished, self._saving)
        # The checkpoint is complete without the seal; if the disk is full, the next save fails.
        with contextlib.suppress(OSError, DataError):
            self._seal()

    def close(self) -> None:
        self._manager.close()

    def _seal(self) -> None:
        """Writes the names and sizes of the files of every finished checkpoint.

        With them a truncated file is found without reading arrays.
        """
        if jax.process_index() != 0:
            return
        for step in self.steps():
            seal = self._seal_path(step)
            if not seal.exists():
                sizes = file_sizes(self.folder / str(step))
                write_atomic(seal, json.dumps(sizes).encode())
        for seal in self.folder.glob("files_*.json"):
            if not (self.folder / seal.stem.removeprefix("files_")).exists():
                seal.unlink(missing_ok=True)

    def _seal_path(self, step: int) -> Path:
        return self.folder / f"files_{step}.json"

    def _check_files(self, step: int) -> None:
        # Where the process ended right after the save there is no seal, only the checksums.
        if not self._seal_path(step).exists():
            return
        expected = json.loads(self._seal_path(step).read_text())
        found = file_sizes(self.folder / str(step))
        for name, size in expected.items():
            if found.get(name) != size:
                raise self._damaged(step, f"{name} has {found.get(name, 0)} of {size} bytes")

    def _damaged(self, step: int, why: str) -> CheckpointError:
        return CheckpointError(f"checkpoint {step} in {self.folder} is damaged: {why}")

    def _guard(self, act: Callable[[], Any], step: int) -> None:
        """Calls ``act``, and raises CheckpointError where it fails."""
        try:
            act()
        except Exception as error:  # orbax raises many kinds; nothing was saved in any case
            intact = self.steps()
            newest = "there is no earlier checkpoint"
            if intact:
                newest = f"the newest intact checkpoint is step {intact[-1]}"
            remedy = "free space or repair the folder"
            if is_bucket(self.folder):
                remedy = "see that this machine may write to the bucket"
            raise CheckpointError(
                f"could not save step {step} in {self.folder}: {_reason(error)}; {newest};"
                f" {remedy}, and run the same command to resume from there"
            ) from error

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of one checkpoint.

        Raises:
            CheckpointError: the manifest or a file of the checkpoint is damaged.
            MismatchError: another version wrote it in a format that is no longer read.
        """
        self._check_files(step)
        path = self.folder / str(step) / "manifest" / "metadata"
        try:
            manifest = json.loads(path.read_text())
            written = manifest["format"]
            intact = manifest.pop("sha256", "") == digest(manifest)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(step, "its manifest cannot be read") from error
        if intact and written == FORMAT:
            return manifest
        if isinstance(written, int) and written < FORMAT:
            raise MismatchError(
                f"checkpoint {step} in {self.folder} has format {written}, this version reads"
                f" {FORMAT}; use the version that wrote it, or another train.out"
            )
        raise self._damaged(step, "its manifest was changed on disk")

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of ``step``, with every array verified.

        Args:
            step: of the checkpoint.
            abstract: the state as ShapeDtypeStructs with the shardings to restore it in.

        Raises:
            CheckpointError: an array is missing, unreadable, or differs from what was saved.
        """
        return self._read(step, abstract, partial=False)

    def _read(self, step: int, item: Any, partial: bool) -> Any:
        manifest = self.manifest(step)
        targets = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=targets, partial_restore=partial)
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except Exception as error:  # tensorstore and orbax raise many kinds for damaged files
            raise self._damaged(step, _reason(error)) from error
        read = {name: x for name, x in names(state).items() if x is not MISSING}
        found = {k: int(v) for k, v in jax.device_get(checksums(read)).items()}
        bad = sorted(k for k, v in found.items() if manifest["checksums"].get(k) != v)
        if bad:
            raise self._damaged(step, f"{', '.join(bad[:3])} changed on disk")
        return state

    def restore_params(self, step: int, abstract: Params) -> Params:
        """Only the parameters of ``step``, with every array verified.

        Args:
            step: of the checkpoint.
            abstract: the parameters as ShapeDtypeStructs with the shardings to restore them in.

        Raises:
            CheckpointError: an array is missing, unreadable, or differs from what was saved.
            MismatchError: the checkpoint has other parameters.
        """
        arrays = self.manifest(step)["arrays"]
        saved = {
            name.removeprefix("params/"): array
            for name, array in arrays.items()
            if name.startswith("params/")
        }
        expected = shapes_and_dtypes(abstract)
        if saved != expected:
            raise MismatchError(
                f"checkpoint {step} in {self.folder} has parameters {saved}, expected {expected}"
            )
        return self._read(step, {"params": abstract}, partial=True)["params"]

    def restore_newest(
        self, abstract: Any, config: Config, say: Callable[[str], None]
    ) -> Any | None:
        """The newest intact state, or None where there is no checkpoint.

        Where ``train.allow_changed`` lets the trainable parameters differ, an optimizer slot that
        the checkpoint lacks is ``MISSING``, and one that the run lacks is not read.

        Args:
            abstract: the state as ShapeDtypeStructs with the shardings to restore it in.
            config: of the run.
            say: called with a warning for every damaged checkpoint that was skipped.

        Raises:
            MismatchError: a checkpoint belongs to another run; the message lists every difference.
            CheckpointError: all checkpoints are damaged.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                self._check_run(step, abstract, config)
                state = self._restore_slots(step, abstract, config)
            except MismatchError:
                raise
            except CheckpointError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                say(f"WARNING: {problem}; resuming from the intact checkpoint {step}")
            return state
        if problems:
            raise CheckpointError("no checkpoint can be used: " + "; ".join(problems))
        return None

    def _restore_slots(self, step: int, abstract: Any, config: Config) -> Any:
        """``restore``, with those optimizer slots that the checkpoint and the run share."""
        manifest = self.manifest(step)
        if not slots_may_differ(from_json(manifest["config"], "checkpoint"), config):
            return self.restore(step, abstract)
        return self._read(step, _without(abstract, manifest["arrays"]), partial=True)

    def _check_run(self, step: int, abstract: Any, config: Config) -> None:
        """Raises MismatchError where a checkpoint is not of this run."""
        different = manifest_differences(
            self.manifest(step), abstract, config, self.tokenizer, self.data
        )
        if different:
            raise MismatchError(
                f"checkpoint {step} in {self.folder} does not fit this run:\n  "
                + "\n  ".join(different)
                + "\nset these back, choose another train.out, or name settings in"
                " train.allow_changed"
            )


def _without(tree: Params, known: Mapping[str, Any]) -> Params:
    """``tree`` with ``MISSING`` at the paths that are not in ``known``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (
            x if jax.tree_util.keystr(path, simple=True, separator="/") in known else MISSING
        ),
        tree,
    )


def _commit_mode(folder: Path) -> ocp.options.AtomicityMode:
    """How a checkpoint is made whole in one step: by renaming its folder or, where a bucket cannot
    rename, by a last object. Named here, so that no version of orbax changes it.

    Raises:
        CheckpointError: orbax writes no checkpoints there.
    """
    if not is_bucket(folder):
        return ocp.options.AtomicityMode.ATOMIC_RENAME
    if str(folder).startswith("gs://"):
        return ocp.options.AtomicityMode.COMMIT_FILE
    raise CheckpointError(
        f"{folder}: checkpoints are written to folders and to gs://, since orbax has no commit"
        " protocol for other buckets; choose such a train.out, or mount the bucket"
    )


def _reason(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
