"""The driver of constrained decoding: models with random weights, real tokenizers, and what the
rows write.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
from parameters import random_parameters

pytest.importorskip("llguidance", reason="needs the extra: pip install -e '.[constrain]'")
pytest.importorskip("jsonschema")

import jsonschema
from constrained_rows import MORE_IDS, bits, tokenizer_of, vocabulary_of

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.decode import PenaltyConfig, StopConfig, TokenConfig
from llm_jax.decode import Generator
from llm_jax.decode.constrain import (
    Choices,
    JsonSchema,
    Matchers,
    Regex,
    compile_constraint,
)
from llm_jax.decode.constrained import (
    Call,
    ConstrainedLoop,
    jit_constrained_steps,
    may_force,
)
from llm_jax.decode.requests import Wanted
from llm_jax.decode.state import BANNED, LENGTH, STOP_ID, STOP_TEXT
from llm_jax.ops.sampling.stops import token_bytes_table
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
        "max_length": 256,
        "attention.window_pattern": (5, 0),
        "init_std": 0.5,
    },
)
NAME = {"type": "string", "pattern": "^[a-zé日]{1,4}$"}
SCHEMA = {
    "type": "object",
    "properties": {"first_name": NAME, "kind": {"enum": ["large", "larger"]}, "n": NAME},
    "required": ["first_name", "kind", "n"],
    "additionalProperties": False,
}
PERSON = JsonSchema(SCHEMA)
DRAWN = DecodeConfig(max_new_tokens=80)
PROMPT = tokenizer_of(KIND).encode("the x")
GREEDY = dataclasses.replace(DRAWN, temperature=0.0)


@functools.cache
def parts(config: ModelConfig = CONFIG):
    model = models.build(config)
    vocabulary = vocabulary_of(KIND)
    token_bytes = [vocabulary.bytes_of(id) for id in range(vocabulary.count)]
    generator = Generator(
        model,
        random_parameters(model),
        stop_ids=vocabulary.stop_ids,
        token_bytes=token_bytes_table([*token_bytes, *[b""] * MORE_IDS]),
    )
    return generator, jit_constrained_steps(model)


# All batches have as many rows, so that few programs are compiled.
ROWS = 5


def loop_of(constraints, configs, prompts=None, *, wanted=None, config=CONFIG) -> ConstrainedLoop:
    """A loop over rows; a constraint of None is a free row, and there are free rows up to ROWS."""
    generator, steps = parts(config)
    vocabulary = vocabulary_of(KIND)
    wanted = wanted or Wanted()
    missing = (ROWS - len(constraints)) // wanted.samples
    prompts = prompts or [PROMPT] * len(configs)
    configs = [*configs, *[DRAWN] * missing]
    call = generator._calls.make([*prompts, *[PROMPT] * missing], configs, wanted)
    compiled = [c and compile_constraint(c, vocabulary) for c in constraints]
    compiled += [None] * (ROWS - len(compiled))
    begins = [config.encoder is not None] * ROWS
    matchers = Matchers(vocabulary, compiled, begins)
    arrays = Call(call.prompts, call.settings, call.stops, call.room, call.choosing)
    return ConstrainedLoop(steps, generator.model, generator.params, arrays, matchers)


def without_forcing(run: ConstrainedLoop) -> ConstrainedLoop:
    """The loop with every token drawn, as where log-probabilities are asked for."""
    run._may_force[:] = False
    return run


def written(run: ConstrainedLoop) -> list[list[int]]:
    """The new tokens of each row; those that are given round by round are those of the state."""
    rows: list[list[int]] = [[] for _ in run.reason]
    for new in run:
        for row, tokens in zip(rows, new):
            row += tokens
    history = run.state.history
    for row, tokens in enumerate(rows):
        start, end = int(history.prompt[row]), int(history.length[row])
        assert history.ids[row, start:end].tolist() == tokens
    return rows


def text_of(ids: list[int]) -> str:
    return continuation(tokenizer_of(KIND), tokenizer_of(KIND).encode("x"), ids)


def check_person(text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMA)


def test_a_mixed_batch_of_every_sampler():
    constraints = [PERSON, None, Choices(["no", "yes", "yes é"]), Regex(r"\d{3}-[a-c]+"), PERSON]
    configs = [
        DRAWN,
        DRAWN,
        dataclasses.replace(DRAWN, temperature=2.0, top_k=3, order="hf"),
        dataclasses.replace(
            DRAWN, top_p=0.7, penalties=PenaltyConfig(frequency_penalty=1.5, presence_penalty=1.0)
        ),
        dataclasses.replace(GREEDY, penalties=PenaltyConfig(repetition_penalty=1.5)),
    ]
    run = loop_of(constraints, configs)
    rows = written(run)
    check_person(text_of(rows[0]))
    check_person(text_of(rows[4]))
    assert text_of(rows[2]) in ("no", "yes", "yes é")
    if run.reason[3] != LENGTH:
        assert re.fullmatch(r"\d{3}-[a-c]+", text_of(rows[3]))
    assert set(run.reason[[0, 2, 4]].tolist()) <= {STOP_ID, STOP_TEXT}
    assert run.forced[0] > 10 and run.forced[1] == 0 and not run.problems
    # The free row is what it is without any constraint.
    assert rows[1] == written(loop_of([None] * ROWS, configs))[1]


@pytest.mark.slow
def test_rows_without_a_constraint_are_those_of_the_generator():
    configs = [DRAWN, GREEDY, dataclasses.replace(DRAWN, top_p=0.7, seed=3), DRAWN, GREEDY]
    prompts = [PROMPT, [7], [8, 9, 10], PROMPT, PROMPT]
    rows = written(loop_of([None] * 3 + [PERSON] * 2, configs, prompts))
    free = parts()[0].complete(prompts, configs)
    assert rows[:3] == [completion.ids for (completion,) in free[:3]]


def test_tokens_are_the_best_that_the_mask_allows():
    """Greedy, without forced tokens: each token is the most likely allowed one of the full forward
    pass.
    """
    run = without_forcing(loop_of([PERSON], [GREEDY]))
    row = written(run)[0]
    assert not run.forced.any()
    generator = parts()[0]
    prompt = PROMPT
    matchers = Matchers(vocabulary_of(KIND), [compile_constraint(PERSON, vocabulary_of(KIND))])
    tokens = np.zeros((1, 128), np.int32)
    whole = [*prompt, *row]
    tokens[0, : len(whole)] = whole
    model = generator.model
    batch = models.rows_of(jax.numpy.asarray(tokens), jax.numpy.asarray([len(whole)]))
    logits = np.asarray(
        jax.jit(lambda p: model.logits(p, model.apply(p, batch).hidden))(generator.params)
    )[0]
    for place, token in enumerate(row):
        allowed = bits(matchers.bitmask()[0])[:V]
        after = np.where(allowed, logits[len(prompt) + place - 1], -np.inf)
        assert after[token] >= after.max() - 1e-4
        matchers.consume([[token]])
    assert matchers.finished[0]


def test_forced_tokens_are_taken_in_one_call_and_change_no_text():
    """With and without them, a constraint that leaves one text gives this text."""
    one = Choices(['{"first": [1, 2, 3], "second": "é日"}'])
    taken = loop_of([one, None], [GREEDY, GREEDY])
    drawn = without_forcing(loop_of([one, None], [GREEDY, GREEDY]))
    first, second = written(taken), written(drawn)
    assert text_of(first[0]) == text_of(second[0]) == one.texts[0]
    assert taken.forced[0] == len(first[0]) - 1 and drawn.forced[0] == 0
    assert first[1] == second[1]


def test_tokens_after_forced_ones_see_them_all():
    """Rows that read several tokens at once go on as those that read one by one."""
    text = '{"some_longer_name": '
    run = loop_of([Regex(re.escape(text) + "[a-z]{12}")], [GREEDY])
    ids = written(run)[0]
    head = 1 + int(run.forced[0])
    assert head > 8
    rest = re.escape(text.removeprefix(text_of(ids[:head]))) + "[a-z]{12}"
    after = loop_of([Regex(rest)], [GREEDY], [[*PROMPT, *ids[:head]]])
    assert ids[head:] == written(after)[0]


def test_a_length_that_is_too_short_ends_as_length():
    for config in (DRAWN, GREEDY):
        short = dataclasses.replace(config, max_new_tokens=7)
        run = loop_of([PERSON, Choices(["a" * 300])], [short, short])
        assert [len(row) for row in written(run)[:2]] == [7, 7]
        assert run.reason[:2].tolist() == [LENGTH, LENGTH]


def test_a_text_that_is_complete_at_its_length_has_stopped():
    ids = tokenizer_of(KIND).encode("yes")
    exact = dataclasses.replace(GREEDY, max_new_tokens=len(ids))
    run = without_forcing(loop_of([Choices(["yes"])], [exact]))
    assert text_of(written(run)[0]) == "yes" and run.reason[0] == STOP_TEXT


def test_rows_of_their_own_lengths_do_not_pass_them():
    configs = [dataclasses.replace(DRAWN, max_new_tokens=n) for n in (3, 80, 1, 40)]
    run = loop_of([PERSON, PERSON, None, Regex("a*b*c*")], configs)
    lengths = [len(row) for row in written(run)]
    assert all(length <= config.max_new_tokens for length, config in zip(lengths, configs))
    assert run.reason[0] == LENGTH and run.reason[1] != LENGTH


def test_what_other_settings_forbid_is_drawn_and_never_forced():
    (letter,) = tokenizer_of(KIND).encode("b")
    banned = dataclasses.replace(GREEDY, tokens=TokenConfig(suppress_ids=(letter,)))
    run = loop_of([Choices(["ab", "ac"]), Choices(["ac"]), Choices(["b"])], [banned] * 3)
    rows = written(run)
    assert [text_of(row) for row in rows[:2]] == ["ac", "ac"]
    assert not may_force(run._call)[:3].any() and not run.forced.any()
    assert run.reason[2] == BANNED
    assert list(run.problems) == [2]
    assert "other settings forbid every token that the constraint allows" in run.problems[2]


@pytest.mark.slow
def test_log_probabilities_are_of_every_token():
    wanted = Wanted(logprobs=2)
    run = loop_of([PERSON], [GREEDY], wanted=wanted)
    row = written(run)[0]
    check_person(text_of(row))
    assert not run.forced.any()
    chosen = np.asarray(run.state.scores.chosen)[0]
    assert np.all(chosen[: len(row)] < 0) and not chosen[len(row) :].any()


@pytest.mark.slow
def test_samples_of_a_prompt_share_its_reading():
    run = loop_of([PERSON] * ROWS, [DRAWN], [[5, 6]], wanted=Wanted(samples=ROWS))
    texts = {text_of(row) for row in written(run)}
    assert len(texts) == ROWS
    for text in texts:
        check_person(text)


@pytest.mark.slow
def test_guidance_and_a_constraint():
    guided = dataclasses.replace(DRAWN, guidance_scale=1.7, negative_prompt=(7, 8, 9))
    run = loop_of([PERSON, None], [guided, guided])
    check_person(text_of(written(run)[0]))


@pytest.mark.slow
def test_rows_that_pass_the_length_where_rotations_change():
    changes = {
        "attention.window_pattern": (0,),
        "positions.scaling": "longrope",
        "positions.scaling.factor": 8.0,
        "positions.scaling.original_length": 16,
        "positions.scaling.factors": (1.0, 2.0, 4.0, 8.0),
        "positions.scaling.short_factors": (1.0, 1.05, 1.1, 1.2),
    }
    config = override(CONFIG, changes)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, V, length).tolist() for length in (9, 16, 40, 6, 15)]
    short = [dataclasses.replace(GREEDY, max_new_tokens=12)] * ROWS
    run = loop_of([PERSON, PERSON, PERSON, None, None], short, prompts, config=config)
    rows = written(run)
    assert [len(row) for row in rows[:3]] == [12] * 3 and run.forced[:3].min() > 5
    free = parts(config)[0].complete(prompts, short)
    # These rows pass at other tokens than in the generator, which reads only them again.
    assert rows[3:] == [completion.ids for (completion,) in free[3:]]


@pytest.mark.slow
def test_an_encoder_s_decoder_begins_its_text():
    changes = {"attention.window_pattern": (0,), "encoder.num_layers": 1, "encoder.start_token": 1}
    config = override(CONFIG, changes)
    run = loop_of([PERSON, None, Choices(["é", "日"])], [DRAWN] * 3, config=config)
    rows = written(run)
    check_person(tokenizer_of(KIND).decode(rows[0]))
    assert tokenizer_of(KIND).decode(rows[2]) in ("é", "日")


def test_settings_that_contradict_a_constraint():
    stop = dataclasses.replace(DRAWN, stops=StopConfig(stop=("}",)))
    ends = dataclasses.replace(DRAWN, stops=StopConfig(stop_ids=(9,)))
    forced = dataclasses.replace(DRAWN, tokens=TokenConfig(forced_last_id=9))
    with pytest.raises(ConfigError, match=r"row 1 ends at the tokens \[2, 9\].*compiled for \[2\]"):
        loop_of([None, PERSON], [DRAWN, ends])
    with pytest.raises(ConfigError, match="row 0 has a constraint and a forced token"):
        loop_of([PERSON], [forced])
    loop_of([None], [forced])
    with pytest.raises(ConfigError, match=r"row 0 has a constraint and texts that end it \(stop\)"):
        loop_of([PERSON, None], [stop, stop])
    loop_of([None, PERSON], [stop, DRAWN])
    run = loop_of([PERSON], [DRAWN])
    fewer = Matchers(vocabulary_of(KIND), [None])
    with pytest.raises(ConfigError, match="1 constraints for 5 rows"):
        ConstrainedLoop(run._steps, parts()[0].model, run._params, run._call, fewer)


def test_beams_take_their_matchers_along():
    """A host loop of beams: rows are gathered by parent, scores are sums of log-probabilities."""
    vocabulary = vocabulary_of(KIND)
    texts = ["abc", "abd", "xyz"]
    matchers = Matchers(vocabulary, [compile_constraint(Choices(texts), vocabulary)])
    rng = np.random.default_rng(0)
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int]]] = []
    while beams:
        masks = bits(matchers.bitmask())[:, :V]
        logits = rng.normal(size=(len(beams), V))
        found = [
            (score + logits[beam, token], beam, int(token))
            for beam, (score, _) in enumerate(beams)
            for token in np.flatnonzero(masks[beam])
        ]
        best = sorted(found, reverse=True)[:4]
        matchers = matchers.gather([beam for _, beam, _ in best])
        matchers.consume([[token] for _, _, token in best])
        ids = [(score, [*beams[beam][1], token]) for score, beam, token in best]
        ended = matchers.finished
        done += [one for one, end in zip(ids, ended) if end]
        beams = [one for one, end in zip(ids, ended) if not end]
        matchers = matchers.gather(np.flatnonzero(~ended))
    assert {text_of([id for id in ids if id not in vocabulary.stop_ids]) for _, ids in done} <= set(
        texts
    )
    assert len(done) >= 2


def test_drafts_are_cut_where_the_constraint_says():
    """A host loop of speculation: masks along the draft, then the rejected tokens taken back."""
    vocabulary = vocabulary_of(KIND)
    matchers = Matchers(vocabulary, [compile_constraint(Regex("[ab]{6}"), vocabulary)])
    rng = np.random.default_rng(1)
    ids: list[int] = []
    while not matchers.finished[0]:
        draft = [int(id) for id in vocabulary._encode(b"abca")[:3]]
        masks = bits(matchers.draft_bitmask([draft]))[0, :, :V]
        scores = np.where(masks, rng.normal(size=masks.shape), -np.inf)
        target = scores.argmax(axis=1)
        agreed = next((n for n, id in enumerate(draft) if id != target[n]), len(draft))
        new = [*draft[:agreed], int(target[agreed])]
        if not masks[agreed].any():
            new = draft[:agreed]
        matchers.consume([new])
        ids += new
    text = text_of([id for id in ids if id not in vocabulary.stop_ids])
    assert re.fullmatch("[ab]{6}", text)
