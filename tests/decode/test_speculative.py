"""Speculative decoding: the text, and its distribution, are those of the model alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counts import nothing_compiled
from pairwise import parametrize
from parameters import random_parameters
from speculative_models import CONFIGS, KINDS, V, draft_of, model_of, next_logits

from llm_jax.config import DecodeConfig, MeshConfig, override
from llm_jax.config.decode import PenaltyConfig, StopConfig, TokenConfig
from llm_jax.config.draft import DraftConfig
from llm_jax.config.search import BeamConfig
from llm_jax.decode import Generator
from llm_jax.decode.drafts import Draft
from llm_jax.decode.loop import CHOOSE
from llm_jax.decode.programs import prefill
from llm_jax.decode.requests import Wanted
from llm_jax.models import build
from llm_jax.ops.sampling.draws import categorical, row_keys
from llm_jax.ops.sampling.stops import token_bytes_table
from llm_jax.sharding import make_mesh
from llm_jax.types import ConfigError, NonFiniteError

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9], [8, 10, 2], [4, 4]]
GREEDY = DecodeConfig(max_new_tokens=20, temperature=0.0)
DRAWN = DecodeConfig(max_new_tokens=20, temperature=0.8, top_k=6, seed=3)
SEEDS = [5, 6, 7, 8]
# The text of token 0 is "a".
LETTERS = token_bytes_table([bytes([ord("a") + id]) for id in range(V)])
# What most tests ask for, so that each generator has one program.
WANTED = Wanted(logprobs=2)


@functools.cache
def generator_of(kind: str, name: str) -> Generator:
    model, params = model_of(name)
    return Generator(model, params, draft=draft_of(kind, name), token_bytes=LETTERS)


def texts(found) -> list[list[int]]:
    return [completion.ids for (completion,) in found]


def check_greedy(found, name: str, prompts=PROMPTS) -> None:
    """Each token is the most likely one of the full forward pass."""
    for prompt, (completion,) in zip(prompts, found):
        wanted = next_logits(*model_of(name), prompt, completion.ids)
        assert completion.ids == wanted.argmax(axis=-1).tolist()
        assert len(completion.ids) == GREEDY.max_new_tokens
        check_counts(completion)


def check_counts(completion) -> None:
    assert 0 <= completion.accepted <= completion.drafted
    assert completion.accepted <= len(completion.ids) + (completion.stop is not None)


@parametrize(
    "kind, name",
    itertools.product(KINDS, CONFIGS),
    # Every run has an early exit in test_speculative_draws.
    by_default=[("model", "latents")],
)
def test_greedy_text_is_the_model_s_own(kind, name):
    generator = generator_of(kind, name)
    found = generator.complete(PROMPTS, GREEDY, WANTED)
    check_greedy(found, name)
    # Rows accept different numbers of tokens.
    accepted = [completion.accepted for (completion,) in found]
    assert sum(accepted) > 0 and len(set(accepted)) > 1
    assert sum(completion.drafted for (completion,) in found) > sum(accepted)


@pytest.fixture(scope="module")
def looking_up():
    return generator_of("lookup", "windows")


@pytest.fixture(scope="module")
def drafting():
    return generator_of("model", "latents")


def test_lookup_draws_what_the_model_draws_alone(looking_up):
    """The same random numbers, so the same text; the others have the same distribution."""
    config = DecodeConfig(max_new_tokens=20, temperature=0.8)
    found = looking_up.complete(PROMPTS, config, WANTED, seeds=SEEDS)
    for prompt, seed, (completion,) in zip(PROMPTS, SEEDS, found):
        logits = next_logits(*model_of("windows"), prompt, completion.ids) / 0.8
        places = len(prompt) + np.arange(20)
        keys = row_keys(jnp.full((20,), seed), jnp.asarray(places))
        assert completion.ids == categorical(keys, jnp.asarray(logits)).tolist()
    assert sum(completion.accepted for (completion,) in found) > 0


def test_a_row_does_not_depend_on_the_batch_around_it(drafting):
    configs = [DRAWN, GREEDY, DRAWN, dataclasses.replace(DRAWN, top_p=0.7)]
    together = drafting.complete(PROMPTS, configs, WANTED, seeds=SEEDS)
    order = [2, 0, 3, 3]
    again = drafting.complete(
        [PROMPTS[i] for i in order],
        [configs[i] for i in order],
        WANTED,
        seeds=[SEEDS[i] for i in order],
    )
    assert again == [together[i] for i in order]
    assert len({completion.drafted for (completion,) in together}) > 1
    short = [dataclasses.replace(c, max_new_tokens=i + 1) for i, c in enumerate(configs)]
    with nothing_compiled():
        ended = drafting.complete(PROMPTS, short, WANTED, seeds=SEEDS)
    for i, ((before,), (after,)) in enumerate(zip(together, ended)):
        assert after.ids == before.ids[: i + 1] and after.finish_reason == "length"
        assert after.scores == before.scores[: i + 1]
        check_counts(after)


def test_scores_are_those_of_the_full_forward(drafting):
    found = drafting.complete(PROMPTS, DRAWN, WANTED, seeds=SEEDS)
    for prompt, (completion,) in zip(PROMPTS, found):
        logits = next_logits(*model_of("latents"), prompt, completion.ids)
        wanted = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
        assert len(completion.scores) == len(completion.ids)
        for place, score in enumerate(completion.scores):
            np.testing.assert_allclose(score.logprob, wanted[place, score.id], atol=1e-4)


def test_a_token_or_a_text_inside_a_draft_ends_the_row(looking_up):
    free = looking_up.complete(PROMPTS, GREEDY, WANTED)
    inside = 0
    for place in range(8, 16):
        configs = []
        for row, (completion,) in enumerate(free):
            stop = completion.ids[place]
            text = "".join(map(letter, completion.ids[place - 2 : place + 1]))
            ends = StopConfig(stop_ids=(stop,)) if row % 2 else StopConfig(stop=(text,))
            configs.append(dataclasses.replace(GREEDY, stops=ends))
        found = looking_up.complete(PROMPTS, configs, WANTED)
        for (before,), (after,), config in zip(free, found, configs):
            end = first_end(before.ids, config.stops)
            assert after.ids == before.ids[:end] and after.finish_reason == "stop"
            assert after.stop == next(iter(config.stops.stop_ids), None)
            assert len(after.scores) == len(after.ids)
            check_counts(after)
            # Fewer steps than tokens after the first, and the last was drafted too.
            inside += after.drafted > after.accepted > 0
    assert inside > 4


def letter(id: int) -> str:
    return chr(ord("a") + id)


def first_end(ids: list[int], stops: StopConfig) -> int:
    """How many tokens a text has that ends where it first can."""
    if stops.stop_ids:
        return ids.index(stops.stop_ids[0])
    return "".join(map(letter, ids)).index(stops.stop[0]) + len(stops.stop[0])


@pytest.mark.slow
def test_a_model_accepts_every_token_that_it_drafts_itself():
    model, params = model_of("dense")
    generator = Generator(model, params, draft=Draft(DraftConfig("model", tokens=4), model, params))
    for (completion,) in generator.complete(PROMPTS, GREEDY):
        # 1 token after the prompt, and 5 of each step, 4 of them drafted; the last step needs 4.
        assert completion.drafted == completion.accepted == 16
    # One token in twenty is drafted again with the other's distribution but for rounding.
    for (completion,) in generator.complete(PROMPTS, DRAWN):
        assert completion.drafted - completion.accepted <= 4


@parametrize(
    "kind, name",
    [("model", "windows in each layer"), ("lookup", "dense"), ("early_exit", "an encoder")],
    by_default=[("lookup", "dense")],
)
def test_stream_gives_what_generate_gives(kind, name):
    generator = generator_of(kind, name)
    ended = []
    scores = list(generator.stream_scored(PROMPTS[0], GREEDY, WANTED, ended=ended.append))
    check_greedy([ended], name, PROMPTS[:1])
    assert ended[0].scores == tuple(scores)
    drawn = list(generator.stream_scored(PROMPTS[2], DRAWN, WANTED))
    if kind != "model":
        assert [score.id for score in drawn] == generator.generate([PROMPTS[2]], DRAWN)[0]


def held(cache, row: int):
    """What later queries may see of a row: for each layer, arrays of the tokens in its reach."""
    length = int(cache.length[row])
    found = []
    for layer in cache.layers:
        window = getattr(layer.own.layout, "window", length)
        places = np.arange(max(0, length - window + 1), length) % layer.own.slots
        found += [np.asarray(a)[row][..., places, :] for a in (layer.own.keys, layer.own.values)]
    return found


@parametrize(
    "kind, prompts",
    itertools.product(KINDS, [1, 4]),
    by_default=[("model", 1)],
)
def test_the_caches_after_rejections_are_those_of_the_text_read_anew(kind, prompts):
    generator = generator_of(kind, "windows in each layer")
    call = generator._calls.make(PROMPTS[:prompts], DRAWN, WANTED, seeds=SEEDS[:prompts])
    inputs = (call.settings, call.stops)
    weights = generator._weights
    state = generator._steps.begin(weights, call.prompts, room=call.room, choosing=call.choosing)
    state = CHOOSE(state, *inputs, choosing=call.choosing)
    for _ in range(3):
        state = generator._steps.advance(weights, state, *inputs, choosing=call.choosing)
    assert (state.draft.accepted < state.draft.drafted).all() and state.draft.steps == 3
    lengths = np.asarray(state.history.length)
    written = [row[:n].tolist() for row, n in zip(np.asarray(state.history.ids), lengths)]
    # The model has read all but the last token, and its draft at most one less.
    assert state.cache.length.tolist() == [len(text) - 1 for text in written]
    pair = generator._pair
    caches = [(pair.target, generator._weights.target, state.cache)]
    if pair.drafter.has_cache:
        caches.append((pair.drafter.model, generator._weights.draft, state.draft.cache))
        behind = np.array([len(text) for text in written]) - np.asarray(state.draft.cache.length)
        assert set(behind.tolist()) <= {1, 2}
    for model, params, cache in caches:
        read = [text[:n] for text, n in zip(written, np.asarray(cache.length))]
        anew = read_anew(model, params, read, generator._calls.rollback)
        for row in range(prompts):
            for found, wanted in zip(held(cache, row), held(anew, row), strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-5)


def read_anew(model, params, rows, rollback):
    """The cache of a prompt that is the whole text."""
    tokens = np.zeros((len(rows), 64), np.int32)
    for out, row in zip(tokens, rows):
        out[: len(row)] = row
    lengths = jnp.asarray([len(row) for row in rows])
    cache = model.init_cache(len(rows), 64, rollback=rollback)
    return jax.jit(lambda p, t, n, c: prefill(model, p, t, n, c))(params, tokens, lengths, cache)[1]


# Every run decodes on eight devices in test_placement.
@pytest.mark.mesh
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["windows", "latents", "an encoder"])
def test_the_same_tokens_on_eight_devices(kind, name):
    model, params = model_of(name)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = Generator(model, params, mesh, draft=draft_of(kind, name), token_bytes=LETTERS)
    found = split.complete(PROMPTS, GREEDY, WANTED)
    check_greedy(found, name)
    assert sum(completion.accepted for (completion,) in found) > 0
    drawn = generator_of(kind, name).complete(PROMPTS, DRAWN, WANTED)
    again = split.complete(PROMPTS, DRAWN, WANTED)
    assert [c.ids for (c,) in again] == [c.ids for (c,) in drawn]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_scanned_layers_guidance_samples_and_processors(kind):
    """Settings that all kinds take, in the layout of other platforms."""
    model, params = model_of("windows", layers="scan")
    draft = draft_of(kind, "windows", layers="scan")
    config = override_greedy(guidance_scale=1.5, negative_prompt=(3, 1, 2))
    config = dataclasses.replace(
        config,
        penalties=PenaltyConfig(repetition_penalty=1.3, no_repeat_ngram_size=3),
        tokens=TokenConfig(logit_bias=((2, 0.5),), min_new_tokens=6, forced_last_id=4),
        stops=StopConfig(stop_ids=(7,)),
    )
    plain = Generator(model, params, layers="scan").complete(PROMPTS, config, Wanted(samples=2))
    drafted = Generator(model, params, layers="scan", draft=draft)
    found = drafted.complete(PROMPTS, config, Wanted(samples=2))
    assert [[c.ids for c in row] for row in found] == [[c.ids for c in row] for row in plain]
    assert [[c.stop for c in row] for row in found] == [[c.stop for c in row] for row in plain]


def override_greedy(**more) -> DecodeConfig:
    return dataclasses.replace(GREEDY, **more)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 2, 7, 19])
def test_any_number_of_drafted_tokens(tokens):
    model, params = model_of("windows")
    for kind in KINDS:
        generator = Generator(model, params, draft=draft_of(kind, "windows", tokens))
        for prompt, written in zip(PROMPTS, generator.generate(PROMPTS, GREEDY)):
            logits = next_logits(model, params, prompt, written)
            assert written == logits.argmax(axis=-1).tolist()


@pytest.mark.slow
def test_a_draft_longer_than_the_row_is_cut():
    model, params = model_of("dense")
    short = build(override(model.config, {"max_length": 3}))
    generator = Generator(short, params, draft=Draft(DraftConfig(tokens=8)))
    written = generator.generate([[4]], DecodeConfig(max_new_tokens=2, temperature=0.0))[0]
    assert written == next_logits(model, params, [4], written).argmax(axis=-1).tolist()


def test_drafts_that_do_not_fit_are_refused_by_name():
    model, params = model_of("dense")

    def refused(draft, match):
        with pytest.raises(ConfigError, match=match):
            Generator(model, params, draft=draft)

    other = build(override(model.config, {"vocab_size": V + 1}))
    refused(
        Draft(DraftConfig("model"), other, random_parameters(other)),
        f"the draft's model has a vocabulary of {V + 1} tokens, and the model one of {V}",
    )
    reading, reading_params = model_of("an encoder")
    refused(
        Draft(DraftConfig("model"), reading, reading_params),
        "the draft's model has an encoder and the model has none",
    )
    refused(Draft(DraftConfig("model")), "a model and its parameters are not given")
    refused(Draft(DraftConfig("lookup"), model, params), "a model and its parameters are given")
    refused(Draft(DraftConfig("early_exit", layers=3)), "layers of an early exit is 3, and the m")
    refused(Draft(DraftConfig("early_exit")), "early_exit and layers 0; set layers")
    refused(Draft(DraftConfig("lookup", layers=2)), "lookup and layers 2, which only early_exit")
    refused(Draft(DraftConfig("early_exit", layers=1, ngram=2)), "ngram 2, which only lookup reads")
    refused(Draft(DraftConfig(tokens=0)), "tokens is 0; it must be at least 1 and at most 64")
    refused(Draft(DraftConfig("tree")), "kind of draft is 'tree'; use model, lookup, early_exit")


def test_settings_that_no_draft_can_have_are_refused_by_name():
    model, params = model_of("dense")
    generator = Generator(model, params, draft=Draft(DraftConfig()))
    contrastive = DecodeConfig(contrastive_alpha=0.5, top_k=4, temperature=0.0, max_new_tokens=4)
    with pytest.raises(ConfigError, match="row 1: contrastive_alpha is 0.5.* or the draft"):
        generator.complete(
            PROMPTS[:2], [dataclasses.replace(GREEDY, max_new_tokens=4), contrastive]
        )
    with pytest.raises(ConfigError, match="a draft is given, and beam search drafts nothing"):
        generator.search(PROMPTS, GREEDY, BeamConfig())
    small = build(override(model.config, {"max_length": 16}))
    draft = Draft(DraftConfig("model"), small, random_parameters(small))
    with pytest.raises(ConfigError, match=r"do not fit the context: .*27.*model.max_length 16"):
        Generator(model, params, draft=draft).generate(PROMPTS, GREEDY)
    scaled = {
        "positions.scaling": "longrope",
        "positions.scaling.factor": 4.0,
        "positions.scaling.original_length": 10,
        "positions.scaling.factors": (1.0, 4.0),
        "positions.scaling.short_factors": (1.0, 1.1),
    }
    switching = build(override(model.config, scaled))
    draft = Draft(DraftConfig("model"), switching, random_parameters(switching))
    match = "a row passes 10 tokens, where the rotations of the draft's model change"
    with pytest.raises(ConfigError, match=match):
        Generator(model, params, draft=draft).generate(PROMPTS, GREEDY)


@pytest.mark.slow
def test_a_draft_of_bad_weights_is_an_error_that_names_it():
    model, params = model_of("dense")
    bad = jax.tree.map(lambda a: a * jnp.nan, params)
    generator = Generator(model, params, draft=Draft(DraftConfig("model"), model, bad))
    match = "row 0: the draft's logits are not finite in the step after new token 1 "
    with pytest.raises(NonFiniteError, match=match):
        generator.generate(PROMPTS, GREEDY)
