"""Classes of rows: the cross-entropy of the model's classes (``model.pooler``) of one vector a row
(Devlin et al. 2019, section 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_jax.config import Config, DataConfig
from llm_jax.config.data import ClassificationConfig
from llm_jax.objectives.contract import Field, Loss, Objective, Sums
from llm_jax.objectives.examples import AsExamples, Scored, random_labels, sums_of, weights_of
from llm_jax.objectives.token_batches import random_tokens, token_fields
from llm_jax.types import Array, Batch, Params

if TYPE_CHECKING:
    from llm_jax.models import Model
    from llm_jax.tokenizers.tokenizer import Tokenizer


def _settings(data: DataConfig) -> ClassificationConfig:
    assert isinstance(data.objective, ClassificationConfig)
    return data.objective


def class_fields(config: Config) -> Batch:
    """Fields of a batch [B, T] with a label a row."""
    batch = token_fields(config)
    if _settings(config.data).token_types:
        batch = batch._replace(inputs=batch.inputs._replace(token_types=batch.targets))
    return batch._replace(extras={"labels": Field((config.data.batch_size,))})


def random_rows(config: Config) -> Batch:
    """A batch [B, T] of random tokens with a random label a row."""
    batch = random_tokens(config)
    if _settings(config.data).token_types:
        batch = batch._replace(inputs=batch.inputs._replace(token_types=batch.targets % 2))
    return batch._replace(extras={"labels": random_labels(config, (config.data.batch_size,))})


def make_classification(data: DataConfig, start_token: int, tokenizer: Tokenizer) -> AsExamples:
    """Rows of a folder of examples; the start token and the tokenizer play no part."""
    return AsExamples("classification", _settings(data).token_types)


def make_class_loss(model: Model, config: Config, chunk: int) -> Loss:
    """Cross-entropy of each row's class, weighted by the weight of that class.

    The metrics are loss (nats a row, without z-loss and label smoothing), accuracy, examples,
    tokens and the model's own terms, each a mean over all places of rows. The vocabulary plays no
    part, and with it ``chunk``.
    """
    import jax.numpy as jnp

    from llm_jax.models import class_logits
    from llm_jax.ops.losses import cross_entropy
    from llm_jax.params.select import merge

    class_weights = _settings(config.data).class_weights
    train = config.train

    def loss(trainable: Params, frozen: Params, batch: Batch, key: Array | None) -> Sums:
        params = merge(trainable, frozen)
        out = model.apply(params, batch, dropout_key=key)
        text = batch.inputs.segment_ids != 0
        counted = jnp.any(text, axis=1)
        assert batch.extras is not None
        labels = batch.extras["labels"]
        weights = weights_of(class_weights, labels, counted)
        logits = class_logits(model.config, params, out.hidden, text)
        entropy = cross_entropy(
            logits[:, None], labels[:, None], weights[:, None], train.z_loss, train.label_smoothing
        )
        scored = Scored(entropy.nll[:, 0], weights, entropy.correct[:, 0], counted)
        return sums_of(entropy.total, scored, out, batch, share=1 / text.shape[1])

    return loss


CLASSIFICATION = Objective(
    name="classification",
    fields=class_fields,
    example=random_rows,
    make_transform=make_classification,
    make_loss=make_class_loss,
    evaluation=("loss", "accuracy"),
    unit="rows",
)
