"""Frozen parameters: no gradient, no slot of the optimizer, no decay, no share of a norm; the
checkpoints of such a run hold the whole tree of parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jobs import make_shards, settings

from llm_jax.checkpoints.checkpoint import MismatchError
from llm_jax.checkpoints.open_run import open_run
from llm_jax.config import (
    Config,
    DataConfig,
    ExecutionConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from llm_jax.config.overrides import override
from llm_jax.config.validate import validate
from llm_jax.params.select import merge, present, select, split
from llm_jax.sharding import device_put_batch
from llm_jax.training.build import build, first_state, step_of
from llm_jax.training.metrics import read_metrics
from llm_jax.training.run import train
from llm_jax.training.summary import run_summary
from llm_jax.types import Batch, ConfigError, Tokens

PARAMS = {
    "embed": {"embedding": 0},
    "layers": {
        "attention": {"query": {"kernel": 1, "bias": 2}, "out": {"kernel": 3}},
        "attention_norm": {"scale": 4},
    },
    "head": {"kernel": 5},
}


class Spec(NamedTuple):
    role: str


SPECS = {
    "embed": {"embedding": Spec("embedding")},
    "layers": {
        "attention": {
            "query": {"kernel": Spec("matrix"), "bias": Spec("bias")},
            "out": {"kernel": Spec("matrix")},
        },
        "attention_norm": {"scale": Spec("norm")},
    },
    "head": {"kernel": Spec("head")},
}


@pytest.mark.parametrize(
    "patterns, chosen",
    [
        (("*",), {0, 1, 2, 3, 4, 5}),
        (("layers/attention/query/kernel",), {1}),
        (("layers/*/kernel", "head/*"), {1, 3, 5}),
        (("*/bias", "*norm/scale"), {2, 4}),
    ],
)
def test_parameters_are_selected_by_path(patterns, chosen):
    trainable, frozen = split(PARAMS, select(patterns, SPECS, "train.trainable"))
    assert set(jax.tree.leaves(trainable)) == chosen
    assert set(jax.tree.leaves(frozen)) == {0, 1, 2, 3, 4, 5} - chosen
    assert merge(trainable, frozen) == merge(frozen, trainable) == PARAMS
    assert split(PARAMS, present(PARAMS, trainable)) == (trainable, frozen)


def test_a_role_selects_and_what_is_left_empty_is_left_out():
    chosen = select(("role:norm", "embed/*"), SPECS, "train.trainable")
    trainable, frozen = split(PARAMS, chosen)
    assert trainable == {
        "embed": {"embedding": 0},
        "layers": {"attention_norm": {"scale": 4}},
    }
    assert "embed" not in frozen and "attention_norm" not in frozen["layers"]
    assert split(SPECS, chosen)[0]["layers"]["attention_norm"]["scale"].role == "norm"


def test_a_pattern_that_matches_nothing_is_named_with_its_nearest():
    with pytest.raises(
        ConfigError,
        match="'layers/attention/qery/kernel', which matches no parameter; the nearest are"
        " layers/attention/query/kernel",
    ):
        select(("*", "layers/attention/qery/kernel"), SPECS, "train.trainable")
    with pytest.raises(ConfigError, match="'role:norms', .* nearest are role:norm"):
        select(("role:norms",), SPECS, "train.trainable")
    with pytest.raises(ConfigError, match="'role:router', which matches no parameter"):
        select(("role:router",), SPECS, "train.trainable")
    nothing = select(("role:router",), SPECS, "optimizer.decay", absent_roles=True)
    assert not any(jax.tree.leaves(nothing))
    with pytest.raises(ConfigError, match="train.trainable is empty"):
        validate(override(Config(), {"train.trainable": ()}))
    with pytest.raises(ValueError, match="'embed/embedding' is in both"):
        merge(PARAMS, {"embed": {"embedding": 9}})


# The step -----------------------------------------------------------------------------------------

V, D, F = 56, 16, 40
ALL, ATTENTION = ("*",), ("layers/attention/*",)
BASE = Config(
    model=override(
        ModelConfig(),
        {
            "vocab_size": V,
            "num_layers": 2,
            "embed_dim": D,
            "attention.num_heads": 2,
            "mlp.hidden_dim": F,
            "max_length": 8,
            "init_std": 0.2,
        },
    ),
    data=DataConfig(seq_length=8, batch_size=8),
    execution=ExecutionConfig(layers="scan", compute_dtype="float32"),
    optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=0, clip_norm=0.0),
    mesh=MeshConfig(data=1),
)


def batch() -> Batch:
    """Eight rows of one document each, of different lengths."""
    stream = np.random.default_rng(0).integers(0, V, (8, 9)).astype(np.int32)
    at = np.tile(np.arange(8, dtype=np.int32), (8, 1))
    real = at < np.array([[8], [3], [5], [8], [2], [7], [8], [4]])
    return Batch(
        inputs=Tokens(stream[:, :-1], real.astype(np.int32), at),
        targets=stream[:, 1:],
        loss_mask=real,
    )


@functools.cache
def parts_of(trainable, accumulation=1, mesh=BASE.mesh):
    changed = TrainConfig(steps=10, trainable=trainable, accumulation=accumulation)
    devices = int(np.prod(dataclasses.astuple(mesh)))
    return build(dataclasses.replace(BASE, train=changed, mesh=mesh), jax.devices()[:devices])


@functools.cache
def program_of(**how):
    return step_of(parts_of(**how))


@functools.cache
def stepped(**how):
    parts = parts_of(**how)
    with jax.set_mesh(parts.mesh):
        before = first_state(parts)
        kept = jax.device_get(before.params)
        after, metrics = program_of(**how)(before, device_put_batch(batch(), parts.mesh))
        return kept, jax.device_get(after), jax.device_get(metrics)


def test_frozen_parameters_keep_their_bits_and_the_others_move_as_if_all_did():
    before, whole, _ = stepped(trainable=ALL)
    same, part, metrics = stepped(trainable=ATTENTION)
    jax.tree.map(np.testing.assert_array_equal, before, same)
    assert set(part.trainable) == {"layers"} and set(part.trainable["layers"]) == {"attention"}
    frozen_before = split(before, present(before, part.frozen))[0]
    jax.tree.map(np.testing.assert_array_equal, part.frozen, frozen_before)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7),
        part.trainable["layers"]["attention"],
        whole.params["layers"]["attention"],
    )
    moments = optax.tree.get(part.opt_state, "mu")
    assert jax.tree.structure(moments) == jax.tree.structure(part.trainable)
    # Of the first step, mu is a tenth of the gradient.
    norm = float(optax.tree.norm(moments)) / 0.1
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    own = float(optax.tree.norm(part.trainable))
    assert float(metrics["param_norm"]) == pytest.approx(own, rel=1e-6)


@pytest.mark.mesh
@pytest.mark.slow
def test_pieces_and_a_mesh_change_nothing():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    _, one, metrics = stepped(trainable=ATTENTION)
    _, other, spread = stepped(trainable=ATTENTION, accumulation=2, mesh=mesh)
    for name in ("loss", "grad_norm", "param_norm", "accuracy"):
        assert float(spread[name]) == pytest.approx(float(metrics[name]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one.params, other.params)


def products(text: str, *shape: int) -> int:
    """Matrix products of a compiled program whose result has the shape, in any order of its
    dimensions.
    """
    found = re.findall(r"= f32\[([\d,]+)\]\S* (?:dot|scatter)\(", text)
    return sum(sorted(map(int, dims.split(","))) == sorted(shape) for dims in found)


def test_no_gradient_of_a_frozen_parameter_is_computed():
    """In the compiled program: gradients of an MLP's kernel are products [D, F], those of the
    head's are products of a chunk of the vocabulary.
    """
    seen = {}
    for trainable in (ALL, ATTENTION):
        parts = parts_of(trainable=trainable)
        with jax.set_mesh(parts.mesh):
            lowered = program_of(trainable=trainable).lower(parts.abstract, batch())
            text = lowered.compile().as_text()
        seen[trainable] = products(text, D, F), products(text, V // 2, D), text
    # Gate, up and down.
    assert seen[ALL][:2] == (3, 1)
    assert seen[ATTENTION][:2] == (0, 0)
    # Neither gradients nor moments of the whole embedding are held: it is read and handed on.
    made = re.findall(rf"= f32\[{V},{D}\]\S* (\w[\w-]*)\(", seen[ATTENTION][2])
    assert set(made) <= {"parameter", "copy", "get-tuple-element", "bitcast"}, made


def test_facts_name_how_many_parameters_are_trained():
    facts = run_summary(parts_of(trainable=ATTENTION))
    assert facts["parameters_trained"] == 2 * 4 * D * D < facts["parameters"]
    assert "parameters_trained" not in run_summary(parts_of(trainable=ALL))


# On disk ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(one_device, tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("trainable"))


def arrays(folder, step: int) -> dict:
    path = folder / "checkpoints" / str(step) / "manifest" / "metadata"
    return json.loads(path.read_text())["arrays"]


def test_a_run_goes_on_with_other_trainable_parameters_only_if_that_is_allowed(shards, tmp_path):
    changed = settings(shards, tmp_path / "run", 2) | {
        "model.num_layers": 1,
        "model.dropout": 0.0,
        "train.eval_every": 0,
        "train.eval_batches": 1,
        "train.accumulation": 1,
        "optimizer.warmup_steps": 0,
        "optimizer.schedule": "constant",
    }
    run = train(override(Config(), changed))
    first, all_arrays = open_run(run), arrays(run, 2)
    slots = {name for name in all_arrays if "/mu/" in name}
    assert {name.partition("/")[0] for name in all_arrays} == {"step", "params", "opt_state"}
    assert len(slots) == sum(name.startswith("params/") for name in all_arrays)
    norms = changed | {"train.steps": 3, "train.trainable": ("*norm/scale",)}
    with pytest.raises(MismatchError, match=r"train.trainable: \('\*',\) in the checkpoint"):
        train(override(Config(), norms | {"train.allow_changed": ("train.steps",)}))
    allowed = {"train.allow_changed": ("train.steps", "train.trainable")}
    train(override(Config(), norms | allowed))
    second, of_norms = open_run(run), arrays(run, 3)
    assert second.step == 3
    assert {n for n in of_norms if n.startswith("params/")} == {
        n for n in all_arrays if n.startswith("params/")
    }
    kept = {name for name in of_norms if "/mu/" in name}
    assert kept == {name for name in slots if name.endswith("norm/scale")} and len(kept) == 3

    def moved(a, b) -> set[str]:
        differ = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), a.params, b.params)
        flat = jax.tree_util.tree_flatten_with_path(differ)[0]
        return {jax.tree_util.keystr(p, simple=True, separator="/") for p, d in flat if d}

    assert moved(first, second) == {name.partition("/mu/")[2] for name in kept}
    # Back to all of them: slots of those that had none begin anew.
    train(override(Config(), changed | {"train.steps": 4} | allowed))
    assert arrays(run, 4) == all_arrays
    assert len(moved(second, open_run(run))) == len(slots)
    lines = [r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in lines] == [1, 2, 3, 4]
    assert lines[2]["param_norm"] < lines[1]["param_norm"]
