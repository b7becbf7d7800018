"""Beam search under constraints, against every text that a constraint allows."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re

import jax
import numpy as np
import pytest
from pairwise import parametrize
from parameters import random_parameters

pytest.importorskip("llguidance", reason="needs the extra: pip install -e '.[constrain]'")

from constrained_rows import MORE_IDS, few_processors, tokenizer_of, vocabulary_of

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.decode import StopConfig, TokenConfig
from llm_jax.config.search import BeamConfig
from llm_jax.decode import Generator
from llm_jax.decode.constrain import (
    GrammarVocabulary,
    JsonSchema,
    Matchers,
    Regex,
    compile_constraint,
)
from llm_jax.tokenizers.tokenizer import continuation
from llm_jax.types import ConfigError

KIND = "byte-level"
V = tokenizer_of(KIND).vocab_size + MORE_IDS
CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": V,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 128,
        "attention.window_pattern": (5, 0),
        "init_std": 0.5,
    },
)
PROMPT = tokenizer_of(KIND).encode("the x")
A, B = tokenizer_of(KIND).encode("ab")
(STOP,) = vocabulary_of(KIND).stop_ids
LETTERS = TokenConfig(allowed_ids=(A, B, STOP))
SHORT = DecodeConfig(max_new_tokens=6, tokens=LETTERS)
UP_TO_THREE = Regex("[ab]{1,3}")
FORMS = {
    "plain": BeamConfig(beams=4, returned=4),
    "drawn": BeamConfig(beams=4, returned=4, sample=True),
    "groups": BeamConfig(beams=4, returned=4, groups=2, diversity_penalty=0.7),
}


@pytest.fixture(autouse=True, scope="module")
def processors():
    with few_processors():
        yield


@functools.cache
def without_stops() -> GrammarVocabulary:
    return GrammarVocabulary(tokenizer_of(KIND), V, ())


@functools.cache
def generator() -> Generator:
    model = models.build(CONFIG)
    return Generator(model, random_parameters(model), stop_ids=(STOP,))


def matchers_of(*constraints, vocabulary=None) -> Matchers:
    vocabulary = vocabulary or vocabulary_of(KIND)
    return Matchers(
        vocabulary, [one and compile_constraint(one, vocabulary) for one in constraints]
    )


def search(constraints, config, beams, prompts=None, vocabulary=None, **more):
    matchers = matchers_of(*constraints, vocabulary=vocabulary)
    prompts = prompts or [PROMPT] * len(constraints)
    return generator().search(prompts, config, beams, matchers=matchers, **more)


def log_probabilities(texts: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Of each token of each text, by the full forward pass."""
    tokens = np.zeros((len(texts), 16), np.int32)
    for row, text in zip(tokens, texts):
        whole = [*PROMPT, *text]
        row[: len(whole)] = whole
    lengths = np.array([len(PROMPT) + len(text) for text in texts], np.int32)
    batch = models.rows_of(tokens, lengths)
    model = generator().model
    run = jax.jit(lambda p: jax.nn.log_softmax(model.logits(p, model.apply(p, batch).hidden)))
    found = np.asarray(run(generator().params))
    first = len(PROMPT) - 1
    return [
        np.array([found[row, first + place, id] for place, id in enumerate(text)])
        for row, text in enumerate(texts)
    ]


def all_texts(most: int, penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """Every text of "a" and "b" of 1 to ``most`` letters, of which only shorter ones end at a stop
    token, with its score; the best first.
    """
    texts = [text for n in range(1, most + 1) for text in itertools.product((A, B), repeat=n)]
    written = [(*text, STOP) if len(text) < most else text for text in texts]
    scores = [scored.sum() / len(scored) ** penalty for scored in log_probabilities(written)]
    return sorted(zip(scores, texts), reverse=True)


@parametrize(
    "penalty, stopping",
    itertools.product([-1.0, 0.0, 0.6, 2.0], ["full", "heuristic", "never"]),
    by_default=[(0.6, "never")],
)
def test_as_many_beams_as_texts_find_them_all(penalty, stopping):
    beams = BeamConfig(beams=16, returned=16, length_penalty=penalty, early_stopping=stopping)
    (found,) = search([UP_TO_THREE], SHORT, beams)
    expected = all_texts(3, penalty)
    assert len(expected) == 14
    assert [tuple(one.ids) for one in found] == [ids for _, ids in expected]
    np.testing.assert_allclose([one.score for one in found], [s for s, _ in expected], atol=1e-4)
    assert {one.finish_reason for one in found} == {"stop"}


def test_without_stop_tokens_a_text_ends_where_it_is_complete():
    config = dataclasses.replace(
        SHORT, stops=StopConfig(ignore_eos=True), tokens=TokenConfig(allowed_ids=(A, B))
    )
    beams = BeamConfig(beams=16, returned=16, length_penalty=0.6, early_stopping="never")
    (found,) = search([Regex("[ab]{3}")], config, beams, vocabulary=without_stops())
    expected = [one for one in all_texts(3, 0.6) if len(one[1]) == 3]
    assert [tuple(one.ids) for one in found] == [ids for _, ids in expected]
    assert {one.finish_reason for one in found} == {"stop"}


PERSON = JsonSchema(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[a-zé日]{1,4}$"},
            "kind": {"enum": ["large", "larger"]},
        },
        "required": ["name", "kind"],
        "additionalProperties": False,
    }
)


@parametrize("form", [[form] for form in FORMS], by_default=[["groups"], ["drawn"]])
def test_every_text_satisfies_its_constraint(form):
    """Rows of several constraints, and one without, which is what it is alone."""
    config = DecodeConfig(max_new_tokens=40)
    prompts = [PROMPT, [7, 8], PROMPT, [9]]
    constraints = [PERSON, Regex(r"\d{2}-[a-c]+!"), None, UP_TO_THREE]
    texts = search(constraints, config, FORMS[form], prompts)
    before = tokenizer_of(KIND).encode("x")

    def written(row):
        return [continuation(tokenizer_of(KIND), before, one.ids) for one in texts[row]]

    assert all(len(row) == 4 for row in texts)
    for text in written(0):
        assert set(json.loads(text)) == {"name", "kind"}
    for text, one in zip(written(1), texts[1]):
        assert one.finish_reason == "length" or re.fullmatch(r"\d{2}-[a-c]+!", text)
    for text in written(3):
        assert re.fullmatch("[ab]{1,3}", text)
    assert {one.finish_reason for row in (texts[0], texts[3]) for one in row} == {"stop"}
    free = generator().search(prompts, config, FORMS[form])
    assert [one.ids for one in texts[2]] == [one.ids for one in free[2]]


@parametrize("form", [[form] for form in FORMS], by_default=[["groups"]])
def test_a_constraint_that_allows_everything_changes_nothing(form):
    config = dataclasses.replace(SHORT, max_new_tokens=12)
    prompts = [PROMPT, [7, 8], [9], [3, 2]]
    free = generator().search(prompts, config, FORMS[form])
    found = search([Regex("(?s:.*)"), None, Regex("[ab]*"), None], config, FORMS[form], prompts)
    assert [[one.ids for one in row] for row in found] == [[o.ids for o in row] for row in free]
    for row, other in zip(found, free):
        assert [one.finish_reason for one in row] == [one.finish_reason for one in other]
        np.testing.assert_allclose(
            [one.score for one in row], [one.score for one in other], rtol=1e-5
        )


@pytest.mark.slow
def test_required_phrases_and_a_constraint():
    beams = BeamConfig(
        beams=16, returned=16, length_penalty=0.6, early_stopping="never", required=(((A, B),),)
    )
    (found,) = search([UP_TO_THREE], SHORT, beams)
    expected = [ids for _, ids in all_texts(3, 0.6) if (A, B) in itertools.pairwise(ids)]
    assert [tuple(one.ids) for one in found] == expected and len(expected) == 5


@pytest.mark.slow
def test_a_text_that_is_complete_at_its_length_has_stopped():
    cut = dataclasses.replace(SHORT, max_new_tokens=2)
    beams = BeamConfig(beams=4, returned=4)
    done, open_ = search([Regex("[ab]{2}"), Regex("[ab]{4}")], cut, beams)
    assert {one.finish_reason for one in done} == {"stop"}
    assert {one.finish_reason for one in open_} == {"length"}


def test_what_contradicts_a_constraint_is_refused_by_name():
    beams = BeamConfig(beams=2)
    ends = dataclasses.replace(SHORT, stops=StopConfig(stop_ids=(9,)))
    with pytest.raises(ConfigError, match=r"row 0 ends at the tokens .*compiled for"):
        search([UP_TO_THREE], ends, beams)
    with pytest.raises(ConfigError, match="2 constraints for 1 rows"):
        search([UP_TO_THREE, None], SHORT, beams, [PROMPT])


@pytest.mark.slow
def test_a_constraint_that_other_settings_forbid_is_an_error():
    with pytest.raises(ConfigError, match="row 0: every continuation is banned before new token"):
        search([Regex("c")], SHORT, BeamConfig(beams=2))
