"""Models of recurrent layers: causality, packing, caches, meshes, decoding, and refusals."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_rows import pack_rows
from pairwise import parametrize
from small_models import (
    DOCUMENTS,
    MESH,
    assert_same,
    loss_and_gradient,
    losses,
    made,
    reached,
    variants,
)
from small_models import T as LENGTH

from llm_jax.config import Config, DecodeConfig, ExecutionConfig, ModelConfig, override
from llm_jax.config.draft import DraftConfig
from llm_jax.config.saved import from_json, to_json
from llm_jax.config.validate_model import validate_model
from llm_jax.decode import Generator
from llm_jax.decode.drafts import Draft
from llm_jax.decode.parity import TOLERANCE, check_parity
from llm_jax.decode.programs import extend, prefill
from llm_jax.models import build
from llm_jax.plan.decode import decode_flops, plan_decode, prefill_flops
from llm_jax.plan.step import plan_step
from llm_jax.plan.topology import parse_topology
from llm_jax.training.flops import matmul_parameters, train_flops
from llm_jax.types import ConfigError

BASE = override(
    ModelConfig(),
    {"vocab_size": 32, "num_layers": 2, "embed_dim": 16, "max_length": 40, "recurrent": "lstm"},
)
MODELS = variants(
    BASE,
    {
        "lstm": {},
        "projected": {"recurrent.hidden_dim": 24, "embedding.tied": False, "norm": "layer"},
        "classic": {"recurrent.residual": False, "norm.final": False},
        "post": {"norm.position": "post", "residual_scale": 0.5, "head.softcap": 5.0},
    },
)
PACK = pack_rows(DOCUMENTS, LENGTH)


@functools.cache
def small(name: str, layers: str = "unroll"):
    return made(MODELS[name], layers, "auto")


@parametrize("name", [["projected"], ["classic"]], by_default=[["projected"]])
def test_outputs_depend_on_the_tokens_before_in_their_document_alone(name):
    segments = PACK.inputs.segment_ids
    at = np.arange(LENGTH)
    same = segments[:, :, None] == segments[:, None, :]
    wanted = same & (at[:, None] >= at[None, :])
    real = segments != 0
    found = reached(*small(name), PACK)
    np.testing.assert_array_equal(found[real], wanted[real])


@parametrize("name", [[name] for name in MODELS], by_default=[["projected"], ["classic"]])
def test_packed_documents_equal_documents_alone(name):
    params = small(name)[1]
    run = forward_of(name)
    packed = run(params, PACK)
    for row, documents in enumerate(DOCUMENTS):
        start = 0
        for document in documents:
            alone = run(params, pack_rows([[document]], LENGTH))
            end = start + len(document)
            np.testing.assert_allclose(packed[row, start:end], alone[0, : len(document)], atol=1e-5)
            start = end


@functools.cache
def forward_of(name):
    model = small(name)[0]

    def log_probabilities(params, batch):
        return jax.nn.log_softmax(model.logits(params, model.apply(params, batch).hidden))

    return jax.jit(log_probabilities)


ROWS = [np.random.default_rng(i).integers(0, 32, n).tolist() for i, n in enumerate((22, 13, 18))]


@parametrize(
    "name, layers", [("projected", "unroll"), ("post", "scan")], by_default=[("post", "scan")]
)
def test_cached_decoding_is_the_full_forward_pass(name, layers):
    found = check_parity(*small(name, layers), ROWS, [9, 3, 12])
    assert found.compared == 13 + 10 + 6 and found.difference < TOLERANCE["float32"]


def test_chunks_of_any_sizes_and_gathered_rows_go_on_as_the_rows_that_they_are():
    model, params = small("projected")
    tokens = np.zeros((3, 22), np.int32)
    for row, ids in enumerate(ROWS):
        tokens[row, : len(ids)] = ids
    full = jax.jit(model.apply)(params, pack_rows([[row] for row in ROWS], 22)).hidden
    go_on = jax.jit(functools.partial(extend, model))
    cache = model.init_cache(3, 32)
    lengths = np.zeros(3, int)
    order = np.arange(3)
    # Rows get 0 to 5 tokens in a call, and are gathered between two calls.
    for counts in ([3, 1, 5], [0, 2, 4], [5, 0, 1], "gather", [1, 5, 3], [4, 4, 4]):
        if counts == "gather":
            order = np.array([2, 0, 0])
            cache = cache.gather(jnp.asarray(order))
            lengths = lengths[order]
            continue
        chunk = np.zeros((3, 5), np.int32)
        for row, count in enumerate(counts):
            begin = lengths[row]
            chunk[row, :count] = tokens[order[row], begin : begin + count]
        hidden, cache = go_on(params, chunk, np.asarray(counts), cache)
        for row, count in enumerate(counts):
            begin = lengths[row]
            wanted = full[order[row], begin : begin + count]
            np.testing.assert_allclose(hidden[row, :count], wanted, atol=1e-5)
        lengths = lengths + counts
        np.testing.assert_array_equal(cache.length, lengths)


def test_a_call_that_begins_forgets_what_the_cache_held():
    model, params = small("lstm")
    prompt = jnp.asarray([[5, 6, 7, 0]])
    lengths = jnp.asarray([3])
    read = jax.jit(functools.partial(prefill, model))
    fresh, _ = read(params, prompt, lengths, model.init_cache(1, 16))
    _, used = read(params, prompt[:, ::-1], lengths + 1, model.init_cache(1, 16))
    again, cache = read(params, prompt, lengths, used)
    np.testing.assert_array_equal(fresh, again)
    assert cache.length.tolist() == [3]


@parametrize("layers, remat", [("scan", "full"), ("unroll", "dots")], by_default=[("scan", "full")])
def test_every_way_of_running_gives_the_same_loss_and_gradient(layers, remat):
    params = small("projected")[1]
    how = ExecutionConfig(layers=layers, remat=remat, compute_dtype="float32")
    other = build(MODELS["projected"], how)
    assert_same(loss_and_gradient(other, params, PACK), expected("projected"))


@functools.cache
def expected(name):
    return loss_and_gradient(*small(name), PACK)


def test_every_parameter_has_a_gradient_that_is_finite():
    for path, g in jax.tree_util.tree_flatten_with_path(expected("projected")[1])[0]:
        assert np.isfinite(g).all() and np.abs(g).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.mesh
@parametrize("rule", [["adamw"], ["muon"]], by_default=[["adamw"]])
def test_a_run_on_8_devices_is_the_run_on_one(rule):
    settings = {
        "data.batch_size": 8,
        "data.seq_length": LENGTH,
        "optimizer.update": rule,
        "optimizer.warmup_steps": 0,
        "execution.compute_dtype": "float32",
        "model.dropout": 0.1,
    }
    model = override(
        MODELS["projected"], {"num_layers": 1, "embed_dim": 32, "recurrent.hidden_dim": 64}
    )
    one = override(Config(model=model), settings)
    many = override(one, {f"mesh.{axis}": size for axis, size in MESH.items()})
    batch = pack_rows(DOCUMENTS * 4, LENGTH)
    curve = losses(one, batch, 1, 3)
    np.testing.assert_allclose(losses(many, batch, 8, 3), curve, rtol=1e-5)
    assert curve[2] < curve[0]


GREEDY = DecodeConfig(max_new_tokens=6, temperature=0.0)


def greedy_by_full_passes(prompt):
    run = forward_of("projected")
    params = small("projected")[1]
    ids = list(prompt)
    for _ in range(GREEDY.max_new_tokens):
        ids.append(int(run(params, pack_rows([[ids]], LENGTH))[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


def test_a_generator_writes_what_full_passes_choose():
    generator = Generator(*small("projected"))
    prompts = [[1, 2, 3], [7, 4]]
    wanted = [greedy_by_full_passes(prompt) for prompt in prompts]
    assert generator.generate(prompts, GREEDY, stop_ids=()) == wanted


def test_drafts_are_refused_by_name():
    draft = Draft(DraftConfig(kind="lookup", tokens=2))
    with pytest.raises(ConfigError, match="drafts take tokens back, and recurrent layers"):
        Generator(*small("lstm"), draft=draft)
    attending = build(override(BASE, {"recurrent": "none", "attention.num_heads": 2}))
    params = attending.init(jax.random.key(0))
    draft = Draft(DraftConfig(kind="model", tokens=2), *small("lstm"))
    with pytest.raises(ConfigError, match="draft models take tokens back"):
        Generator(attending, params, draft=draft)


REFUSED = [
    ({"attention.num_heads": 4}, r"model.attention.num_heads is 4 and model.recurrent is 'lstm',"),
    ({"attention.window_pattern": (4,)}, r"attention.window_pattern is \(4,\) .* set it to \(0,\)"),
    ({"attention": "latent"}, "model.attention is 'latent'"),
    ({"mlp.hidden_dim": 64}, "model.mlp.hidden_dim is 64 .* set it to 3072"),
    ({"mlp": "plain"}, "model.mlp is 'plain'"),
    ({"mlp.activation": "gelu"}, "model.mlp.activation is 'gelu'"),
    ({"experts.count": 2}, "model.experts is 'on'"),
    ({"positions": "learned"}, "model.positions is 'learned' .* set it to rope"),
    ({"positions.theta": 5.0}, "model.positions.theta is 5.0"),
    ({"encoder.num_layers": 1}, "model.encoder is 'on'"),
    ({"first_layers.count": 1}, "model.first_layers is 'on'"),
    ({"parallel_residual": True}, "model.parallel_residual is True"),
    ({"causal": False}, "model.causal is False"),
    ({"norm.attention": False}, "model.norm.attention is False"),
    ({"recurrent.residual": False, "norm.position": "post"}, "model.recurrent.residual is False"),
    ({"recurrent.residual": False, "residual_scale": 0.5}, "model.residual_scale is 0.5 and"),
    ({"parametrization": "mup"}, "model.parametrization is 'mup' and model.recurrent is 'lstm'"),
]


@pytest.mark.parametrize(("updates", "message"), REFUSED)
def test_what_nothing_would_read_is_refused(updates, message):
    with pytest.raises(ConfigError, match=message):
        validate_model(override(BASE, updates))


@pytest.mark.parametrize(
    "updates",
    [{"positions": "none"}, {"head.transform": "on", "mlp.activation": "relu"}, {"embed_dim": 15}],
)
def test_what_says_nothing_of_attention_is_allowed(updates):
    validate_model(override(BASE, updates))


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"remat": "names:query"}, "execution.remat is 'names:query', and recurrent layers have"),
        ({"remat": "offload:mlp_out"}, "recurrent layers have no mlp_out; use none, full or dots"),
        ({"attention": "xla"}, "would compute attention.* or use execution.attention auto"),
    ],
)
def test_ways_to_run_that_it_does_not_have_are_refused(updates, message):
    with pytest.raises(ConfigError, match=message):
        build(BASE, override(ExecutionConfig(), updates))


def test_groups_that_see_each_other_are_refused():
    model, params = small("lstm")
    groups = np.zeros_like(PACK.inputs.ids)
    batch = PACK._replace(inputs=PACK.inputs._replace(mutual_ids=groups))
    with pytest.raises(ConfigError, match="recurrent layers see only the tokens before"):
        model.apply(params, batch)


def test_a_new_model_keeps_what_it_has_read():
    model = build(override(BASE, {"recurrent.forget_bias": 2.0}))
    params = jax.jit(model.init)(jax.random.key(0))
    bias = np.asarray(params["layers"]["lstm"]["bias"])
    assert bias.shape == (2, 4, 16)
    assert (bias[:, 1] == 2).all() and not bias[:, [0, 2, 3]].any()


def test_flops_are_those_of_the_kernels_and_know_no_attention():
    m = MODELS["projected"]
    kernels = 4 * 24 * (16 + 24) + 24 * 16
    assert matmul_parameters(m) == 2 * kernels + 32 * 16
    specs = jax.tree.leaves(build(m).specs)
    assert {spec.role for spec in specs} == {"embedding", "matrix", "bias", "norm", "head"}
    flops = train_flops(m, 1000)
    assert flops.causal == flops.full == 6 * matmul_parameters(m)
    assert decode_flops(m, 1000) == 2 * matmul_parameters(m)
    assert prefill_flops(m, 10) == 10 * 2 * 2 * kernels + 2 * 32 * 16


PLANNED = override(
    Config(model=BASE), {"model.num_layers": 1, "data.seq_length": 16, "data.batch_size": 8}
)


def test_a_step_and_decoding_are_planned():
    target = parse_topology("cpu:1", 0.1)
    step = plan_step(PLANNED, target, analytic=True)
    # The loss makes its logits twice.
    head = 2 * 8 * 16 * 32 * 16
    assert not step.refused and step.flops["traced"] == step.flops["model, full"] + head
    decoding = plan_decode(PLANNED, target, batch=4, context=32, prompt=8, analytic=True)
    # h and c of each row, whatever the context, and the lengths.
    assert decoding.step.memory["cache"] == 4 * 2 * 16 * 4 + 4 * 4


def test_the_config_is_saved_and_configs_from_before_load():
    config = Config(model=MODELS["projected"])
    data = to_json(config)
    assert data["model"]["recurrent"] == {
        "kind": "lstm",
        "hidden_dim": 24,
        "forget_bias": 1.0,
        "residual": True,
    }
    assert from_json(data) == config
    before = to_json(Config())
    assert before["model"].pop("recurrent") is None
    assert from_json(before) == Config()
