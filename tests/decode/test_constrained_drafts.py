"""Constraints with drafts: texts, and their distribution, are those without a draft."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from pairwise import parametrize
from parameters import random_parameters
from scipy.stats import chisquare

pytest.importorskip("llguidance", reason="needs the extra: pip install -e '.[constrain]'")

from constrained_rows import MORE_IDS, bits, few_processors, tokenizer_of, vocabulary_of

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.decode import PenaltyConfig, TokenConfig
from llm_jax.config.draft import DraftConfig
from llm_jax.decode import Generator
from llm_jax.decode.constrain import Choices, JsonSchema, Matchers, Regex, compile_constraint
from llm_jax.decode.constrained_plan import planned
from llm_jax.decode.drafts import Draft
from llm_jax.decode.requests import Wanted
from llm_jax.ops.sampling.stops import token_bytes_table
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
NAME = {"type": "string", "pattern": "^[a-zé日]{1,4}$"}
PERSON = JsonSchema(
    {
        "type": "object",
        "properties": {"first_name": NAME, "kind": {"enum": ["large", "larger"]}, "n": NAME},
        "required": ["first_name", "kind", "n"],
        "additionalProperties": False,
    }
)
KINDS = ("lookup", "early_exit", "model")
DRAWN = DecodeConfig(max_new_tokens=60)
GREEDY = dataclasses.replace(DRAWN, temperature=0.0)
PROMPT = tokenizer_of(KIND).encode('{"first_name": "a')
# One row ends at its length, one at a stop token, and one has no constraint.
CONSTRAINTS = [PERSON, None, Regex("[ab]{3}(ab)*"), Choices(["no", "yes", "yes é"]), PERSON]
CONFIGS = [
    GREEDY,
    dataclasses.replace(GREEDY, max_new_tokens=33),
    dataclasses.replace(GREEDY, max_new_tokens=20),
    dataclasses.replace(GREEDY, penalties=PenaltyConfig(repetition_penalty=1.5)),
    dataclasses.replace(GREEDY, max_new_tokens=17),
]
# A p-value below this is no chance.
NEVER = 1e-6


@pytest.fixture(autouse=True, scope="module")
def processors():
    with few_processors():
        yield


@functools.cache
def generator_of(kind: str | None, tokens: int = 4) -> Generator:
    model = models.build(CONFIG)
    params = random_parameters(model)
    vocabulary = vocabulary_of(KIND)
    known = [vocabulary.bytes_of(id) for id in range(vocabulary.count)]
    draft = None
    if kind == "lookup":
        draft = Draft(DraftConfig("lookup", tokens=tokens))
    elif kind == "early_exit":
        draft = Draft(DraftConfig("early_exit", tokens=tokens, layers=1))
    elif kind == "model":
        changes = {"num_layers": 1, "embed_dim": 24, "attention.window_pattern": (6,)}
        other = models.build(override(CONFIG, changes))
        draft = Draft(DraftConfig("model", tokens=tokens), other, random_parameters(other, seed=7))
    elif kind == "itself":
        draft = Draft(DraftConfig("model", tokens=tokens), model, params)
    return Generator(
        model,
        params,
        stop_ids=vocabulary.stop_ids,
        token_bytes=token_bytes_table([*known, *[b""] * MORE_IDS]),
        draft=draft,
    )


def matchers_of(constraints) -> Matchers:
    vocabulary = vocabulary_of(KIND)
    return Matchers(
        vocabulary, [one and compile_constraint(one, vocabulary) for one in constraints]
    )


def complete(kind, constraints, configs, wanted=Wanted(), **more):  # noqa: B008
    prompts = [PROMPT] * (len(constraints) // wanted.samples)
    found = generator_of(kind).complete_constrained(
        prompts, configs, matchers_of(constraints), wanted, **more
    )
    return [completion for row in found for completion in row]


def check_counts(completion) -> None:
    assert 0 <= completion.accepted <= completion.drafted
    assert completion.accepted <= len(completion.ids) + (completion.stop is not None)


@parametrize("kind", [[kind] for kind in KINDS], by_default=[["lookup"]])
def test_greedy_texts_are_those_without_a_draft(kind):
    plain = complete(None, CONSTRAINTS, CONFIGS)
    found = complete(kind, CONSTRAINTS, CONFIGS)
    for with_draft, without in zip(found, plain):
        check_counts(with_draft)
        assert with_draft._replace(drafted=0, accepted=0) == without
    assert sum(one.drafted > 0 for one in found) >= 4
    assert {completion.finish_reason for completion in found} == {"stop", "length"}


LETTERS = tokenizer_of(KIND).encode("abcd")
STRINGS = ["".join(text) for text in itertools.product("ab", "bcd", "bcd", "ad")]
# The draft has the letters too, and not the constraint.
OF_LETTERS = DecodeConfig(
    max_new_tokens=8, temperature=1.2, tokens=TokenConfig(allowed_ids=tuple(LETTERS))
)


def probabilities() -> np.ndarray:
    """Of each of STRINGS: the model's, over the letters that may come at each place."""
    generator = generator_of(None)
    model = generator.model
    ids = dict(zip("abcd", LETTERS))
    rows = [[*PROMPT, *(ids[letter] for letter in text)] for text in STRINGS]
    batch = models.rows_of(np.array(rows, np.int32), np.full(len(rows), len(rows[0]), np.int32))
    run = jax.jit(lambda p: model.logits(p, model.apply(p, batch).hidden))
    logits = np.asarray(run(generator.params), np.float64)[:, len(PROMPT) - 1 :] / 1.2
    found = np.ones(len(STRINGS))
    for place, letters in enumerate(["ab", "bcd", "bcd", "ad"]):
        weights = {letter: np.exp(logits[:, place, ids[letter]]) for letter in letters}
        for row, text in enumerate(STRINGS):
            found[row] *= weights[text[place]][row] / sum(w[row] for w in weights.values())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1_000, 4_000])
def test_drawn_texts_have_the_probabilities_of_the_constrained_model(kind, rows):
    """Chi-square of thousands of texts, among them rows without a constraint."""
    regex = Regex("[ab][bcd]{2}[ad]")
    constraints = [None if row % 30 == 0 else regex for row in range(rows)]
    wanted = Wanted(samples=rows)
    found = complete(kind, constraints, [OF_LETTERS], wanted)
    free = [one for one, given in zip(found, constraints) if given is None]
    bound = [one for one, given in zip(found, constraints) if given is not None]
    assert {len(one.ids) for one in free} == {8} and {one.finish_reason for one in bound} == {
        "stop"
    }
    letters = dict(zip(LETTERS, "abcd"))
    texts = ["".join(letters[id] for id in one.ids) for one in bound]
    assert set(texts) <= set(STRINGS)
    counts = np.array([texts.count(text) for text in STRINGS])
    expected = len(bound) * probabilities()
    assert (expected >= 5).sum() > 15
    rare = expected < 5
    observed = [*counts[~rare], counts[rare].sum()]
    wanted_counts = [*expected[~rare], expected[rare].sum()]
    keep = np.array(wanted_counts) > 0
    assert chisquare(np.array(observed)[keep], np.array(wanted_counts)[keep]).pvalue > NEVER
    drafted = sum(one.drafted for one in bound)
    accepted = sum(one.accepted for one in bound)
    # Both happen often enough to show in the counts; lookup guesses least.
    assert drafted > 1.2 * accepted > rows / 6
    for one in found:
        check_counts(one)


def test_a_plan_follows_the_constraint_along_the_draft():
    a, b, c, d = LETTERS
    matchers = matchers_of([Regex("[ab]{2}c"), Regex("[ab]{2}c"), None, Choices(["ab", "abcd"])])
    before = matchers.bitmask()
    drafts = np.array([[a, d, d, a], [b, a, d, b], [a, a, d, c]], np.int32)
    plan = planned(
        matchers,
        drafts,
        np.array([3, 3, 2, 3]),
        rows=range(4),
        ready=[[], [], [], [a, b]],
        # After two letters only "c" is left.
        following=lambda row, new: [c] if row == 0 and new == 2 else [],
    )
    np.testing.assert_array_equal(matchers.bitmask(), before)
    # "c" takes the place of the third token; "d" stays, to be rejected; a free row has its draft;
    # what is ready comes first, and the draft goes on where it is the same.
    assert plan.tokens[:, 0].tolist() == [a, b, c] and plan.given[:, 0].tolist() == [0, 0, 1]
    assert plan.counts.tolist() == [3, 1, 2, 3] and plan.same.tolist() == [2, 1, 2, 3]
    assert plan.given[:, 3].tolist() == [1, 1, 0]
    masks = bits(plan.masks)
    assert masks[2, 0].sum() == 1 and masks[2, 0, c]
    assert not masks[0, 1, d] and masks[0, 1, a]
    assert masks[:, 2].all()
    assert masks[:2, 3].sum() == 2 and masks[3, 3, d] and not masks[3, 3, a]


@pytest.mark.slow
def test_a_draft_that_is_the_model_is_accepted_where_nothing_forbids_it():
    """A free row accepts all of its draft; under a constraint what it allows of it."""
    free, under = complete("itself", [None, PERSON], [GREEDY, GREEDY])
    assert free.accepted == free.drafted > 40
    assert under.ids == complete(None, [None, PERSON], [GREEDY, GREEDY])[1].ids
    # Tokens that come without a draw were not drafted.
    assert under.drafted < len(under.ids)
    only = dataclasses.replace(OF_LETTERS, temperature=0.0, max_new_tokens=21)
    same, again = complete("itself", [Regex("[abcd]*"), None], [only, only])
    assert same.ids == again.ids and len(same.ids) == 21
    assert same.accepted == same.drafted == again.accepted == 16


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_without_a_draft(kind):
    wanted = Wanted(logprobs=2)
    plain = complete(None, CONSTRAINTS, CONFIGS, wanted)
    for one, other in zip(complete(kind, CONSTRAINTS, CONFIGS, wanted), plain):
        assert one.ids == other.ids and len(one.scores) == len(other.scores) == len(one.ids)
        for score, expected in zip(one.scores, other.scores):
            assert [id for id, _ in score.top] == [id for id, _ in expected.top]
            np.testing.assert_allclose(score.logprob, expected.logprob, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_guidance_and_samples(kind):
    guided = dataclasses.replace(GREEDY, guidance_scale=1.7, negative_prompt=(7, 8, 9))
    found = complete(kind, [PERSON, PERSON], [guided], Wanted(samples=2))
    plain = complete(None, [PERSON, PERSON], [guided], Wanted(samples=2))
    assert [one.ids for one in found] == [one.ids for one in plain]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_the_same(kind):
    ended = []
    generator = generator_of(kind)
    scores = generator.stream_constrained(PROMPT, GREEDY, matchers_of([PERSON]), ended=ended.append)
    ids = [score.id for score in scores]
    (plain,) = complete(None, [PERSON], [GREEDY])
    assert ids == ended[0].ids == plain.ids


def test_no_token_that_may_come_is_an_error_that_says_why():
    banned = dataclasses.replace(GREEDY, tokens=TokenConfig(suppress_ids=(LETTERS[2],)))
    constraints = [Regex("[ab]{2}c"), *CONSTRAINTS[1:]]
    with pytest.raises(ConfigError, match="row 0: no token may come next: other settings forbid"):
        complete("model", constraints, [banned, *CONFIGS[1:]])
