"""Beam search with the processors, the settings of rows, and what it refuses."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import ModelConfig, override
from llm_jax.config.search import BeamConfig
from llm_jax.decode.beams import beam_search, front
from llm_jax.ops.sampling.settings import Settings, off
from llm_jax.types import ConfigError, NonFiniteError

V, STOP, NEW = 19, 3, 5
CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": V,
        "num_layers": 1,
        "embed_dim": 32,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 32,
        "max_length": 70,
    },
)
MODEL = models.build(CONFIG)
PARAMS = random_parameters(MODEL, std=0.3)
PROMPTS = [[1, 2, 3], [4]]
DRAWN = BeamConfig(4, 2, sample=True, length_penalty=0.0)


def settings(rows: int = 2, *, filters=None, penalties=None, **rules) -> Settings:
    """Settings that are off but for those given: one value, or one for each row."""
    out = off(rows, V)
    stops = out.rules.stop_ids.at[:, 0].set(STOP)
    out = out._replace(rules=out.rules._replace(stop_ids=stops))
    return out._replace(
        rules=changed(out.rules, rules),
        filters=changed(out.filters, filters or {}),
        penalties=changed(out.penalties, penalties or {}),
    )


def changed(section, values):
    old = {name: getattr(section, name) for name in values}
    new = {name: np.broadcast_to(value, old[name].shape) for name, value in values.items()}
    return section._replace(**{name: jnp.asarray(a, old[name].dtype) for name, a in new.items()})


def found(config: BeamConfig, prompts=PROMPTS, new: int = NEW, **rest):
    rest = {"settings": settings(len(prompts))} | rest
    return beam_search(MODEL, PARAMS, prompts, config, max_new_tokens=new, **rest)


def test_rules_hold_in_every_text():
    given = settings(min_new=2, forced_first=7, forced_last=1, penalties={"ngram": 1})
    for row in found(BeamConfig(4, 4), settings=given):
        assert any(text.finish_reason == "length" for text in row)
        for text in row:
            assert text.ids[0] == 7 and len(text.ids) >= 2
            assert text.finish_reason == "stop" or text.ids[-1] == 1
            assert len(set(text.ids[:-1])) == len(text.ids[:-1])


def test_a_setting_of_one_row_changes_no_other():
    banned = jnp.zeros((2, V)).at[1, :10].set(-math.inf)
    plain = found(BeamConfig(4, 4))
    changed = found(BeamConfig(4, 4), settings=settings(bias=banned))
    assert changed[0] == plain[0] and changed[1] != plain[1]
    assert all(min(text.ids, default=V) >= 10 for text in changed[1])


def test_another_value_compiles_nothing():
    found(BeamConfig(4))
    programs = front._run._cache_size()
    given = settings(min_new=2, max_new=3, penalties={"repetition": 1.5}, forced_last=2)
    found(BeamConfig(4, 3, length_penalty=0.3, early_stopping="never"), settings=given)
    found(BeamConfig(4, 2, early_stopping="full"), [[5, 6], [7, 8, 9]])
    assert front._run._cache_size() == programs


def test_drawn_texts_are_of_what_the_filters_leave():
    """Two tokens of each beam at least, and temperature divides the scores."""
    filters = {"top_k": 1, "temperature": 0.5}
    drawn = found(DRAWN, settings=settings(filters=filters, max_new=1))
    plain = BeamConfig(4, 2, length_penalty=0.0)
    likely = found(plain, settings=settings(max_new=1))
    for row, best in zip(drawn, likely):
        assert [text.ids for text in row] == [text.ids for text in best]
        scores = [text.score for text in row], [2 * text.score for text in best]
        np.testing.assert_allclose(*scores, rtol=1e-5)


@pytest.mark.slow
def test_draws_do_not_depend_on_the_stop_ids_of_other_rows():
    """How many candidates are drawn, and how many tokens a filter leaves, is by the row's own."""
    three = settings().rules.stop_ids.at[1, 1:3].set(jnp.array([5, 6]))
    filters = {"top_k": 1}
    mixed = found(DRAWN, settings=settings(filters=filters, stop_ids=three))
    alike = found(DRAWN, settings=settings(filters=filters))
    assert mixed[0] == alike[0]


def test_fewer_texts_come_back_where_rules_leave_fewer():
    def only_zero(logits, history):
        return jnp.where(jnp.arange(V)[None] == 0, logits, -jnp.inf)

    for row in found(BeamConfig(4, 4), own=only_zero):
        assert [text.ids for text in row] == [[0] * NEW]


REFUSED = {
    "returned 5 is more than beams 4": {"config": BeamConfig(4, 5)},
    "beams 4 do not divide into 3 groups": {
        "config": BeamConfig(4, groups=3, diversity_penalty=1.0)
    },
    "diversity_penalty is 0.5 and groups is 1": {"config": BeamConfig(4, diversity_penalty=0.5)},
    "groups is 2 and diversity_penalty is 0": {"config": BeamConfig(4, groups=2)},
    "diversity_penalty is -1; it must be at least 0": {
        "config": BeamConfig(4, groups=2, diversity_penalty=-1)
    },
    "beams is 0; it must be at least 1": {"config": BeamConfig(0)},
    "length_penalty is nan": {"config": BeamConfig(4, length_penalty=math.nan)},
    "early_stopping is 'soon'; use full, heuristic, never": {
        "config": BeamConfig(4, early_stopping="soon")  # type: ignore[arg-type]
    },
    "sample is set and groups is 2": {
        "config": BeamConfig(4, groups=2, diversity_penalty=1.0, sample=True)
    },
    "required has 1 phrases and groups is 2": {
        "config": BeamConfig(4, groups=2, diversity_penalty=1.0, required=(((1,),),))
    },
    "required has 1 phrases and sample is set": {
        "config": BeamConfig(4, sample=True, required=(((1,),),))
    },
    "beams is 20, and there are only 19 texts of 1 new tokens": {
        "config": BeamConfig(20),
        "new": 1,
    },
    "max_new_tokens is 0": {"new": 0},
    "a prompt is empty": {"prompts": [[1], []]},
    "prompt 1 has 19 at place 0": {"prompts": [[1], [19]]},
    "prompt of 66 tokens and max_new_tokens 5 do not fit": {"prompts": [[1], [1] * 66]},
    "settings are for (3, 19) rows and tokens; this call has (2, 19)": {"settings": settings(3)},
    "row 1: top_k is 4 and sample is not set": {"settings": settings(filters={"top_k": [0, 4]})},
    "row 0: temperature is 0.5 and sample is not set": {
        "settings": settings(filters={"temperature": 0.5})
    },
    "row 1: temperature is 0 and sample is set": {
        "config": BeamConfig(4, sample=True),
        "settings": settings(filters={"temperature": [1.0, 0.0]}),
    },
    "row 0: guidance is 1.5": {"settings": off(2, V)._replace(guidance=jnp.array([1.5, 1.0]))},
    "1 lists of required phrases for 2 prompts": {"required": [[]]},
    "required phrase 0 of row 1 has no alternatives": {"required": [[], [[]]]},
    "required phrase 0 of row 0 has an alternative without tokens": {"required": [[[[]]], []]},
    "required phrase 1 of row 0 is the same as phrase 0": {"required": [[[[1]], [[1]]], []]},
    "required phrase 1 of row 0 has 19 at place 1": {"required": [[[[1]], [[1, 19]]], []]},
    "required phrase 0 of row 1 has 6 tokens, and a text at most 5": {
        "required": [[], [[[1] * 6]]]
    },
    "required phrase 0 of row 0 has the stop id 3": {"required": [[[[1, 3]]], []]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(message):
    given = {"config": BeamConfig(4)} | REFUSED[message]
    with pytest.raises(ConfigError) as error:
        found(**given)
    assert message in str(error.value)


def test_a_row_whose_tokens_are_all_banned_is_named():
    banned = jnp.zeros((2, V)).at[1].set(-math.inf)
    with pytest.raises(ConfigError, match="row 1: every continuation is banned"):
        found(BeamConfig(4), settings=settings(bias=banned))


def test_logits_that_are_not_finite_are_an_error():
    params = jax.tree.map(lambda a: a.at[..., 0].set(jnp.nan), PARAMS)
    with pytest.raises(NonFiniteError, match="row 0: the logits of new token 1 are not finite"):
        beam_search(MODEL, params, PROMPTS, BeamConfig(4), max_new_tokens=NEW)
