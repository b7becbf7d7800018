"""Machines that are not there: slices of TPU chips from the TPU compiler's own description of a
topology, others as stand-ins.
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
from typing import NamedTuple

from llm_jax.plan.chips import CHIPS, COMPILER_NAMES, Chip, chip_name, this_cpu
from llm_jax.types import ConfigError

# Read by libtpu when it is loaded: no metadata server to ask, no logs in the temporary folder, two
# processes at once allowed.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Slice(NamedTuple):
    """A topology: its chip's name and figures, and the chips along each dimension: of a TPU slice,
    or a node and nodes of GPUs; and how many such slices there are.
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
        """Nodes between which chips have another network than within one."""
        return self.dims[1] if self.chip.platform == "gpu" and len(self.dims) > 1 else 1


_FORMS = (
    "chip:AxB or chip:AxBxC (TPU), 2xchip:AxB (two slices of it), chip:N or chip:NxM (M nodes of N"
    " GPUs), cpu:N (N devices that share this machine)"
)


def parse_topology(text: str, cpu_tflops: float = 0.0) -> Slice:
    """``v5e:4x4``, ``v5p:4x4x4``, ``2xv5e:16x16`` (two slices), ``h100:8``, ``h200:8x4``,
    ``cpu:8``; of a cpu, peak (if not given) and bandwidth are measured now.

    Raises ConfigError for an unknown chip or a shape that its network cannot have.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9]*):(\d+(?:x\d+)*)", text)
    if not match:
        raise ConfigError(f"topology {text!r} is not of the form {_FORMS}")
    slices, name, dims = (
        int(match[1] or 1),
        chip_name(match[2]),
        tuple(map(int, match[3].split("x"))),
    )
    if min(slices, *dims) < 1:
        raise ConfigError(f"topology {text!r} has a dimension of no chips")
    if slices > 1 and (name == "cpu" or CHIPS[name].platform != "tpu"):
        raise ConfigError(f"topology {text!r} is of several slices, which only TPUs come in")
    if name == "cpu":
        if len(dims) != 1:
            raise ConfigError(
                f"topology {text!r} has {len(dims)} dimensions; the devices of one machine are"
                f" cpu:{math.prod(dims)}"
            )
        return Slice(text, name, this_cpu(dims[0], cpu_tflops), dims)
    chip = CHIPS[name]
    if chip.platform == "gpu" and len(dims) > 2:
        raise ConfigError(
            f"topology {text!r} has {len(dims)} dimensions; GPUs are GPUs a node x nodes, as in"
            f" {name}:8x4"
        )
    if chip.torus and len(dims) != chip.torus:
        example = ":".join((name, "x".join(["4"] * chip.torus)))
        raise ConfigError(
            f"topology {text!r} has {len(dims)} dimensions; {name} is a {chip.torus}-dimensional"
            f" torus, as in {example}"
        )
    return Slice(f"{f'{slices}x' if slices > 1 else ''}{name}:{match[3]}", name, chip, dims, slices)


@dataclass(frozen=True)
class StandIn:
    """What a mesh and a trace ask of a device: enough for arithmetic where no compiler knows the
    real one.
    """

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
    """One for every device of the slice; nothing can be compiled for them."""
    chip, places = slice_.chip, list(itertools.product(*map(range, (*slice_.dims, 1, 1)[:3])))
    each = itertools.product(range(slice_.slices), places, range(chip.devices))
    return [
        StandIn(i, chip.platform, chip.kind, place, core, s)
        for i, (s, place, core) in enumerate(each)
    ]


def slices_of(path: str | Path) -> tuple[str, ...]:
    """The topologies that a ``configs/*.py`` file names as those it is meant for (``SLICES``).
    ConfigError where there are none.
    """
    path = Path(path)
    body = ast.parse(path.read_text()).body if path.suffix == ".py" and path.is_file() else []
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SLICES":
            return tuple(ast.literal_eval(node.value))
    raise ConfigError(
        f"{path} names no slices it is meant for (SLICES); give one: --topology=v5e:2x4"
    )


def devices(slice_: Slice) -> Sequence:
    """The slice's abstract devices. Raises ConfigError where libtpu is missing or knows no such
    slice.

    Call it before anything else loads libtpu: what it reads from the environment is set here.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "compiling for TPU needs libtpu, the compiler (x86-64 Linux): pip install"
            " 'llm_jax[plan]'; without it, --analytic gives what needs no compiler"
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    chip = COMPILER_NAMES.get(slice_.chip_name, slice_.chip_name)
    theirs = f"{chip}:{'x'.join(map(str, slice_.dims))}"
    # One device a chip, as on the other generations.
    more: dict = {"chip_config_name": "megacore"} if slice_.chip_name == "v4" else {}
    if slice_.slices > 1:
        more["num_slices"] = slice_.slices
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=theirs, **more).devices
    except Exception as error:  # jax passes on whatever the compiler raised
        raise ConfigError(
            f"topology {slice_.name!r}: the TPU compiler has no such slice ({error})"
        ) from error
