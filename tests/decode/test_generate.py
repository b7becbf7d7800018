"""Generation against what the full forward pass says, one token at a time."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counts import nothing_compiled
from pairwise import parametrize
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import DecodeConfig, ExecutionConfig, ModelConfig, override
from llm_jax.decode import Generator
from llm_jax.decode.parity import ROUNDINGS, TOLERANCE, check_parity, measured_rounding
from llm_jax.decode.programs import decode_step, prefill
from llm_jax.ops.weights import OutputFirst
from llm_jax.plan.trace import matmul_flops
from llm_jax.types import Batch, ConfigError, Tokens

CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": 61,
        "num_layers": 2,
        "embed_dim": 32,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 48,
        "max_length": 128,
        "attention.window_pattern": (5, 0),
        "init_std": 0.3,
    },
)
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [20, 21, 22]]
GREEDY = DecodeConfig(max_new_tokens=12, temperature=0.0)
SAMPLED = DecodeConfig(max_new_tokens=12, temperature=1.0, top_p=0.95, seed=3)


def made(execution: ExecutionConfig = ExecutionConfig(), changed=()):  # noqa: B008 (frozen)
    """The model of CONFIG with the settings of ``changed``, and random parameters."""
    model = models.build(override(CONFIG, dict(changed)), execution)
    return model, random_parameters(model)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(*made())


@functools.cache
def forward(apply, logits):
    return jax.jit(lambda params, batch: logits(params, apply(params, batch).hidden))


def full_logits(model, params, row: list[int]) -> np.ndarray:
    """Logits after each token of one row, without a cache. Padded on the right so that one length
    is compiled.
    """
    n, T = len(row), 32
    tokens = np.zeros((1, T), np.int32)
    tokens[0, :n] = row
    real = (np.arange(T) < n)[None]
    batch = Batch(
        inputs=Tokens(tokens, real.astype(np.int32), np.arange(T, dtype=np.int32)[None]),
        targets=tokens,
        loss_mask=real,
    )
    return np.asarray(forward(model.apply, model.logits)(params, batch))[0, :n]


@pytest.mark.parametrize("layers", ["unroll", "scan"])
def test_greedy_takes_the_most_likely_token_of_the_full_forward(layers, generator):
    if layers == "scan":
        generator = Generator(*made(ExecutionConfig(layers="scan")), layers="scan")
    out = generator.generate(PROMPTS, GREEDY)
    for prompt, written in zip(PROMPTS, out):
        assert len(written) == 12
        row = list(prompt)
        for token in written:
            assert token == full_logits(generator.model, generator.params, row)[-1].argmax()
            row.append(token)


@parametrize(
    "heads, rows",
    itertools.product([1, 2, 4], [1, 2]),
    by_default=[(1, 1), (2, 2)],
)
def test_a_step_copies_no_cache_and_turns_positions_into_angles_once(rows, heads):
    model, params = made(changed={"attention.num_kv_heads": heads, "attention.head_dim": 16})
    generator = Generator(model, params)
    cache = model.init_cache(rows, 96)

    def steps(params, token, cache):
        def step(_, state):
            logits, cache = decode_step(model, params, *state)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, 4, step, (token, cache))

    text = (
        jax.jit(steps, donate_argnums=2)
        .lower(generator.params, jnp.zeros((rows,), jnp.int32), cache)
        .compile()
        .as_text()
    )
    # 96 slots of a layer that sees all, and the ring of a window of 5.
    slots = rf"(?:{rows},)?{heads},(?:96|5),16"
    written = re.findall(rf" = f32\[(?:{slots})\]\S* (?:fusion|scatter)\(", text)
    assert len(written) >= 2 * CONFIG.num_layers
    assert not re.findall(rf" = f32\[(?:{slots})\]\S* (?:copy|transpose)\(", text)
    assert len(re.findall(r" sine\(", text)) == len(re.findall(r" cosine\(", text)) == 1


def test_a_row_does_not_depend_on_the_batch_around_it(generator):
    for config in (GREEDY, SAMPLED):
        together = generator.generate(PROMPTS, config, seeds=[5, 6, 7])
        assert generator.generate([PROMPTS[2]], config, seeds=[7]) == together[2:]
        order = [2, 0, 0]
        others = generator.generate([PROMPTS[i] for i in order], config, seeds=[7, 5, 5])
        assert others == [together[i] for i in order]


def test_seeds_decide_the_text(generator):
    draws = generator.generate([PROMPTS[0]] * 3, SAMPLED, seeds=[0, 1, 2])
    draws += generator.generate([PROMPTS[0]] * 3, SAMPLED, seeds=[3, 0, 1])
    assert draws[0] == draws[4] and draws[1] == draws[5]
    assert len({tuple(d) for d in draws}) == 4


def test_default_seeds_differ_by_row(generator):
    explicit = generator.generate([PROMPTS[0]] * 3, SAMPLED, seeds=[3, 4, 5])
    assert generator.generate([PROMPTS[0]] * 3, SAMPLED) == explicit
    assert explicit[0] != explicit[1]


def test_stop_token_ends_a_row_and_is_not_part_of_it(generator):
    free = generator.generate(PROMPTS, GREEDY)
    stop = free[0][4]
    out = generator.generate(PROMPTS, GREEDY, stop_ids=[stop])
    for before, after in zip(free, out):
        expected = before[: before.index(stop)] if stop in before else before
        assert after == expected
    assert generator.generate(PROMPTS, GREEDY, stop_ids=[free[0][0]])[0] == []


@pytest.mark.parametrize("config", [GREEDY, SAMPLED])
def test_stream_gives_what_generate_gives(generator, config):
    whole = generator.generate([PROMPTS[0]], config)[0]
    assert list(generator.stream(PROMPTS[0], config)) == whole
    stop = whole[5]
    assert list(generator.stream(PROMPTS[0], config, stop_ids=[stop])) == whole[: whole.index(stop)]


def test_other_sampling_settings_compile_nothing_anew(generator):
    generator.generate(PROMPTS, SAMPLED)
    changed = dataclasses.replace(SAMPLED, temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, seed=9)
    with nothing_compiled():
        generator.generate(PROMPTS, changed)
        generator.generate([p + [1] for p in PROMPTS], GREEDY)


def test_samples_follow_the_distribution_of_the_full_forward():
    """First tokens of 4,096 rows against the exact probabilities; chi-square at the 1e-4 level."""
    from scipy.stats import chisquare

    # So short a context that rows are not padded to 64.
    generator, n = Generator(*made(changed={"max_length": 32, "num_layers": 1})), 4096
    out = generator.generate(
        [PROMPTS[1]] * n, DecodeConfig(max_new_tokens=1, temperature=1.5), seeds=range(n)
    )
    logits = full_logits(generator.model, generator.params, PROMPTS[1])[-1].astype(np.float64) / 1.5
    p = np.exp(logits - logits.max())
    expected = n * p / p.sum()
    counts = np.bincount([row[0] for row in out], minlength=CONFIG.vocab_size)
    common = expected >= 5
    groups = [(counts[i], expected[i]) for i in np.flatnonzero(common)]
    if not common.all():
        groups.append((counts[~common].sum(), expected[~common].sum()))
    assert chisquare(*zip(*groups)).pvalue > 1e-4


def test_bad_prompts_and_settings(generator):
    with pytest.raises(ConfigError, match="a prompt is empty; begin it with"):
        generator.generate([[1], []], GREEDY)
    with pytest.raises(
        ConfigError,
        match=(
            r"prompt of 120 tokens and max_new_tokens 12 do not fit the context: .*132"
            r" .*max_length 128"
        ),
    ):
        generator.generate([[1] * 120], GREEDY)
    with pytest.raises(ConfigError, match="2 seeds for 1 prompts"):
        generator.generate([[1]], GREEDY, seeds=[1, 2])
    with pytest.raises(ConfigError, match=r"top_p is 1.5; it must be more than 0 and at most 1"):
        generator.generate([[1]], DecodeConfig(top_p=1.5))


def test_a_prompt_may_fill_the_context_to_the_last_token(generator):
    prompt = [1] * (CONFIG.max_length - 12)
    assert len(generator.generate([prompt], GREEDY)[0]) == 12


# Written out: test_prompts_are_read_through_the_backend_of_the_config.
@parametrize("layers", [["unroll"], ["scan"]], by_default=[["scan"]])
def test_cached_decoding_equals_the_full_forward(layers):
    model, params = made(ExecutionConfig(layers=layers))
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 61, n).tolist() for n in (40, 23, 9)]
    result = check_parity(model, params, rows, [10, 22, 1])
    assert result.difference <= 1e-5
    assert result.compared == 30 + 1 + 8


@parametrize("backend", [["xla"], ["dot_product"], ["blockwise"]], by_default=[["blockwise"]])
def test_prompts_are_read_through_the_backend_of_the_config(backend):
    """With a work that goes by the prompt and not by the room behind it."""
    model, params = made(ExecutionConfig(attention=backend))
    rows = [np.random.default_rng(n).integers(0, 61, n).tolist() for n in (40, 23, 9)]
    assert check_parity(model, params, rows, [30, 22, 1]).difference <= 1e-5
    tokens = jnp.ones((2, 64), jnp.int32)
    traced = [
        jax.make_jaxpr(
            lambda p, room=room: prefill(
                model, p, tokens, jnp.full(2, 64), model.init_cache(2, room)
            )
        )(params)
        for room in (64, 128)
    ]
    assert matmul_flops(traced[0]) == matmul_flops(traced[1])
    assert ("scan" in str(traced[0])) == (backend == "blockwise")
    # One token alone is not worth a kernel.
    one = jax.make_jaxpr(
        lambda p: prefill(model, p, tokens[:, :1], jnp.ones(2, int), model.init_cache(2, 64))
    )(params)
    assert "scan" not in str(one)


def test_a_step_may_be_the_first():
    model, params = made()
    tokens = jnp.array([3, 5])

    @jax.jit
    def both(params):
        return (
            decode_step(model, params, tokens, model.init_cache(2, 8)),
            prefill(model, params, tokens[:, None], jnp.ones(2, int), model.init_cache(2, 8)),
        )

    (logits, cache), (wanted, same) = both(params)
    np.testing.assert_allclose(logits, wanted, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, cache, same)


@pytest.mark.parametrize("tied", [True, False])
def test_the_parameters_that_decoding_reads_are_the_model_s(tied):
    """Logits of few and of many rows, and of whatever else takes parameters."""
    model, params = made(changed={"embedding.tied": tied, "num_layers": 1})
    turned = Generator(model, params).params
    assert tied or type(turned["head"]["kernel"]) is OutputFirst
    rows = [np.random.default_rng(n).integers(0, 61, n).tolist() for n in (40, 23, 9)]
    assert check_parity(model, turned, rows, [30, 22, 1]).difference <= 1e-5
    np.testing.assert_allclose(
        full_logits(model, turned, rows[1]), full_logits(model, params, rows[1]), atol=1e-5
    )
    np.testing.assert_array_equal(model.head(turned).kernel, model.head(params).kernel)


@pytest.mark.parametrize("built", ["unroll", "scan"])
def test_the_generator_lays_parameters_out_for_the_platform_or_as_it_is_told(built):
    """On a CPU each layer's apart by default, however the model was built."""
    model = models.build(CONFIG, ExecutionConfig(layers=built))
    params = jax.jit(model.init)(jax.random.key(1))
    by_default = Generator(model, params).params["layers"]
    assert len(by_default) == CONFIG.num_layers and type(by_default) is tuple
    stacked = Generator(model, params, layers="scan").params
    jax.tree.map(np.testing.assert_array_equal, stacked, params)


def one_position_off(model):
    """The model with decode steps that rotate queries and keys as if they were one place
    further.
    """

    def shifted(params, batch, cache=None, *, dropout_key=None, begin=False):
        if cache is not None and batch.inputs.ids.shape[1] == 1:
            batch = batch._replace(
                inputs=batch.inputs._replace(positions=batch.inputs.positions + 1)
            )
        return model.apply(params, batch, cache, dropout_key=dropout_key, begin=begin)

    return model._replace(apply=shifted)


# Every run has the same of a model of large logits, in the next test.
@pytest.mark.slow
def test_parity_check_sees_a_cache_that_is_one_position_off():
    model, params = made(changed={"num_layers": 1})
    result = check_parity(one_position_off(model), params, [list(range(20))], [10])
    assert result.difference > 1e-3


@pytest.mark.slow
def test_the_rounding_of_a_model_of_large_logits_is_told_from_a_fault():
    """Their log-probabilities go down to -300, where a unit in the last place of float32
    is 3e-5.
    """
    model = models.build(dataclasses.replace(CONFIG, init_std=1.0))
    params = jax.jit(model.init)(jax.random.key(1))
    rows = [np.random.default_rng(n).integers(0, 61, n).tolist() for n in (40, 23, 9)]
    rounding = measured_rounding(model, params, rows, "float32")
    found = check_parity(model, params, rows, [10, 22, 1])
    assert TOLERANCE["float32"] < found.difference <= ROUNDINGS * rounding < 1e-2
    assert check_parity(one_position_off(model), params, rows, [10, 22, 1]).difference > 1


def test_generation_in_bfloat16_keeps_norms_in_float32():
    generator = Generator(*made(ExecutionConfig(compute_dtype="bfloat16")))
    assert generator.params["embed"]["embedding"].dtype == jnp.bfloat16
    assert generator.params["layers"][0]["attention_norm"]["scale"].dtype == jnp.float32
    assert len(generator.generate(PROMPTS, GREEDY)[0]) == 12
