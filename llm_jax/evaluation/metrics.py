"""The metrics of an objective over batches, with a compiled evaluation step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax
from jax.sharding import Mesh

from llm_jax import sharding
from llm_jax.decode.finite import cause
from llm_jax.objectives import Loss, Objective
from llm_jax.progress import progress
from llm_jax.training.metric_sums import MetricSums
from llm_jax.training.step import make_eval_step
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params


def sum_metrics(
    objective: Objective, loss: Loss, params: Params, mesh: Mesh, batches: Iterable[Batch]
) -> MetricSums:
    """The metrics that ``objective`` reports, summed over batches of one shape.

    Args:
        objective: names the metrics.
        loss: of the objective.
        params: parameters of the model, on ``mesh``.
        mesh: where the step runs.
        batches: numpy batches of the objective.

    Raises:
        ConfigError: the batches have nothing that counts.
        NonFiniteError: the loss is NaN or infinite.
    """
    sums = MetricSums(objective)
    step = jax.jit(make_eval_step(loss, sums.names))
    with jax.set_mesh(mesh), progress("evaluating", None, "batch") as bar:
        for number, batch in enumerate(batches):
            metrics = jax.device_get(step(params, sharding.device_put_batch(batch, mesh)))
            nll = metrics["loss"].sum
            if not math.isfinite(nll):
                raise NonFiniteError(
                    f"batch {number} of the evaluation: the loss is {nll}; {cause(params)}"
                )
            sums.add(metrics)
            bar.advance(1)
    if not sums.loss_weight:
        raise ConfigError(
            f"there are no {objective.unit} to score: every document is empty; choose another split"
        )
    return sums
