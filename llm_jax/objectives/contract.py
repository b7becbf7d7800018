"""What an objective is: the fields of its batches, how rows become batches, and the loss.

Nothing here, and nothing that an objective's file runs on import, needs jax: whoever only makes
batches imports an objective without it. The functions that build a loss import jax themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llm_jax.config import Config, DataConfig
from llm_jax.data.loading.transform import RowTransform
from llm_jax.types import Array, Batch, Params

if TYPE_CHECKING:
    from llm_jax.models import Model
    from llm_jax.tokenizers.tokenizer import Tokenizer


class Metric(NamedTuple):
    """A sum over a batch, and the weight to divide it by.

    Sums and weights of the pieces of a batch are added before the one division. A metric of
    several quotients, such as one for each expert of each layer, is reported as the largest.

    sum: float32, of any shape.
    weight: float32, broadcast against ``sum``; None for a total, which is reported as it is. A sum
        whose weight is 0 is reported as 0.
    """

    sum: Array
    weight: Array | None = None


class Sums(NamedTuple):
    """What a loss returns: sums over the rows of a batch, or of a piece of it.

    total: float32 [], the value that is differentiated.
    weight: float32 [], what the gradient of ``total`` is divided by, once for the whole batch: the
        number of tokens, rows or sequences that count.
    metrics: by name; ``loss`` must be one of them.
    row_losses: float32 [B], the loss of each row; it only serves to name the first row that is not
        finite.
    """

    total: Array
    weight: Array
    metrics: dict[str, Metric]
    row_losses: Array


# (trainable, frozen, batch, key of dropout or None) -> sums. ``params.select.merge`` makes the
# parameters of the model out of the first two.
Loss = Callable[[Params, Params, Batch, Array | None], Sums]


@dataclass(frozen=True)
class Field:
    """Shape and dtype of one array of a batch; no pytree node, so a Batch of them maps leaf by
    leaf.
    """

    shape: tuple[int, ...]
    dtype: str = "int32"


class Window(NamedTuple):
    """A stretch of a document that is scored.

    tokens: int32 [n + 1].
    scored: how many of the n predictions count, the last ones.
    """

    tokens: np.ndarray
    scored: int


# (windows, T, rows) -> batches of packed windows.
PackWindows = Callable[[Iterable[Window], int, int], Iterator[Batch]]


class Objective(NamedTuple):
    """One kind of training.

    name: value of ``data.objective``.
    fields: config -> a Batch with a ``Field`` for every array of the global batch.
    example: config -> a global batch of full rows of random values, in numpy. Benchmarks time the
        train step on it.
    make_transform: (config.data, start token of the model, tokenizer) -> the part that turns rows
        of shards into batches, in numpy. Raises DataError if the tokenizer lacks what it needs.
    make_loss: (model, config, tokens of the vocabulary per chunk of the loss) -> the loss.
    evaluation: metrics that an evaluation on the validation split reports. ``perplexity`` is the
        exponential of ``loss``, for objectives whose loss is in nats per token.
    unit: what the weight of ``loss`` counts, in plural, such as tokens or rows.
    pack_windows: (windows of documents, T, rows) -> batches, for objectives that predict every
        token from the tokens before it, so that whole documents can be scored. None for the others,
        which are evaluated on the batches that they train on.
    """

    name: str
    fields: Callable[[Config], Batch]
    example: Callable[[Config], Batch]
    make_transform: Callable[[DataConfig, int, Tokenizer], RowTransform]
    make_loss: Callable[[Model, Config, int], Loss]
    evaluation: tuple[str, ...]
    unit: str = "tokens"
    pack_windows: PackWindows | None = None
