"""Encoder–decoders: who depends on whom, packing, padding, cached decoding, and the same step on
one device and eight.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize
from small_models import (
    MESH,
    T,
    assert_same,
    forward,
    forward_on,
    loss_and_gradient,
    losses,
    made,
    variants,
)

from llm_jax.config import (
    Config,
    DataConfig,
    DecodeConfig,
    ExecutionConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    override,
)
from llm_jax.decode import Generator
from llm_jax.decode.loop import CHOOSE, jit_steps
from llm_jax.decode.parity import check_parity
from llm_jax.decode.placement import cache_shardings
from llm_jax.decode.prompts import prefill_batch
from llm_jax.decode.settings import no_stops, shared_settings
from llm_jax.decode.state import Choosing, Prompts, Room
from llm_jax.models import build, resolve_execution, schedule
from llm_jax.objectives.token_loss import token_loss
from llm_jax.plan.trace import matmul_flops
from llm_jax.sharding import MESH_AXES, make_mesh
from llm_jax.training.flops import train_flops
from llm_jax.types import Batch, ConfigError, Tokens

BASE = override(
    ModelConfig(),
    {
        "vocab_size": 64,
        "num_layers": 2,
        "encoder.num_layers": 1,
        "encoder.start_token": 5,
        "embed_dim": 16,
        "attention.num_heads": 4,
        "mlp.hidden_dim": 24,
        "max_length": 64,
        "init_std": 0.3,
    },
)
# One has two layers that write, the other two layers that read.
MODELS = variants(
    BASE,
    {
        "t5": {
            "positions": "relative",
            "positions.buckets": 8,
            "positions.max_distance": 6,
            "attention.scale": 1.0,
            "head.scale": 0.25,
            "mlp.activation": "gelu_tanh",
        },
        "bart": {
            "num_layers": 1,
            "encoder.num_layers": 2,
            "norm": "layer",
            "norm.bias": True,
            "norm.position": "post",
            "norm.final": False,
            "positions": "learned",
            "positions.offset": 2,
            "embedding.norm": True,
            "mlp": "plain",
            "mlp.activation": "gelu",
            "attention.qkv_bias": True,
            "attention.out_bias": True,
            "mlp.bias": True,
            "head.bias": True,
        },
        "rope, fewer key heads, q/k norm": {
            "attention.num_kv_heads": 2,
            "attention.qk_norm": "head",
            "embedding.tied": False,
            "attention.window_pattern": (3, 0),
        },
    },
)
# Pairs of what is read and what is written; all ids of a row differ, so that a token id stands for
# a place.
PAIRS = [
    [(range(20, 26), range(1, 6)), (range(26, 29), range(6, 11))],
    [(range(30, 32), range(1, 8)), (range(32, 37), range(8, 10)), (range(37, 39), range(10, 12))],
]
S = 10


def packed(pack, pairs=PAIRS, t: int = T, s: int = S) -> Batch:
    batch = pack([[list(written) for _, written in row] for row in pairs], t)
    read = pack([[list(read) for read, _ in row] for row in pairs], s)
    return batch._replace(encoder=read.inputs)


@parametrize("name", [[name] for name in MODELS], by_default=[["bart"]])
def test_tokens_see_what_is_before_them_and_all_that_is_read_for_them(name, pack):
    """Exact zeros of the gradient outside, something everywhere inside."""
    model, params = made(MODELS[name])
    batch = packed(pack)

    def of_row(row):
        def outputs(table):
            return model.apply(
                params | {"embed": {"embedding": table}}, jax.tree.map(lambda a: a[None], row)
            ).hidden[0]

        hidden, pullback = jax.vjp(outputs, params["embed"]["embedding"])
        weights = jax.random.normal(jax.random.key(7), hidden.shape[1:])
        return jax.vmap(pullback)(jnp.eye(T)[:, :, None] * weights[None, None])[0]

    moved = (
        np.abs(
            np.asarray(jax.jit(jax.vmap(of_row))(jax.tree.map(jnp.asarray, batch)), np.float64)
        ).sum(-1)
        > 0
    )
    for b, t in np.ndindex(2, T):
        segment = batch.inputs.segment_ids[b, t]
        if segment:
            before = [
                batch.inputs.ids[b, s]
                for s in range(t + 1)
                if batch.inputs.segment_ids[b, s] == segment
            ]
            read = batch.encoder.ids[b][batch.encoder.segment_ids[b] == segment]
            assert set(np.flatnonzero(moved[b, t])) == {*before, *read}, (b, t)


@parametrize("name", [[name] for name in MODELS], by_default=[["t5"]])
def test_packed_or_padded_on_either_side_a_pair_is_as_alone(name, pack):
    _, params = made(MODELS[name])
    run = forward(MODELS[name])
    whole = np.asarray(run(params, packed(pack)))
    for b, row in enumerate(PAIRS):
        start = 0
        for pair in row:
            n, m = len(pair[1]), len(pair[0])
            right = packed(pack, [[pair], [pair]])
            left = Batch(
                *jax.tree.map(lambda x, n=n: np.roll(x, T - n, axis=1), right[:3]),
                encoder=jax.tree.map(lambda x, m=m: np.roll(x, S - m, axis=1), right.encoder),
            )
            alone = np.asarray(run(params, right))[0, :n]
            others = [whole[b, start : start + n], np.asarray(run(params, left))[1, T - n :]]
            if (b, start) == (0, 0):
                unpadded = packed(pack, [[pair]], n, m)
                others.append(np.asarray(run(params, unpadded))[0])
            for out in others:
                np.testing.assert_allclose(out, alone, atol=1e-5)
            start += n


@parametrize(
    "name, layers",
    itertools.product(MODELS, ["unroll", "scan"]),
    by_default=[("t5", "scan")],
)
def test_cached_decoding_equals_the_full_forward_pass(name, layers):
    model, params = made(MODELS[name], layers)
    rng = np.random.default_rng(0)
    rows, read = (
        [rng.integers(1, 64, n).tolist() for n in lengths] for lengths in ((12, 9, 10), (3, 11, 7))
    )
    found = check_parity(model, params, rows, [7, 1, 5], read)
    assert found.compared == 5 + 8 + 5 and found.difference < 1e-5


@parametrize("name", [[name] for name in MODELS], by_default=[["t5"]])
def test_scan_equals_unroll_and_every_gradient_is_finite(name, pack):
    _, params = made(MODELS[name])
    batch = packed(pack)
    expected = loss_and_gradient(made(MODELS[name])[0], params, batch)
    assert_same(loss_and_gradient(made(MODELS[name], "scan")[0], params, batch), expected)
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(expected[1]))


PROMPTS = [np.random.default_rng(i).integers(6, 64, 3 + 2 * i).tolist() for i in range(8)]
GREEDY = DecodeConfig(max_new_tokens=10, temperature=0.0)


@pytest.mark.mesh
# Every run has an encoder-decoder on a mesh in reuse/test_models_anywhere.
@pytest.mark.slow
@pytest.mark.parametrize("name, layers", [("t5", "unroll"), ("bart", "scan")])
def test_eight_devices_give_what_one_gives(name, layers, pack):
    model, params = made(MODELS[name], layers)
    rows = jax.tree.map(lambda a: np.tile(a, (4, 1)), packed(pack))
    mesh = make_mesh(MeshConfig(**MESH))
    out = forward_on(mesh, model, params, rows)
    np.testing.assert_allclose(out, forward(MODELS[name])(params, rows), atol=1e-5)
    alone = Generator(model, params, layers=layers)
    split = Generator(model, params, mesh, layers=layers)
    text = alone.generate(PROMPTS, GREEDY)
    assert len({tuple(row) for row in text}) > 1 and split.generate(PROMPTS, GREEDY) == text


@pytest.mark.mesh
def test_the_encoder_reads_once_and_its_keys_stay_where_they_are():
    model, params = made(MODELS["t5"])
    split, mesh = (
        Generator(model, params, make_mesh(MeshConfig(**MESH))),
        make_mesh(MeshConfig(**MESH)),
    )
    steps = jit_steps(model)
    settings = shared_settings(GREEDY, 8, model.config.vocab_size)
    inputs = (settings, no_stops(8, model.config.vocab_size))
    with jax.set_mesh(mesh):
        lengths = np.arange(1, 9, dtype=np.int32)
        prompts = Prompts(np.full((8, 20), 7, np.int32), lengths)
        state = steps.begin(split.params, prompts, room=Room(16), choosing=Choosing())
        state = CHOOSE(state, *inputs, choosing=Choosing())
        cache = state.cache
        shapes = [a.shape for a in jax.tree.leaves(cache.layers)]
        assert shapes == ([(8, 4, 16, 4)] * 2 + [(8, 4, 20, 4)] * 2) * 2
        np.testing.assert_array_equal(cache.encoder_segments.sum(1), lengths)
        before, where = np.asarray(cache.layers[1].cross.keys), cache_shardings(cache, mesh)
        cache = steps.advance(split.params, state, *inputs, choosing=Choosing()).cache
        np.testing.assert_array_equal(cache.layers[1].cross.keys, before)
        assert cache.length.tolist() == [2] * 8
        for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(where), strict=True):
            assert a.sharding.is_equivalent_to(b, a.ndim)
        text = str(
            jax.make_jaxpr(
                lambda c, t: (
                    model.apply(
                        params, Batch(inputs=Tokens(t, t, t), targets=t, loss_mask=t > 0), c
                    ).hidden
                )
            )(cache, jnp.ones((8, 1), int))
        )
    assert "8,20,16]" not in text, "a decode step works on the encoder's hidden states"


def test_decoding_begins_with_the_start_token(pack):
    """The first new token is the likeliest after the start token, given what was read."""
    config = dataclasses.replace(MODELS["bart"], max_length=16)
    model, params = made(config)
    generator = Generator(model, params)
    prompt = np.random.default_rng(3).integers(6, 64, 16).tolist()
    batch = packed(pack, [[(prompt, [5])]], 1, 16)
    first = int(np.argmax(forward(config)(params, batch)[0, 0]))
    # Prompt and text each have the whole context.
    whole = dataclasses.replace(GREEDY, max_new_tokens=15)
    text = generator.generate([prompt], whole)[0]
    assert len(text) == 15 and text[0] == first
    assert list(generator.stream(prompt, whole)) == text
    other = override(config, {"encoder.start_token": 9})
    begun = prefill_batch(other, jnp.ones((1, 4), jnp.int32), jnp.array([4]))
    assert int(begun.inputs.ids[0, 0]) == 9
    with pytest.raises(
        ConfigError, match=r"batch\.encoder has rows of 17, more than model\.max_length 16"
    ):
        generator.generate([[7] * 17], GREEDY)
    with pytest.raises(ConfigError, match="cache of 17 tokens is longer than model.max_length 16"):
        generator.generate([[7]], dataclasses.replace(GREEDY, max_new_tokens=16))


def run_of(mesh: dict) -> Config:
    return Config(
        model=dataclasses.replace(MODELS["t5"], num_layers=1, dropout=0.1),
        execution=ExecutionConfig(compute_dtype="float32"),
        mesh=MeshConfig(**mesh),
        data=override(
            DataConfig(),
            {"objective": "pairs", "seq_length": T, "objective.encoder_length": S, "batch_size": 8},
        ),
        train=TrainConfig(steps=30, accumulation=2),
        optimizer=override(
            OptimizerConfig(), {"learning_rate": 0.02, "warmup_steps": 0, "schedule": "constant"}
        ),
    )


# Every run has masked tokens, in test_encoders, and runs from files of every objective on one
# device and eight, in training/test_train_objectives.
@pytest.mark.slow
def test_pairs_are_learnt(pack):
    batch = jax.tree.map(lambda a: np.tile(a, (4, 1)), packed(pack))
    one = losses(run_of({"data": 1}), batch, 1, 25)
    assert one[-1] < 0.5 * one[0]


@pytest.mark.slow
@pytest.mark.mesh
def test_pairs_are_learnt_by_the_same_step_on_one_device_and_eight(pack):
    batch = jax.tree.map(lambda a: np.tile(a, (4, 1)), packed(pack))
    one = losses(run_of({"data": 1}), batch, 1, 4)
    np.testing.assert_allclose(losses(run_of(MESH), batch, 8, 4), one, rtol=1e-4)


def test_flops_are_those_of_the_step():
    config = override(
        MODELS["t5"],
        {
            "vocab_size": 128,
            "embed_dim": 64,
            "mlp.hidden_dim": 128,
            "encoder.mlp_dim": 192,
            "attention.num_heads": 2,
        },
    )
    model = build(config, ExecutionConfig(layers="unroll", remat="none", compute_dtype="float32"))
    loss, like = (
        token_loss(model, 128, 0.0),
        lambda n, dtype=jnp.int32: jax.ShapeDtypeStruct((2, n), dtype),
    )
    batch = Batch(
        inputs=Tokens(like(32), like(32), like(32)),
        targets=like(32),
        loss_mask=like(32, jnp.bool_),
        encoder=Tokens(like(48), like(48), like(48)),
    )
    traced = jax.make_jaxpr(jax.grad(lambda p, b: loss(p, {}, b, None).total))(
        jax.eval_shape(model.init, jax.random.key(0)), batch
    )
    # The loss makes the logits again: a fourth product beside three.
    again = 2 * config.vocab_size * config.embed_dim
    assert matmul_flops(traced) / (2 * 32) - again == pytest.approx(
        train_flops(config, 32, 48).full, rel=1e-6
    )
    with pytest.raises(
        ConfigError,
        match=(r"model\.encoder is .on., and how many tokens the encoder reads is not known here"),
    ):
        train_flops(config, 32)


def test_what_it_cannot_do_is_refused_by_name(pack):
    model, params = made(MODELS["t5"])
    batch = packed(pack)
    with pytest.raises(
        ConfigError,
        match=(
            r"batch\.encoder is None, and model\.encoder is .on.: give what the encoder"
            r" reads"
        ),
    ):
        model.apply(params, batch._replace(encoder=None))
    with pytest.raises(
        ConfigError, match=r"model\.encoder is .on., and mesh\.context 2 does not split rows"
    ):
        resolve_execution(ExecutionConfig(), MODELS["t5"], "cpu", context=2)
    with pytest.raises(
        ConfigError, match=r"model\.encoder is .on., and mesh\.pipeline 2 has stages of one stack"
    ):
        schedule(MODELS["t5"], ExecutionConfig(), {**dict.fromkeys(MESH_AXES, 1), "pipeline": 2}, 8)


def test_the_tree_has_the_decoder_in_its_own_place_and_the_encoder_under_its_name():
    shapes = jax.eval_shape(made(MODELS["bart"])[0].init, jax.random.key(0))
    assert set(shapes) == {"embed", "positions", "embedding_norm", "layers", "head", "encoder"}
    assert set(shapes["encoder"]) == {"positions", "embedding_norm", "layers"}
    assert set(shapes["layers"]) == {
        "attention",
        "attention_norm",
        "cross_attention",
        "cross_attention_norm",
        "mlp",
        "mlp_norm",
    }
    assert set(shapes["encoder"]["layers"]) == {"attention", "attention_norm", "mlp", "mlp_norm"}
    assert shapes["layers"]["cross_attention"]["query"]["kernel"].shape == (1, 16, 4, 4)
    assert shapes["encoder"]["layers"]["mlp"]["up"]["kernel"].shape == (2, 16, 24)
    assert shapes["positions"]["positions"].shape == (66, 16)
