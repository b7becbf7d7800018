"""What objectives need of a tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_jax.config import DataConfig
from llm_jax.types import DataError

if TYPE_CHECKING:
    from llm_jax.tokenizers.tokenizer import Tokenizer


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Control tokens by their text, in the order of their ids."""
    ids = range(tokenizer.vocab_size)
    return {tokenizer.piece(id): id for id in ids if tokenizer.is_control(id)}


def require_end(data: DataConfig, tokenizer: Tokenizer) -> None:
    """Raise DataError if no token of the tokenizer ends a text."""
    if tokenizer.eos_id < 0:
        raise DataError(
            f"data.objective is {data.objective.kind!r}, and tokenizer {str(tokenizer.path)!r}"
            " has no </s> to end a text with"
        )
