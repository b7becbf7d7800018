"""XLA flags of the train step by platform, each with its reason and source.

They are passed to the compiler with the step, so that plan, bench and train compile the same
program in any environment. XLA still reads the user's own XLA_FLAGS and LIBTPU_INIT_ARGS.
"""

from __future__ import annotations

import functools
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.progress import note

Options = dict[str, bool | str]


class Flag(NamedTuple):
    """The value of a flag, and the reason for it with its source."""

    value: bool | str
    why: str


_MAXTEXT = "MaxText, benchmarks/xla_flags_library.py"
# Collectives that run inside the fusions of products: all but the first are "CF_FOR_ALL_GATHER"
# there.
_FUSED = f"all-gathers of weights run inside products; libtpu 0.0.42 does so by itself ({_MAXTEXT})"
_SLICES = f"sums of gradients between slices run beside the backward pass ({_MAXTEXT})"

# All of them concern communication between devices: a step of one device is compiled without.
FLAGS: dict[str, dict[str, Flag]] = {
    "tpu": {
        "xla_tpu_enable_latency_hiding_scheduler": Flag(
            True,
            "collectives run beside products; without it another program comes out; libtpu 0.0.42"
            " has it on by itself",
        ),
        "xla_tpu_enable_async_collective_fusion": Flag(True, _FUSED),
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": Flag(True, _FUSED),
        "xla_tpu_enable_async_collective_fusion_multiple_steps": Flag(True, _FUSED),
        "xla_tpu_overlap_compute_collective_tc": Flag(True, _FUSED),
        "xla_enable_async_all_gather": Flag(True, _FUSED),
        "xla_tpu_enable_data_parallel_all_reduce_opt": Flag(True, _SLICES),
        "xla_tpu_data_parallel_opt_different_sized_ops": Flag(True, _SLICES),
    },
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": Flag(
            True,
            "collectives run beside products; off by default (docs.jax.dev, GPU performance tips;"
            " NVIDIA JAX-Toolbox's images)",
        ),
    },
    "cpu": {
        "xla_cpu_scheduler_type": Flag(
            "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
            "one order of collectives; jaxlib 0.10 starts independent ones at once, and simulated"
            " devices wait for each other for ever",
        ),
    },
}


@functools.cache
def compiler_options(mesh: Mesh) -> Options:
    """FLAGS for the devices of ``mesh``, as ``jax.jit`` takes them.

    Flags that the compiler does not know are left out, and a note names them once.
    """
    device = mesh.devices.flat[0]
    # Nothing is compiled for stand-ins of devices (llm_jax.plan, analytic).
    if mesh.size == 1 or not isinstance(device, jax.Device):
        return {}
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform)
    wanted: Options = {name: flag.value for name, flag in FLAGS[platform].items()}
    unknown = unknown_options(mesh, wanted)
    if unknown:
        note(
            f"{_compiler(platform)} does not know {', '.join(unknown)}; the step is compiled"
            " without (llm_jax/training/compiler_flags.py)"
        )
    return {name: value for name, value in wanted.items() if name not in unknown}


def unknown_options(mesh: Mesh, options: Options) -> list[str]:
    """The options that the compiler for the devices of ``mesh`` does not know, found by compiling
    a trivial program with them.

    Raises:
        jax.errors.JaxRuntimeError: an option cannot have its value.
    """
    if not options or _knows(mesh, options):
        return []
    return [name for name, value in options.items() if not _knows(mesh, {name: value})]


def _knows(mesh: Mesh, options: Options) -> bool:
    everywhere = NamedSharding(mesh, PartitionSpec())
    double: Any = jax.jit(lambda x: x * 2)
    lowered = double.lower(jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere))
    try:
        lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def _compiler(platform: str) -> str:
    """Name and version of the compiler, for messages."""
    package = "libtpu" if platform == "tpu" else "jaxlib"
    return f"{package} {metadata.version(package)}"
