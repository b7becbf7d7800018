"""Lower bounds of a program's time, from its bytes, its FLOPs and a chip's data-sheet peaks."""

from __future__ import annotations

import math
from typing import Any

import jax

from llm_jax.plan.chips import Chip
from llm_jax.plan.topology import Slice
from llm_jax.types import Params


class Seconds(dict[str, float]):
    """Lower bounds of a program's time in seconds, by resource.

    Keys: "compute"; "links at best", with all links of a chip in use at once; "links at worst",
    with one link in use at a time; and "memory".
    """

    BOUNDS = ("compute", "links at best", "memory")

    @property
    def at_best(self) -> float:
        """Everything overlapped: the longest of the bounds."""
        return max(self[name] for name in self.BOUNDS)

    @property
    def serial(self) -> float:
        """All links in use and nothing overlapped.

        It lies between best and worst; a search ranks by it.
        """
        return sum(self[name] for name in self.BOUNDS)

    @property
    def at_worst(self) -> float:
        """Nothing overlapped, and one link of each chip used at a time."""
        return self["compute"] + self["links at worst"] + self["memory"]

    @property
    def bound(self) -> str:
        """The resource that determines ``at_best``."""
        return max(self.BOUNDS, key=self.__getitem__)


def bytes_per_device(tree: Params) -> float:
    """Bytes on one device of a tree of ShapeDtypeStructs with shardings."""
    return float(
        sum(
            math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
            for a in jax.tree.leaves(tree)
        )
    )


def link_seconds(chip: Chip, sent: float) -> dict[str, float]:
    """Seconds in which each device sends ``sent`` bytes, over all links of its chip or over one."""
    return {
        "links at best": sent * chip.devices / (chip.links * chip.link_rate),
        "links at worst": sent * chip.devices / chip.link_rate,
    }


def hbm_seconds(chip: Chip, state: float, weights: float, pieces: int) -> float:
    """Seconds that a train step reads and writes memory for, at the least.

    The state is read and written once; the weights in the compute type are read once forward and
    once backward in each accumulation step.

    Args:
        chip: the chip.
        state: bytes of parameters and optimizer state on a device.
        weights: bytes of the weights that a device computes with.
        pieces: accumulation steps.
    """
    return (2 * state + 2 * pieces * weights) * chip.devices / chip.hbm_rate


def least_sent(part: float, copies: int) -> float:
    """The least bytes that each device sends, by the ring algorithms, for replicated weights.

    Gradients are summed once over the replicas and the changed weights handed out once.

    Args:
        part: bytes of the weights, in the type in which they are sent.
        copies: how many replicas there are.
    """
    return 2 * (copies - 1) / copies * part


def least_link_seconds(target: Slice, weights: float, copies: int) -> dict[str, float]:
    """``link_seconds`` of the least that a train step sends, or the time between nodes if longer.

    Args:
        target: the slice.
        weights: bytes of the weights that have a gradient.
        copies: shares of the batch, each with the whole model on devices / copies devices.
    """
    part = weights * copies / (target.chips * target.chip.devices)
    apart = min(target.nodes, copies)
    here = copies // apart
    inside = link_seconds(target.chip, least_sent(part, here))
    # A node first sums the gradients of its own devices, each of which sends its share of the sum.
    leaving = least_sent(part / here, apart)
    return {
        name: max(seconds, leaving / target.chip.node_rate if leaving else 0.0)
        for name, seconds in inside.items()
    }


def batch_shares(sharding: Any, batch_size: int) -> int:
    """The number of shares into which a sharding of [B, ...] arrays splits the batch."""
    return batch_size // sharding.shard_shape((batch_size, 1))[0]
