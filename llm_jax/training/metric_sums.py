"""Metrics of an objective over many batches: sums of all batches, each divided once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from llm_jax.objectives import Metric, Objective
from llm_jax.training.metrics import perplexity_per

PERPLEXITY = "perplexity"


class MetricSums:
    """Sums of the metrics that an objective reports, and of their weights, in float64.

    Attributes:
        names: the metrics that are added up; perplexity is not one of them, since it follows from
            the loss.
    """

    def __init__(self, objective: Objective) -> None:
        self._reported = objective.evaluation
        self.names = tuple(name for name in objective.evaluation if name != PERPLEXITY)
        self._sums: dict[str, np.ndarray] = {name: np.zeros(()) for name in self.names}
        self._weights: dict[str, np.ndarray | None] = {name: np.zeros(()) for name in self.names}

    def add(self, metrics: Mapping[str, Metric]) -> None:
        """Adds the metrics of one batch, which are numpy arrays or numbers."""
        for name in self.names:
            metric = metrics[name]
            weight = self._weights[name]
            self._sums[name] = self._sums[name] + np.asarray(metric.sum, np.float64)
            if metric.weight is None or weight is None:
                self._weights[name] = None
            else:
                self._weights[name] = weight + np.asarray(metric.weight, np.float64)

    @property
    def loss_sum(self) -> float:
        """Sum of the loss over everything that counts."""
        return float(self._sums["loss"])

    @property
    def loss_weight(self) -> float:
        """What the loss is divided by, in the objective's ``unit``."""
        weight = self._weights["loss"]
        assert weight is not None, "the loss of an objective has a weight"
        return float(weight)

    def values(self) -> dict[str, float | None]:
        """The reported metrics, each divided once by its own weight; 0 where the weight is 0.

        Perplexity is None where it is too large for a float.
        """
        values: dict[str, float | None] = dict.fromkeys(self._reported)
        values |= {name: self._quotient(name) for name in self.names}
        if PERPLEXITY in self._reported:
            values[PERPLEXITY] = perplexity_per(self.loss_sum, self.loss_weight or 1.0)
        return values

    def _quotient(self, name: str) -> float:
        """The largest quotient of a metric; its sum if it has no weight."""
        weight = self._weights[name]
        if weight is None:
            return float(self._sums[name])
        return float(np.max(self._sums[name] / np.where(weight == 0, 1.0, weight)))
