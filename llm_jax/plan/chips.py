"""Accelerators as data: what a chip can do at most, with the source of every figure."""

from __future__ import annotations

from typing import NamedTuple

from llm_jax.training.flops import PEAK_TFLOPS
from llm_jax.types import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """One chip, of which jax counts ``devices``.

    kind: jax's name of a device · hbm: bytes · hbm_rate: bytes/s · link_rate: bytes/s of one inter-chip link, one way · torus:
    dimensions of its network, two links each · devices: of one chip · source: of these figures.
    """

    kind: str
    hbm: float
    hbm_rate: float
    link_rate: float
    torus: int
    devices: int
    source: str

    @property
    def tflops(self) -> float:
        """Dense bfloat16 peak of the chip, 1e12 FLOP/s."""
        return PEAK_TFLOPS[self.kind] * self.devices


_BOOK = "How to Scale Your Model (jax-ml.github.io/scaling-book/tpus), table of TPU specs"
CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 1.2e12, 50e9, 3, 1, f"{_BOOK}; links: cloud.google.com/tpu/docs/v4, 2,400 Gbit/s a chip over 6"),
    "v5e": Chip("TPU v5 lite", 16 * GIB, 819e9, 50e9, 2, 1, "cloud.google.com/tpu/docs/v5e: 400 GB/s both ways over 4 links"),
    "v5p": Chip("TPU v5", 95 * GIB, 2765e9, 100e9, 3, 1, "cloud.google.com/tpu/docs/v5p: 4,800 Gbit/s a chip over 6 links"),
    "v6e": Chip("TPU v6 lite", 32 * GIB, 1638e9, 100e9, 2, 1, "cloud.google.com/tpu/docs/v6e: 800 GB/s both ways over 4 links"),
    "tpu7x": Chip("TPU7x", 192 * GIB, 7370e9, 100e9, 3, 2, f"cloud.google.com/tpu/docs/tpu7x; {_BOOK}"),
}


def chip_named(name: str) -> Chip:
    """The chip; ConfigError, with the known ones, for another."""
    if name not in CHIPS:
        raise ConfigError(f"unknown chip {name!r}; there are {', '.join(CHIPS)}")
    return CHIPS[name]
