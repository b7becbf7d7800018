"""Accelerators as data: peak rates and power of each chip, with the source of every figure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from llm_jax.training.bandwidth import measure_bandwidth
from llm_jax.training.flops import PEAK_TFLOPS, measure_matmul
from llm_jax.types import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """One chip, which jax presents as ``devices`` devices.

    Attributes:
        kind: jax's name of a device.
        platform: tpu, gpu or cpu.
        hbm: bytes of memory.
        hbm_rate: bytes/s of the memory.
        link_rate: bytes/s of one link to another chip, one way.
        torus: dimensions of the network, with two links each; 0 where it is no torus.
        watts: power drawn at work, least and most.
        sources: of ``peak``, ``hbm``, ``links`` and ``power``.
        node_rate: bytes/s from one chip out of its node, one way.
        devices: devices of one chip.
        measured: TFLOP/s of a chip that has no data sheet.
    """

    kind: str
    platform: str
    hbm: float
    hbm_rate: float
    link_rate: float
    torus: int
    watts: tuple[float, float]
    sources: Mapping[str, str]
    node_rate: float = 0.0
    devices: int = 1
    measured: float = 0.0

    @property
    def links(self) -> int:
        return 2 * self.torus or 1

    @property
    def tflops(self) -> float:
        """Dense peak of the chip in TFLOP/s: bfloat16 by its data sheet, or as measured."""
        return self.measured or PEAK_TFLOPS[self.kind] * self.devices


_BOOK = "How to Scale Your Model (jax-ml.github.io/scaling-book/tpus), table of TPU specs"
_V4_WATTS = (
    "measured at production work, least and most: Jouppi et al. 2023 (arXiv:2304.01433), table 4"
)
# The least power of v4 is 0.63 of its most; no other chip has both figures published.
_LEAST = "least: 0.63 of that, as on v4"
_IRONWOOD = (
    "blog.google, Ironwood, 2025-04: 9,216 chips take nearly 10 MW, twice the FLOP/s per watt"
    " of v6e"
)


def _tpu(page: str, links: str, power: str, hbm: str = "") -> dict[str, str]:
    where = f"cloud.google.com/tpu/docs/{page}"
    return {"peak": where, "hbm": hbm or where, "links": f"{where}: {links}", "power": power}


def _hopper(sheet: str) -> dict[str, str]:
    return {
        "peak": f"{sheet}, dense",
        "hbm": sheet,
        "links": (
            f"{sheet}: NVLink 900 GB/s both ways; between nodes 400 Gbit/s a GPU, as in DGX H100"
        ),
        "power": f"estimate: {sheet}, 700 W at most; {_LEAST}",
    }


CHIPS = {
    "v4": Chip(
        kind="TPU v4",
        platform="tpu",
        hbm=32 * GIB,
        hbm_rate=1.2e12,
        link_rate=50e9,
        torus=3,
        watts=(121, 192),
        sources=_tpu("v4", "2,400 Gbit/s a chip over 6", _V4_WATTS, _BOOK),
    ),
    "v5e": Chip(
        kind="TPU v5 lite",
        platform="tpu",
        hbm=16 * GIB,
        hbm_rate=819e9,
        link_rate=50e9,
        torus=2,
        watts=(100, 155),
        sources=_tpu(
            "v5e",
            "400 GB/s both ways over 4 links",
            "estimate: 1/1.67 of v6e's FLOP/s per watt (Google Cloud blog, Trillium, 2024-05),"
            f" from v6e's estimate; {_LEAST}",
        ),
    ),
    "v5p": Chip(
        kind="TPU v5",
        platform="tpu",
        hbm=95 * GIB,
        hbm_rate=2765e9,
        link_rate=100e9,
        torus=3,
        watts=(210, 340),
        sources=_tpu(
            "v5p",
            "4,800 Gbit/s a chip over 6 links",
            f"estimate: FLOP/s per watt between those of v4 and v5e; {_LEAST}",
        ),
    ),
    "v6e": Chip(
        kind="TPU v6 lite",
        platform="tpu",
        hbm=32 * GIB,
        hbm_rate=1638e9,
        link_rate=100e9,
        torus=2,
        watts=(270, 430),
        sources=_tpu(
            "v6e", "800 GB/s both ways over 4 links", f"estimate from v7x: {_IRONWOOD}; {_LEAST}"
        ),
    ),
    "v7x": Chip(
        kind="TPU7x",
        platform="tpu",
        hbm=192 * GIB,
        hbm_rate=7370e9,
        link_rate=100e9,
        torus=3,
        watts=(680, 1085),
        sources=_tpu(
            "tpu7x", "1,200 GB/s both ways over 6 links", f"estimate: {_IRONWOOD}; {_LEAST}"
        ),
        devices=2,
    ),
    "h100": Chip(
        kind="NVIDIA H100 80GB HBM3",
        platform="gpu",
        hbm=80e9,
        hbm_rate=3350e9,
        link_rate=450e9,
        torus=0,
        watts=(440, 700),
        sources=_hopper("NVIDIA H100 SXM data sheet"),
        node_rate=50e9,
    ),
    "h200": Chip(
        kind="NVIDIA H200",
        platform="gpu",
        hbm=141e9,
        hbm_rate=4800e9,
        link_rate=450e9,
        torus=0,
        watts=(440, 700),
        sources=_hopper("NVIDIA H200 SXM data sheet"),
        node_rate=50e9,
    ),
}
# libtpu's names where they differ.
COMPILER_NAMES = {"v7x": "tpu7x"}
_ALIASES = {compiler: name for name, compiler in COMPILER_NAMES.items()}


def chip_name(name: str) -> str:
    """The key of a chip in ``CHIPS`` (or ``cpu``); libtpu's own names are accepted too.

    Raises:
        ConfigError: the chip is not known.
    """
    known = _ALIASES.get(name, name)
    if known not in (*CHIPS, "cpu"):
        raise ConfigError(f"unknown chip {name!r}; there are {', '.join([*CHIPS, 'cpu'])}")
    return known


def this_cpu(devices: int, tflops: float = 0.0) -> Chip:
    """One of ``devices`` simulated devices that share the cores and the memory of this machine.

    The memory's bandwidth is measured by this call.

    Args:
        devices: how many devices share the machine.
        tflops: peak of one device in TFLOP/s; 0 measures a float32 matrix product.
    """
    import jax

    if tflops:
        peak_source = "train.peak_tflops"
        total_tflops = tflops * devices
    else:
        peak_source = "float32 matmul measured on this machine"
        total_tflops = measure_matmul("float32") * jax.local_device_count() / 1e12
    rate = measure_bandwidth() / devices
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip(
        kind="cpu",
        platform="cpu",
        hbm=memory / devices,
        hbm_rate=rate,
        link_rate=rate,
        torus=0,
        watts=(3.0 * cores / devices, 15.0 * cores / devices),
        sources={
            "peak": peak_source,
            "hbm": "this machine's memory; a copy measured on it",
            "links": "the same memory",
            "power": "guess: 3 to 15 W a core, from large servers to small machines",
        },
        measured=total_tflops / devices,
    )
