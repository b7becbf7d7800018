"""The train step of word2vec: the trainer's ``(state, batch) -> (state, metrics)``, which updates
the rows of the words of a batch and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.classic.word2vec.config import Word2VecConfig
from llm_jax.classic.word2vec.huffman import huffman_paths
from llm_jax.ops import word2vec as ops
from llm_jax.ops.word2vec import Centers, Paths, Tables, Update
from llm_jax.sharding import interleave_rows, row_sharding, unstrided
from llm_jax.training.compiler_flags import compiler_options
from llm_jax.training.state import TrainState, seed_key
from llm_jax.types import ConfigError

Metrics = dict[str, Array]
_BY_DIMENSION = PartitionSpec(None, "tensor")


def make_step(
    config: Word2VecConfig, updates: int, mesh: Mesh
) -> Callable[[TrainState, Centers], tuple[TrainState, Metrics]]:
    """The pure function (state, batch) -> (state, metrics).

    Metrics are the mean loss of a prediction; grad_norm, the root mean square, over the updates, of
    the norm of what is added to the rows; learning_rate; and bad_row, the first row whose loss is
    not finite, else -1.

    Args:
        config: the settings.
        updates: updates of a step, one after the other, by equal parts of its rows.
        mesh: rows are split over ``data``, dimensions over ``tensor``.
    """

    def one(paths: Paths | None, tables: Tables, words: Centers) -> tuple[Tables, tuple]:
        update = _update_rule(config, paths)(tables, words)
        update = update._replace(
            inputs=_everywhere(update.inputs, mesh), outputs=_everywhere(update.outputs, mesh)
        )
        squares = sum(jnp.sum(jnp.square(rows.values)) for rows in (update.inputs, update.outputs))
        return ops.apply(tables, update), (update.losses, update.predictions, squares)

    def train_step(state: TrainState, batch: Centers) -> tuple[TrainState, Metrics]:
        paths = Paths(**state.frozen) if state.frozen else None
        pieces = jax.tree.map(lambda x: interleave_rows(x, updates), batch)
        tables, (losses, predictions, squares) = jax.lax.scan(
            functools.partial(one, paths), Tables(**state.trainable), pieces
        )
        finite = jnp.isfinite(unstrided(losses))
        metrics = {
            "loss": jnp.sum(losses) / jnp.maximum(jnp.sum(predictions), 1),
            "grad_norm": jnp.sqrt(jnp.mean(squares)),
            "learning_rate": jnp.mean(batch.rates),
            "bad_row": jnp.where(jnp.all(finite), -1, jnp.argmin(finite)).astype(jnp.int32),
        }
        return state._replace(step=state.step + 1, trainable=tables._asdict()), metrics

    return train_step


@functools.lru_cache(maxsize=8)
def jit_step(config: Word2VecConfig, updates: int, mesh: Mesh) -> Callable:
    """``make_step`` compiled for the mesh, the state donated. Call it inside ``jax.set_mesh``. The
    last ones are kept.
    """
    state = state_shardings(config, mesh)
    return jax.jit(
        make_step(config, updates, mesh),
        in_shardings=(state, row_sharding(mesh)),
        out_shardings=(state, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def first_state(config: Word2VecConfig, counts: np.ndarray, mesh: Mesh) -> TrainState:
    """The state at step 0: inputs uniform within ±0.5 / D, outputs 0.

    Args:
        config: the settings.
        counts: [V], occurrences of each word.
        mesh: where it lives.

    Raises:
        ConfigError: the dimensions do not divide over ``tensor``.
        DataError: too few words for hierarchical softmax.
    """
    frozen = {}
    nodes = len(counts)
    if config.softmax == "hierarchical":
        frozen = huffman_paths(counts)._asdict()
        nodes -= 1
    where = state_shardings(config, mesh)

    def init(key: Array) -> TrainState:
        reach = 0.5 / config.dimensions
        shape = (len(counts), config.dimensions)
        tables = Tables(
            inputs=jax.random.uniform(key, shape, minval=-reach, maxval=reach),
            outputs=jnp.zeros((nodes, config.dimensions)),
        )
        return TrainState(jnp.zeros((), jnp.int32), tables._asdict(), {}, ())

    made = jax.jit(init, out_shardings=where._replace(frozen={}))(seed_key(config.seed))
    return made._replace(frozen=jax.device_put(frozen, where.frozen))


def state_shardings(config: Word2VecConfig, mesh: Mesh) -> TrainState:
    """NamedShardings of the state: tables are split by dimension, the rest is everywhere.

    Raises:
        ConfigError: the dimensions do not divide over ``tensor``.
    """
    ways = mesh.shape["tensor"]
    if config.dimensions % ways:
        raise ConfigError(
            f"dimensions is {config.dimensions}, and mesh.tensor splits them over {ways} devices;"
            f" use a multiple of {ways}"
        )
    table = NamedSharding(mesh, _BY_DIMENSION)
    everywhere = NamedSharding(mesh, PartitionSpec())
    hierarchical = config.softmax == "hierarchical"
    frozen = dict.fromkeys(Paths._fields, everywhere) if hierarchical else {}
    where = {"inputs": table, "outputs": table}
    return TrainState(everywhere, where, frozen, ())  # type: ignore[arg-type]


def _update_rule(config: Word2VecConfig, paths: Paths | None) -> Callable[..., Update]:
    skip_gram = config.architecture == "skip-gram"
    if paths is not None:
        rule = ops.skip_gram_hierarchical if skip_gram else ops.cbow_hierarchical
        return functools.partial(rule, paths=paths)
    sampling = ops.skip_gram_negative if skip_gram else ops.cbow_negative
    return functools.partial(sampling, negative=config.negative)


def _everywhere(rows: ops.Rows, mesh: Mesh) -> ops.Rows:
    """Every device gets all rows of an update, so that no table is summed over devices."""
    if mesh.size == 1:
        return rows
    constrain = jax.lax.with_sharding_constraint
    return ops.Rows(
        constrain(rows.ids, NamedSharding(mesh, PartitionSpec())),
        constrain(rows.values, NamedSharding(mesh, _BY_DIMENSION)),
    )
