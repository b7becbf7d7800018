"""Compiles a traced function for TPU: its memory and traffic, or the compiler's refusal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from llm_jax.plan.chips import Chip
from llm_jax.plan.hbm import Moved, moved_bytes
from llm_jax.plan.hlo import Collective, collectives, summed
from llm_jax.sharding import within_slice

# Compiles several times as fast; memory differs by about a tenth.
_LEAST_EFFORT = (
    {"optimization_level": "O0"}
    if jax.__version_info__ >= (0, 11)
    else {"exec_time_optimization_effort": -1.0}
)


class Traffic(NamedTuple):
    """Collectives of one kind over the same mesh axes, in one step.

    Attributes:
        kind: the HLO opcode, such as ``all-gather``.
        axes: mesh axes that the groups span.
        count: how many run.
        bytes: bytes that each device sends in them.
        trip_count: further ones, in loops whose number of trips is unknown or in branches that may
            not be taken, counted as if each such loop had one trip.
        trip_bytes: bytes that each device sends in those.
    """

    kind: str
    axes: tuple[str, ...]
    count: int  # type: ignore[assignment]  # hides tuple.count
    bytes: float
    trip_count: int = 0
    trip_bytes: float = 0.0


class Compiled(NamedTuple):
    """The compiler's answer.

    Attributes:
        memory: CompiledMemoryStats of a device; None where the compiler refused.
        traffic: empty where the compiler refused.
        refused: the compiler's reason, or empty.
        moved: bytes that a device's cores read and write; None where they were not counted.
    """

    memory: Any
    traffic: list[Traffic]
    refused: str
    moved: Moved | None = None


def compile_traced(
    traced: Any,
    mesh: Mesh,
    slices: int = 1,
    *,
    least_effort: bool = False,
    count_moved: bool = False,
) -> Compiled:
    """Compiles ``jax.jit(f).trace(...)`` on ``mesh`` over ``slices`` TPU slices.

    Args:
        traced: the traced function.
        mesh: the mesh of abstract TPU devices.
        slices: how many slices the mesh spans.
        least_effort: compile faster, at the price of a less exact memory figure.
        count_moved: whether to count the bytes that it moves (``plan.hbm``).

    Raises:
        jax.errors.JaxRuntimeError: the compiler failed for another reason than a lack of memory.
    """
    try:
        with jax.set_mesh(mesh):
            compiled = traced.lower().compile(
                compiler_options=_LEAST_EFFORT if least_effort else None
            )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(None, [], str(error).split("\n")[0])
    text = compiled.as_text()
    traffic = traffic_of(collectives(text, within_slice(mesh.shape, slices)))
    moved = moved_bytes(text) if count_moved else None
    return Compiled(compiled.memory_analysis(), traffic, "", moved)


def traffic_of(found: list[Collective]) -> list[Traffic]:
    """Collectives summed by kind and axes, those with the most bytes first."""
    known = summed([c for c in found if c.trips_known])
    per_trip = summed([c._replace(trips_known=True) for c in found if not c.trips_known])
    nothing = (0, 0.0)
    traffic = [
        Traffic(*key, *known.get(key, nothing), *per_trip.get(key, nothing))
        for key in known | per_trip
    ]
    return sorted(traffic, key=lambda t: (-t.bytes, -t.trip_bytes))


def is_lower_bound(traffic: list[Traffic]) -> bool:
    """Whether the sum of ``bytes`` leaves out collectives that run an unknown number of times."""
    return any(t.trip_count for t in traffic)


def memory_by_purpose(
    memory: Any, arguments: Mapping[str, float], rest: str, chip: Chip
) -> dict[str, float]:
    """Bytes per chip, by purpose, when the most are in use.

    Args:
        memory: CompiledMemoryStats of a device.
        arguments: bytes of the named arguments on a device.
        rest: the name under which all other arguments are counted.
        chip: the chip, whose devices are summed.
    """
    sizes = {
        **arguments,
        rest: memory.argument_size_in_bytes - sum(arguments.values()),
        # temp_size_in_bytes counts buffers that share memory twice, and so exceeds the limit that
        # the compiler itself enforces.
        "temporaries": memory.peak_memory_in_bytes - memory.argument_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    return {name: size * chip.devices for name, size in sizes.items()}
