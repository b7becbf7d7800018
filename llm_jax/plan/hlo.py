"""Reads the collectives out of a compiled program's text.

For each: its kind, the mesh axes it spans, its bytes, and how often it runs.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from llm_jax.plan.loops import runs
from llm_jax.plan.program import Instruction, read_program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
# The axis of transfers between TPU slices. The compiler leaves these to the runtime, as a send
# with the attribute below.
SLICES = "slices"
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RUNTIME_KINDS = {
    "ALL_GATHER": "all-gather",
    "ALL_REDUCE": "all-reduce",
    "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all",
    "ONE_TO_ONE": "collective-permute",
}
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}
# A collective that overlaps with matrix products is repeated in the fusion of each of them; it
# starts in the fusion with this custom call.
_PART = 'chain_id="'
_START = 'custom_call_target="AsyncCollectiveStart"'


class Collective(NamedTuple):
    """One collective instruction.

    Attributes:
        kind: one of ``KINDS``.
        axes: mesh axes that its groups span.
        size: bytes on one device of its whole operand or result, whichever is larger. For parts of
            unequal size the smaller, since the other has room for the worst case.
        group: devices that take part.
        count: how often it runs in a step.
        trips_known: False in loops whose number of trips cannot be read and in branches; ``count``
            then assumes one trip of each such loop.
    """

    kind: str
    axes: tuple[str, ...]
    size: float
    group: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    trips_known: bool = True

    @property
    def moved(self) -> float:
        """Bytes that each device sends over links in ``count`` runs, by the ring algorithms."""
        share = (self.group - 1) / self.group
        factors = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return self.count * self.size * factors.get(self.kind, share)


def collectives(text: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """All collectives of an optimized HLO module, with how often loops run them.

    Args:
        text: the module as ``compiled.as_text()`` prints it.
        mesh_shape: the mesh the program was compiled for, or for several slices the part of it in
            one slice. Its devices in order are the program's partitions.
    """
    program = read_program(text)
    found: list[Collective] = []
    for name, often in runs(program).items():
        for one in _collectives_of(name, program.computations[name], mesh_shape):
            if often.known:
                found.append(one._replace(count=often.known))
            if often.of_a_trip:
                found.append(one._replace(count=often.of_a_trip, trips_known=False))
    return found


def summed(found: list[Collective]) -> dict[tuple[str, tuple[str, ...]], tuple[int, float]]:
    """Collectives summed by kind and axes.

    Returns:
        (kind, axes) -> (how many run in a step, bytes that each device sends in them).

    Raises:
        ValueError: a collective runs in a loop whose number of trips is unknown.
    """
    unknown = next((c for c in found if not c.trips_known), None)
    if unknown is not None:
        raise ValueError(
            f"{unknown.kind} over {' x '.join(unknown.axes)}: how often the loop around it runs"
            " cannot be read"
        )
    out: dict[tuple[str, tuple[str, ...]], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for c in found:
        count, moved = out[c.kind, c.axes]
        out[c.kind, c.axes] = (count + c.count, moved + c.moved)
    return dict(out)


def _collectives_of(
    name: str, instructions: list[Instruction], mesh_shape: Mapping[str, int]
) -> Iterator[Collective]:
    """The collectives of a computation, each once."""
    shapes = {i.name: i.shape for i in instructions}
    goes_on = not any(_START in i.rest for i in instructions)
    for instruction in instructions:
        if goes_on and _PART in instruction.rest:
            continue
        one = _between_slices(instruction) or _collective(instruction, name, shapes, mesh_shape)
        if one is not None and one.group > 1:
            yield one


def _collective(
    instruction: Instruction,
    computation: str,
    shapes: Mapping[str, str],
    mesh_shape: Mapping[str, int],
) -> Collective | None:
    """An instruction as a collective that runs once; None where it is no collective.

    Args:
        instruction: the instruction.
        computation: the name of its computation.
        shapes: of the instructions of that computation, by name.
        mesh_shape: as in ``collectives``.
    """
    kind = _kind(instruction.opcode, computation)
    if kind is None:
        return None
    axes, group = _axes(instruction, mesh_shape)
    size = _size(instruction, group)
    if kind == "ragged-all-to-all" and group > 1:
        size = min(size, _shape_bytes(shapes[instruction.operands[0]]))
    return Collective(kind, axes, size, group, 1)


def _between_slices(instruction: Instruction) -> Collective | None:
    """A send to the runtime as this device's part of a collective between slices, run once."""
    if instruction.opcode != "send":
        return None
    transfer = _BETWEEN_SLICES.search(instruction.rest)
    if transfer is None:
        return None
    # {1,2}x{0:3} is slices x devices of each; a transfer from one to one names no others.
    target = re.search(r'_xla_megascale_target="\{([\d,]+)\}', instruction.rest)
    group = len(target[1].split(",")) if target else 2
    dtype, dims = re.findall(r"(\w+)\[([\d,]*)\]", instruction.shape)[0]
    kind = _RUNTIME_KINDS[transfer[1]]
    parts = group if kind == "all-gather" else 1
    return Collective(kind, (SLICES,), array_bytes(dtype, dims) * parts, group, 1)


def _kind(opcode: str, computation: str) -> str | None:
    opcode = opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None
    # The TPU compiler writes a reduce-scatter as an all-reduce and a slice fused under this name.
    return "reduce-scatter" if computation.startswith("all-reduce-scatter") else opcode


def _size(instruction: Instruction, group: int) -> float:
    """Bytes of all operands or of all results, whichever are more."""
    arrays = [
        array_bytes(dtype, dims)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]+)\]", instruction.shape)
    ]
    scalars = [array_bytes(dtype, "") for dtype in re.findall(r"(\w+)\[\]", instruction.shape)]
    if instruction.opcode == "all-gather-start":
        # The shape is (operands, results).
        return sum(arrays) * group / (group + 1)
    if instruction.opcode == "collective-permute-start":
        # The shape is (operands, results, two integers of the instruction's own).
        return sum(arrays) / 2
    ways = group if instruction.opcode == "reduce-scatter" else 1
    return (sum(arrays) + sum(scalars)) * ways


def _shape_bytes(shape: str) -> float:
    return sum(array_bytes(dtype, dims) for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape))


def array_bytes(dtype: str, dims: str) -> float:
    bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype.split("e")[0]) or 0)
    return math.prod(int(d) for d in dims.split(",") if d) * bits / 8


def _axes(instruction: Instruction, mesh_shape: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes along which the devices of a group differ, and the size of a group."""
    names = tuple(mesh_shape)
    sizes = tuple(mesh_shape.values())
    groups = _groups(instruction, math.prod(sizes))
    if "source_target_pairs" in instruction.rest:
        pairs = np.stack(np.unravel_index(groups, sizes))
        varying = [bool(np.any(c[:, 0] != c[:, 1])) for c in pairs]
        axes = tuple(name for name, varies in zip(names, varying) if varies)
        return axes, math.prod(size for size, varies in zip(sizes, varying) if varies)
    coordinates = np.stack(np.unravel_index(groups[0], sizes))
    axes = tuple(name for name, c in zip(names, coordinates) if len(set(c.tolist())) > 1)
    return axes, groups.shape[1]


_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
_NAMED_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED_GROUPS = re.compile(r"replica_groups=\{(\{.*?\})\}")


def _groups(instruction: Instruction, devices: int) -> np.ndarray:
    """Partition numbers [groups, devices in a group], from any of the forms of HLO."""
    rest = instruction.rest
    if pairs := _PAIRS.search(rest):
        return np.array([_integers(p) for p in re.findall(r"\{([\d,]+)", pairs[1] + "}")])
    if named := _NAMED_GROUPS.search(rest):
        return _groups_over_axes(sizes=named[1], over=named[2])
    if iota := _IOTA_GROUPS.search(rest):
        shape, dims, order = (_integers(part) for part in iota.groups())
        ids = np.arange(math.prod(dims)).reshape(dims)
        return (ids.transpose(order) if order else ids).reshape(shape)
    if listed := _LISTED_GROUPS.search(rest):
        return np.array([_integers(g) for g in re.findall(r"\{([\d,]+)\}", listed[1])])
    return np.arange(devices)[None, :]


def _groups_over_axes(sizes: str, over: str) -> np.ndarray:
    """Groups written as a mesh, such as ``'a'=2,'b'=4``, and the axes that they span, ``'b'``."""
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", sizes)}
    ids = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
    spanned = re.findall(r"'([^']+)'", over)
    last = [list(axes).index(name) for name in spanned]
    order = [i for i in range(len(axes)) if i not in last] + last
    return ids.transpose(order).reshape(-1, math.prod(axes[name] for name in spanned))


def _integers(text: str | None) -> list[int]:
    return [int(n) for n in text.split(",")] if text else []
