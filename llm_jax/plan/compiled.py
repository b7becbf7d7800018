"""A traced function through the TPU compiler: the memory it takes and the bytes it sends, or why
the compiler refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from llm_jax.plan.chips import Chip
from llm_jax.plan.hlo import Collective, collectives, summed
from llm_jax.sharding import within_slice

# Compiles several times as fast; memory comes out within about a tenth.
_LEAST_EFFORT = (
    {"optimization_level": "O0"}
    if jax.__version_info__ >= (0, 11)
    else {"exec_time_optimization_effort": -1.0}
)


class Traffic(NamedTuple):
    """Collectives of one kind over the same mesh axes in a step: how many, and the bytes that each
    device sends in them.

    trip_count, trip_bytes: of those, counted apart, that run in loops whose number of trips cannot
    be read from the program, or in branches that may not be taken; counted as if each such loop had
    one trip.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: float
    trip_count: int = 0
    trip_bytes: float = 0.0


class Compiled(NamedTuple):
    """memory: the compiler's CompiledMemoryStats of a device, None where it refused (``refused`` is
    its reason).
    """

    memory: Any
    traffic: list[Traffic]
    refused: str


def compile_traced(
    traced: Any, mesh: Mesh, slices: int = 1, *, least_effort: bool = False
) -> Compiled:
    """Compiles what ``jax.jit(f).trace(…)`` gave on ``mesh`` over ``slices``. Errors other than a
    lack of memory are raised.
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
    traffic = traffic_of(collectives(compiled.as_text(), within_slice(mesh.shape, slices)))
    return Compiled(compiled.memory_analysis(), traffic, "")


def traffic_of(found: list[Collective]) -> list[Traffic]:
    """Collectives summed by kind and axes, those with most bytes first."""
    known = summed([c for c in found if c.trips_known])
    unknown = summed([c._replace(trips_known=True) for c in found if not c.trips_known])
    nothing = (0, 0.0)
    traffic = [
        Traffic(*key, *known.get(key, nothing), *unknown.get(key, nothing))
        for key in known | unknown
    ]
    return sorted(traffic, key=lambda t: (-t.bytes, -t.trip_bytes))


def is_lower_bound(traffic: list[Traffic]) -> bool:
    """Whether more is sent than ``bytes`` says, by an unknown factor."""
    return any(t.trip_count for t in traffic)


def memory_by_purpose(
    memory: Any, arguments: Mapping[str, float], rest: str, chip: Chip
) -> dict[str, float]:
    """Bytes per chip at the moment when most are in use.

    arguments: bytes of the known arguments on a device; what else is given to the program counts as
    ``rest``.
    """
    sizes = {
        **arguments,
        rest: memory.argument_size_in_bytes - sum(arguments.values()),
        # Not temp_size_in_bytes: that counts buffers that share their place twice, and comes out
        # above what the compiler itself accepts.
        "temporaries": memory.peak_memory_in_bytes - memory.argument_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    return {name: size * chip.devices for name, size in sizes.items()}
