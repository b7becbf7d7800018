"""Evaluation on the validation split during training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import jax

from llm_jax.multihost.global_batch import Feed
from llm_jax.objectives import objective_of
from llm_jax.storage.paths import path_of
from llm_jax.training.build import Parts
from llm_jax.training.compiler_flags import compiler_options
from llm_jax.training.metric_sums import MetricSums
from llm_jax.training.step import make_eval_step
from llm_jax.types import Batch, Params

if TYPE_CHECKING:
    from llm_jax.data.loading.loader import Loader

Evaluate = Callable[[Params], dict[str, float | None]]


def make_evaluate(parts: Parts, feed: Feed, batches: Callable[[], Iterable[Batch]]) -> Evaluate:
    """The function from parameters to the metrics that the objective reports over ``batches``,
    each divided once by its own weight. Perplexity is None where it is too large for a float.

    Args:
        parts: of the run.
        feed: places the batches on the devices.
        batches: makes this process's rows of the batches, the same ones at every call.
    """
    objective = objective_of(parts.config.data)
    eval_step = make_eval_step(parts.loss, MetricSums(objective).names)
    step = jax.jit(eval_step, compiler_options=compiler_options(parts.mesh))

    def evaluate(params: Params) -> dict[str, float | None]:
        sums = MetricSums(objective)
        with jax.set_mesh(parts.mesh):
            for batch in batches():
                sums.add(jax.device_get(step(params, feed.put(batch))))
        return sums.values()

    return evaluate


def make_validation(parts: Parts, feed: Feed, loader: Loader) -> Evaluate | None:
    """``make_evaluate`` over the validation split of all folders of the run; None where a folder
    has none.
    """
    from llm_jax.data.loading.loader import evaluation_batches

    config = parts.config
    data = config.data
    if not _has_validation(data.path):
        return None

    def batches() -> Iterator[Batch]:
        for path in data.path:
            yield from evaluation_batches(
                path,
                seq_length=data.seq_length,
                batch_size=data.batch_size,
                transform=loader.transform,
                limit=config.train.eval_batches or None,
                rows=feed.rows.tolist(),
            )

    return make_evaluate(parts, feed, batches)


def _has_validation(paths: tuple[str, ...]) -> bool:
    from llm_jax.data.shards.store import read_manifest

    return all(read_manifest(path_of(path))["shards"]["validation"] for path in paths)
