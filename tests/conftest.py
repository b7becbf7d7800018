"""Shared by all tests: 8 simulated CPU devices (set before jax is imported) and packed batches
written out by hand.

``JAX_PLATFORMS=cuda pytest tests/ops`` runs the same tests on a GPU; nothing here imports jax.
"""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import shutil
import sys
import tempfile
from importlib import metadata

_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "8",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
}
# Compiling is most of the tests' time, and two thirds of it make tiny programs fast: LLVM's
# optimisation, and MLIR for each fusion in place of XLA's plainer emitter. XLA's own passes all
# run. jaxlib 0.12 has no plainer emitter and may round more where LLVM does nothing (1.6e-5 between
# cached decoding and the full forward pass, below 1e-5 with it), so LLVM does little there; any
# other compiles as users do.
_FLAGS = {
    "0.10": (
        "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
        " --xla_cpu_parallel_codegen_split_count=1"
    ),
    "0.12": "--xla_backend_optimization_level=1",
}
_jaxlib = ".".join(metadata.version("jaxlib").split(".")[:2])
if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu" and _jaxlib in _FLAGS:
    _SETTINGS["XLA_FLAGS"] = _FLAGS[_jaxlib]
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

# One cache of compiled programs for all processes of a test run, and for this run alone: never the
# user's own.
_CACHE = "LLM_JAX_TESTS_COMPILATION_CACHE"
if _CACHE not in os.environ:
    os.environ[_CACHE] = tempfile.mkdtemp(prefix="llm_jax_tests_")
    atexit.register(shutil.rmtree, os.environ[_CACHE], ignore_errors=True)
os.environ |= {
    "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_COMPILATION_CACHE_DIR": os.environ[_CACHE],
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# Tracing makes many objects and few cycles among them.
gc.set_threshold(100_000, 50, 100)
if "jax" in sys.modules:
    raise RuntimeError(
        "jax was imported before tests/conftest.py could set up its simulated devices"
    )

import pytest  # noqa: E402
from packed_rows import pack_rows  # noqa: E402

TIERS = ("unit", "mesh", "process", "parity", "compiler")


def pytest_xdist_auto_num_workers() -> int:
    """One more process than cores: tests wait for files and for other processes."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test is of one tier, unit if it names none; ``slow`` beside it leaves it to nightly."""
    no_compiler = importlib.util.find_spec("libtpu") is None
    needs_compiler = pytest.mark.skipif(
        no_compiler, reason="needs the extra: pip install -e '.[plan]'"
    )
    for item in items:
        tiers = {marker.name for marker in item.iter_markers()} & set(TIERS)
        if not tiers:
            item.add_marker(pytest.mark.unit)
        elif len(tiers) > 1:
            raise pytest.UsageError(f"{item.nodeid} is of several tiers: {sorted(tiers)}")
        if "compiler" in tiers:
            item.add_marker(needs_compiler)


@pytest.fixture(scope="session")
def pack():
    """``pack(rows, length)``: a Batch of packed rows from literal documents."""
    return pack_rows


@pytest.fixture(scope="module")
def kept_programs():
    """Runs of one config in this module share what is traced and compiled for them."""
    from programs import keep_programs

    with pytest.MonkeyPatch.context() as patch:
        keep_programs(patch)
        yield


@pytest.fixture(scope="module")
def one_device(kept_programs):
    """Runs in this module are on the first device, of eight, and share their programs."""
    from programs import on_one_device

    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        yield
