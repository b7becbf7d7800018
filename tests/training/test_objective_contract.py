"""What an objective is promised: sums of pieces divided once, packed rows as good as rows apart,
and batches with arrays of its own through the same loader and step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import make_shards

from llm_jax.config import (
    Config,
    DataConfig,
    ExecutionConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    override,
)
from llm_jax.data.loading.fingerprints import row_fingerprints
from llm_jax.data.loading.loader import Loader, evaluation_batches
from llm_jax.data.shards.rows import Rows
from llm_jax.models import Model, Output, build
from llm_jax.multihost.global_batch import Feed
from llm_jax.objectives import OBJECTIVES, Field, Loss, Metric, Objective, Sums
from llm_jax.objectives.token_batches import random_tokens
from llm_jax.params.select import merge
from llm_jax.sharding import make_mesh
from llm_jax.training.optimizer import make_optimizer
from llm_jax.training.state import create_state, make_init
from llm_jax.training.step import (
    accumulate,
    divide,
    gradient_of,
    jit_train_step,
    make_eval_step,
    make_train_step,
)
from llm_jax.types import Batch, ParamSpec, Tokens

SGD = override(
    OptimizerConfig(),
    {
        "update": "sgd",
        "update.momentum": 0.0,
        "learning_rate": 1.0,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
    },
)


def scores_of_tokens(vocab_size: int) -> Model:
    """A "model" of one number for each token."""

    def init(key):
        return {"scores": {"kernel": jnp.zeros((vocab_size, 1))}}

    def apply(params, batch, cache=None, *, dropout_key=None):
        return Output(params["scores"]["kernel"][batch.inputs.ids], None, {})

    specs = {"scores": {"kernel": ParamSpec(("position", None), (), "embedding")}}
    return Model(init, apply, None, None, None, specs, ModelConfig(vocab_size=vocab_size))


def step_of(model: Model, loss: Loss, pieces: int):
    config = Config(optimizer=SGD, train=TrainConfig(steps=10, accumulation=pieces))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rule = make_optimizer(SGD, 10, shapes, model.specs)
    return make_train_step(loss, rule, config, model.specs), rule


def test_sums_of_pieces_are_divided_once():
    """Sums of 10 over 2 tokens and 3 over 6 are 13/8 a token, not the mean of 5 and 0.5."""
    nll = np.array([[4, 6, 0, 0, 0, 0], [0.5] * 6], np.float32)
    mask = np.array([[1, 1, 0, 0, 0, 0], [1] * 6], bool)
    ids = np.zeros((2, 6), np.int32)
    batch = Batch(inputs=Tokens(ids, ids, ids), targets=ids, loss_mask=mask, extras={"nll": nll})

    def loss(trainable, frozen, batch, key):
        tokens = jnp.sum(batch.loss_mask, dtype=jnp.float32)
        losses = batch.extras["nll"] * (1 + trainable["scores"]["kernel"][0, 0])
        largest = Metric(jnp.sum(losses, axis=0), jnp.sum(batch.loss_mask, axis=0))
        metrics = {
            "loss": Metric(jnp.sum(losses), tokens),
            "rows": Metric(jnp.float32(len(losses))),
            "by_row": Metric(jnp.sum(losses), jnp.float32(len(losses))),
            "largest": largest,
            "nothing": Metric(jnp.float32(0), jnp.float32(0)),
        }
        return Sums(jnp.sum(losses), tokens, metrics, jnp.sum(losses, axis=1))

    model = scores_of_tokens(1)
    for pieces in (1, 2):
        step, rule = step_of(model, loss, pieces)
        state, metrics = jax.jit(step)(make_init(model, rule)(jax.random.key(0)), batch)
        got = {name: float(metrics[name]) for name in ("loss", "rows", "by_row", "grad_norm")}
        assert got == {"loss": 1.625, "rows": 2, "by_row": 6.5, "grad_norm": 1.625}
        # Columns have 4.5/2, 6.5/2 and four times 0.5.
        assert float(metrics["largest"]) == 3.25 and float(metrics["nothing"]) == 0
        assert float(state.params["scores"]["kernel"][0, 0]) == -1.625


def test_an_objective_without_a_loss_to_report_is_refused():
    def loss(trainable, frozen, batch, key):
        zero = jnp.sum(trainable["scores"]["kernel"])
        return Sums(zero, zero, {"nll": Metric(zero)}, jnp.zeros(2))

    model = scores_of_tokens(1)
    step, rule = step_of(model, loss, 1)
    ids = np.zeros((2, 6), np.int32)
    with pytest.raises(ValueError, match=r"has the metrics \['nll'\]; one must be named loss"):
        step(
            make_init(model, rule)(jax.random.key(0)),
            Batch(inputs=Tokens(ids, ids, ids), targets=ids, loss_mask=ids > 0),
        )


# Packed and apart ---------------------------------------------------------------------------------

ENCODERS = {"spans": 1, "pairs": 1}
LENGTHS = ((3, 5), (8,), (2, 6), (4, 3))


def documents() -> list[list[dict[str, np.ndarray]]]:
    """Rows of documents with all that a batch has of them, of different lengths."""
    rng = np.random.default_rng(0)

    def one(length: int) -> dict[str, np.ndarray]:
        names = ("ids", "targets", "encoder_ids")
        ids = {name: rng.integers(1, 16, length).astype(np.int32) for name in names}
        return {**ids, "loss_mask": rng.random(length) < 0.6, "positions": np.arange(length)}

    return [[one(length) for length in row] for row in LENGTHS]


def batch_of(rows: list[list[dict[str, np.ndarray]]], with_encoder: bool) -> Batch:
    fields = {
        name: np.zeros((len(rows), 8), bool if name == "loss_mask" else np.int32)
        for name in (*rows[0][0], "segment_ids")
    }
    for r, row in enumerate(rows):
        at = 0
        for number, document in enumerate(row, start=1):
            here = slice(at, at + len(document["ids"]))
            for name, values in document.items():
                fields[name][r, here] = values
            fields["segment_ids"][r, here] = number
            at = here.stop
    segments, positions = fields["segment_ids"], fields["positions"]
    read = Tokens(fields["encoder_ids"], segments, positions) if with_encoder else None
    return Batch(
        Tokens(fields["ids"], segments, positions),
        targets=fields["targets"],
        loss_mask=fields["loss_mask"],
        encoder=read,
    )


# Those over examples have one in each row: test_example_objectives.
PACKED = [name for name, objective in OBJECTIVES.items() if objective.unit == "tokens"]


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_are_rows_apart_in_two_pieces(name):
    encoders = ENCODERS.get(name, 0)
    config = Config(
        model=override(
            ModelConfig(),
            {
                "vocab_size": 16,
                "num_layers": 1,
                **({"encoder.num_layers": encoders} if encoders else {}),
                "embed_dim": 16,
                "attention.num_heads": 2,
                "mlp.hidden_dim": 16,
                "max_length": 8,
                "causal": name != "masked",
                "init_std": 0.3,
            },
        ),
        data=override(
            DataConfig(),
            {
                "objective": name,
                "seq_length": 8,
                **({"objective.encoder_length": 8} if encoders else {}),
            },
        ),
        train=TrainConfig(z_loss=1e-3, label_smoothing=0.1),
    )
    model = build(config.model, ExecutionConfig(layers="unroll", compute_dtype="float32"))
    gradient = gradient_of(OBJECTIVES[name].make_loss(model, config, 8))
    params = model.init(jax.random.key(0))
    rows = documents()
    apart = [[document] for row in rows for document in row] + [[]]
    assert len(apart) % 2 == 0
    packed = jax.jit(gradient)(params, {}, batch_of(rows, bool(encoders)), None)
    split = jax.jit(accumulate(gradient, 2))(params, {}, batch_of(apart, bool(encoders)), None)
    assert float(packed[1].weight) == sum(d["loss_mask"].sum() for row in rows for d in row)
    for a, b in zip(jax.tree.leaves(packed[0]), jax.tree.leaves(split[0])):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for part in ("total", "weight", "metrics"):
        a, b = (jax.tree.leaves(getattr(sums, part)) for _, sums in (packed, split))
        np.testing.assert_allclose(a, b, rtol=1e-5)


# An objective of its own --------------------------------------------------------------------------


class Reversed(NamedTuple):
    """Pairs of rows: one as it is stored is preferred to the same row with other tokens. Each pair
    has a strength.
    """

    def open(self, path, split, seq_length, cache_bytes, fingerprint) -> Rows:
        return Rows(path, split, seq_length, cache_bytes, fingerprint)

    def __call__(self, batch: Batch, indices: np.ndarray, seq_length: int) -> Batch:
        strength = 1 + (indices % 3).astype(np.float32)
        return batch._replace(
            extras={"rejected": batch.inputs.ids[:, ::-1] // 2, "strength": strength}
        )


def preference_fields(config: Config) -> Batch:
    shape = (config.data.batch_size, config.data.seq_length)
    extras = {"rejected": Field(shape), "strength": Field(shape[:1], "float32")}
    ids = Field(shape)
    return Batch(
        inputs=Tokens(ids, ids, ids), targets=ids, loss_mask=Field(shape, "bool"), extras=extras
    )


def preference_loss(model: Model, config: Config, chunk: int) -> Loss:
    """Of each pair the logistic loss of the difference of its rows' scores, weighted by the rows'
    strengths.
    """

    def loss(trainable, frozen, batch, key):
        params = merge(trainable, frozen)

        def score(tokens):
            scores = model.apply(
                params, batch._replace(inputs=batch.inputs._replace(ids=tokens))
            ).hidden[..., 0]
            return jnp.sum(jnp.where(batch.inputs.segment_ids != 0, scores, 0), axis=1)

        strength = batch.extras["strength"]
        margin = score(batch.inputs.ids) - score(batch.extras["rejected"])
        losses = strength * jax.nn.softplus(-margin)
        weight = jnp.sum(strength)
        pairs = jnp.float32(len(margin))
        metrics = {
            "loss": Metric(jnp.sum(losses), weight),
            "preferred": Metric(jnp.sum(margin > 0, dtype=jnp.float32), pairs),
        }
        return Sums(jnp.sum(losses), weight, metrics, losses)

    return loss


PREFERENCE = Objective(
    name="preference",
    fields=preference_fields,
    example=random_tokens,
    make_transform=lambda data, start_token, tokenizer: Reversed(),
    make_loss=preference_loss,
    evaluation=("loss", "preferred"),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("preference"))


@pytest.mark.mesh
def test_an_objective_with_arrays_and_weights_of_its_own_trains(shards):
    model = scores_of_tokens(300)
    data = DataConfig(seq_length=32, batch_size=16)
    transform = PREFERENCE.make_transform(data, 0, None)
    loader = Loader(shards, seq_length=32, batch_size=16, seed=0, transform=transform)
    loss = PREFERENCE.make_loss(model, Config(), 0)
    shapes = jax.tree.map(lambda f: (f.shape, f.dtype), PREFERENCE.fields(Config(data=data)))
    assert shapes == jax.tree.map(lambda x: (x.shape, str(x.dtype)), loader.batch(0))
    curves = []
    for devices, pieces in ((1, 1), (8, 1), (4, 4)):
        mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
        feed = Feed(mesh, 16, 32)
        step, rule = step_of(model, loss, pieces)
        compiled = jit_train_step(step, model, rule, mesh)
        state = create_state(model, rule, mesh, 0)
        curve = []
        with jax.set_mesh(mesh):
            for number, batch, _ in loader.iterate():
                if number == 4:
                    break
                state, metrics = compiled(state, feed.put(batch))
                names = ("loss", "preferred", "grad_norm")
                curve.append([float(metrics[name]) for name in names])
                assert int(metrics["bad_row"]) == -1
        curves.append(curve)
    assert curves[0][0][0] == pytest.approx(np.log(2), rel=1e-6) and curves[0][-1][0] < 0.4
    for other in curves[1:]:
        np.testing.assert_allclose(other, curves[0], rtol=1e-5)
    held = next(
        evaluation_batches(shards[0], seq_length=32, batch_size=16, transform=transform, limit=1)
    )
    seen = jax.jit(make_eval_step(loss, PREFERENCE.evaluation))(state.params, held)
    assert float(divide(seen["preferred"])) > 0.8


def test_arrays_of_an_objective_are_in_the_fingerprint_and_gathered_by_row(shards):
    options = {"seq_length": 32, "batch_size": 8, "seed": 0, "transform": Reversed()}
    whole = Loader(shards, **options).batch(5)
    half = Loader(shards, **options, rows=[1, 6])
    for name, array in half.batch(5).extras.items():
        np.testing.assert_array_equal(array, whole.extras[name][[1, 6]])
    indices = half.indices(5)
    prints = row_fingerprints(half.batch(5), indices)
    rejected = half.batch(5).extras["rejected"].copy()
    rejected[1, 7] += 1
    other = half.batch(5)._replace(extras=half.batch(5).extras | {"rejected": rejected})
    assert (row_fingerprints(other, indices) != prints).tolist() == [False, True]
