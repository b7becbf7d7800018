"""Accelerators as data: what a chip can do at most and what power it draws, with the source of
every figure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from llm_jax.training.bandwidth import measure_bandwidth
from llm_jax.training.flops import PEAK_TFLOPS, measure_matmul
from llm_jax.types import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """One chip, of which jax counts ``devices``.

    kind: jax's name of a device · platform: tpu, gpu or cpu · hbm: bytes · hbm_rate: bytes/s ·
    link_rate: bytes/s of one link to another chip, one way · links: of a chip · torus: dimensions
    of its network, two links each; 0 is none · node_rate: bytes/s from one chip out of its node,
    one way · watts: drawn at work, least and most · devices: of one chip · sources: of peak, hbm,
    links and power · measured: TFLOP/s of a chip that is in no data sheet.
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
        """Dense peak of the chip, 1e12 FLOP/s: bfloat16 of a data sheet, or what was measured."""
        return self.measured or PEAK_TFLOPS[self.kind] * self.devices


_BOOK = "How to Scale Your Model (jax-ml.github.io/scaling-book/tpus), table of TPU specs"
_V4_WATTS = (
    "measured at production work, least and most: Jouppi et al. 2023 (arXiv:2304.01433), table 4"
)
# What v4 draws at least is 0.63 of what it draws at most; no other chip has both figures.
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
        "TPU v4",
        "tpu",
        32 * GIB,
        1.2e12,
        50e9,
        3,
        (121, 192),
        _tpu("v4", "2,400 Gbit/s a chip over 6", _V4_WATTS, _BOOK),
    ),
    "v5e": Chip(
        "TPU v5 lite",
        "tpu",
        16 * GIB,
        819e9,
        50e9,
        2,
        (100, 155),
        _tpu(
            "v5e",
            "400 GB/s both ways over 4 links",
            "estimate: 1/1.67 of v6e's FLOP/s per watt (Google Cloud blog, Trillium, 2024-05),"
            f" from v6e's estimate; {_LEAST}",
        ),
    ),
    "v5p": Chip(
        "TPU v5",
        "tpu",
        95 * GIB,
        2765e9,
        100e9,
        3,
        (210, 340),
        _tpu(
            "v5p",
            "4,800 Gbit/s a chip over 6 links",
            f"estimate: FLOP/s per watt between those of v4 and v5e; {_LEAST}",
        ),
    ),
    "v6e": Chip(
        "TPU v6 lite",
        "tpu",
        32 * GIB,
        1638e9,
        100e9,
        2,
        (270, 430),
        _tpu("v6e", "800 GB/s both ways over 4 links", f"estimate from v7x: {_IRONWOOD}; {_LEAST}"),
    ),
    "v7x": Chip(
        "TPU7x",
        "tpu",
        192 * GIB,
        7370e9,
        100e9,
        3,
        (680, 1085),
        _tpu("tpu7x", "1,200 GB/s both ways over 6 links", f"estimate: {_IRONWOOD}; {_LEAST}"),
        devices=2,
    ),
    "h100": Chip(
        "NVIDIA H100 80GB HBM3",
        "gpu",
        80e9,
        3350e9,
        450e9,
        0,
        (440, 700),
        _hopper("NVIDIA H100 SXM data sheet"),
        node_rate=50e9,
    ),
    "h200": Chip(
        "NVIDIA H200",
        "gpu",
        141e9,
        4800e9,
        450e9,
        0,
        (440, 700),
        _hopper("NVIDIA H200 SXM data sheet"),
        node_rate=50e9,
    ),
}
# libtpu's names where they differ.
COMPILER_NAMES = {"v7x": "tpu7x"}
_ALIASES = {theirs: ours for ours, theirs in COMPILER_NAMES.items()}


def chip_name(name: str) -> str:
    """The name under which a chip stands here: libtpu's own names are known too. ConfigError, with
    the known ones, for another.
    """
    known = _ALIASES.get(name, name)
    if known not in (*CHIPS, "cpu"):
        raise ConfigError(f"unknown chip {name!r}; there are {', '.join([*CHIPS, 'cpu'])}")
    return known


def this_cpu(devices: int, tflops: float = 0.0) -> Chip:
    """One of ``devices`` simulated devices that share this machine: its cores and memory, measured
    now.

    tflops: stated peak of one device; 0 measures a float32 matrix product.
    """
    import jax

    peak = "train.peak_tflops" if tflops else "float32 matmul measured on this machine"
    whole = tflops * devices or measure_matmul("float32") * jax.local_device_count() / 1e12
    rate, cores = measure_bandwidth() / devices, os.cpu_count() or 1
    sources = {
        "peak": peak,
        "hbm": "this machine's memory; a copy measured on it",
        "links": "the same memory",
        "power": "guess: 3 to 15 W a core, from large servers to small machines",
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    watts = (3.0 * cores / devices, 15.0 * cores / devices)
    return Chip(
        "cpu", "cpu", memory / devices, rate, rate, 0, watts, sources, measured=whole / devices
    )
