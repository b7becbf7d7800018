"""Pairs: an encoder–decoder writes one text of a pair, of which the encoder reads the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llm_jax.config import DataConfig
from llm_jax.data.shards.pairs import PairRows
from llm_jax.objectives.contract import Objective
from llm_jax.objectives.special_tokens import require_end
from llm_jax.objectives.token_batches import encoder_fields, random_encoder_tokens
from llm_jax.objectives.token_loss import EVALUATION, make_token_loss
from llm_jax.types import Batch

if TYPE_CHECKING:
    from llm_jax.tokenizers.tokenizer import Tokenizer


class Pairs(NamedTuple):
    """Packed pairs as they are stored.

    encoder_length: S of the batches.
    start_token: the decoder's first input of each text.
    """

    encoder_length: int
    start_token: int

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> PairRows:
        return PairRows(
            path,
            split,
            seq_length,
            encoder_length=self.encoder_length,
            start_token=self.start_token,
            cache_bytes=cache_bytes,
            tokenizer_fingerprint=fingerprint,
        )

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        return batch


def make_pairs(data: DataConfig, start_token: int, tokenizer: Tokenizer) -> Pairs:
    """``Pairs`` of a run. Raises DataError if the tokenizer has no ``</s>``."""
    require_end(data, tokenizer)
    return Pairs(data.encoder_length, start_token)


PAIRS = Objective(
    name="pairs",
    fields=encoder_fields,
    example=random_encoder_tokens,
    make_transform=make_pairs,
    make_loss=make_token_loss,
    evaluation=EVALUATION,
)
