"""What tests of one stack and of two share: small models by name, with random parameters, run in
every way that they are compared in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from parameters import random_parameters

from llm_jax.config import Config, ExecutionConfig, ModelConfig
from llm_jax.config.overrides import override
from llm_jax.models import Model, build
from llm_jax.sharding import device_put_batch, parameter_shardings
from llm_jax.training.build import build as build_run
from llm_jax.training.state import create_state
from llm_jax.training.step import jit_train_step, make_train_step
from llm_jax.types import Batch, Params

# Two rows of packed documents; within a row all tokens differ, so that a token id stands for a
# place.
DOCUMENTS = [
    [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]],
    [[12, 13], [14, 15, 16], [17, 18, 19, 20, 21, 22, 23]],
]
T = 12
# Of eight devices.
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def variants(base: ModelConfig, fields: dict[str, dict[str, Any]]) -> dict[str, ModelConfig]:
    """``base`` with the fields of each name."""
    return {name: override(base, more) for name, more in fields.items()}


@functools.cache
def made(
    config: ModelConfig, layers: str = "unroll", attention: str = "xla", dtype: str = "float32"
) -> tuple[Model, Params]:
    """A model of ``config`` and random parameters."""
    model = build(config, ExecutionConfig(layers=layers, attention=attention, compute_dtype=dtype))
    return model, random_parameters(model)


def _log_probabilities(model: Model) -> Callable[[Params, Batch], Array]:
    return lambda params, batch: jax.nn.log_softmax(
        model.logits(params, model.apply(params, batch).hidden)
    )


@functools.cache
def forward(config: ModelConfig) -> Callable[[Params, Batch], Array]:
    """The model of ``made`` compiled: (params, batch) -> log-probabilities [B, T, V]."""
    return jax.jit(_log_probabilities(made(config)[0]))


def forward_on(mesh: jax.sharding.Mesh, model: Model, params: Params, batch: Batch) -> Array:
    """Log-probabilities [B, T, V], computed over the devices of ``mesh``."""
    placed = jax.device_put(params, parameter_shardings(model.specs, params, mesh))
    with jax.set_mesh(mesh):
        return jax.jit(_log_probabilities(model))(placed, device_put_batch(batch, mesh))


def loss_and_gradient(
    model: Model, params: Params, batch: Batch, key: Array | None = None
) -> tuple[Array, Params]:
    def loss(params):
        out = model.apply(params, batch, dropout_key=key)
        logits = jax.nn.log_softmax(model.logits(params, out.hidden))
        return -jnp.sum(
            jnp.take_along_axis(logits, jnp.asarray(batch.targets)[..., None], -1)[..., 0]
            * batch.loss_mask
        )

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_same(a: Any, b: Any, tolerance: float = 2e-5) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(
            x, y, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(y).max()))
        )


def reached(model: Model, params: Params, batch: Batch) -> np.ndarray:
    """[B, T, T]: True where the gradient of output t with respect to the embedding of input s is
    not exactly 0.
    """
    length, vocab = batch.inputs.ids.shape[1], params["embed"]["embedding"].shape[0]

    def rows(params, batch):
        def outputs(table):
            return model.apply(params | {"embed": {"embedding": table}}, batch).hidden

        # Each row has its own table, so that its gradient is its own.
        hidden, pullback = jax.vjp(outputs, params["embed"]["embedding"])
        weights = jax.random.normal(jax.random.key(7), hidden.shape[2:]).astype(hidden.dtype)
        ones = jnp.eye(length, dtype=hidden.dtype)[:, None, :, None] * weights[None, None, None, :]
        return jax.vmap(pullback)(ones)[0]

    per_row = jax.jit(jax.vmap(rows, in_axes=(None, 0)))(
        params, jax.tree.map(lambda a: np.asarray(a)[:, None], batch)
    )
    moved = np.abs(np.asarray(per_row, np.float64)).sum(-1) > 0  # [B, T, V]
    assert moved.shape[2] == vocab
    return np.stack([moved[b][:, np.asarray(batch.inputs.ids[b])] for b in range(len(moved))])


def losses(config: Config, batch: Batch, devices: int, steps: int) -> list[float]:
    """Of each of the first steps of a run, all on the same batch."""
    parts = build_run(config, jax.devices()[:devices])
    step = jit_train_step(
        make_train_step(parts.loss, parts.optimizer, config, parts.model.specs),
        parts.model,
        parts.optimizer,
        parts.mesh,
    )
    out = []
    with jax.set_mesh(parts.mesh):
        state = create_state(parts.model, parts.optimizer, parts.mesh, 0)
        for _ in range(steps):
            state, metrics = step(state, device_put_batch(batch, parts.mesh))
            out.append(float(metrics["loss"]))
    return out
