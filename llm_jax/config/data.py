"""Data: what is read, and the training objective that its rows are made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from llm_jax.ranges import Count, InnerShare, Natural, Positive, Range, Seed


@dataclass(frozen=True)
class NextTokenConfig:
    """A decoder predicts the next token."""

    kind: ClassVar[str] = "next_token"


@dataclass(frozen=True)
class MaskedConfig:
    """An encoder predicts hidden tokens (BERT)."""

    kind: ClassVar[str] = "masked"

    mask_rate: InnerShare = 0.15
    """Share of the tokens that are hidden."""


@dataclass(frozen=True)
class SpansConfig:
    """An encoder–decoder predicts spans that were cut out of a text (T5)."""

    kind: ClassVar[str] = "spans"

    mask_rate: InnerShare = 0.15
    """Share of the tokens that are cut out."""
    span_length: Annotated[float, Range(1)] = 3.0
    """Mean length of the spans, in tokens."""
    encoder_length: Natural = 0
    """Tokens S of a row that the encoder reads. It must divide the shards' block size."""


@dataclass(frozen=True)
class PairsConfig:
    """An encoder–decoder predicts the other text of a pair: translation, summaries."""

    kind: ClassVar[str] = "pairs"

    encoder_length: Natural = 0
    """Tokens S of a row that the encoder reads. It must be the shards' encoder_block_size."""


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches."""

    path: tuple[str, ...] = ()
    """Folders of shards made by `llm-jax data prepare`; several make a mixture."""
    weights: tuple[Positive, ...] = ()
    """Share of each folder in the mixture; empty is proportional to their tokens."""
    objective: NextTokenConfig | MaskedConfig | SpansConfig | PairsConfig = NextTokenConfig()
    """The training objective: the next token; of an encoder, hidden tokens; of an
    encoder–decoder, spans that were cut out of a text, or the other text of a pair.
    """
    seq_length: Count = 1024
    """Tokens T of a row; of an encoder–decoder, those that the decoder writes. It must divide the
    shards' block size; for pairs it must be that size; for spans it must hold what is cut out.
    """
    batch_size: Count = 32
    """Rows B of the global batch of one optimizer step, over all hosts and accumulation steps."""
    seed: Seed = 0
    """Order of the data: batch = f(seed, step)."""
    prefetch: Count = 2
    """Batches prepared ahead in the background."""

    @property
    def encoder_length(self) -> int:
        """Tokens S of a row that an encoder reads; 0 where the objective has no encoder."""
        return getattr(self.objective, "encoder_length", 0)
