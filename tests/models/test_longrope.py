"""Two lists of rope factors: each sequence has those of its own length, whatever else is in its row
or its batch.

What is right is said by models of one list: with the short one for texts of up to ``SWITCH``
tokens, with the long one for longer ones.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import Config, ExecutionConfig, MeshConfig, ModelConfig, override
from llm_jax.config.saved import load_config, to_json
from llm_jax.config.validate_model import validate_model
from llm_jax.decode.programs import decode_step, prefill
from llm_jax.models import rows_of, zigzag_order
from llm_jax.sharding import make_mesh
from llm_jax.types import Batch, ConfigError, Tokens

SWITCH = 16
SHORT, LONG = (1.0, 1.05, 1.1, 1.2), (1.0, 2.0, 4.0, 8.0)
BOTH = override(
    ModelConfig(),
    {
        "vocab_size": 62,
        "num_layers": 2,
        "embed_dim": 32,
        "attention.num_heads": 4,
        "mlp.hidden_dim": 48,
        "max_length": 64,
        "init_std": 0.1,
        "positions.scaling": "longrope",
        "positions.scaling.factor": 4.0,
        "positions.scaling.original_length": SWITCH,
        "positions.scaling.factors": LONG,
        "positions.scaling.short_factors": SHORT,
    },
)


def one(factors):
    return override(
        BOTH, {"positions.scaling.factors": factors, "positions.scaling.short_factors": ()}
    )


def forward(config):
    model = models.build(config)
    return jax.jit(lambda params, batch: model.logits(params, model.apply(params, batch).hidden))


MODEL = models.build(BOTH)
PREFILL = jax.jit(partial(prefill, MODEL))
STEP = jax.jit(partial(decode_step, MODEL))
FORWARD = {"both": forward(BOTH), "short": forward(one(SHORT)), "long": forward(one(LONG))}
TEXTS = [np.random.default_rng(n).integers(0, 62, n).tolist() for n in (5, SWITCH, SWITCH + 1, 23)]


@pytest.fixture(scope="module")
def params():
    return random_parameters(MODEL, std=0.1)


def right(params, text, width=32):
    """Logits after each token of one text, from the model whose one list holds for it."""
    tokens = np.zeros((1, width), np.int32)
    tokens[0, : len(text)] = text
    run = FORWARD["short" if len(text) <= SWITCH else "long"]
    return np.asarray(run(params, rows_of(tokens, np.array([len(text)]))))[0, : len(text)]


def packed(texts, width, begin=0):
    """One row of several texts, after ``begin`` tokens of padding."""
    out = {name: np.zeros((1, width), np.int32) for name in ("tokens", "segments", "positions")}
    at = begin
    for i, text in enumerate(texts, 1):
        where = slice(at, at + len(text))
        out["tokens"][0, where], out["segments"][0, where], out["positions"][0, where] = (
            text,
            i,
            np.arange(len(text)),
        )
        at = where.stop
    # What stands in padding is nobody's, even if it looks long.
    out["positions"][out["segments"] == 0] = 60
    tokens, segments, positions = out.values()
    return Batch(
        inputs=Tokens(tokens, segments, positions), targets=tokens, loss_mask=segments != 0
    )


def test_the_lists_differ_by_more_than_rounding(params):
    tokens = np.zeros((1, 32), np.int32)
    tokens[0, :SWITCH] = TEXTS[1]
    batch = rows_of(tokens, np.array([SWITCH]))
    gap = np.abs(FORWARD["short"](params, batch) - FORWARD["long"](params, batch))
    assert gap[0, :SWITCH].max() > 1e-2


def test_rows_of_a_batch_have_the_list_of_their_own_length(params):
    tokens = np.zeros((4, 32), np.int32)
    for row, text in zip(tokens, TEXTS):
        row[: len(text)] = text
    got = np.asarray(FORWARD["both"](params, rows_of(tokens, np.array([len(t) for t in TEXTS]))))
    for row, text in zip(got, TEXTS):
        np.testing.assert_allclose(row[: len(text)], right(params, text), atol=1e-5)


@pytest.mark.parametrize("begin", [0, 3])
def test_texts_packed_in_a_row_have_the_list_of_their_own_length(params, begin):
    for texts in (TEXTS, TEXTS[::-1]):
        got = np.asarray(FORWARD["both"](params, packed(texts, 66, begin)))[0]
        for text in texts:
            np.testing.assert_allclose(
                got[begin : begin + len(text)], right(params, text), atol=1e-5
            )
            begin += len(text)
        begin -= sum(map(len, texts))


@pytest.mark.mesh
@pytest.mark.parametrize("mesh", [{"data": 4, "context": 2}, {"data": 4, "pipeline": 2}], ids=str)
def test_over_a_mesh_the_same(params, mesh):
    """With the tokens of a row out of order, and with rows in microbatches."""
    shape = make_mesh(MeshConfig(**mesh))
    execution = ExecutionConfig(context="ring", attention="blockwise")
    model = models.build(BOTH, execution, context=mesh.get("context", 1))
    batch = jax.tree.map(lambda a: np.repeat(a, 8, axis=0), packed(TEXTS[::-1], 64))
    wanted = FORWARD["both"](params, batch)

    def run(params, batch):
        in_row = jnp.broadcast_to(jnp.arange(64), (8, 64))
        batch = zigzag_order(BOTH, execution, batch._replace(extras={"place": in_row}))
        places = batch.extras["place"]
        logits = model.logits(params, model.apply(params, batch).hidden)
        return jnp.take_along_axis(logits, jnp.argsort(places, axis=1)[..., None], axis=1)

    with jax.set_mesh(shape):
        got = jax.jit(run)(params, batch)
    np.testing.assert_allclose(np.asarray(got)[:, :61], np.asarray(wanted)[:, :61], atol=1e-5)


def test_a_prompt_has_the_list_of_its_length_and_so_have_steps_after_it(params):
    lengths = np.array([SWITCH - 2, SWITCH + 1, 3])
    tokens = np.random.default_rng(0).integers(0, 62, (3, 32)).astype(np.int32)
    logits, cache = PREFILL(params, tokens, lengths, MODEL.init_cache(3, 32))
    for n in range(3):
        for row, length in enumerate(lengths + n):
            np.testing.assert_allclose(
                logits[row], right(params, tokens[row, :length])[-1], atol=1e-5
            )
        logits, cache = STEP(params, tokens[np.arange(3), lengths + n], cache)


def test_a_cache_that_passes_the_switch_gives_nan_in_that_row_from_there_on(params):
    """What is before would have to change: no number is right."""
    assert MODEL.config.rope_switch == SWITCH
    lengths = np.array([SWITCH - 1, SWITCH + 1, 3])
    tokens = np.random.default_rng(0).integers(0, 62, (3, 32)).astype(np.int32)
    _, cache = PREFILL(params, tokens, lengths, MODEL.init_cache(3, 32))
    finite = []
    for n in range(4):
        logits, cache = STEP(params, tokens[np.arange(3), lengths + n], cache)
        finite.append(np.isfinite(logits).all(axis=1).tolist())
    assert finite == [[True, True, True]] + [[False, True, True]] * 3


def test_a_prompt_read_in_parts_may_not_pass_the_switch_either(params):
    lengths = np.array([SWITCH - 1, SWITCH + 1, 3])
    tokens = np.random.default_rng(0).integers(0, 62, (3, 32)).astype(np.int32)
    _, cache = PREFILL(params, tokens, lengths, MODEL.init_cache(3, 32))
    # Rows of 2, 1 and no tokens more, padded with what looks long.
    real = np.arange(4)[None] < np.array([2, 1, 0])[:, None]
    positions = np.where(real, lengths[:, None] + np.arange(4)[None], 60)
    more = Batch(
        inputs=Tokens(tokens[:, :4], real.astype(np.int32), positions),
        targets=tokens[:, :4],
        loss_mask=real,
    )
    hidden = jax.jit(MODEL.apply)(params, more, cache).hidden
    assert np.isnan(hidden[0, :2]).all() and np.isfinite(hidden[1, 0]).all()
    # Rows that begin do so whatever the cache held.
    logits, _ = PREFILL(params, tokens, np.array([20, 16, 3]), cache)
    for row, length in enumerate((20, 16, 3)):
        np.testing.assert_allclose(logits[row], right(params, tokens[row, :length])[-1], atol=1e-5)


def test_a_model_saved_before_there_were_two_lists_has_its_one(tmp_path):
    saved = to_json(Config(model=one(LONG)))
    del saved["model"]["positions"]["scaling"]["short_factors"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loaded = load_config(tmp_path / "config.json").model
    assert loaded == one(LONG)
    assert loaded.rope_switch == 0


def test_two_lists_of_one_model_are_of_one_length():
    for more, message in (
        (
            {"positions.scaling.short_factors": (1.0,)},
            (
                "scaling.short_factors has 1 numbers and model.positions.scaling.factors 4; give as"
                " many, or none"
            ),
        ),
        (
            {"positions.scaling.short_factors": (1.0, 1.0, 0.0, 1.0)},
            "model.positions.scaling.short_factors is .*; it must be more than 0",
        ),
        (
            {"positions.scaling.short_factors": (1.0, 1.0, float("nan"), 1.0)},
            "model.positions.scaling.short_factors is .*; it must be finite and more than 0",
        ),
        (
            {"positions.scaling.original_length": 0},
            "model.positions.scaling.original_length is 0; .* at least 1",
        ),
        (
            {"encoder.num_layers": 2},
            "model.encoder is .on.; .*leave model.positions.scaling.short_factors out",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            validate_model(override(BOTH, more))
    # Without the scaling they are read by nothing.
    assert override(BOTH, {"positions.scaling": "none"}).rope_switch == 0
