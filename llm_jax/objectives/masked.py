"""Masked tokens: an encoder predicts tokens that were hidden (Devlin et al. 2019, section 3.1),
drawn anew for every row of every epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llm_jax.config import DataConfig
from llm_jax.config.data import MaskedConfig
from llm_jax.data.loading.hashing import draws, row_keys
from llm_jax.data.shards.rows import Rows
from llm_jax.objectives.contract import Objective
from llm_jax.objectives.special_tokens import control_tokens
from llm_jax.objectives.token_batches import random_tokens, token_fields
from llm_jax.objectives.token_loss import EVALUATION, make_token_loss
from llm_jax.types import Batch, DataError

if TYPE_CHECKING:
    from llm_jax.tokenizers.tokenizer import Tokenizer

MASKS = ("<mask>", "[MASK]")


class Masked(NamedTuple):
    """Each token but control tokens is chosen with probability ``rate``; the loss counts the chosen
    tokens. Of these 80 % are replaced by the mask, 10 % by any token, and 10 % stay.
    """

    rate: float
    mask_id: int
    control_ids: tuple[int, ...]
    vocab_size: int
    seed: int

    def open(
        self,
        path: str | Path,
        split: str,
        seq_length: int,
        cache_bytes: int,
        fingerprint: str | None,
    ) -> Rows:
        return Rows(path, split, seq_length, cache_bytes, fingerprint)

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        keys = row_keys(self.seed, indices)
        choice, action, token = (draws(keys, stream, seq_length) for stream in range(3))
        text = (batch.inputs.segment_ids != 0) & ~np.isin(batch.inputs.ids, self.control_ids)
        chosen = text & (choice < self.rate)
        replaced = np.where(action < 0.8, self.mask_id, (token * self.vocab_size).astype(np.int32))
        tokens = np.where(chosen & (action < 0.9), replaced, batch.inputs.ids).astype(np.int32)
        return batch._replace(
            inputs=batch.inputs._replace(ids=tokens), targets=batch.inputs.ids, loss_mask=chosen
        )


def make_masked(data: DataConfig, start_token: int, tokenizer: Tokenizer) -> Masked:
    """``Masked`` of a run. Raises DataError if the tokenizer has no mask."""
    control = control_tokens(tokenizer)
    masks = [control[name] for name in MASKS if name in control]
    if not masks:
        raise DataError(
            f"data.objective is 'masked', and tokenizer {str(tokenizer.path)!r} has no"
            f" {' or '.join(MASKS)}; train one with --control-symbols '{MASKS[0]}'"
        )
    assert isinstance(data.objective, MaskedConfig)
    return Masked(
        data.objective.mask_rate, masks[0], tuple(control.values()), tokenizer.vocab_size, data.seed
    )


MASKED = Objective(
    name="masked",
    fields=token_fields,
    example=random_tokens,
    make_transform=make_masked,
    make_loss=make_token_loss,
    evaluation=EVALUATION,
)
