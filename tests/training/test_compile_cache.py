"""The persistent compilation cache: on by default, in the user's cache directory, and a second
start compiles nothing.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from jobs import Job, environment, make_job, make_shards

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    return folder, make_shards(folder / "data")


def run(place, name: str, **more: str) -> tuple[Job, dict]:
    """One run of two steps in a process of its own, and its ledger."""
    folder, shards = place
    job = make_job(folder / name, shards, folder / "unused", steps=5)
    env = {
        **environment(folder / "unused"),
        "JAX_COMPILATION_CACHE_DIR": "",
        "XDG_CACHE_HOME": str(folder / "user"),
        **more,
    }
    done = subprocess.run([*job.command], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return job, job.records("ledger")[-1]


def entries(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*-cache")}


def test_a_second_start_compiles_nothing(place):
    folder, _ = place
    _, first = run(place, "first")
    kept = entries(folder / "user" / "llm_jax" / "compiled")
    assert any(name.startswith("jit_train_step-") for name in kept) and first[
        "programs_compiled"
    ] == len(kept)
    _, second = run(place, "second")
    assert (
        second["programs_compiled"] == 0
        and second["programs_loaded"] == first["programs_compiled"] + first["programs_loaded"]
    )
    assert entries(folder / "user" / "llm_jax" / "compiled") == kept
    assert 0 < second["start_to_first_step"] < second["wall"]


def test_it_can_be_moved_and_turned_off(place):
    folder, _ = place
    before = entries(folder / "user")
    _, off = run(
        place,
        "off",
        JAX_ENABLE_COMPILATION_CACHE="false",
        JAX_COMPILATION_CACHE_DIR=str(folder / "elsewhere"),
    )
    assert (
        off["programs_loaded"] == 0
        and not (folder / "elsewhere").exists()
        and entries(folder / "user") == before
    )
    assert os.listdir(folder / "user") == ["llm_jax"]
