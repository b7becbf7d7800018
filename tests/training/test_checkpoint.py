"""Checkpoints: the same bits on any mesh, every difference named, no damage overlooked, a full disk
survived.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_jax.checkpoints.checkpoint import CheckpointError, Checkpoints, MismatchError
from llm_jax.checkpoints.manifest import (
    checksums,
    config_differences,
    digest,
    manifest_differences,
    names,
    shapes_and_dtypes,
)
from llm_jax.config import Config, MeshConfig, ModelConfig
from llm_jax.config.overrides import override
from llm_jax.models import build, resolve_execution
from llm_jax.sharding import make_mesh, parameter_shardings
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.state import make_init, state_shardings, to_saved

CONFIG = override(
    Config(),
    {
        "model.vocab_size": 32,
        "model.num_layers": 2,
        "model.embed_dim": 16,
        "model.attention.num_heads": 4,
        "model.attention.num_kv_heads": 2,
        "model.mlp.hidden_dim": 32,
        "optimizer.warmup_steps": 0,
    },
    "test",
)
EIGHT = make_mesh(MeshConfig(4, 1, 2))
ONE = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


@functools.cache
def parts(config: Config = CONFIG):
    model = build(config.model, resolve_execution(config.execution, config.model))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, make_optimizer(config.optimizer, config.train.steps, shapes, model.specs)


@functools.cache
def abstract(mesh, config: Config = CONFIG):
    model, optimizer = parts(config)
    shapes = to_saved(jax.eval_shape(make_init(model, optimizer), jax.random.key(0)))
    where = to_saved(state_shardings(model, optimizer, mesh))
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where
    )


def state_at(step: int, mesh=ONE):
    """A state of random numbers everywhere, so that no array is like another."""
    rng = np.random.default_rng(step)

    def fill(a):
        value = rng.standard_normal(a.shape) if a.dtype == jnp.float32 else np.full(a.shape, step)
        return jax.device_put(value.astype(a.dtype), a.sharding)

    return jax.tree.map(fill, abstract(mesh))


def equal(a, b) -> None:
    a, b = names(a), names(b)
    assert a.keys() == b.keys()
    for name in a:
        x, y = np.asarray(a[name]), np.asarray(b[name])
        assert x.dtype == y.dtype, name
        assert x.tobytes() == y.tobytes(), name


def save_all(folder: Path, steps, keep: int = 5, mesh=ONE) -> None:
    checkpoints = Checkpoints(folder, keep, "tok")
    for step in steps:
        checkpoints.save(step, state_at(step, mesh), CONFIG)
    checkpoints.wait()
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Steps 3 and 6 of a run on eight devices. Never changed; tests copy it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save_all(folder, (3, 6), mesh=EIGHT)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def newest(folder: Path, config: Config = CONFIG, mesh=ONE, tokenizer: str = "tok"):
    """What a run would go on from, and what it was told."""
    said: list[str] = []
    checkpoints = Checkpoints(folder, 5, tokenizer)
    try:
        return checkpoints.restore_newest(abstract(mesh, config), config, said.append), said
    finally:
        checkpoints.close()


def largest(folder: Path) -> Path:
    """The file of array data that a restore reads; orbax leaves others beside it that it has merged
    into this one.
    """
    return max(
        (p for p in (folder / "state" / "d").iterdir() if p.is_file()),
        key=lambda p: p.stat().st_size,
    )


def flip(path: Path, at: int | None = None) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0x10
    path.write_bytes(data)


# Round trips --------------------------------------------------------------------------------------


def test_nothing_there_is_none(tmp_path):
    assert newest(tmp_path / "none") == (None, [])


def test_the_same_bits_come_back(saved):
    state, said = newest(saved, mesh=EIGHT)
    equal(state, state_at(6))
    assert said == []
    for was, now in zip(jax.tree.leaves(state_at(6, EIGHT)), jax.tree.leaves(state)):
        assert now.sharding.is_equivalent_to(was.sharding, now.ndim)


def test_special_values_come_back(tmp_path):
    state = state_at(1)
    odd = np.array([np.nan, -np.nan, np.inf, -0.0, 1e-45, 3.4e38] * 32, np.float32)[: 32 * 4].view(
        np.uint32
    )
    kernel = state.params["embed"]["embedding"]
    values = np.resize(odd, kernel.shape).view(np.float32)
    state.params["embed"]["embedding"] = jax.device_put(values, kernel.sharding)
    checkpoints = Checkpoints(tmp_path / "c", 1, "")
    checkpoints.save(1, state, CONFIG)
    checkpoints.wait()
    equal(checkpoints.restore(1, abstract(EIGHT)), state)
    checkpoints.close()


@pytest.mark.mesh
def test_other_meshes_get_the_same_bits(saved):
    for mesh in (make_mesh(MeshConfig(1, 4, 2)), ONE):
        state, said = newest(saved, mesh=mesh)
        equal(state, state_at(6))
        assert said == []
        kernel = state.params["embed"]["embedding"]
        assert kernel.sharding.mesh.shape == mesh.shape
        assert len(kernel.addressable_shards) == mesh.size
        assert math_size(kernel) * mesh.shape["fsdp"] * mesh.shape["tensor"] == kernel.size


def math_size(x) -> int:
    return x.addressable_shards[0].data.size


@pytest.mark.mesh
def test_from_one_device_to_eight(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", 1, "")
    checkpoints.save(2, state_at(2), CONFIG)
    checkpoints.wait()
    equal(checkpoints.restore(2, abstract(make_mesh(MeshConfig(2, 2, 2)))), state_at(2))
    checkpoints.close()


def test_the_newest_n_are_kept(tmp_path):
    save_all(tmp_path / "c", (1, 2, 3, 4), keep=2)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "3",
        "4",
        "files_3.json",
        "files_4.json",
    ]
    state, _ = newest(tmp_path / "c")
    equal(state, state_at(4))


def test_saving_donates_nothing_and_copies_before_it_returns(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", 1, "")
    state = state_at(1, EIGHT)
    checkpoints.save(1, state, CONFIG)
    jax.tree.map(lambda x: x.delete(), state)  # what the next, donating step does
    checkpoints.wait()
    equal(checkpoints.restore(1, abstract(EIGHT)), state_at(1))
    checkpoints.close()


# Another run's checkpoint -------------------------------------------------------------------------


def test_differences_are_listed_in_both_directions_all_at_once():
    expected = abstract(EIGHT)
    arrays = shapes_and_dtypes(expected)
    first, second, third, *_ = (n for n in sorted(arrays) if n.startswith("params/"))
    manifest = {
        "arrays": {
            **arrays,
            "params/old/kernel": [[3], "float32"],
            second: [[7, 7], "float32"],
            third: [arrays[third][0], "bfloat16"],
        },
        "config": json.loads(
            json.dumps(
                dataclasses.asdict(
                    override(CONFIG, {"optimizer.update.beta1": 0.8, "data.seed": 9}, "t")
                )
            )
        ),
        "tokenizer": "a" * 64,
    }
    del manifest["arrays"][first]
    text = manifest_differences(manifest, expected, CONFIG, "b" * 64)

    def dims(n):
        return f"float32{arrays[n][0]}"

    assert sorted(text) == sorted(
        [
            f"{first}: absent in the checkpoint, {dims(first)} in this run",
            "params/old/kernel: float32[3] in the checkpoint, absent in this run",
            f"{second}: float32[7, 7] in the checkpoint, {dims(second)} in this run",
            f"{third}: bfloat16{arrays[third][0]} in the checkpoint, {dims(third)} in this run",
            "optimizer.update.beta1: 0.8 in the checkpoint, 0.9 in this run",
            "data.seed: 9 in the checkpoint, 0 in this run",
            "tokenizer: aaaaaaaaaaaa in the checkpoint, bbbbbbbbbbbb in this run",
        ]
    )


def test_a_checkpoint_of_another_run_is_refused_not_skipped(saved):
    other = override(
        CONFIG,
        {
            "model.mlp.hidden_dim": 48,
            "model.attention.qk_norm": "head",
            "optimizer.update.beta2": 0.5,
        },
        "t",
    )
    with pytest.raises(MismatchError) as error:
        newest(saved, other, tokenizer="kot")
    text = str(error.value)
    assert text.startswith(f"checkpoint 6 in {saved} does not fit this run:")
    for part in (
        (
            "params/layers/mlp/up/kernel: float32[2, 16, 32] in the checkpoint, float32[2, 16, 48]"
            " in this run"
        ),
        "query_norm",
        "absent in the checkpoint",
        "model.mlp.hidden_dim: 32 in the checkpoint, 48 in this run",
        "model.attention.qk_norm: 'none' in the checkpoint, 'head' in this run",
        "optimizer.update.beta2: 0.95 in the checkpoint, 0.5 in this run",
        "tokenizer: tok in the checkpoint, kot in this run",
        "train.allow_changed",
    ):
        assert part in text, text


def test_what_changes_no_number_may_change(saved):
    free = {
        "name": "x",
        "execution.layers": "scan",
        "train.out": "/elsewhere",
        "train.keep": 1,
        "data.path": ("moved",),
    }
    state, _ = newest(saved, override(CONFIG, free, "t"))
    equal(state, state_at(6))


def test_a_section_that_is_another_alternative_is_a_difference_that_may_be_allowed(saved):
    other = {"optimizer.update": "lion"}
    with pytest.raises(MismatchError) as error:
        newest(saved, override(CONFIG, other, "t"))
    assert "optimizer.update: 'adamw' in the checkpoint, 'lion' in this run" in str(error.value)
    assert "optimizer.update.eps: 1e-08 in the checkpoint, absent in this run" in str(error.value)
    allowed = override(CONFIG, other | {"train.allow_changed": ("optimizer.update",)}, "t")
    assert config_differences(CONFIG, allowed) == []
    # The name of before sections were nested.
    old = override(CONFIG, {"optimizer.update.beta2": 0.5}, "t")
    old = override(old, {"train.allow_changed": ("optimizer.beta2",)}, "t")
    assert config_differences(CONFIG, old) == []


def test_allow_changed_names_what_may_differ(saved):
    changed = {"optimizer.learning_rate": 1.0, "train.steps": 2000}
    with pytest.raises(
        MismatchError, match=r"(?s)optimizer.learning_rate: 0.0003 .*train.steps: 1000"
    ):
        newest(saved, override(CONFIG, changed, "t"))
    with pytest.raises(MismatchError) as error:
        newest(saved, override(CONFIG, {**changed, "train.allow_changed": ("train.steps",)}, "t"))
    assert "learning_rate" in str(error.value) and "train.steps:" not in str(error.value)
    state, _ = newest(
        saved,
        override(CONFIG, {**changed, "train.allow_changed": ("train.steps", "optimizer.*")}, "t"),
    )
    equal(state, state_at(6))


def test_a_checkpoint_of_another_format_is_no_damage(copy):
    path = copy / "6" / "manifest" / "metadata"
    data = json.loads(path.read_text())
    data["format"] = 0
    path.write_text(json.dumps(data))
    (copy / "files_6.json").unlink()
    with pytest.raises(MismatchError, match="checkpoint 6 in .* has format 0, this version reads"):
        newest(copy)


# Damage -------------------------------------------------------------------------------------------


def cut(folder: Path) -> str:
    path = largest(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path.name


def flip_a_bit(folder: Path) -> str:
    flip(largest(folder))
    return "damaged"


def delete_a_file(folder: Path) -> str:
    path = largest(folder)
    path.unlink()
    return path.name


def garbage_manifest(folder: Path) -> str:
    (folder / "manifest" / "metadata").write_text(
        "{" + "x" * ((folder / "manifest" / "metadata").stat().st_size - 1)
    )
    return "its manifest cannot be read"


def other_json(folder: Path) -> str:
    (folder / "manifest" / "metadata").write_text("[1, 2]")
    return "manifest"


def another_setting(folder: Path) -> str:
    path = folder / "manifest" / "metadata"
    path.write_text(path.read_text().replace('"beta1": 0.9', '"beta1": 0.8'))
    return "its manifest was changed on disk"


def no_manifest(folder: Path) -> str:
    shutil.rmtree(folder / "manifest")
    return "manifest"


DAMAGES = [
    cut,
    flip_a_bit,
    delete_a_file,
    garbage_manifest,
    other_json,
    another_setting,
    no_manifest,
]


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_damaged_is_named_and_the_older_used(copy, damage, sealed):
    word = damage(copy / "6")
    if not sealed:  # as after a kill right behind the save
        (copy / "files_6.json").unlink()
    state, said = newest(copy)
    equal(state, state_at(3))
    [warning] = said
    assert warning.startswith(f"WARNING: checkpoint 6 in {copy} is damaged: ")
    assert warning.endswith("; resuming from the intact checkpoint 3")
    if sealed or damage is another_setting:
        assert word in warning


def test_the_damaged_one_is_replaced_when_the_run_gets_there(copy):
    flip_a_bit(copy / "6")
    _, said = newest(copy)
    assert len(said) == 1
    save_all(copy, (6,))
    state, said = newest(copy)
    equal(state, state_at(6))
    assert said == []


def test_all_damaged_is_an_error_that_names_each(copy):
    cut(copy / "6")
    garbage_manifest(copy / "3")
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint can be used: checkpoint 6 .*damaged.*; checkpoint 3 .*damaged",
    ):
        newest(copy)


def test_any_damage_to_any_file_is_found_or_harmless(saved, tmp_path):
    """No restore gives other bits: each file cut, deleted, and with bytes flipped, also where no
    seal was written.
    """
    files = sorted(p.relative_to(saved) for p in (saved / "6").rglob("*") if p.is_file())
    target, whole, rng = abstract(ONE), state_at(6), np.random.default_rng(0)
    found = set()
    for name in files:
        size = (saved / name).stat().st_size
        for damage in ("cut", "delete", *rng.integers(0, max(size, 1), 2).tolist()):
            folder = Path(shutil.copytree(saved, tmp_path / "c"))
            (folder / "files_6.json").unlink()
            if damage == "cut":
                (folder / name).write_bytes((folder / name).read_bytes()[: size // 2])
            elif damage == "delete":
                (folder / name).unlink()
            elif size:
                flip(folder / name, damage)
            checkpoints = Checkpoints(folder, 5, "tok")
            try:
                equal(checkpoints.restore(6, target), whole)
            except CheckpointError as error:
                found.add(name)
                assert "checkpoint 6" in str(error), (name, damage)
            finally:
                checkpoints.close()
                shutil.rmtree(folder)
    assert {Path("6/manifest/metadata"), Path("6/state/manifest.ocdbt")} <= found
    assert any(
        name.parent.name == "d" for name in found
    )  # where orbax keeps the arrays, in some files that nothing reads too


def test_an_unfinished_save_is_no_checkpoint(copy):
    shutil.copytree(copy / "6", copy / "9.orbax-checkpoint-tmp")
    (copy / "files_9.json").write_text("{}")
    state, said = newest(copy)
    equal(state, state_at(6))
    assert said == []


def test_parameters_alone_are_verified_too(copy):
    model, _ = parts()
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    where = parameter_shardings(model.specs, shapes, EIGHT)
    target = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where
    )
    checkpoints = Checkpoints(copy, 5, "tok")
    equal(checkpoints.restore_params(6, target), state_at(6).params)
    other = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*a.shape, 1), a.dtype), shapes)
    with pytest.raises(MismatchError, match="checkpoint 6 in .* has parameters .* expected"):
        checkpoints.restore_params(6, other)
    manifest = copy / "6" / "manifest" / "metadata"
    data = json.loads(manifest.read_text())
    data["checksums"]["params/embed/embedding"] ^= 1
    data["sha256"] = digest(data)
    manifest.write_text(json.dumps(data))
    (copy / "files_6.json").unlink()
    with pytest.raises(
        CheckpointError,
        match="checkpoint 6 in .* is damaged: params/embed/embedding changed on disk",
    ):
        checkpoints.restore_params(6, target)
    checkpoints.close()


# Checksums ----------------------------------------------------------------------------------------


def one(x) -> int:
    return int(checksums({"x": jnp.asarray(x)})["x"])


def test_checksums_see_swaps_and_signs():
    x = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    x[0, :2], x[1, 0], x[1, 256] = (1.5, -1.5), 1.0, 2.0
    variants = {
        "two values": x.copy(),
        "opposite signs": x.copy(),
        "powers of two": x.copy(),
        "rows": x[[1, 0, *range(2, 8)]],
    }
    variants |= {
        "negated": -x,
        "columns": x[:, ::-1],
        "other shape": x.reshape(512, 8),
        "two signs": x.copy(),
        "rolled": np.roll(x, 1),
    }
    variants["two values"][3, [5, 9]] = x[3, [9, 5]]
    variants["opposite signs"][0, [0, 1]] = x[0, [1, 0]]
    variants["powers of two"][1, [0, 256]] = x[1, [256, 0]]
    variants["two signs"][2, [3, 4]] *= -1
    whole = one(x)
    assert {name for name, v in variants.items() if one(v) == whole} == set()


def test_checksums_see_minus_zero_and_other_nans():
    quiet, other = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert one(np.float32(0.0)) != one(np.float32(-0.0))
    assert one(np.array([quiet])) != one(np.array([other]))


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool"]
)
def test_checksums_of_every_type(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, 6)), dtype)
    assert one(x) == one(x + jnp.zeros_like(x) if dtype != "bool" else x)
    assert one(x) != one(x.at[1, 2].set(1 - x[1, 2] if dtype != "bool" else ~x[1, 2]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2**32 - 1), st.integers(0, 63), st.integers(0, 63), st.integers(0, 2**32 - 1))
def test_any_one_change_and_any_swap_are_seen(mask, i, j, seed):
    x = np.random.default_rng(seed).integers(0, 2**32, (8, 8), np.uint32)
    changed, swapped = x.copy(), x.copy()
    changed.flat[i] ^= np.uint32(mask)
    swapped.flat[i], swapped.flat[j] = x.flat[j], x.flat[i]
    assert one(changed) != one(x)
    assert (one(swapped) == one(x)) == (x.flat[i] == x.flat[j])


@pytest.mark.mesh
def test_checksums_do_not_depend_on_the_mesh():
    sums = [
        {k: int(v) for k, v in checksums(state_at(1, mesh)).items()}
        for mesh in (
            EIGHT,
            make_mesh(MeshConfig(1, 4, 2)),
            ONE,
        )
    ]
    assert sums[0] == sums[1] == sums[2]
    assert len(set(sums[0].values())) > 0.9 * len(sums[0])


# Places that cannot be written --------------------------------------------------------------------


def test_a_save_that_does_not_fit_names_step_folder_and_the_newest_intact(copy):
    checkpoints = Checkpoints(copy, 5, "tok")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (600, hard)
    )  # no file may grow beyond this: a disk that fills up
    try:
        with pytest.raises(CheckpointError) as error:
            checkpoints.save(9, state_at(9), CONFIG)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    text = str(error.value)
    assert f"could not save step 9 in {copy}" in text
    assert "the newest intact checkpoint is step 6" in text
    assert "free space or repair the folder, and run the same command" in text
    checkpoints.close()
    state, said = newest(copy)
    equal(state, state_at(6))
    assert said == []
    save_all(copy, (9,))
    equal(newest(copy)[0], state_at(9))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"cannot write to .*file/run/checkpoints: .*choose another train.out"
    ):
        Checkpoints(tmp_path / "file" / "run" / "checkpoints")


def test_a_config_with_another_model_has_other_arrays():
    small = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, num_layers=1))
    assert isinstance(small.model, ModelConfig)
    assert shapes_and_dtypes(abstract(EIGHT)) != shapes_and_dtypes(abstract(EIGHT, small))
