"""Reading the collectives out of a compiled program's text: which, over which mesh axes, how many
bytes, how often.
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
# The axis of what goes from one TPU slice to another: the compiler leaves it to the runtime, as a
# send with this attribute.
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
# A collective that runs beside products is written whole into the fusion of each of them; in this
# one it starts.
_PART, _START = 'chain_id="', 'custom_call_target="AsyncCollectiveStart"'


class Collective(NamedTuple):
    """One instruction. size: bytes of its whole operand or result, whichever is larger, on one
    device; of parts of unequal size whichever is smaller, as the other has room for the worst case
    · group: devices that take part · axes: mesh axes they span · count: times it runs in a step ·
    trips_known: False in loops whose number of trips cannot be read, and in branches; ``count`` is
    then that of one trip of each such loop.
    """

    kind: str
    axes: tuple[str, ...]
    size: float
    group: int
    count: int
    trips_known: bool = True

    @property
    def moved(self) -> float:
        """Bytes that each device must send over links in ``count`` runs, by the ring algorithms."""
        share = (self.group - 1) / self.group
        return (
            self.count
            * self.size
            * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        )


def collectives(text: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """All collectives of an optimised HLO module, those in loops as often as the loops run.

    Args:
        text: what ``compiled.as_text()`` prints.
        mesh_shape: the mesh the program was compiled for, of several slices the part in one; its
            devices in order are the program's partitions.
    """
    program = read_program(text)
    found: list[Collective] = []
    for name, often in runs(program).items():
        for one in _collectives_of(name, program.computations[name], mesh_shape):
            counts = ((often.known, True), (often.of_a_trip, False))
            found += [
                one._replace(count=count, trips_known=known) for count, known in counts if count
            ]
    return found


def summed(found: list[Collective]) -> dict[tuple[str, tuple[str, ...]], tuple[int, float]]:
    """(kind, axes) -> (how many run in a step, bytes each device sends in them).

    Raises:
        ValueError: one of them runs in a loop whose number of trips is unknown.
    """
    unknown = next((c for c in found if not c.trips_known), None)
    if unknown is not None:
        raise ValueError(
            f"{unknown.kind} over {' x '.join(unknown.axes)}: how often the loop around it runs"
            " cannot be read"
        )
    out: dict = defaultdict(lambda: (0, 0.0))
    for c in found:
        count, moved = out[c.kind, c.axes]
        out[c.kind, c.axes] = count + c.count, moved + c.moved
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
    """The collective, once, that an instruction is. shapes: of the instructions of its computation,
    by name.
    """
    if (kind := _kind(instruction.opcode, computation)) is None:
        return None
    axes, group = _axes(instruction, mesh_shape)
    size = _size(instruction, group)
    if kind == "ragged-all-to-all" and group > 1:
        size = min(size, _shape_bytes(shapes[instruction.operands[0]]))
    return Collective(kind, axes, size, group, 1)


def _between_slices(instruction: Instruction) -> Collective | None:
    """The collective, once, of which a send to the runtime is this device's part."""
    if instruction.opcode != "send" or not (found := _BETWEEN_SLICES.search(instruction.rest)):
        return None
    # {1,2}x{0:3}: slices x devices of each. One to one, nothing is said of others.
    target = re.search(r'_xla_megascale_target="\{([\d,]+)\}', instruction.rest)
    group = len(target[1].split(",")) if target else 2
    dtype, dims = re.search(r"(\w+)\[([\d,]*)\]", instruction.shape).groups()  # type: ignore[union-attr]
    kind = _RUNTIME_KINDS[found[1]]
    return Collective(
        kind, (SLICES,), _bytes(dtype, dims) * (group if kind == "all-gather" else 1), group, 1
    )


def _kind(opcode: str, computation: str) -> str | None:
    opcode = opcode.removesuffix("-start")
    if opcode not in KINDS:
        return None
    # How the TPU compiler writes a reduce-scatter: an all-reduce and a slice fused under this name.
    return "reduce-scatter" if computation.startswith("all-reduce-scatter") else opcode


def _size(instruction: Instruction, group: int) -> float:
    """Bytes of all operands or of all results, whichever are more."""
    arrays = [
        _bytes(dtype, dims) for dtype, dims in re.findall(r"(\w+)\[([\d,]+)\]", instruction.shape)
    ]
    scalars = [_bytes(dtype, "") for dtype in re.findall(r"(\w+)\[\]", instruction.shape)]
    if instruction.opcode == "all-gather-start":  # (operands, results)
        return sum(arrays) * group / (group + 1)
    if (
        instruction.opcode == "collective-permute-start"
    ):  # (operands, results, two numbers of its own)
        return sum(arrays) / 2
    ways = group if instruction.opcode == "reduce-scatter" else 1
    return (sum(arrays) + sum(scalars)) * ways


def _shape_bytes(shape: str) -> float:
    return sum(_bytes(dtype, dims) for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape))


def _bytes(dtype: str, dims: str) -> float:
    bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype.split("e")[0]) or 0)
    return math.prod(int(d) for d in dims.split(",") if d) * bits / 8


def _axes(instruction: Instruction, mesh_shape: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """Mesh axes along which the devices of a group differ, and the size of a group."""
    sizes = tuple(mesh_shape.values())
    groups = _groups(instruction, math.prod(sizes))
    coordinates = np.stack(np.unravel_index(groups[0], sizes))
    if "source_target_pairs" in instruction.rest:
        pairs = np.stack(np.unravel_index(groups, sizes))
        varying = [bool(np.any(c[:, 0] != c[:, 1])) for c in pairs]
        return tuple(n for n, v in zip(mesh_shape, varying) if v), math.prod(
            s for s, v in zip(sizes, varying) if v
        )
    return (
        tuple(n for n, c in zip(mesh_shape, coordinates) if len(set(c.tolist())) > 1),
        groups.shape[1],
    )


def _groups(instruction: Instruction, devices: int) -> np.ndarray:
    """[groups, devices in a group] of partition numbers, from any of the ways in which HLO writes
    them.
    """
    rest = instruction.rest
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        return np.array(
            [[int(n) for n in p.split(",")] for p in re.findall(r"\{([\d,]+)", pairs[1] + "}")]
        )
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", named[1])}
        over = re.findall(r"'([^']+)'", named[2])
        ids = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        last = [list(sizes).index(n) for n in over]
        order = [i for i in range(len(sizes)) if i not in last] + last
        return ids.transpose(order).reshape(-1, math.prod(sizes[n] for n in over))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims, order = ([int(n) for n in g.split(",")] if g else [] for g in iota.groups())
        ids = np.arange(math.prod(dims)).reshape(dims)
        return (ids.transpose(order) if order else ids).reshape(shape)
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return np.array(
            [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", listed[1])]
        )
    return np.arange(devices)[None, :]
