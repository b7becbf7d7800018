"""Counts the bytes that a compiled program moves between a device's memory and its cores.

Every instruction that runs by itself reads its operands and writes its results; what is fused into
it stays on the chip, and so does what the compiler keeps in the chip's own memory (``S(1)`` in a
layout). Of an operand that is only sliced, the slices are read; of a result that is updated in
place, the update is written. A kernel counts as reading each operand once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from llm_jax.plan.hlo import array_bytes
from llm_jax.plan.loops import Runs, runs
from llm_jax.plan.program import Instruction, Program, read_program

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")
# They move nothing: they name, group or wait for what another instruction moves.
_NAMES = frozenset(
    {
        "add-dependency",
        "after-all",
        "bitcast",
        "call",
        "conditional",
        "constant",
        "domain",
        "get-tuple-element",
        "optimization-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
        "while",
    }
)
_SLICES = frozenset(("slice", "dynamic-slice", "gather"))
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


class Moved(NamedTuple):
    """Bytes of one device.

    Attributes:
        known: of instructions whose number of runs is known.
        of_a_trip: of others, in loops of an unknown number of trips, counted as if each had one,
            and in branches, which may not be taken.
    """

    known: float = 0.0
    of_a_trip: float = 0.0


def moved_bytes(text: str) -> Moved:
    """The bytes that a device's cores read from its memory and write to it.

    Args:
        text: an optimized HLO module as ``compiled.as_text()`` prints it.
    """
    by_kind = moved_by_instruction(text)
    return Moved(
        sum(moved.known for moved in by_kind.values()),
        sum(moved.of_a_trip for moved in by_kind.values()),
    )


def moved_by_instruction(text: str) -> dict[tuple[str, str], Moved]:
    """As ``moved_bytes``, by computation and name of the instruction."""
    program = read_program(text)
    often = runs(program)
    found = {}
    for name in _run_by_themselves(program):
        here = often.get(name, Runs())
        for instruction in program.computations[name]:
            size = _moved(program, program.computations[name], instruction)
            if size:
                moved = Moved(size * here.known, size * here.of_a_trip)
                found[name, instruction.name] = moved
    return found


def _run_by_themselves(program: Program) -> Iterator[str]:
    """The entry, and the computations of loops, branches and calls from there on."""
    seen = set()
    left = [program.entry]
    while left:
        name = left.pop()
        if name in seen or name not in program.computations:
            continue
        seen.add(name)
        yield name
        for i in program.computations[name]:
            if i.opcode == "while":
                left += [i.attribute("body"), i.attribute("condition")]
            elif i.opcode == "conditional":
                left += i.branches
            elif i.opcode == "call":
                left += i.callees


def _moved(program: Program, instructions: list[Instruction], i: Instruction) -> float:
    """Bytes that one run of an instruction moves."""
    if i.opcode in _NAMES or i.opcode.endswith("-done"):
        return 0.0
    shapes = {other.name: other.shape for other in instructions}
    operands = [shapes.get(name, "") for name in i.operands]
    if i.opcode.endswith("-start"):
        return _started(i, operands)
    fused = _inner(program, i)
    if fused is not None:
        read = sum(_read_of(program, fused, place, shape) for place, shape in enumerate(operands))
        return read + _written(fused, i.shape)
    if i.opcode in _SLICES:
        return 2 * _bytes(i.shape)
    if i.opcode in _UPDATES:
        return 2 * _bytes(operands[_UPDATES[i.opcode]])
    return sum(map(_bytes, operands)) + _bytes(i.shape)


def _started(i: Instruction, operands: list[str]) -> float:
    """Bytes of an asynchronous copy, slice or collective. Its shape is a tuple that begins with its
    operands and its result, and of a copy with its result.
    """
    parts = _ARRAY.findall(i.shape)
    place = sum(len(_ARRAY.findall(shape)) for shape in operands)
    if i.opcode == "copy-start" or place >= len(parts):
        place = 0
    result = parts[place]
    size = array_bytes(result[0], result[1])
    here = _ON_CHIP.search(operands[0]) if operands else None
    return size * ((here is None) + (_ON_CHIP.search(result[2]) is None))


def _read_of(program: Program, fused: list[Instruction], place: int, shape: str) -> float:
    """Bytes that a fusion reads of its operand ``place``."""
    whole = _bytes(shape)
    names = _parameter(fused, place)
    read = 0.0
    for i in fused:
        if names & set(i.operands):
            read += _read_by(program, i, names, whole, shape)
            if _passes_on(program, i, names):
                names.add(i.name)
    return whole if _is_result(fused, names) else min(read, whole)


def _read_by(program: Program, i: Instruction, names: set[str], whole: float, shape: str) -> float:
    """Bytes that an instruction in a fusion reads of an operand that has these names there."""
    if i.opcode in ("bitcast", "tuple"):
        return 0.0
    if i.opcode in _SLICES and i.operands[0] in names:
        return _logical(i.shape)
    if i.opcode in _UPDATES and i.operands[0] in names:
        return 0.0
    inner = _inner(program, i)
    if inner is None:
        return whole
    if _passes_on(program, i, names):
        return 0.0
    places = [place for place, name in enumerate(i.operands) if name in names]
    return sum(_read_of(program, inner, place, shape) for place in places)


def _passes_on(program: Program, i: Instruction, names: set[str]) -> bool:
    """Whether the result of an instruction is the operand itself under another name."""
    if i.opcode == "bitcast":
        return True
    inner = _inner(program, i)
    if inner is None or len(i.operands) != 1:
        return False
    return all(other.opcode in ("parameter", "bitcast") for other in inner)


def _inner(program: Program, i: Instruction) -> list[Instruction] | None:
    """The instructions of a fusion; None of any other instruction."""
    if i.opcode != "fusion" or not i.callees:
        return None
    return program.computations.get(i.callees[0])


def _parameter(fused: list[Instruction], place: int) -> set[str]:
    return {i.name for i in fused if i.opcode == "parameter" and i.arguments == str(place)}


def _is_result(fused: list[Instruction], names: set[str]) -> bool:
    """Whether a fusion gives back an operand that has these names in it."""
    root = next(i for i in fused if i.is_root)
    results = root.operands if root.opcode == "tuple" else [root.name]
    return bool(names & set(results))


def _written(fused: list[Instruction], shape: str) -> float:
    """Bytes that a fusion writes of its results."""
    by_name = {i.name: i for i in fused}
    root = next(i for i in fused if i.is_root)
    if root.opcode != "tuple":
        return _written_by(by_name, root, _bytes(shape))
    results = [by_name[name] for name in root.operands]
    return sum(_written_by(by_name, one, _bytes(one.shape)) for one in results)


def _written_by(by_name: Mapping[str, Instruction], result: Instruction, whole: float) -> float:
    """Bytes of one result of a fusion: those of its update, where it is updated in place."""
    while result.opcode in ("bitcast", "convert") and result.operands:
        result = by_name[result.operands[0]]
    if result.opcode not in _UPDATES or not whole:
        return whole
    return min(whole, _logical(by_name[result.operands[_UPDATES[result.opcode]]].shape))


def _bytes(shape: str) -> float:
    """Bytes of a shape's arrays that are in the device's memory."""
    return sum(
        array_bytes(dtype, dims)
        for dtype, dims, layout in _ARRAY.findall(shape)
        if not _ON_CHIP.search(layout)
    )


def _logical(shape: str) -> float:
    """Bytes of a shape's arrays, wherever they are."""
    return sum(array_bytes(dtype, dims) for dtype, dims, _ in _ARRAY.findall(shape))
