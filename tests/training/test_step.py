"""The train step on models rigged so that the right numbers are known, accumulation, donation,
memory of the loss.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.config import (
    Config,
    ExecutionConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    override,
)
from llm_jax.models import Head, Model, Output, build
from llm_jax.objectives.token_loss import token_loss
from llm_jax.sharding import make_mesh
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.state import TrainState, create_state, make_init, seed_key
from llm_jax.training.step import (
    jit_train_step,
    make_eval_step,
    make_train_step,
    pick_loss_chunk,
)
from llm_jax.types import Batch, ParamSpec, Tokens

V, T = 8, 6
DOCUMENTS = [[[1, 2, 3], [4, 5]], [[6, 7, 1, 2, 3, 4]], [[5, 6], [7, 1], [2, 3]], [[4]]]


def bigram() -> Model:
    """A "model" of one table, next token by current token: the step knows nothing of
    transformers.
    """

    def init(key):
        return {"table": {"kernel": jnp.zeros((V, V))}}

    def apply(params, batch, cache=None, *, dropout_key=None):
        return Output(jax.nn.one_hot(batch.inputs.ids, V), None, {})

    return Model(
        init,
        apply,
        lambda p, h: h @ p["table"]["kernel"],
        lambda p: Head(p["table"]["kernel"].T, 0.0),
        lambda b, n: None,
        {"table": {"kernel": ParamSpec(("position", "embed"), (0,), "matrix")}},
        ModelConfig(vocab_size=V),
    )


def step_of(model, accumulation=1, z_loss=0.0, chunk=3, learning_rate=0.5, dropout=0.0):
    config = Config(
        model=ModelConfig(vocab_size=V, dropout=dropout),
        optimizer=override(
            OptimizerConfig(),
            {
                "update": "sgd",
                "update.momentum": 0.0,
                "learning_rate": learning_rate,
                "schedule": "constant",
                "warmup_steps": 0,
                "weight_decay": 0.0,
                "clip_norm": 0.0,
            },
        ),
        train=TrainConfig(steps=10, accumulation=accumulation),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rule = make_optimizer(config.optimizer, 10, shapes, model.specs)
    return make_train_step(token_loss(model, chunk, z_loss), rule, config, model.specs), rule


def test_metrics_of_a_uniform_model(pack):
    step, rule = step_of(bigram())
    state, metrics = jax.jit(step)(make_init(bigram(), rule)(jax.random.key(0)), pack(DOCUMENTS, T))
    # Counted: 2 + 1, 5, 1 + 1 + 1, 0 targets inside documents.
    assert float(metrics["tokens"]) == 11
    assert float(metrics["loss"]) == pytest.approx(math.log(V), rel=1e-6)
    assert int(metrics["bad_row"]) == -1
    assert float(metrics["learning_rate"]) == 0.5
    assert int(state.step) == 1
    # All logits are equal: argmax is token 0, which no target is.
    assert float(metrics["accuracy"]) == 0
    # The gradient of row t of the table: mean over tokens of p - onehot(target).
    counts = np.zeros((V, V))
    for rows in DOCUMENTS:
        for document in rows:
            for a, b in itertools.pairwise(document):
                counts[a, b] += 1
    gradient = (counts.sum(1, keepdims=True) / V - counts) / 11
    np.testing.assert_allclose(state.params["table"]["kernel"], -0.5 * gradient, atol=1e-6)
    assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert float(metrics["param_norm"]) == pytest.approx(0.5 * np.linalg.norm(gradient), rel=1e-5)


def test_accuracy_of_a_rigged_model(pack):
    """A table that always says "one more": right for 1 2 3, 4 5, 6 7, 1 2 3 4, 5 6, 2 3; wrong for
    7 → 1, twice.
    """
    model = bigram()
    step, rule = step_of(model)
    params = {"table": {"kernel": 30.0 * jnp.eye(V, k=1)}}
    state = TrainState(jnp.int32(0), params, {}, rule.init(params))
    _, metrics = jax.jit(step)(state, pack(DOCUMENTS, T))
    assert float(metrics["accuracy"]) == pytest.approx(9 / 11, rel=1e-6)
    # 7 → 1 at a row of equal logits: two of eleven cost ln 8.
    assert float(metrics["loss"]) == pytest.approx(2 * math.log(8) / 11, rel=1e-5)
    sums = jax.jit(make_eval_step(token_loss(model, 2)))(params, pack(DOCUMENTS, T))
    assert {k: (round(float(m.sum), 4), float(m.weight)) for k, m in sums.items()} == {
        "loss": (round(2 * math.log(8), 4), 11),
        "accuracy": (9, 11),
    }


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("row", [0, 3])
def test_bad_row_names_the_row(row, accumulation, pack):
    """Token 0 is NaN and stands in one row only."""
    documents = [
        [[1, 2, 3, 4]],
        [[2, 3, 4, 5]],
        [[3, 4, 5, 6]],
        [[4, 5, 6, 7]],
        [[1, 3, 5]],
        [[2, 4, 6]],
    ]
    documents[row] = [[0, 1, 2]]

    def hidden(params, batch, cache=None, *, dropout_key=None):
        return Output(params["e"]["embedding"][batch.inputs.ids], None, {})

    head = Head(jnp.ones((V, 2)), 0.0)
    model = Model(
        None,
        hidden,
        lambda p, h: h @ head.kernel.T,
        lambda p: head,
        None,
        {"e": {"embedding": ParamSpec(("position", "embed"), (1,), "embedding")}},
        ModelConfig(vocab_size=V),
    )
    params = {"e": {"embedding": jnp.ones((V, 2)).at[0].set(jnp.nan)}}
    config = Config(
        optimizer=override(OptimizerConfig(), {"update": "sgd", "weight_decay": 0.0}),
        train=TrainConfig(accumulation=accumulation),
    )
    rule = make_optimizer(config.optimizer, 10, params, model.specs)
    step = make_train_step(token_loss(model, 3, 0.0), rule, config, model.specs)
    _, metrics = jax.jit(step)(
        TrainState(jnp.int32(0), params, {}, rule.init(params)), pack(documents, T)
    )
    assert int(metrics["bad_row"]) == row and np.isnan(metrics["loss"])


def test_a_batch_without_counted_tokens_changes_nothing(pack):
    step, rule = step_of(bigram())
    state, metrics = jax.jit(step)(
        make_init(bigram(), rule)(jax.random.key(0)), pack([[[4]], [[1], [2]]], T)
    )
    assert (
        float(metrics["loss"]) == 0
        and float(metrics["tokens"]) == 0
        and int(metrics["bad_row"]) == -1
    )
    assert not np.asarray(state.params["table"]["kernel"]).any()


def test_z_loss_moves_parameters_but_not_the_reported_loss(pack):
    batch, results = pack(DOCUMENTS, T), []
    for z in (0.0, 0.1):
        step, rule = step_of(bigram(), z_loss=z)
        state, metrics = jax.jit(step)(make_init(bigram(), rule)(jax.random.key(0)), batch)
        results.append((float(metrics["loss"]), np.asarray(state.params["table"]["kernel"])))
    assert results[0][0] == results[1][0] and np.abs(results[0][1] - results[1][1]).max() > 1e-3


def test_auxiliary_losses_are_sums_over_counted_tokens(pack):
    """An aux of 3·w for each counted token has gradient 3 after dividing by their number, and is
    reported as 3·w.
    """
    model = bigram()
    with_aux = model._replace(
        apply=lambda p, b, cache=None, *, dropout_key=None: Output(
            jax.nn.one_hot(b.inputs.ids, V),
            None,
            {"w": 3.0 * p["table"]["kernel"][0, 0] * jnp.sum(b.loss_mask)},
        )
    )
    step, rule = step_of(with_aux, learning_rate=1.0)
    state, _ = jax.jit(step)(make_init(model, rule)(jax.random.key(0)), pack(DOCUMENTS, T))
    assert float(state.params["table"]["kernel"][0, 0]) == pytest.approx(-3.0)
    _, metrics = jax.jit(step)(state, pack(DOCUMENTS, T))
    assert float(metrics["w"]) == pytest.approx(-9.0)


SMALL = override(
    ModelConfig(),
    {
        "vocab_size": 16,
        "num_layers": 1,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 32,
        "max_length": 8,
        "init_std": 0.2,
    },
)


@functools.cache
def compiled(accumulation=1, dropout=0.0, devices=1):
    model = build(
        dataclasses.replace(SMALL, dropout=dropout),
        ExecutionConfig(layers="unroll", compute_dtype="float32"),
    )
    config = Config(
        model=dataclasses.replace(SMALL, dropout=dropout),
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=0),
        train=TrainConfig(steps=10, accumulation=accumulation),
    )
    rule = make_optimizer(
        config.optimizer, 10, jax.eval_shape(model.init, jax.random.key(0)), model.specs
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    return (
        jit_train_step(
            make_train_step(token_loss(model, 4, 0.0), rule, config, model.specs), model, rule, mesh
        ),
        create_state(model, rule, mesh, 0),
        mesh,
    )


def small(**settings):
    """A jitted step, a state of its own (steps donate it) and the mesh."""
    step, state, mesh = compiled(**settings)
    return step, jax.tree.map(jnp.copy, state), mesh


def uneven_batch(pack, seed=0):
    """Four rows with very different numbers of counted tokens: a mean of means would show."""
    rng = np.random.default_rng(seed)
    return pack([[rng.integers(0, 16, n).tolist()] for n in (8, 2, 5, 3)], 8)


def run(pack, accumulation, steps=3):
    step, state, mesh = small(accumulation=accumulation)
    out = []
    with jax.set_mesh(mesh):
        for i in range(steps):
            state, metrics = step(state, uneven_batch(pack, i))
            out.append({k: float(v) for k, v in metrics.items()})
    return state, out


def test_accumulation_is_the_whole_batch(pack):
    (whole, metrics), (state, split) = run(pack, 1), run(pack, 4)
    for a, b in zip(metrics, split):
        assert a == pytest.approx(b, rel=1e-5)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(state.params)):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)


def test_each_step_has_its_own_dropout(pack):
    """The same rows and parameters: equal losses come from equal dropout masks only."""
    step, state, mesh = small(dropout=0.5)
    batch = pack([[[1, 2, 3, 4, 5, 6, 7, 8]]] * 4, 8)
    with jax.set_mesh(mesh):
        losses = []
        for number in (0, 0, 1):
            _, metrics = step(
                jax.tree.map(jnp.array, state)._replace(step=jnp.int32(number)), batch
            )
            losses.append(float(metrics["loss"]))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.mesh
def test_the_state_is_donated_and_only_the_state(pack):
    step, state, mesh = small(devices=4)
    batch = uneven_batch(pack)
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch)
        compiled = step.lower(state, batch).compile()
        after, _ = step(state, placed)
    assert all(a.is_deleted() for a in jax.tree.leaves(state))
    assert not any(a.is_deleted() for a in jax.tree.leaves((after, placed)))
    state_bytes = sum(a.nbytes for a in jax.tree.leaves(after))
    assert compiled.memory_analysis().alias_size_in_bytes == state_bytes


def test_the_second_step_does_not_compile_again(pack):
    step, state, mesh = small(devices=4)
    with jax.set_mesh(mesh):
        state, _ = step(state, uneven_batch(pack, 0))
        size = step._cache_size()
        for i in (1, 2):
            state, _ = step(state, uneven_batch(pack, i))
    assert step._cache_size() == size


def test_optimizer_state_and_parameters_are_float32(pack):
    _, state, _ = small()
    floats = [a.dtype for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")} and state.step.dtype == jnp.int32
    assert isinstance(state.opt_state, tuple) and optax.tree.get(state.opt_state, "mu") is not None


def test_pick_loss_chunk():
    assert pick_loss_chunk(8 * 1024, 256) == 128  # small: half the vocabulary
    assert pick_loss_chunk(4096, 128256) == 128256 // 32  # 4096 x 4008 x 4 bytes = 65.7 MB
    assert (
        pick_loss_chunk(4096, 128256, shards=4) == 128256 // 8
    )  # each device has a quarter of a chunk
    assert pick_loss_chunk(4096, 50257) == 3968  # 29 x 1733 has no divisor near 13: 31 x 128
    assert pick_loss_chunk(1, 1) == 1
    for tokens, V, shards in ((1, 10, 1), (777, 50257, 1), (65536, 256000, 8), (3, 257, 1)):
        chunk = pick_loss_chunk(tokens, V, shards)
        assert 1 <= chunk <= V and (V % chunk or chunk % shards == 0)
        assert chunk < V / 2 + 128 * shards or chunk == V
        assert tokens * chunk * 4 / shards <= 64 * 2**20 or chunk == 128 * shards


def test_no_b_t_v_float32_array_in_the_train_step(pack):
    """Half the vocabulary at a time: nothing as large as the whole batch's logits is ever made."""
    model = build(
        dataclasses.replace(SMALL, vocab_size=512),
        ExecutionConfig(layers="unroll", compute_dtype="float32"),
    )
    config = Config(model=SMALL)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rule = make_optimizer(config.optimizer, 10, shapes, model.specs)
    rows = jax.ShapeDtypeStruct((16, 8), jnp.int32)
    batch = Batch(
        inputs=Tokens(rows, rows, rows), targets=rows, loss_mask=jax.ShapeDtypeStruct((16, 8), bool)
    )
    state = jax.eval_shape(make_init(model, rule), jax.random.key(0))

    def largest(chunk):
        jaxpr = jax.make_jaxpr(
            make_train_step(token_loss(model, chunk, 1e-4), rule, config, model.specs)
        )(state, batch)
        seen, most = [jaxpr.jaxpr], 0
        while seen:
            for eqn in seen.pop().eqns:
                most = max(
                    [
                        most,
                        *(
                            math.prod(v.aval.shape)
                            for v in eqn.outvars
                            if v.aval.dtype == jnp.float32
                        ),
                    ]
                )
                inner = jax.tree.leaves(
                    list(eqn.params.values()),
                    is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr"),
                )
                seen += [j for j in (getattr(v, "jaxpr", v) for v in inner) if hasattr(j, "eqns")]
        return most

    assert largest(512) == 16 * 8 * 512
    assert largest(256) == 16 * 8 * 256


def test_every_seed_of_64_bits_has_its_own_key():
    seeds = [0, 5, 2**32 - 1, 2**32, 2**32 + 5, 2**33, 2**63, 2**64 - 1]
    keys = [tuple(jax.random.key_data(seed_key(seed)).tolist()) for seed in seeds]
    assert len(set(keys)) == len(seeds)
    # Runs of seeds of 32 bits begin as they always did.
    assert keys[:3] == [
        tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in seeds[:3]
    ]
