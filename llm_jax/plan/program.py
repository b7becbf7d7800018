"""A compiled program's text (optimised HLO) as computations of instructions."""

from __future__ import annotations

import re
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$")
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line of HLO. ``rest`` is the text after the opening parenthesis: operands, attributes."""

    name: str
    shape: str
    opcode: str
    rest: str
    is_root: bool

    @property
    def arguments(self) -> str:
        """The text between the parentheses."""
        depth = 1
        for place, character in enumerate(self.rest):
            depth += {"(": 1, ")": -1}.get(character, 0)
            if depth == 0:
                return self.rest[:place]
        return self.rest

    @property
    def _attributes(self) -> str:
        return self.rest[len(self.arguments) :]

    @property
    def operands(self) -> list[str]:
        """Names of the operands, in order."""
        return _NAME.findall(self.arguments)

    def attribute(self, name: str) -> str:
        """The value of an attribute such as ``body`` or ``index``; empty where it is absent."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self._attributes)
        return found[1] if found else ""

    @property
    def callees(self) -> list[str]:
        """The computations that a call, fusion or reduction runs."""
        single = [self.attribute("calls"), self.attribute("to_apply")]
        return [name for name in single if name] + self._listed("called_computations")

    @property
    def branches(self) -> list[str]:
        """The computations of a conditional, one of which runs."""
        both = [self.attribute("true_computation"), self.attribute("false_computation")]
        return self._listed("branch_computations") or [name for name in both if name]

    def _listed(self, attribute: str) -> list[str]:
        listed = re.search(rf"\b{attribute}=\{{([^}}]*)\}}", self._attributes)
        return [name.strip().lstrip("%") for name in listed[1].split(",")] if listed else []


class Program(NamedTuple):
    """A module.

    Attributes:
        computations: the instructions of each computation, by its name.
        entry: name of the computation that runs first.
    """

    computations: dict[str, list[Instruction]]
    entry: str


def read_program(text: str) -> Program:
    """Parses the text that ``compiled.as_text()`` prints.

    Raises:
        ValueError: the text has no ENTRY computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry = ""
    current = ""
    for line in text.splitlines():
        if not line.startswith((" ", "}")) and (head := _COMPUTATION.match(line)):
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            root, name, shape, opcode, rest = found.groups()
            computations[current].append(Instruction(name, shape, opcode, rest, bool(root)))
    if not entry:
        raise ValueError(
            "the compiled program has no computation marked ENTRY: its text has an unknown form"
        )
    return Program(computations, entry)
