"""Constrained decoding: text that is one of a list, matches a regex, a JSON schema or a grammar.

``Choices``, ``Regex``, ``JsonSchema`` and ``Lark`` say what a text must be.
``compile_constraint`` turns one into a grammar over the tokens of a model, and ``Matchers`` says
for the rows of a batch which tokens may come next. ``decode.constrained`` drives a model with it.

Needs llguidance (the extra ``[constrain]``), which is imported when a constraint is compiled.
"""

from llm_jax.decode.constrain.compiled import CompiledConstraint
from llm_jax.decode.constrain.compiling import compile_constraint
from llm_jax.decode.constrain.constraints import Choices, Constraint, JsonSchema, Lark, Regex
from llm_jax.decode.constrain.matchers import Matchers
from llm_jax.decode.constrain.vocabulary import GrammarVocabulary

__all__ = [
    "Choices",
    "CompiledConstraint",
    "Constraint",
    "GrammarVocabulary",
    "JsonSchema",
    "Lark",
    "Matchers",
    "Regex",
    "compile_constraint",
]
