"""Exact checkpoints: orbax does the writing, a manifest and checksums of every array make sure of
the reading.

A checkpoint is the TrainState plus a manifest: the path, shape, dtype and checksum of every array,
the resolved config and the tokenizer's fingerprint. Checksums are sums over bits, so they are the
same on any mesh.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array

from llm_jax.config import Config
from llm_jax.config.overrides import flatten, from_json, to_json
from llm_jax.types import Params

FORMAT = 2


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read, or used for this run; the message says
    what to do.
    """


# The setting that names the shards: where they lie may change, what they hold may not (see
# ``manifest_differences``).
DATA = "data.path"
# The setting that says which parameters have optimizer slots.
TRAINABLE = "train.trainable"
_SLOTS = "opt_state/"
# In place of an array that a restored checkpoint does not have.
MISSING = ocp.PLACEHOLDER
# What may change between a checkpoint and the run that goes on from it: none of it changes a number
# of the run.
FREE = (
    "name",
    "mesh.*",
    "execution.*",
    "data.prefetch",
    DATA,
    "train.out",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.checkpoint_every",
    "train.keep",
    "train.peak_tflops",
    "train.allow_changed",
    "train.host_check_every",
    "train.host_silent",
    "train.host_stuck",
    "train.profile_steps",
)


def names(tree: Params) -> dict[str, Any]:
    """Leaves of a tree by path, as in ``params/embed/embedding``."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


@jax.jit
def checksums(tree: Params) -> dict[str, Array]:
    """uint32 per array, by path: a sum over its bits, mixed with their position; independent of how
    it is sharded.
    """
    return {name: _checksum(leaf) for name, leaf in names(tree).items()}


def _checksum(x: Array) -> Array:
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    words = (
        x.astype(jnp.uint8) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, bits)
    ).astype(jnp.uint32)
    place = jnp.full(words.shape, 0x9E3779B9, jnp.uint32)
    for axis in range(words.ndim):
        place = place * jnp.uint32(0x85EBCA6B) + jax.lax.broadcasted_iota(
            jnp.uint32, words.shape, axis
        )
    # Each word and its place go through a mixing bijection first. Only weighting the words would
    # miss swaps and changes of high bits: 2**31 times any even number is 0, so that two flipped
    # signs would cancel.
    return jnp.sum(_mix(words ^ _mix(place)), dtype=jnp.uint32)


def _mix(x: Array) -> Array:
    """The finaliser of MurmurHash3 (Appleby 2011): a bijection of uint32 in which every bit depends
    on every bit.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest, its own entry left out."""
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def shapes_and_dtypes(tree: Params) -> dict[str, list]:
    """Path -> [shape, dtype] of every array."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in names(tree).items()}


def manifest_differences(
    saved: Mapping[str, Any],
    expected: Params,
    config: Config,
    tokenizer: str,
    data: Sequence[str] = (),
) -> list[str]:
    """Every difference between a checkpoint's manifest and what this run expects, one line each;
    both directions.

    data: fingerprints of the shards that this run reads. A manifest of an earlier version does not
    name them.
    """
    out, arrays = [], shapes_and_dtypes(expected)
    before_and_now = from_json(saved["config"], "checkpoint"), config
    new_slots = _slots_may_differ(*before_and_now)
    for name in sorted(saved["arrays"].keys() | arrays.keys()):
        was, now = saved["arrays"].get(name), arrays.get(name)
        one_sided = was is None or now is None
        if new_slots and one_sided and name.startswith(_SLOTS):
            continue
        if was != now:

            def text(a):
                return "absent" if a is None else f"{a[1]}{a[0]}"

            out.append(f"{name}: {text(was)} in the checkpoint, {text(now)} in this run")
    out += config_differences(*before_and_now)
    if saved["tokenizer"] != tokenizer:
        out.append(
            f"tokenizer: {saved['tokenizer'][:12]} in the checkpoint, {tokenizer[:12]} in this run"
        )
    before = saved.get("data", list(data))
    if before != list(data) and not _may_change(DATA, config):
        out.append(
            f"{DATA}: shards {shortened(before)} in the checkpoint, {shortened(data)} in this run"
        )
    return out


def shortened(fingerprints: Sequence[str]) -> str:
    """Fingerprints of several folders of shards, for people."""
    return " + ".join(fingerprint[:12] for fingerprint in fingerprints) or "none"


def config_differences(saved: Config, now: Config) -> list[str]:
    """Settings that differ and may not, unless ``train.allow_changed`` names them."""
    before, after = flatten(saved), flatten(now)
    return [
        f"{key}: {before[key]!r} in the checkpoint, {after[key]!r} in this run"
        for key in before
        if before[key] != after[key] and not _matches(key, FREE) and not _may_change(key, now)
    ]


def _slots_may_differ(saved: Config, now: Config) -> bool:
    """Whether the run goes on with other trainable parameters than the checkpoint's."""
    return saved.train.trainable != now.train.trainable and _may_change(TRAINABLE, now)


def _may_change(key: str, config: Config) -> bool:
    """Whether ``train.allow_changed`` names the setting."""
    return _matches(key, config.train.allow_changed)


def _matches(key: str, names: Sequence[str]) -> bool:
    return any(key == name or (name.endswith(".*") and key.startswith(name[:-1])) for name in names)


class Checkpoints:
    """The checkpoints of one run, newest last. Saving is asynchronous; errors of a save surface at
    the next call.

    tokenizer: fingerprint of the run's tokenizer · data: of each folder of its shards.
    """

    def __init__(
        self, folder: Path, keep: int = 3, tokenizer: str = "", data: Sequence[str] = ()
    ) -> None:
        self.folder, self.tokenizer = Path(folder).absolute(), tokenizer
        self.data = list(data)
        self._saving = -1
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise CheckpointError(
                f"cannot write to {self.folder}: {error}; choose another train.out"
            ) from error

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, oldest first."""
        # Not by the manager's reload(): while a save is running that makes it forget the step, and
        # then keep one too many.
        return sorted(ocp.utils.checkpoint_steps(self.folder))

    def save(self, step: int, state: Any, config: Config) -> None:
        """Starts writing ``state`` as step ``step``; returns before it is on disk. Raises
        CheckpointError.
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
            # A damaged one that restore_newest went past and named.
            self._guard(lambda: self._manager.delete(step), step)
            self._seal_path(step).unlink(missing_ok=True)
        self._saving = step
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), manifest=ocp.args.JsonSave(manifest)
        )
        self._guard(lambda: self._manager.save(step, args=items, force=True), step)

    def wait(self) -> None:
        """Returns when every save is on disk. Raises CheckpointError when one failed."""
        self._guard(self._manager.wait_until_finished, self._saving)
        # A disk too full for the seal is one that the next save complains about; this checkpoint is
        # whole without it.
        with contextlib.suppress(OSError):
            self._seal()

    def close(self) -> None:
        self._manager.close()

    def _seal(self) -> None:
        """Notes the files of every finished checkpoint, so that a file cut short is found without
        reading arrays.
        """
        if jax.process_index() != 0:
            return
        for step in self.steps():
            seal = self._seal_path(step)
            if not seal.exists():
                partial = seal.with_suffix(".partial")
                partial.write_text(json.dumps(_files(self.folder / str(step))))
                partial.replace(seal)
        for seal in self.folder.glob("files_*.json"):
            if not (self.folder / seal.stem.removeprefix("files_")).exists():
                seal.unlink()

    def _seal_path(self, step: int) -> Path:
        return self.folder / f"files_{step}.json"

    def _check_files(self, step: int) -> None:
        # Without a seal the process ended right after the save; the checksums of the arrays still
        # stand.
        if not self._seal_path(step).exists():
            return
        expected, found = (
            json.loads(self._seal_path(step).read_text()),
            _files(self.folder / str(step)),
        )
        for name, size in expected.items():
            if found.get(name) != size:
                raise CheckpointError(
                    f"checkpoint {step} in {self.folder} is damaged: {name} has"
                    f" {found.get(name, 0)} of {size} bytes"
                )

    def _guard(self, act: Callable[[], Any], step: int) -> None:
        try:
            act()
        except (
            Exception
        ) as error:  # orbax raises many kinds; all of them mean that nothing was saved
            good = self.steps()
            newest = (
                f"the newest intact checkpoint is step {good[-1]}"
                if good
                else "there is no earlier checkpoint"
            )
            raise CheckpointError(
                f"could not save step {step} in {self.folder}: {_reason(error)}; {newest}; free"
                " space or mend the folder and run the same command to go on from there"
            ) from error

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of one checkpoint. Raises CheckpointError when it or a file of the
        checkpoint is damaged.
        """
        self._check_files(step)
        path = self.folder / str(step) / "manifest" / "metadata"
        try:
            manifest = json.loads(path.read_text())
            written, intact = manifest["format"], manifest.pop("sha256", "") == digest(manifest)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} is damaged: its manifest cannot be read"
            ) from error
        if intact and written == FORMAT:
            return manifest
        if isinstance(written, int) and written < FORMAT:
            raise MismatchError(
                f"checkpoint {step} in {self.folder} has format {written}, this version reads"
                f" {FORMAT}; use the version that wrote it, or another train.out"
            )
        raise CheckpointError(
            f"checkpoint {step} in {self.folder} is damaged: its manifest was changed on disk"
        )

    def restore(self, step: int, abstract: Any) -> Any:
        """The state of ``step`` placed as ``abstract`` (ShapeDtypeStructs with shardings) says,
        every array verified.

        Raises CheckpointError when an array is missing, unreadable or not what was saved.
        """
        return self._read(step, abstract, partial=False)

    def _read(self, step: int, item: Any, partial: bool) -> Any:
        manifest, targets = self.manifest(step), ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=targets, partial_restore=partial)
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        except Exception as error:  # tensorstore and orbax raise many kinds for damaged files
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} is damaged: {_reason(error)}"
            ) from error
        read = {name: x for name, x in names(state).items() if x is not MISSING}
        found = {k: int(v) for k, v in jax.device_get(checksums(read)).items()}
        bad = sorted(k for k, v in found.items() if manifest["checksums"].get(k) != v)
        if bad:
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} is damaged: {', '.join(bad[:3])} changed on"
                " disk"
            )
        return state

    def restore_params(self, step: int, abstract: Params) -> Params:
        """Only the parameters of ``step``, placed as ``abstract`` says, every array verified.
        Raises CheckpointError.
        """
        item = {"params": abstract}
        saved = {
            k.removeprefix("params/"): v
            for k, v in self.manifest(step)["arrays"].items()
            if k.startswith("params/")
        }
        if saved != shapes_and_dtypes(abstract):
            raise MismatchError(
                f"checkpoint {step} in {self.folder} has parameters {saved}, expected"
                f" {shapes_and_dtypes(abstract)}"
            )
        return self._read(step, item, partial=True)["params"]

    def restore_newest(
        self, abstract: Any, config: Config, say: Callable[[str], None]
    ) -> Any | None:
        """The newest intact state, or None when there is no checkpoint. ``say`` is told of every
        damaged one skipped.

        Where ``train.allow_changed`` lets the trainable parameters differ, a slot of the optimizer
        that the checkpoint does not have is ``MISSING``, and one that the run does not have is not
        read.

        Raises CheckpointError when a checkpoint belongs to another run (listing every difference)
        or when all are damaged.
        """
        problems = []
        for step in reversed(self.steps()):
            try:
                manifest = self.manifest(step)
                different = manifest_differences(
                    manifest, abstract, config, self.tokenizer, self.data
                )
                if different:
                    raise MismatchError(
                        f"checkpoint {step} in {self.folder} does not fit this run:\n  "
                        + "\n  ".join(different)
                        + "\nset these back, choose another train.out, or name settings in"
                        " train.allow_changed"
                    )
                if _slots_may_differ(from_json(manifest["config"], "checkpoint"), config):
                    item = _without(abstract, manifest["arrays"])
                    state = self._read(step, item, partial=True)
                else:
                    state = self.restore(step, abstract)
            except MismatchError:
                raise
            except CheckpointError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                say(f"WARNING: {problem}; going on from the intact checkpoint {step}")
            return state
        if problems:
            raise CheckpointError("no checkpoint can be used: " + "; ".join(problems))
        return None


class MismatchError(CheckpointError):
    """A checkpoint of another model, optimizer, tokenizer or run."""


def _without(tree: Params, known: Mapping[str, Any]) -> Params:
    """``tree`` with ``MISSING`` at the paths that are not in ``known``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: (
            x if jax.tree_util.keystr(path, simple=True, separator="/") in known else MISSING
        ),
        tree,
    )


def _files(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_size
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
