"""Integers in a compiled program: constants, and values that follow from what a loop carries."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from llm_jax.plan.program import Instruction, Program

_INTEGER = re.compile(r"([su])(\d+)\[\]")
_HAS_SCALARS = re.compile(r"\b(?:[su]\d+|pred)\[\]")
_SAME = ("copy", "copy-start", "copy-done", "reshape", "opt-barrier")
_NEGATED = {"LT": "GE", "GE": "LT", "GT": "LE", "LE": "GT", "EQ": "NE", "NE": "EQ"}


@dataclass(frozen=True)
class Carried:
    """``scale`` times the integer that a loop carries at ``index``, plus ``offset``.

    ``limits`` are the least and the largest integer of its type.
    """

    index: int
    limits: tuple[int, int]
    scale: int = 1
    offset: int = 0

    def of(self, integer: int) -> int:
        """The value when the loop carries ``integer``."""
        return self.scale * integer + self.offset


@dataclass(frozen=True)
class Comparison:
    """A comparison of ``left`` with ``right``; ``direction`` is LT, LE, GT, GE, EQ or NE."""

    direction: str
    left: Value
    right: Value


@dataclass(frozen=True)
class Everything:
    """All that a loop carries, as its body and its condition receive it.

    ``fixed`` are the integers, by place, that no trip changes.
    """

    fixed: Mapping[int, int]


# None is unknown.
Value = int | Carried | Comparison | Everything | tuple | None


def unknown(number: int) -> Value:
    """The value of a parameter of which nothing is known."""
    return None


class Scope:
    """A computation at one of its calls, and the known scalars in it."""

    def __init__(self, program: Program, name: str, parameter: Callable[[int], Value]) -> None:
        """Args:
        program: the module.
        name: name of the computation.
        parameter: the value of each of its parameters, by number.
        """
        self.program = program
        self.name = name
        self.instructions = {i.name: i for i in program.computations.get(name, ())}
        self._parameter = parameter
        self._values: dict[str, Value] = {}

    def of_call(self, call: Instruction, name: str) -> Scope:
        """The scope of the computation ``name`` for the operands of ``call``."""
        operands = dict(enumerate(call.operands))
        return Scope(self.program, name, lambda number: self.value(operands.get(number, "")))

    def of_loop(self, loop: Instruction, attribute: str) -> Scope:
        """The scope of a loop's ``body`` or ``condition``, for any trip."""
        everything = Everything(self._fixed(loop))
        return Scope(self.program, loop.attribute(attribute), lambda number: everything)

    def root(self) -> Value:
        """The value that the computation returns."""
        root = next((i for i in self.instructions.values() if i.is_root), None)
        return self.value(root.name) if root else None

    def value(self, name: str) -> Value:
        """The value of an instruction."""
        if name not in self._values:
            i = self.instructions.get(name)
            self._values[name] = self._evaluated(i) if i and _HAS_SCALARS.search(i.shape) else None
        return self._values[name]

    def _evaluated(self, i: Instruction) -> Value:
        if i.opcode == "parameter":
            return self._parameter(int(i.arguments))
        if i.opcode == "constant":
            return _constant(i)
        if i.opcode in ("fusion", "call"):
            return self.of_call(i, i.attribute("calls") or i.attribute("to_apply")).root()
        if i.opcode == "while":
            return self._invariant(i)
        if i.opcode == "tuple":
            return tuple(self.value(name) for name in i.operands)
        if i.opcode == "get-tuple-element":
            return _element(self.value(i.operands[0]), i)
        return self._computed(i)

    def _computed(self, i: Instruction) -> Value:
        values = [self.value(name) for name in i.operands]
        if i.opcode in _SAME:
            return values[0]
        if i.opcode == "compare":
            return Comparison(i.attribute("direction"), *values)
        if i.opcode == "not" and isinstance(values[0], Comparison):
            return replace(values[0], direction=_NEGATED[values[0].direction])
        if i.opcode in ("convert", "bitcast"):
            # A sum may have wrapped in the narrower type.
            operand = self.instructions[i.operands[0]]
            kept = _holds_all_of(i.shape, operand.shape) and _is_unchanged(values[0])
            return values[0] if kept else None
        return _arithmetic(i, values)

    def _fixed(self, loop: Instruction) -> dict[int, int]:
        """The integers among a loop's operands that no trip changes, by place."""
        return {place: v for place, v in enumerate(self._invariant(loop)) if isinstance(v, int)}

    def _invariant(self, loop: Instruction) -> tuple[Value, ...]:
        """The operands of a loop that no trip changes, by place; None where one may change."""
        given = self.value(loop.operands[0])
        after = Scope(self.program, loop.attribute("body"), lambda number: Everything({})).root()
        if type(given) is not tuple or type(after) is not tuple:
            return ()
        return tuple(
            before if _is_from(place, value) else None
            for place, (before, value) in enumerate(zip(given, after))
        )


def _is_unchanged(value: Value) -> bool:
    if isinstance(value, Carried):
        return (value.scale, value.offset) == (1, 0)
    return isinstance(value, int)


def _is_from(place: int, value: Value) -> bool:
    return isinstance(value, Carried) and value.index == place and _is_unchanged(value)


def _constant(i: Instruction) -> int | None:
    written = i.arguments.strip()
    return int(written) if _limits(i.shape) and re.fullmatch(r"-?\d+", written) else None


def _element(of: Value, i: Instruction) -> Value:
    place = int(i.attribute("index"))
    if isinstance(of, Everything):
        limits = _limits(i.shape)
        carried = Carried(place, limits) if limits else None
        return of.fixed.get(place, carried)
    return of[place] if type(of) is tuple and place < len(of) else None


def _arithmetic(i: Instruction, values: list[Value]) -> Value:
    """Sums, differences and products that keep the form ``scale`` x integer + ``offset``."""
    limits = _limits(i.shape)
    if limits is None:
        return None
    found = _exact(i.opcode, values)
    if isinstance(found, Carried):
        return replace(found, offset=_nearest_zero(found.offset, limits))
    wraps = isinstance(found, int) and not limits[0] <= found <= limits[1]
    return None if wraps else found


def _exact(opcode: str, values: list[Value]) -> Value:
    """The result of an operation in integers without limits; None for other operations."""
    if opcode == "add":
        return _sum(*values)
    if opcode == "subtract":
        return _sum(values[0], _times(values[1], -1))
    if opcode == "multiply":
        return _times(*values) if isinstance(values[1], int) else _times(values[1], values[0])
    if opcode == "negate":
        return _times(values[0], -1)
    return None


def _nearest_zero(number: int, limits: tuple[int, int]) -> int:
    """The offset of the least magnitude that gives the same sums in a type of ``limits``.

    In unsigned types, HLO writes minus 1 as the largest integer.
    """
    size = limits[1] - limits[0] + 1
    return (number + size // 2) % size - size // 2


def _sum(a: Value, b: Value) -> Value:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(a, Carried) and isinstance(b, int):
        return replace(a, offset=a.offset + b)
    return _sum(b, a) if isinstance(a, int) and isinstance(b, Carried) else None


def _times(a: Value, factor: Value) -> Value:
    if not isinstance(factor, int):
        return None
    if isinstance(a, Carried):
        return replace(a, scale=a.scale * factor, offset=a.offset * factor)
    return a * factor if isinstance(a, int) else None


def _limits(shape: str) -> tuple[int, int] | None:
    """The least and the largest integer of a scalar's type; None for any other shape."""
    found = _INTEGER.match(shape)
    if found is None:
        return None
    bits = int(found[2])
    if found[1] == "s":
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _holds_all_of(shape: str, other: str) -> bool:
    """Whether the type of ``shape`` holds every integer of the type of ``other``."""
    limits = _limits(shape)
    inner = _limits(other)
    if limits is None or inner is None:
        return False
    return limits[0] <= inner[0] and inner[1] <= limits[1]
