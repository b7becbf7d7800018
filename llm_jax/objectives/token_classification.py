"""Classes of words: the cross-entropy of the model's classes of each word's first token (Devlin et
al. 2019, section 5.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_jax.config import Config, DataConfig
from llm_jax.config.data import TokenClassificationConfig
from llm_jax.objectives.contract import Loss, Objective, Sums
from llm_jax.objectives.examples import AsExamples, Scored, random_labels, sums_of, weights_of
from llm_jax.objectives.token_batches import random_tokens, token_fields
from llm_jax.types import Array, Batch, Params

if TYPE_CHECKING:
    from llm_jax.models import Model
    from llm_jax.tokenizers.tokenizer import Tokenizer


def random_labelled_tokens(config: Config) -> Batch:
    """A batch [B, T] of random tokens, each with a random label."""
    batch = random_tokens(config)
    return batch._replace(targets=random_labels(config, batch.targets.shape))


def make_tags(data: DataConfig, start_token: int, tokenizer: Tokenizer) -> AsExamples:
    """Rows of a folder of examples; the arguments play no part."""
    return AsExamples("token_classification")


def make_tag_loss(model: Model, config: Config, chunk: int) -> Loss:
    """Cross-entropy of the batch's targets, which are classes, weighted by the weight of the class.

    The metrics are loss (nats a word, without z-loss and label smoothing), accuracy, examples
    (words), tokens and the model's own terms a word. ``chunk`` plays no part.
    """
    from llm_jax.models import class_logits
    from llm_jax.ops.losses import cross_entropy
    from llm_jax.params.select import merge

    objective = config.data.objective
    assert isinstance(objective, TokenClassificationConfig)
    train = config.train

    def loss(trainable: Params, frozen: Params, batch: Batch, key: Array | None) -> Sums:
        params = merge(trainable, frozen)
        out = model.apply(params, batch, dropout_key=key)
        logits = class_logits(model.config, params, out.hidden, batch.inputs.segment_ids != 0)
        weights = weights_of(objective.class_weights, batch.targets, batch.loss_mask)
        entropy = cross_entropy(logits, batch.targets, weights, train.z_loss, train.label_smoothing)
        scored = Scored(entropy.nll, weights, entropy.correct, batch.loss_mask)
        return sums_of(entropy.total, scored, out, batch)

    return loss


TOKEN_CLASSIFICATION = Objective(
    name="token_classification",
    fields=token_fields,
    example=random_labelled_tokens,
    make_transform=make_tags,
    make_loss=make_tag_loss,
    evaluation=("loss", "accuracy"),
    unit="words",
)
