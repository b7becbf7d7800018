"""Slices of TPU chips that are not there: abstract devices from the TPU compiler's own description of a topology."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from llm_jax.plan.chips import Chip, chip_named
from llm_jax.types import ConfigError

# Read by libtpu when it is loaded: no metadata server to ask, no logs in the temporary folder, two processes at once allowed.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Slice(NamedTuple):
    """A topology such as ``v5p:4x4x4``: its chip's name and figures, and the chips along each dimension."""

    name: str
    chip_name: str
    chip: Chip
    dims: tuple[int, ...]

    @property
    def chips(self) -> int:
        count = 1
        for size in self.dims:
            count *= size
        return count


def parse_topology(text: str) -> Slice:
    """``chip:AxB`` or ``chip:AxBxC``. Raises ConfigError for an unknown chip or a shape that its network cannot have."""
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", text)
    if not match:
        raise ConfigError(f"topology {text!r} is not of the form chip:AxB or chip:AxBxC, as in v5e:4x4 or v5p:4x4x4")
    name, dims = match[1], tuple(map(int, match[2].split("x")))
    chip = chip_named(name)
    if min(dims) < 1:
        raise ConfigError(f"topology {text!r} has a dimension of no chips")
    if len(dims) != chip.torus:
        example = ":".join((name, "x".join(["4"] * chip.torus)))
        raise ConfigError(f"topology {text!r} has {len(dims)} dimensions; {name} is a {chip.torus}-dimensional torus, as in {example}")
    return Slice(text, name, chip, dims)


def devices(slice_: Slice) -> Sequence:
    """The slice's abstract devices. Raises ConfigError where libtpu is missing or knows no such slice.

    Call it before anything else loads libtpu: what it reads from the environment is set here.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("compiling for TPU needs libtpu, the compiler (x86-64 Linux): pip install 'llm_jax[plan]'")
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    # One device a chip, as on the other generations.
    more = {"chip_config_name": "megacore"} if slice_.chip_name == "v4" else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=slice_.name, **more).devices
    except Exception as error:  # jax passes on whatever the compiler raised
        raise ConfigError(f"topology {slice_.name!r}: the TPU compiler has no such slice ({error})") from error
