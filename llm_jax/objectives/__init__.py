"""Kinds of training, one file each; ``data.objective`` names one.

CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_jax.config import DataConfig
from llm_jax.data.loading.transform import RowTransform
from llm_jax.objectives.classification import CLASSIFICATION
from llm_jax.objectives.contract import Field, Loss, Metric, Objective, Sums, Window
from llm_jax.objectives.contrastive import CONTRASTIVE
from llm_jax.objectives.masked import MASKED
from llm_jax.objectives.next_token import NEXT_TOKEN
from llm_jax.objectives.pairs import PAIRS
from llm_jax.objectives.spans import SPANS
from llm_jax.objectives.token_classification import TOKEN_CLASSIFICATION

if TYPE_CHECKING:
    from llm_jax.tokenizers.tokenizer import Tokenizer

_ALL = (
    NEXT_TOKEN,
    MASKED,
    SPANS,
    PAIRS,
    CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    CONTRASTIVE,
)
OBJECTIVES = {objective.name: objective for objective in _ALL}


def objective_of(data: DataConfig) -> Objective:
    """The objective that ``data.objective`` names."""
    return OBJECTIVES[data.objective.kind]


def make_transform(data: DataConfig, start_token: int, tokenizer: Tokenizer) -> RowTransform:
    """The host part of ``data.objective``, which turns rows of shards into batches.

    Args:
        data: what is read.
        start_token: of the model, ``ModelConfig.start_token``.
        tokenizer: of the shards.

    Raises:
        DataError: the tokenizer lacks what the objective needs.
    """
    return objective_of(data).make_transform(data, start_token, tokenizer)


__all__ = [
    "OBJECTIVES",
    "Field",
    "Loss",
    "Metric",
    "Objective",
    "Sums",
    "Window",
    "make_transform",
    "objective_of",
]
