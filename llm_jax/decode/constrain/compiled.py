"""A constraint that was compiled for the tokens of one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llm_jax.decode.constrain.constraints import Constraint
from llm_jax.decode.constrain.vocabulary import GrammarVocabulary


@dataclass(frozen=True, eq=False)
class CompiledConstraint:
    """What ``compile_constraint`` returns; any number of rows may have it.

    Attributes:
        constraint: what it is compiled from.
        vocabulary: of the model.
        start: llguidance's matcher before the first token.
    """

    constraint: Constraint
    vocabulary: GrammarVocabulary
    start: Any

    def matcher(self) -> Any:
        """A matcher of a row, before its first token."""
        return self.start.deep_copy()
