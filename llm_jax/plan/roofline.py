"""Times that no machine can beat, from bytes, FLOPs and a chip's data-sheet peaks."""

from __future__ import annotations

import math
from typing import Any

import jax

from llm_jax.plan.chips import Chip
from llm_jax.plan.topology import Slice
from llm_jax.types import Params


class Seconds(dict[str, float]):
    """Lower bounds of a program's time: compute, "links at best" (all links of a chip at once),
    "links at worst" (one of them at a time), and memory.
    """

    BOUNDS = ("compute", "links at best", "memory")

    @property
    def at_best(self) -> float:
        """Everything overlapped: the longest of the bounds."""
        return max(self[name] for name in self.BOUNDS)

    @property
    def serial(self) -> float:
        """All links in use, but nothing overlapped: between best and worst, and what ways to run
        are ranked by.
        """
        return sum(self[name] for name in self.BOUNDS)

    @property
    def at_worst(self) -> float:
        """Nothing overlapped, and one link of each chip used at a time."""
        return self["compute"] + self["links at worst"] + self["memory"]

    @property
    def bound(self) -> str:
        """What the best time is made of."""
        return max(self.BOUNDS, key=self.__getitem__)


def bytes_per_device(tree: Params) -> float:
    """Of a tree of ShapeDtypeStructs with shardings: bytes on one device."""
    return float(
        sum(
            math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
            for a in jax.tree.leaves(tree)
        )
    )


def link_seconds(chip: Chip, sent: float) -> dict[str, float]:
    """Of ``sent`` bytes that each device sends: over all links of its chip at once, and
    over one.
    """
    return {
        "links at best": sent * chip.devices / (chip.links * chip.link_rate),
        "links at worst": sent * chip.devices / chip.link_rate,
    }


def hbm_seconds(chip: Chip, state: float, weights: float, pieces: int) -> float:
    """The state read and written once, and the weights in the compute type read once forward and
    once backward in each of ``pieces`` accumulation steps. state, weights: bytes that a device
    holds, and works with.
    """
    return (2 * state + 2 * pieces * weights) * chip.devices / chip.hbm_rate


def least_sent(part: float, copies: int) -> float:
    """Bytes that each device sends at least, by the ring algorithms, for ``copies`` of a ``part``
    of the weights to have their gradients summed once and the changed weights handed out once.
    part: its bytes in the type they are sent in.
    """
    return 2 * (copies - 1) / copies * part


def least_link_seconds(target: Slice, weights: float, copies: int) -> dict[str, float]:
    """``link_seconds`` of the least that a step of training sends; between nodes, where that takes
    longer.

    weights: bytes of all weights · copies: shares of the batch, each with the whole model on its
    devices / copies devices.
    """
    part = weights * copies / (target.chips * target.chip.devices)
    apart = min(target.nodes, copies)
    here = copies // apart
    inside = link_seconds(target.chip, least_sent(part, here))
    # A node sums what its own devices have first, and each of them sends its share of that.
    leaving = least_sent(part / here, apart)
    return {
        name: max(seconds, leaving / target.chip.node_rate if leaving else 0.0)
        for name, seconds in inside.items()
    }


def batch_shares(sharding: Any, batch_size: int) -> int:
    """Into how many shares a sharding of [B, …] arrays splits the batch."""
    return batch_size // sharding.shard_shape((batch_size, 1))[0]
