"""Slices of accelerators that need not be present.

TPU slices come from the TPU compiler's own description of a topology; others are stand-ins.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.plan.chips import CHIPS, COMPILER_NAMES, Chip, chip_name, this_cpu
from llm_jax.storage.paths import path_of
from llm_jax.types import ConfigError

# libtpu reads these when it is loaded: they prevent queries to a metadata server and logs in the
# temporary folder, and allow two processes at once.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Slice(NamedTuple):
    """A topology.

    Attributes:
        name: as it is written, such as ``v5e:4x4``.
        chip_name: key of the chip in ``CHIPS``, or ``cpu``.
        chip: its figures.
        dims: chips along each dimension of a TPU slice, or GPUs per node and nodes.
        slices: number of such TPU slices.
    """

    name: str
    chip_name: str
    chip: Chip
    dims: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.dims)

    @property
    def nodes(self) -> int:
        """Nodes, whose chips have one network inside and another between them."""
        return self.dims[1] if self.chip.platform == "gpu" and len(self.dims) > 1 else 1


_FORMS = (
    "chip:AxB or chip:AxBxC (TPU), 2xchip:AxB (two slices of it), chip:N or chip:NxM (M nodes of N"
    " GPUs), cpu:N (N devices that share this machine)"
)


def parse_topology(text: str, cpu_tflops: float = 0.0) -> Slice:
    """Parses ``v5e:4x4``, ``v5p:4x4x4``, ``2xv5e:16x16`` (two slices), ``h100:8``, ``h200:8x4``
    or ``cpu:8``.

    Args:
        text: the topology.
        cpu_tflops: peak of a ``cpu`` device in TFLOP/s; 0 measures it now, as the bandwidth is.

    Raises:
        ConfigError: the chip is unknown, or its network has no such shape.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9]*):(\d+(?:x\d+)*)", text)
    if not match:
        raise ConfigError(f"topology {text!r} is not of the form {_FORMS}")
    slices = int(match[1] or 1)
    name = chip_name(match[2])
    dims = tuple(map(int, match[3].split("x")))
    if min(slices, *dims) < 1:
        raise ConfigError(f"topology {text!r} has a dimension of no chips")
    if slices > 1 and (name == "cpu" or CHIPS[name].platform != "tpu"):
        raise ConfigError(
            f"topology {text!r} has several slices, which only TPUs have; leave out '{slices}x'"
        )
    _check_dims(text, name, dims)
    if name == "cpu":
        return Slice(text, name, this_cpu(dims[0], cpu_tflops), dims)
    several = f"{slices}x" if slices > 1 else ""
    return Slice(f"{several}{name}:{match[3]}", name, CHIPS[name], dims, slices)


def _check_dims(text: str, name: str, dims: tuple[int, ...]) -> None:
    """Raises ConfigError where the chip's network does not have as many dimensions."""
    given = f"topology {text!r} has {len(dims)} dimensions"
    if name == "cpu":
        if len(dims) != 1:
            raise ConfigError(f"{given}; the devices of one machine are cpu:{math.prod(dims)}")
        return
    chip = CHIPS[name]
    if chip.platform == "gpu" and len(dims) > 2:
        raise ConfigError(f"{given}; GPUs are GPUs a node x nodes, as in {name}:8x4")
    if chip.torus and len(dims) != chip.torus:
        example = f"{name}:{'x'.join(['4'] * chip.torus)}"
        raise ConfigError(f"{given}; {name} is a {chip.torus}-dimensional torus, as in {example}")


@dataclass(frozen=True)
class StandIn:
    """The attributes of a device that meshes and traces read; nothing can be compiled for it."""

    id: int
    platform: str
    device_kind: str
    coords: tuple[int, int, int]
    core_on_chip: int
    slice_index: int = 0

    @property
    def process_index(self) -> int:
        return self.slice_index


def stand_ins(slice_: Slice) -> list[StandIn]:
    """A stand-in for every device of the slice."""
    chip = slice_.chip
    x, y, z = (*slice_.dims, 1, 1)[:3]
    places = list(itertools.product(range(x), range(y), range(z)))
    each = itertools.product(range(slice_.slices), places, range(chip.devices))
    return [
        StandIn(i, chip.platform, chip.kind, place, core, index)
        for i, (index, place, core) in enumerate(each)
    ]


def slices_of(path: str | Path) -> tuple[str, ...]:
    """The topologies that a ``configs/*.py`` file is meant for, from its ``SLICES``.

    Raises:
        ConfigError: the file names none.
    """
    path = path_of(path)
    body = ast.parse(path.read_text()).body if path.suffix == ".py" and path.is_file() else []
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SLICES":
            return tuple(ast.literal_eval(node.value))
    raise ConfigError(
        f"{path} names no slices that it is meant for (SLICES); give one: --topology=v5e:2x4"
    )


def devices(slice_: Slice) -> Sequence[Any]:
    """The abstract devices of a TPU slice, for which the TPU compiler compiles.

    Call it before anything else loads libtpu, whose environment it sets.

    Raises:
        ConfigError: libtpu is not installed, or has no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "compiling for TPU needs libtpu, the compiler (x86-64 Linux): pip install"
            " 'llm_jax[plan]'; without it, --analytic gives the figures that need no compiler"
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    chip = COMPILER_NAMES.get(slice_.chip_name, slice_.chip_name)
    options: dict[str, Any] = {}
    if slice_.chip_name == "v4":
        # One device a chip, as on the other generations.
        options["chip_config_name"] = "megacore"
    if slice_.slices > 1:
        options["num_slices"] = slice_.slices
    try:
        return topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{chip}:{'x'.join(map(str, slice_.dims))}",
            **options,
        ).devices
    except Exception as error:  # jax passes on whatever the compiler raised
        raise ConfigError(
            f"topology {slice_.name!r}: the TPU compiler has no such slice ({error})"
        ) from error
