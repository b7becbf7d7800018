"""Evaluation and benchmarks take what they need from the objective: its example batch, its metrics
with their own weights, and the unit that the weight of its loss counts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import Config, DataConfig, MeshConfig, ModelConfig, override
from llm_jax.data.loading.leaves import map_leaves
from llm_jax.evaluation import shards
from llm_jax.evaluation.metrics import sum_metrics
from llm_jax.objectives import OBJECTIVES, Metric, Objective, Sums
from llm_jax.objectives.token_batches import random_tokens, token_fields
from llm_jax.sharding import make_mesh
from llm_jax.types import Batch, ConfigError, Tokens


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_example_has_the_fields_of_the_objective(name):
    config = Config(
        model=ModelConfig(vocab_size=11),
        data=override(
            DataConfig(),
            {
                "objective": name,
                "batch_size": 3,
                "seq_length": 5,
                **({"objective.encoder_length": 7} if name in ("spans", "pairs") else {}),
            },
        ),
    )
    objective = OBJECTIVES[name]
    example = objective.example(config)
    wanted = map_leaves(lambda field: (field.shape, field.dtype), objective.fields(config))
    assert map_leaves(lambda x: (x.shape, str(x.dtype)), example) == wanted
    assert example.loss_mask.all() and example.inputs.ids.max() < 11
    if name == "token_classification":
        assert not example.targets.any(), "a model without classes has labels 0"
    else:
        np.testing.assert_array_equal(example.targets[:, :-1], example.inputs.ids[:, 1:])
    positions = [0, 1, 2, 0, 1] if name == "contrastive" else [0, 1, 2, 3, 4]
    assert example.inputs.positions.tolist() == [positions] * 3


def make_pairs_loss(model, config, chunk):
    """Of each row its first token as the loss."""

    def loss(trainable, frozen, batch, key):
        first = batch.inputs.ids[:, 0].astype(jnp.float32)
        counted = jnp.sum(batch.loss_mask[:, 0], dtype=jnp.float32)
        total = jnp.sum(first)
        metrics = {
            "loss": Metric(total, counted),
            "largest": Metric(jnp.sum(batch.inputs.ids, axis=0), jnp.float32(len(first))),
            "rows": Metric(jnp.float32(len(first))),
        }
        return Sums(total, counted, metrics, first)

    return loss


PREFERRED = Objective(
    name="preferred",
    fields=token_fields,
    example=random_tokens,
    make_transform=lambda data, start_token, tokenizer: None,
    make_loss=make_pairs_loss,
    evaluation=("loss", "largest", "rows"),
    unit="pairs",
)


def batch_of(ids: list[list[int]], counted: bool) -> Batch:
    tokens = np.array(ids, np.int32)
    mask = np.full(tokens.shape, counted)
    return Batch(inputs=Tokens(tokens, tokens, tokens), targets=tokens, loss_mask=mask)


def test_another_objective_is_evaluated_and_printed_without_a_line_for_it(monkeypatch):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    loss = PREFERRED.make_loss(None, Config(), 0)
    batches = [batch_of([[1, 9], [2, 4]], True), batch_of([[4, 6], [8, 2]], True)]
    sums = sum_metrics(PREFERRED, loss, {}, mesh, batches)
    # Columns have 15 and 21 in 4 rows.
    assert sums.values() == {"loss": 3.75, "largest": 5.25, "rows": 4.0}
    assert sums.loss_weight == 4
    monkeypatch.setitem(OBJECTIVES, "preferred", PREFERRED)
    results = {"step": 2, "split": "train", "objective": "preferred"}
    shown = shards.table(results | {"model": sums.values() | {"pairs": 4}})
    assert shown == (
        "step 2, split train, objective preferred: 4 pairs counted\n"
        "  loss 3.7500  largest 5.2500  rows 4.0000"
    )
    with pytest.raises(ConfigError, match="there are no pairs to score"):
        sum_metrics(PREFERRED, loss, {}, mesh, [batch_of([[1, 2], [3, 4]], False)])
