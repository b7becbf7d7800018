"""Objectives over examples: their losses by hand, sums of pieces, and the same curve on a mesh and
after a stop.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import EXACT, WORDS, write_text
from pairwise import parametrize

from llm_jax.checkpoints.open_run import open_run
from llm_jax.config import Config, MeshConfig, ModelConfig, override
from llm_jax.config.data import ContrastiveConfig
from llm_jax.data.examples.folder import ExampleRows, Examples, flat, write_examples
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.models import Model, Output
from llm_jax.objectives import OBJECTIVES
from llm_jax.objectives.contrastive import info_nce
from llm_jax.sharding import make_mesh, row_sharding
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.training.metrics import read_metrics
from llm_jax.training.run import train
from llm_jax.training.step import accumulate, divide, gradient_of
from llm_jax.types import Batch, ConfigError, DataError, Tokens

pytestmark = pytest.mark.usefixtures("kept_programs")

# A model whose hidden states are a table of its tokens, and whose classes are read off them.
TABLE = np.array([[0, 0], [4, 0], [0, 2], [2, 2]], np.float32)
PARAMS = {"table": TABLE, "classes": {"kernel": np.eye(2, dtype=np.float32), "bias": np.zeros(2)}}
ROWS = np.array([[1, 2, 0], [3, 1, 1], [2, 0, 0], [0, 0, 0]], np.int32)
SEGMENTS = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]], np.int32)


def table_model(reads: str) -> Model:
    pooler = {"pooler.layer": "identity", "pooler.reads": reads, "pooler.num_classes": 2}
    config = override(ModelConfig(embed_dim=2, vocab_size=4), pooler)

    def apply(params, batch, cache=None, *, dropout_key=None):
        return Output(params["table"][batch.inputs.ids], None, {})

    return Model(None, apply, None, None, None, None, config)


def loss_of(objective: str, reads: str, **settings):
    model = table_model(reads)
    values = {"data.objective": objective}
    values |= {f"data.objective.{name}": value for name, value in settings.items()}
    return OBJECTIVES[objective].make_loss(model, override(Config(model=model.config), values), 0)


def batch_of(**fields) -> Batch:
    tokens = Tokens(ROWS, SEGMENTS, np.zeros_like(ROWS))
    return Batch(tokens, ROWS, SEGMENTS != 0)._replace(**fields)


def test_the_loss_of_classes_is_that_of_one_vector_a_row():
    batch = batch_of(extras={"labels": np.array([0, 1, 1, 0], np.int32)})
    # Logits by hand: (first, mean and last token of each row that has some); classes 0 1 1.
    logits = {
        "first": [[4, 0], [2, 2], [0, 2]],
        "mean": [[2, 1], [10 / 3, 2 / 3], [0, 2]],
        "last": [[0, 2], [4, 0], [0, 2]],
    }
    for reads, rows in logits.items():
        nll = [np.log(np.exp(row).sum()) - row[k] for row, k in zip(np.array(rows), (0, 1, 1))]
        plain = loss_of("classification", reads)(PARAMS, {}, batch, None)
        assert float(divide(plain.metrics["loss"])) == pytest.approx(np.mean(nll), rel=1e-6)
        assert float(plain.weight) == 3
        np.testing.assert_allclose(plain.row_losses, [*nll, 0], atol=1e-6)
        weighted = loss_of("classification", reads, class_weights=(3.0, 0.5))
        found = weighted(PARAMS, {}, batch, None)
        by_hand = (3 * nll[0] + 0.5 * nll[1] + 0.5 * nll[2]) / 4
        assert float(found.total / found.weight) == pytest.approx(by_hand, rel=1e-6)
    # Of equal logits neither is the most likely.
    first = loss_of("classification", "first")(PARAMS, {}, batch, None)
    assert float(divide(first.metrics["accuracy"])) == pytest.approx(2 / 3)


def test_the_loss_of_tags_counts_the_marked_tokens():
    targets = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], np.int32)
    counted = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]], bool)
    batch = batch_of(targets=targets, loss_mask=counted)
    found = loss_of("token_classification", "each")(PARAMS, {}, batch, None)
    nll = [np.log1p(np.exp(-4)), np.log1p(np.exp(-2)), np.log1p(np.exp(-4))]
    assert float(divide(found.metrics["loss"])) == pytest.approx(np.mean(nll), rel=1e-5)
    assert float(divide(found.metrics["accuracy"])) == 1 and float(found.weight) == 3


@pytest.mark.parametrize(
    "objective, reads", [("classification", "mean"), ("token_classification", "each")]
)
def test_pieces_of_a_batch_add_up(objective, reads):
    batch = batch_of(extras={"labels": np.array([0, 1, 1, 0], np.int32)}, targets=ROWS % 2)
    gradient = gradient_of(loss_of(objective, reads, class_weights=(2.0, 1.0)))
    whole = jax.jit(gradient)(PARAMS, {}, batch, None)
    pieces = jax.jit(accumulate(gradient, 2))(PARAMS, {}, batch, None)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def by_hand(first, second, ids, counted, temperature) -> list[float]:
    """InfoNCE of each counted pair, with loops."""
    unit = [[v / np.linalg.norm(v) for v in side] for side in (first, second)]
    losses = []
    for i in range(len(first)):
        if not counted[i]:
            continue
        scores = []
        for j in range(len(first)):
            other = ids[j][1] not in (ids[i][1], ids[i][0])
            if j == i or (counted[j] and other):
                scores.append(unit[0][i] @ unit[1][j] / temperature)
        own = unit[0][i] @ unit[1][i] / temperature
        losses.append(np.log(np.sum(np.exp(scores))) - own)
    return losses


@pytest.mark.mesh
def test_pairs_are_compared_with_the_whole_batch_on_any_mesh():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 8, 4)).astype(np.float32)
    counted = np.array([True] * 7 + [False])
    # Row 1 has the second text of row 0, and that of row 3 is the first one of row 2.
    ids = np.arange(16, dtype=np.int32).reshape(8, 2)
    ids[1, 1] = ids[0, 1]
    ids[3, 1] = ids[2, 0]
    plain = ContrastiveConfig(temperature=0.5)
    found = info_nce(first, second, ids, counted, plain)
    wanted = by_hand(first, second, ids, counted, 0.5)
    np.testing.assert_allclose(found.nll, [*wanted, 0], rtol=1e-5)
    both = info_nce(first, second, ids, counted, ContrastiveConfig("mean", 0.5, True))
    back = by_hand(second, first, ids[:, ::-1], counted, 0.5)
    np.testing.assert_allclose(both.nll[:7], (np.array(wanted) + back) / 2, rtol=1e-5)

    def total(first, second, ids, counted):
        return info_nce(first, second, ids, counted, plain).nll.sum()

    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    spread = jax.device_put((first, second, ids, counted), row_sharding(mesh))
    one = jax.jit(jax.value_and_grad(total, (0, 1)))(first, second, ids, counted)
    with jax.set_mesh(mesh):
        eight = jax.jit(jax.value_and_grad(total, (0, 1)))(*spread)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_vector_of_zeros_has_a_gradient():
    zeros = jnp.zeros((2, 3))
    ids = np.arange(4).reshape(2, 2)

    def total(first):
        return info_nce(first, zeros, ids, np.array([True, True]), ContrastiveConfig()).nll.sum()

    assert np.isfinite(jax.grad(total)(zeros)).all()


# Whole runs ---------------------------------------------------------------------------------------

OF = {
    "classification": {
        "model.pooler.reads": "mean",
        "data.objective.class_weights": (1.0, 2.0, 1.0),
    },
    "token_classification": {"model.pooler.reads": "each", "model.causal": False},
    "contrastive": {"data.objective.symmetric": True, "model.causal": False},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("examples")
    text = write_text(folder / "text.jsonl", 60, 0)
    train_tokenizer((str(text),), folder / "tok", vocab_size=300)
    tokenizer = open_tokenizer(folder / "tok")
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(2, 6)))) for _ in range(40)]
    ids = tokenizer.encode_batch(texts)
    lengths = np.array([[len(row)] for row in ids], np.int32)
    labels = np.array([len(text) % 3 for text in texts], np.int32)
    tokens = flat(ids)
    pairs = {"tokens": tokens, "lengths": lengths.reshape(20, 2)}
    found = {
        "classification": Examples(tokens, lengths, labels=labels),
        "token_classification": Examples(tokens, lengths, token_labels=tokens % 4 - 1),
        "contrastive": Examples(**pairs, text_ids=np.arange(40, dtype=np.int32).reshape(20, 2)),
    }
    for task, examples in found.items():
        split = {"train": examples, "validation": examples}
        write_examples(folder / task, split, task=task, tokenizer=tokenizer, options={})
    return {task: folder / task for task in found}


def config(folders, objective: str, out: Path, **more) -> Config:
    values = {
        "model.num_layers": 1,
        "model.embed_dim": 32,
        "model.attention.num_heads": 2,
        "model.mlp.hidden_dim": 32,
        "model.max_length": 64,
        "data.path": (str(folders[objective]),),
        "data.objective": objective,
        "data.seq_length": 64,
        "data.batch_size": 8,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 0,
        "train.out": str(out),
        "train.steps": 4,
        "train.checkpoint_every": 2,
        "train.peak_tflops": 1.0,
    }
    if objective != "contrastive":
        values |= {"model.pooler.layer": "identity", "model.pooler.num_classes": 3}
    return override(Config(), values | OF[objective] | more)


def curve(folder: Path, kind: str = "train", names=("loss", "accuracy")) -> list[list[float]]:
    records = read_metrics(folder / "metrics.jsonl")
    return [[record[name] for name in names] for record in records if record["kind"] == kind]


@pytest.mark.mesh
@parametrize("objective", [[name] for name in OF], by_default=[])
def test_a_mesh_and_a_stop_change_nothing(folders, objective, tmp_path):
    run = train(config(folders, objective, tmp_path / "one"))
    whole = curve(run, names=EXACT)
    assert len(whole) == 4 and np.isfinite(np.array([row[0] for row in whole])).all()
    shutil.rmtree(run / "checkpoints" / "4")
    train(config(folders, objective, tmp_path / "one"))
    assert curve(run, names=EXACT) == whole
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    if objective != "contrastive":
        mesh["train.accumulation"] = 2
    other = train(config(folders, objective, tmp_path / "mesh", **mesh))
    for kind in ("train", "eval"):
        np.testing.assert_allclose(curve(other, kind), curve(run, kind), rtol=1e-4, atol=1e-5)


def test_a_run_begins_with_the_parameters_of_another(folders, tmp_path):
    frozen = {"train.steps": 1, "train.trainable": ("classes/*",), "optimizer.weight_decay": 0.0}
    first = train(config(folders, "classification", tmp_path / "first", **frozen))
    more = {**frozen, "train.start": str(first), "train.seed": 5}
    second = train(config(folders, "classification", tmp_path / "second", **more))
    ours, theirs = (open_run(folder).params for folder in (second, first))
    body = {name: tree for name, tree in ours.items() if name != "classes"}
    jax.tree.map(np.testing.assert_array_equal, body, {name: theirs[name] for name in body})
    assert (ours["classes"]["kernel"] != theirs["classes"]["kernel"]).any()
    for key, value, message in (
        ("model.num_layers", 2, "whose model.num_layers is 1, and this run's is 2"),
        ("model.mlp.hidden_dim", 48, "whose model.mlp.hidden_dim is 32, and this run's is 48"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong = config(folders, "classification", tmp_path / "wrong", **more, **{key: value})
            train(wrong)


@pytest.mark.parametrize(
    "objective, more, message",
    [
        ("classification", {"model.pooler.num_classes": 1}, "model.pooler.num_classes 1; set it"),
        ("classification", {"model.pooler.reads": "each"}, "reads 'each'; set it to first, mean"),
        ("token_classification", {"model.pooler.reads": "last"}, "reads 'last'; set it to each"),
        ("classification", {"data.objective.class_weights": (1.0,)}, "1 weights, and there are 3"),
        ("classification", {"data.objective.token_types": True}, "token_types 0; set the first"),
        ("contrastive", {"train.accumulation": 2}, "train.accumulation is 2, .* set it to 1"),
        ("contrastive", {"train.label_smoothing": 0.1}, "train.label_smoothing is 0.1, .* to 0"),
        ("contrastive", {"data.objective.pooling": "model"}, "no pooler of rows; use mean"),
        ("contrastive", {"data.batch_size": 1}, "data.batch_size is 1; .* give at least 2"),
        ("contrastive", {"mesh.context": 2}, "mesh.context is 2, .* set it to 1"),
    ],
)
def test_what_cannot_be_learnt_is_refused(folders, objective, more, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(config(folders, objective, tmp_path / "run", **more))


def test_examples_of_another_kind_are_refused(folders, tmp_path):
    with pytest.raises(DataError, match="for data.objective 'contrastive', and it is 'classific"):
        ExampleRows(folders["contrastive"], "train", 64, task="classification")
    with pytest.raises(DataError, match=r"an example has \d+ tokens, and data.seq_length is 2"):
        ExampleRows(folders["classification"], "train", 2, task="classification")
    damaged = tmp_path / "damaged"
    shutil.copytree(folders["classification"], damaged)
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["shards"]["train"][0]["sha256"] = "0" * 64
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="are damaged; prepare them again"):
        ExampleRows(damaged, "train", 64, task="classification")
