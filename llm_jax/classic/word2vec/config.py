"""Settings of word2vec."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from llm_jax.ranges import Count, Finite, Natural, NotNegative, Positive, Range, Seed, check_fields
from llm_jax.types import ConfigError

Architecture = Literal["skip-gram", "cbow"]
Softmax = Literal["negative", "hierarchical"]
Window = Annotated[int, Range(1, 255)]


@dataclasses.dataclass(frozen=True)
class Word2VecConfig:
    """How word vectors are trained; the defaults are those of gensim, but for skip-gram.

    Attributes:
        architecture: "skip-gram", each word predicts each word near it, or "cbow", the mean of the
            words near a word predicts it.
        softmax: "negative" sampling, or "hierarchical" softmax over a Huffman tree.
        dimensions: length D of the vectors.
        window: largest distance of a context; each center draws its own from 1 to this.
        negative: negatives of a prediction, on average.
        exponent: of the counts that negatives are drawn by.
        min_count: words with fewer occurrences are left out.
        max_size: keeps only so many words, the most frequent ones; None keeps all.
        sample: a word whose share f of the text is more than about this is left out at random, and
            kept with the probability sqrt(sample / f) + sample / f; 0 keeps all words.
        epochs: times that the text is read.
        learning_rate: at the start; it falls linearly with the words that were read.
        final_rate: the learning rate at the end.
        seed: of the first vectors, and of all that is drawn.
        row_length: R, centers of a row; 0 picks 64, and 128 for CBOW with negative sampling, fewer
            where the text has few different words (``batches.update_size``).
        shared_negatives: N, the words that are drawn for a row and shared by its predictions; each
            has the weight ``negative`` / N.
        rows: rows whose updates are read from the same tables and summed; 0 picks as many as have
            proved stable.
    """

    architecture: Architecture = "skip-gram"
    softmax: Softmax = "negative"
    dimensions: Count = 100
    window: Window = 5
    negative: Count = 5
    exponent: Finite = 0.75
    min_count: Count = 5
    max_size: Count | None = None
    sample: NotNegative = 1e-3
    epochs: Count = 5
    learning_rate: Positive = 0.025
    final_rate: NotNegative = 1e-4
    seed: Seed = 0
    row_length: Natural = 0
    shared_negatives: Count = 32
    rows: Natural = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for a setting that cannot be honoured."""
        check_fields(self)
        for name, allowed in (
            ("architecture", ("skip-gram", "cbow")),
            ("softmax", ("negative", "hierarchical")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; it must be {' or '.join(allowed)}")
        if self.final_rate > self.learning_rate:
            raise ConfigError(
                f"final_rate is {self.final_rate} and learning_rate {self.learning_rate}; the"
                " learning rate falls, so lower final_rate"
            )
