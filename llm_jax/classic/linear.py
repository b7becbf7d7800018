"""Multinomial logistic regression on sparse features, trained in JAX on all documents at once.

The loss is scikit-learn's for the same features with ``C = 1 / l2``: the sum of the documents'
negative log-likelihoods plus ``l2 / 2`` times the squares of the weights, the bias left out. Two
classes share one column, the logit of the second. L-BFGS (Liu & Nocedal 1989, by optax) starts from
zeros and draws nothing at random: on CPU the same input gives the same weights.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from llm_jax.ranges import Count, NotNegative, Positive, checked
from llm_jax.types import Array, ConfigError, DataError, NonFiniteError


class LinearModel(NamedTuple):
    """Weights of a trained model.

    Attributes:
        weights: float32 [features, columns], where two classes have one column.
        bias: float32 [columns].
    """

    weights: np.ndarray
    bias: np.ndarray

    @property
    def classes(self) -> int:
        """Number of classes."""
        return max(len(self.bias), 2)

    def probabilities(self, features: csr_matrix) -> np.ndarray:
        """The probability of each class, float64 [documents, classes]; rows sum to 1.

        Raises:
            ConfigError: the features are not those that the model was trained on.
        """
        if features.shape[1] != len(self.weights):
            raise ConfigError(
                f"features has {features.shape[1]:,} columns and the model {len(self.weights):,};"
                " make the features as in training"
            )
        logits = np.asarray(features @ self.weights, np.float64) + self.bias
        if len(self.bias) == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


class Convergence(NamedTuple):
    """How training ended.

    Attributes:
        steps: of L-BFGS.
        loss: mean over documents, with the penalty.
        gradient: the largest absolute value in the gradient of ``loss``.
        converged: whether ``gradient`` is at most the tolerance, or the loss cannot fall any more
            in float32; False where the steps ran out.
    """

    steps: int
    loss: float
    gradient: float
    converged: bool


class _Problem(NamedTuple):
    """What is fitted: the entries of the sparse features row by row, and the classes.

    Attributes:
        rows: int32 [entries], the document of each.
        columns: int32 [entries], the feature of each.
        values: float32 [entries].
        labels: int32 [documents].
        penalty: l2 / (2 · documents).
    """

    rows: Array
    columns: Array
    values: Array
    labels: Array
    penalty: Array


class _State(NamedTuple):
    model: LinearModel
    optimizer: Any
    steps: Array
    loss: Array
    previous: Array
    gradient: Array


@checked
def train_linear(
    features: csr_matrix,
    labels: np.ndarray,
    classes: Count,
    *,
    l2: Positive = 1.0,
    max_steps: Count = 500,
    tolerance: NotNegative = 1e-4,
) -> tuple[LinearModel, Convergence]:
    """Fits the weights of a linear classifier.

    Args:
        features: [documents, features].
        labels: whole numbers [documents], from 0 to ``classes - 1``.
        classes: number of classes.
        l2: weight of the penalty; scikit-learn's 1 / C.
        max_steps: of L-BFGS.
        tolerance: training ends where no part of the mean loss's gradient is larger.

    Raises:
        ConfigError: fewer than two classes, or a number out of range.
        DataError: no documents, labels that do not fit them, or features that are not finite.
        NonFiniteError: the loss became NaN or infinite.
    """
    import jax

    features = csr_matrix(features, dtype=np.float32)
    _check(features, labels, classes)
    documents, width = features.shape
    problem = _Problem(
        rows=np.repeat(np.arange(documents, dtype=np.int32), np.diff(features.indptr)),
        columns=features.indices.astype(np.int32),
        values=features.data,
        labels=labels.astype(np.int32),
        penalty=np.float32(l2 / (2 * documents)),
    )
    columns = classes if classes > 2 else 1
    start = LinearModel(np.zeros((width, columns), np.float32), np.zeros(columns, np.float32))
    end = jax.device_get(_compiled_fit()(start, problem, max_steps, tolerance))
    if not np.isfinite(end.loss):
        raise NonFiniteError(
            f"the classifier's loss became {end.loss} at step {end.steps}; scale the features, or"
            " raise l2"
        )
    convergence = Convergence(
        steps=int(end.steps),
        loss=float(end.loss),
        gradient=float(end.gradient),
        converged=bool(end.gradient <= tolerance or end.loss >= end.previous),
    )
    return end.model, convergence


def _check(features: csr_matrix, labels: np.ndarray, classes: int) -> None:
    documents = features.shape[0]
    if classes < 2:
        raise ConfigError(f"classes is {classes}; a classifier needs at least 2")
    if not documents:
        raise DataError("features has no documents; pass at least one")
    if labels.shape != (documents,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels is an array of {labels.dtype} of shape {labels.shape}; it must be"
            f" {documents:,} whole numbers, one for each document"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels are from {labels.min()} to {labels.max()}; with {classes} classes they must be"
            f" from 0 to {classes - 1}"
        )
    if not np.isfinite(features.data).all():
        raise DataError(
            "features has values that are NaN or infinite in float32; remove or scale them"
        )


def _loss(model: LinearModel, problem: _Problem) -> Array:
    """Mean negative log-likelihood of the labels, and the penalty."""
    import jax
    import jax.numpy as jnp

    documents = len(problem.labels)
    terms = model.weights[problem.columns] * problem.values[:, None]
    sums = jax.ops.segment_sum(terms, problem.rows, documents, indices_are_sorted=True)
    logits = sums + model.bias[None]
    if len(model.bias) == 1:
        # The loss of the logit's sign: softplus(-z) of the second class, softplus(z) of the first.
        signs = 1 - 2 * problem.labels
        losses = jax.nn.softplus(signs * logits[:, 0])
    else:
        chosen = jnp.take_along_axis(logits, problem.labels[:, None], axis=1)[:, 0]
        losses = jax.nn.logsumexp(logits, axis=1) - chosen
    return losses.mean() + problem.penalty * jnp.square(model.weights).sum()


@functools.cache
def _compiled_fit() -> Any:
    """``_fit``, compiled once for each shape of a problem."""
    import jax

    return jax.jit(_fit)


def _fit(start: LinearModel, problem: _Problem, max_steps: Array, tolerance: Array) -> _State:
    """L-BFGS until the gradient is small, the loss falls no more, or the steps run out."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.lbfgs(memory_size=10)
    value = partial(_loss, problem=problem)
    value_and_gradient = optax.value_and_grad_from_state(value)

    def largest(gradient: LinearModel) -> Array:
        return jnp.max(jnp.stack([jnp.abs(leaf).max() for leaf in gradient]))

    def going_on(state: _State) -> Array:
        falling = state.loss < state.previous
        return (state.steps < max_steps) & (state.gradient > tolerance) & falling

    def step(state: _State) -> _State:
        loss, gradient = value_and_gradient(state.model, state=state.optimizer)
        updates, after = optimizer.update(
            gradient,
            state.optimizer,
            state.model,
            value=loss,
            grad=gradient,
            value_fn=value,
        )
        model = optax.apply_updates(state.model, updates)
        new_loss, new_gradient = value_and_gradient(model, state=after)
        return _State(model, after, state.steps + 1, new_loss, loss, largest(new_gradient))

    loss, gradient = jax.value_and_grad(value)(start)
    first = _State(
        model=jax.tree.map(jnp.asarray, start),
        optimizer=optimizer.init(start),
        steps=jnp.int32(0),
        loss=loss,
        previous=jnp.float32(jnp.inf),
        gradient=largest(gradient),
    )
    return jax.lax.while_loop(going_on, step, first)
