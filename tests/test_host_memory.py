"""What a CPU step pays for memory: page faults and resident pages, counted by a process
of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llm_jax import host_memory
from llm_jax.host_memory import allocating
from llm_jax.types import ConfigError

STEPS = """
import resource, sys
from llm_jax.host_memory import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
import jax, jax.numpy as jnp
x = jnp.ones((4096, 8))
layer = lambda c, _: (jnp.tanh(jnp.tanh(c @ c.T) @ c), None)
step = jax.jit(lambda x: jax.lax.scan(layer, x, length=2)[0].sum())
step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
SCORES = (
    4096 * 4096 * 4 // os.sysconf("SC_PAGE_SIZE")
)  # pages of the product that every call allocates

GIVING_BACK = """
import os
from pathlib import Path
from llm_jax.host_memory import give_back_if_tight, keep_freed_memory
page = os.sysconf("SC_PAGE_SIZE")
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * page >> 20
assert keep_freed_memory()
block, after = bytearray(200 << 20), bytearray(1 << 20)
del block
print(resident(), end=" ")
give_back_if_tight(share=0.99)
print(resident(), end=" ")
give_back_if_tight(share=0.0)
print(resident())
"""

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")


def numbers(code: str, *words: str) -> list[int]:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


@on_linux
@pytest.mark.process
def test_twenty_steps_fault_in_their_pages_a_few_times_after_the_call_and_each_time_without_it():
    assert numbers(STEPS)[0] > 20 * SCORES // 2
    assert numbers(STEPS, "keep")[0] < 10 * SCORES


@on_linux
@pytest.mark.process
def test_kept_memory_goes_back_only_when_the_machine_is_tight():
    kept, roomy, tight = numbers(GIVING_BACK)
    assert kept > 200 and roomy > 200 and tight < 100


def test_too_late_or_beside_an_accelerator_nothing_is_changed(monkeypatch):
    import jax  # noqa: F401

    monkeypatch.setattr(host_memory, "_kept", False)
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: pytest.fail("asked the C library"))
    assert not host_memory.keep_freed_memory()
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(host_memory, "_ACCELERATORS", ("/dev/null",))
    assert not host_memory.keep_freed_memory()
    host_memory.give_back_if_tight(share=0.0)


def test_a_containers_limit_counts_where_it_is_less_than_the_machine(monkeypatch, tmp_path):
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for text, limit in (("max", machine), (str(1 << 30), 1 << 30), (str(1 << 62), machine)):
        (tmp_path / "memory.max").write_text(text + "\n")
        monkeypatch.setattr(
            host_memory, "_CONTAINER_LIMITS", (tmp_path / "memory.max", tmp_path / "none")
        )
        host_memory.memory_limit.cache_clear()
        assert host_memory.memory_limit() == limit
    host_memory.memory_limit.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."
        ),
        RuntimeError("INTERNAL: failed to allocate: Out of memory"),
    ],
)
def test_memory_that_is_not_there_is_said_with_what_it_was_for(error):
    with (
        pytest.raises(ConfigError, match=r"there is not enough memory for 3 rows .*; lower it"),
        allocating("3 rows", "lower it"),
    ):
        raise error


def test_other_errors_are_left_as_they_are():
    for error in (RuntimeError("INVALID_ARGUMENT: shapes differ"), ValueError("no")):
        with pytest.raises(type(error)) as caught, allocating("x", "y"):
            raise error
        assert caught.value is error
