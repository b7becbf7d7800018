"""Accelerators as data: what a chip can do at most, with the source of every figure."""

from __future__ import annotations

from typing import NamedTuple

from llm_jax.types import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """One chip, of which jax counts ``devices``.

    tflops: dense bfloat16 peak, 1e12 FLOP/s · hbm: bytes · hbm_rate: bytes/s · link_rate: bytes/s of one inter-chip link, one way ·
    torus: dimensions of its network, two links each · network_rate: bytes/s into the data-centre network.
    """

    tflops: float
    hbm: float
    hbm_rate: float
    link_rate: float
    torus: int
    network_rate: float
    devices: int
    source: str


_BOOK = "How to Scale Your Model (jax-ml.github.io/scaling-book/tpus), table of TPU specs"
CHIPS = {
    "v4": Chip(275, 32 * GIB, 1.2e12, 50e9, 3, 6.25e9, 1, f"{_BOOK}; links: cloud.google.com/tpu/docs/v4, 2,400 Gbit/s a chip over 6"),
    "v5e": Chip(197, 16 * GIB, 819e9, 50e9, 2, 3.125e9, 1, "cloud.google.com/tpu/docs/v5e: 400 GB/s both ways over 4 links"),
    "v5p": Chip(459, 95 * GIB, 2765e9, 100e9, 3, 6.25e9, 1, "cloud.google.com/tpu/docs/v5p: 4,800 Gbit/s a chip over 6 links"),
    "v6e": Chip(918, 32 * GIB, 1638e9, 100e9, 2, 12.5e9, 1, "cloud.google.com/tpu/docs/v6e: 800 GB/s both ways over 4 links"),
    "tpu7x": Chip(2307, 192 * GIB, 7370e9, 100e9, 3, 12.5e9, 2, f"cloud.google.com/tpu/docs/tpu7x; {_BOOK}"),
}


def chip_named(name: str) -> Chip:
    """The chip; ConfigError, with the known ones, for another."""
    if name not in CHIPS:
        raise ConfigError(f"unknown chip {name!r}; there are {', '.join(CHIPS)}")
    return CHIPS[name]
