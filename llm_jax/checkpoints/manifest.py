"""The manifest of a checkpoint: paths, shapes, dtypes and checksums of arrays, and what made them.

Checksums are sums over bits, so they are the same on any mesh.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import Config
from llm_jax.config.old_keys import RENAMED
from llm_jax.config.saved import from_json
from llm_jax.config.sections import flatten
from llm_jax.types import Params

# The setting that names the shards: their folder may change, their content may not (see
# ``manifest_differences``).
DATA = "data.path"
# The setting that says which parameters have slots in the optimizer's state, and the path of these.
TRAINABLE = "train.trainable"
SLOTS = "opt_state/"
# The value of a setting that a config lacks.
_ABSENT = object()
# Settings that may differ between a checkpoint and the run that resumes from it: none of them
# changes a number of the run.
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
    "train.hosts.check_every",
    "train.hosts.silent",
    "train.hosts.stuck",
    "train.profile_steps",
)


def names(tree: Params) -> dict[str, Any]:
    """Leaves of a tree by path, as in ``params/embed/embedding``."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


@jax.jit
def checksums(tree: Params) -> dict[str, Array]:
    """A uint32 checksum of every array, by path, which does not depend on its sharding.

    It is a sum over the array's words, each mixed with its position.
    """
    return {name: _checksum(leaf) for name, leaf in names(tree).items()}


def _checksum(x: Array) -> Array:
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    if x.dtype == jnp.bool_:
        words = x.astype(jnp.uint32)
    else:
        words = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32)
    place = jnp.full(words.shape, 0x9E3779B9, jnp.uint32)
    for axis in range(words.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = place * jnp.uint32(0x85EBCA6B) + index
    # Each word and its place pass a mixing bijection first. A weighted sum of the words would miss
    # swaps and changes of high bits: 2**31 times any even number is 0, so two flipped signs cancel.
    return jnp.sum(_mix(words ^ _mix(place)), dtype=jnp.uint32)


def _mix(x: Array) -> Array:
    """The finalizer of MurmurHash3 (Appleby 2011).

    A bijection of uint32 in which every bit depends on every bit.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def digest(manifest: Mapping[str, Any]) -> str:
    """The sha256 of a manifest without its own ``sha256`` entry."""
    rest = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def shapes_and_dtypes(tree: Params) -> dict[str, list[Any]]:
    """Path -> [shape, dtype] of every array."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in names(tree).items()}


def manifest_differences(
    saved: Mapping[str, Any],
    expected: Params,
    config: Config,
    tokenizer: str,
    data: Sequence[str] = (),
) -> list[str]:
    """Every difference between a checkpoint's manifest and what a run expects, one line each.

    Args:
        saved: the manifest. One of an earlier version does not name the shards.
        expected: the abstract state of the run.
        config: the config of the run.
        tokenizer: fingerprint of the run's tokenizer.
        data: fingerprints of the shards that the run reads.
    """
    out = []
    arrays = shapes_and_dtypes(expected)
    saved_config = from_json(saved["config"], "checkpoint")
    other_slots = slots_may_differ(saved_config, config)
    for name in sorted(saved["arrays"].keys() | arrays.keys()):
        before = saved["arrays"].get(name)
        now = arrays.get(name)
        if other_slots and name.startswith(SLOTS) and (before is None or now is None):
            continue
        if before != now:
            out.append(
                f"{name}: {_array_text(before)} in the checkpoint, {_array_text(now)} in this run"
            )
    out += config_differences(saved_config, config)
    if saved["tokenizer"] != tokenizer:
        out.append(
            f"tokenizer: {saved['tokenizer'][:12]} in the checkpoint, {tokenizer[:12]} in this run"
        )
    saved_data = saved.get("data", list(data))
    if saved_data != list(data) and not _may_change(DATA, config):
        out.append(
            f"{DATA}: shards {shortened(saved_data)} in the checkpoint, {shortened(data)} in this"
            " run"
        )
    return out


def _array_text(array: Sequence[Any] | None) -> str:
    """A [shape, dtype] as text."""
    return "absent" if array is None else f"{array[1]}{array[0]}"


def shortened(fingerprints: Sequence[str]) -> str:
    """Fingerprints of several folders of shards, shortened for messages."""
    return " + ".join(fingerprint[:12] for fingerprint in fingerprints) or "none"


def config_differences(saved: Config, now: Config) -> list[str]:
    """Settings that differ but may not, unless ``train.allow_changed`` names them."""
    before = flatten(saved)
    after = flatten(now)
    return [
        f"{key}: {_setting_text(before, key)} in the checkpoint, {_setting_text(after, key)} in"
        " this run"
        for key in dict.fromkeys((*before, *after))
        if before.get(key, _ABSENT) != after.get(key, _ABSENT)
        and not _matches(key, FREE)
        and not _may_change(key, now)
    ]


def _setting_text(settings: Mapping[str, Any], key: str) -> str:
    """The value of a setting as text; a section may be an alternative without the setting."""
    return repr(settings[key]) if key in settings else "absent"


def slots_may_differ(saved: Config, now: Config) -> bool:
    """Whether a run goes on with other trainable parameters than its checkpoint, and may."""
    return saved.train.trainable != now.train.trainable and _may_change(TRAINABLE, now)


def _may_change(key: str, config: Config) -> bool:
    """Whether ``train.allow_changed`` names the setting, or a section that it is in."""
    names = [RENAMED.get(name, name) for name in config.train.allow_changed]
    return any(_matches(key, (name, f"{name}.*")) for name in names)


def _matches(key: str, names: Sequence[str]) -> bool:
    """Whether one of the names is the setting, or ends in ``.*`` after a part of its key."""
    return any(key == name or (name.endswith(".*") and key.startswith(name[:-1])) for name in names)
