"""How often a compiled program's computations run: its loops' trips, read from their counters.

A counter is an integer that a loop carries, that its body changes by a constant, and that its
condition compares with a constant. The number of trips of any other loop is unknown, and none is
assumed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from llm_jax.plan.program import Instruction, Program
from llm_jax.plan.scalars import Carried, Comparison, Scope, Value, unknown

_HOLDS: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_MIRRORED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "EQ": "EQ", "NE": "NE"}


@dataclass(frozen=True)
class Runs:
    """How often a computation runs in a step.

    Attributes:
        known: runs where every loop around it has a known number of trips.
        of_a_trip: runs in loops whose number of trips is unknown, counted as if each had one trip,
            and in branches, which may not be taken.
    """

    known: int = 0
    of_a_trip: int = 0

    def __add__(self, other: Runs) -> Runs:
        return Runs(self.known + other.known, self.of_a_trip + other.of_a_trip)

    def times(self, number: int | None) -> Runs:
        """These runs ``number`` times each; None is unknown."""
        if number is None:
            return Runs(0, self.known + self.of_a_trip)
        return Runs(self.known * number, self.of_a_trip * number)


def runs(program: Program) -> dict[str, Runs]:
    """How often each computation of a program runs, by name."""
    found: dict[str, Runs] = {}

    def visit(scope: Scope, here: Runs) -> None:
        found[scope.name] = found.get(scope.name, Runs()) + here
        for instruction in scope.instructions.values():
            for inner, number in _called(scope, instruction):
                visit(inner, here.times(number))

    visit(Scope(program, program.entry, unknown), Runs(known=1))
    return found


def _called(scope: Scope, i: Instruction) -> list[tuple[Scope, int | None]]:
    """The computations that an instruction calls, and how often; None is unknown."""
    if i.opcode == "while":
        number = trips(scope, i)
        checks = None if number is None else number + 1
        return [(scope.of_loop(i, "body"), number), (scope.of_loop(i, "condition"), checks)]
    if i.opcode == "conditional":
        return [(Scope(scope.program, name, unknown), None) for name in i.branches]
    return [(scope.of_call(i, name), 1) for name in i.callees if name in scope.program.computations]


def trips(scope: Scope, loop: Instruction) -> int | None:
    """How often the body of a loop runs.

    Args:
        scope: the computation of the loop.
        loop: its instruction.

    Returns:
        The number of trips by the loop's counter, or by the compiler (``known_trip_count``). None
        where there is neither, and where the two differ.
    """
    stated = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop.rest)
    counted = _counted(scope, loop)
    if stated is None:
        return counted
    return int(stated[1]) if counted in (None, int(stated[1])) else None


def _counted(scope: Scope, loop: Instruction) -> int | None:
    """The number of trips by the loop's counter; None where it has none."""
    condition = _carried_first(scope.of_loop(loop, "condition").root())
    if condition is None:
        return None
    left, direction, bound = condition
    first = _place(scope.value(loop.operands[0]), left.index)
    after = _place(scope.of_loop(loop, "body").root(), left.index)
    if not isinstance(first, int) or not isinstance(after, Carried):
        return None
    if (after.index, after.scale) != (left.index, 1):
        return None
    number = count(left.of(first), left.scale * after.offset, direction, bound)
    if number is None:
        return None
    return number if _stays(left, first, first + number * after.offset) else None


def _carried_first(condition: Value) -> tuple[Carried, str, int] | None:
    """A comparison of a carried integer with a constant, as (carried, direction, constant)."""
    if not isinstance(condition, Comparison):
        return None
    left = condition.left
    right = condition.right
    if isinstance(left, Carried) and isinstance(right, int):
        return left, condition.direction, right
    if isinstance(left, int) and isinstance(right, Carried):
        return right, _MIRRORED[condition.direction], left
    return None


def _place(values: Value, place: int) -> Value:
    return values[place] if type(values) is tuple and place < len(values) else None


def count(first: int, change: int, direction: str, bound: int) -> int | None:
    """How many of first, first + change, ... come before the first that fails a comparison.

    Args:
        first: the counter's first value.
        change: what each trip adds.
        direction: of the comparison with ``bound``: LT, LE, GT, GE, EQ or NE.
        bound: the constant.

    Returns:
        None where the comparison never fails.
    """
    if not _HOLDS[direction](first, bound):
        return 0
    distance = bound - first
    if direction == "EQ":
        return 1 if change else None
    if direction == "NE":
        meets = change != 0 and distance % change == 0 and distance // change > 0
        return distance // change if meets else None
    if direction in ("LE", "GE"):
        distance += 1 if direction == "LE" else -1
    towards = change > 0 if direction in ("LT", "LE") else change < 0
    return -(-distance // change) if towards else None


def _stays(compared: Carried, first: int, last: int) -> bool:
    """Whether the counter and the compared value stay in the counter's type without wrapping."""
    low, high = compared.limits
    return all(low <= n <= high for n in (first, last, compared.of(first), compared.of(last)))
