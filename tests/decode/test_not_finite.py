"""Logits that are NaN or infinite end generation with an error that says where."""

import copy
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import DecodeConfig, MeshConfig, ModelConfig, override
from llm_jax.decode import Generator
from llm_jax.decode.finite import cause
from llm_jax.decode.parity import check_parity
from llm_jax.decode.placement import compute_params
from llm_jax.sharding import make_mesh
from llm_jax.types import NonFiniteError

CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": 62,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 64,
        "init_std": 0.3,
        "embedding.tied": False,
    },
)
PROMPTS = [[1, 2, 3, 4], [9]]
GREEDY = DecodeConfig(max_new_tokens=8, temperature=0.0)
DRAWN = DecodeConfig(max_new_tokens=8)
SETTINGS = [
    GREEDY,
    DecodeConfig(max_new_tokens=8, top_k=5, top_p=0.9, min_p=0.01),
]


def made():
    model = models.build(CONFIG)
    return model, random_parameters(model)


def spoiled(params, path, index, value=jnp.nan):
    """``params`` with one number, or all along the first axis, replaced."""
    name, _, rest = path.partition("/")
    if not rest:
        return {**params, name: params[name].at[index].set(value)}
    return {**params, name: spoiled(params[name], rest, index, value)}


@pytest.fixture(scope="module")
def healthy():
    model, params = made()
    return model, params, Generator(model, params)


def with_params(generator, params):
    """A generator of other parameters, which compiles nothing anew."""
    out = copy.copy(generator)
    out.params = jax.jit(generator._compute)(params)
    return out


@pytest.mark.parametrize("value", [jnp.nan, -jnp.inf])
def test_a_bad_weight_is_named_whatever_chooses_tokens(healthy, value):
    _, params, generator = healthy
    bad = with_params(generator, spoiled(params, "head/kernel", (3, 7), value))
    expected = (
        r"row 0: the logits of new token 1 are not finite .* parameter that is not finite is"
        r" head/kernel\[3\]"
    )
    for settings in SETTINGS:
        with pytest.raises(NonFiniteError, match=expected):
            bad.generate(PROMPTS, settings)
        with pytest.raises(NonFiniteError, match=expected):
            list(bad.stream(PROMPTS[0], settings))


@pytest.mark.parametrize("layout", ["output_first", "stacked"])
def test_a_parameter_has_the_path_of_the_checkpoint_and_its_layer(layout):
    """Also where decoding reads several parameters as one, and in any order of axes."""
    model, params = made()
    compute = partial(compute_params, model, layout=layout)
    for path in (
        "layers/attention/key/kernel",
        "layers/attention/out/kernel",
        "layers/mlp_norm/scale",
        "head/kernel",
    ):
        bad = spoiled(params, path, 1)
        assert cause(compute(bad), compute, params).startswith(
            f"the first parameter that is not finite is {path}[1];"
        )
    both = spoiled(spoiled(params, "layers/mlp/up/kernel", 0), "final_norm/scale", 4, jnp.inf)
    assert "is final_norm/scale[4];" in cause(compute(both), compute, params)
    assert cause(compute(params), compute, params).startswith("all parameters are finite")


def test_the_row_and_the_token_are_named(healthy):
    """The embedding of a token that only row 1 writes is bad: what row 1 would write after it has
    no logits.
    """
    _, params, generator = healthy
    free = generator.generate(PROMPTS, DRAWN)

    def seen_before(place):
        return {*free[0], *PROMPTS[0], *PROMPTS[1], *free[1][:place]}

    place = next(i for i, token in enumerate(free[1]) if 1 <= i < 7 and token not in seen_before(i))
    token = free[1][place]
    bad = with_params(generator, spoiled(params, "embed/embedding", token, jnp.inf))
    expected = rf"row 1: the logits of new token {place + 2} are .*embed/embedding\[{token}\]"
    with pytest.raises(NonFiniteError, match=expected):
        bad.generate(PROMPTS, DRAWN)
    # A row that has stopped is done, whatever its next logits would be.
    assert bad.generate(PROMPTS, DRAWN, stop_ids=[token]) == [free[0], free[1][:place]]
    stream = bad.stream(PROMPTS[1], replace(DRAWN, seed=1))
    assert [next(stream) for _ in range(place + 1)] == free[1][: place + 1]
    with pytest.raises(NonFiniteError, match=rf"row 0: the logits of new token {place + 2} "):
        next(stream)


def test_an_overflow_of_finite_weights_is_said_to_be_one(healthy):
    _, params, generator = healthy
    large = {**params, "head": {"kernel": jnp.sign(params["head"]["kernel"]) * 3e38}}
    with pytest.raises(
        NonFiniteError, match="all parameters are finite, so a number overflowed on the way$"
    ):
        with_params(generator, large).generate(PROMPTS, GREEDY)


@pytest.mark.mesh
@pytest.mark.slow
def test_on_a_mesh_the_same_is_named():
    model, params = made()
    bad = spoiled(params, "layers/attention/value/kernel", 1)
    split = Generator(model, bad, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    with pytest.raises(NonFiniteError, match=r"row 0: .* layers/attention/value/kernel\[1\]"):
        split.generate(PROMPTS * 2, GREEDY)


def test_parity_of_what_is_not_finite_is_an_error(healthy):
    model, params, _ = healthy
    rows = [list(range(20)), list(range(9))]
    bad = spoiled(params, "layers/mlp/up/kernel", 1)
    with pytest.raises(NonFiniteError, match=r"row 0, position 9: .*layers/mlp/up/kernel\[1\]"):
        check_parity(model, bad, rows, [10, 4])

    def broken(row, length, params, batch, cache=None, *, dropout_key=None, begin=False):
        """NaN in the steps of one row from a length on."""
        out = model.apply(params, batch, cache, dropout_key=dropout_key, begin=begin)
        if cache is None or begin:
            return out
        lost = (jnp.arange(2) == row) & (cache.length >= length)
        return out._replace(hidden=jnp.where(lost[:, None, None], jnp.nan, out.hidden))

    with pytest.raises(NonFiniteError, match="row 1, position 7: .* all parameters are finite"):
        check_parity(model._replace(apply=partial(broken, 1, 7)), params, rows, [10, 4])
    # What follows a shorter row is nobody's.
    found = check_parity(model._replace(apply=partial(broken, 1, 8)), params, rows, [10, 4])
    assert found.compared == 10 + 5 and 0 <= found.difference <= 1e-5
