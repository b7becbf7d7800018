"""Data: what is read, and the training objective that its rows are made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

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
class ClassificationConfig:
    """A model learns the class of each row, which `llm-jax task classify` prepares."""

    kind: ClassVar[str] = "classification"

    class_weights: tuple[Positive, ...] = ()
    """Weight of the rows of each class in the loss; empty is 1 for all."""
    token_types: bool = False
    """Rows say which of two texts each token is of (model.embedding.token_types)."""


@dataclass(frozen=True)
class TokenClassificationConfig:
    """A model learns the class of each word, which `llm-jax task tag` prepares."""

    kind: ClassVar[str] = "token_classification"

    class_weights: tuple[Positive, ...] = ()
    """Weight of the words of each class in the loss; empty is 1 for all."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """A model learns vectors of texts: those of a pair are to be nearer to each other than to the
    other pairs of the batch (InfoNCE). `llm-jax task embed` prepares the pairs.
    """

    kind: ClassVar[str] = "contrastive"

    pooling: Literal["mean", "first", "last", "model"] = "mean"
    """What makes the vector of a text: the mean of its tokens, the first or the last one, or
    model.pooler.
    """
    temperature: Positive = 0.05
    """Divides the cosines of vectors in the loss."""
    symmetric: bool = False
    """The second text of each pair also looks for its first one."""


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches."""

    path: tuple[str, ...] = ()
    """Folders of shards made by `llm-jax data prepare`; several make a mixture."""
    weights: tuple[Positive, ...] = ()
    """Share of each folder in the mixture; empty is proportional to their tokens."""
    objective: (
        NextTokenConfig
        | MaskedConfig
        | SpansConfig
        | PairsConfig
        | ClassificationConfig
        | TokenClassificationConfig
        | ContrastiveConfig
    ) = NextTokenConfig()
    """The training objective: the next token; of an encoder, hidden tokens; of an
    encoder–decoder, spans that were cut out of a text, or the other text of a pair; of a model of
    one stack, classes of rows or of words, or vectors of texts.
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
