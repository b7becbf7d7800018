"""Next token: a causal model predicts the token that follows each token of its document."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_jax.config import DataConfig
from llm_jax.data.loading.transform import AS_STORED, AsStored
from llm_jax.objectives.contract import Objective
from llm_jax.objectives.token_batches import pack_windows, random_tokens, token_fields
from llm_jax.objectives.token_loss import EVALUATION, make_token_loss

if TYPE_CHECKING:
    from llm_jax.tokenizers.tokenizer import Tokenizer


def make_next_token(data: DataConfig, start_token: int, tokenizer: Tokenizer) -> AsStored:
    """Rows as they are stored; the arguments play no part."""
    return AS_STORED


NEXT_TOKEN = Objective(
    name="next_token",
    fields=token_fields,
    example=random_tokens,
    make_transform=make_next_token,
    make_loss=make_token_loss,
    evaluation=EVALUATION,
    pack_windows=pack_windows,
)
