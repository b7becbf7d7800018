"""How the positions of a row lie over the devices of the current mesh."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.ops.context import balanced
from llm_jax.sharding import multiples, own_sizes
from llm_jax.types import Batch, ConfigError


class PositionAxes(NamedTuple):
    """Logical axes (``sharding.RULES``) of the T positions of a row; None is split over no mesh.

    Attributes:
        inside: within a sub-layer.
        between: between sub-layers, in the residual stream.
    """

    inside: str | None = None
    between: str | None = None


def position_axes(execution: ExecutionConfig, length: int, *, cached: bool) -> PositionAxes:
    """The axes of rows of ``length`` positions on the current mesh.

    Between sub-layers positions are also split over mesh.tensor (Korthikanti et al. 2022), if the
    devices divide them. A call with a cache has few positions, which are not split.
    """
    if cached:
        return PositionAxes()
    sizes = own_sizes()
    whole = PositionAxes("length", "length")
    if not execution.shard_sequence or sizes["tensor"] == 1:
        return whole
    if length % (sizes["context"] * sizes["tensor"]):
        return whole
    return PositionAxes("length", "act_length")


def zigzag_ways(config: ModelConfig, execution: ExecutionConfig) -> int:
    """Number of devices over which ``zigzag_order`` deals the positions; 1 keeps them in order."""
    if execution.context != "ring":
        return 1
    # Dropout depends on the place in the row: rows in order give the same numbers on every mesh.
    # Without a causal mask all places have equal work.
    if config.dropout or not config.causal:
        return 1
    return own_sizes()["context"]


def zigzag_order(config: ModelConfig, execution: ExecutionConfig, batch: Batch) -> Batch:
    """``batch`` with its positions in an order that gives equal work to the devices of a ring.

    A loss that is a sum over positions takes its batch in this order. ``Model.apply`` is correct
    with either order, since the masks read the positions.

    Args:
        config: the model.
        execution: how it runs.
        batch: rows [B, T]; every array that begins with [B, T] is reordered.

    Raises:
        ConfigError: the devices do not divide T.
    """
    ways = zigzag_ways(config, execution)
    if ways == 1:
        return batch
    rows, length = batch.inputs.ids.shape
    if length % (2 * ways):
        raise ConfigError(
            f"rows of {length} tokens do not divide into {2 * ways} pieces for mesh.context {ways};"
            f" use data.seq_length {multiples(length, 2 * ways)}"
        )
    order = jnp.asarray(balanced(length, ways))

    def reorder(x: Array) -> Array:
        return jnp.take(x, order, axis=1) if x.shape[:2] == (rows, length) else x

    return jax.tree.map(reorder, batch)
