"""Settings of each row of a batch: one program, and no row feels another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_counts import nothing_compiled
from parameters import random_parameters

from llm_jax import models
from llm_jax.api.decode_settings import decode_config
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.decode import PenaltyConfig, StopConfig, TokenConfig, WatermarkConfig
from llm_jax.decode import Generator
from llm_jax.decode.requests import Wanted
from llm_jax.models import rows_of
from llm_jax.types import ConfigError

V = 61
CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": V,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 64,
        "init_std": 0.5,
    },
)
MODEL = models.build(CONFIG)
PROMPT = [1, 2, 3]
DRAWN = DecodeConfig(max_new_tokens=8)
GREEDY = DecodeConfig(max_new_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def generator():
    return Generator(MODEL, random_parameters(MODEL))


@pytest.fixture(scope="module")
def logits_after(generator):
    """Logits of the full forward pass after the last token of a row."""
    params = generator.params

    @jax.jit
    def forward(tokens, lengths):
        batch = rows_of(tokens, lengths)
        return MODEL.logits(params, MODEL.apply(params, batch).hidden)

    def after(row):
        tokens = np.zeros((1, 32), np.int32)
        tokens[0, : len(row)] = row
        return np.asarray(forward(tokens, np.array([len(row)])))[0, len(row) - 1]

    return after


VARIED = [
    DRAWN,
    GREEDY,
    dataclasses.replace(DRAWN, temperature=0.7, top_k=5, seed=11),
    dataclasses.replace(DRAWN, top_p=0.5, typical_p=0.8, min_p=0.01),
    dataclasses.replace(DRAWN, epsilon_cutoff=0.01, eta_cutoff=0.1, top_h=0.9),
    dataclasses.replace(DRAWN, max_new_tokens=3, renormalize=True),
    dataclasses.replace(
        GREEDY,
        penalties=PenaltyConfig(repetition_penalty=2.0, no_repeat_ngram_size=2),
    ),
    dataclasses.replace(
        DRAWN,
        penalties=PenaltyConfig(presence_penalty=1.0, frequency_penalty=-1.0),
        tokens=TokenConfig(logit_bias=((4, 3.0), (5, float("-inf"))), suppress_ids=(7, 8)),
    ),
    dataclasses.replace(
        GREEDY,
        tokens=TokenConfig(allowed_ids=(9, 10, 11), forced_first_id=10, forced_last_id=9),
    ),
    dataclasses.replace(DRAWN, watermark=WatermarkConfig(watermark_bias=4.0)),
    dataclasses.replace(
        GREEDY,
        tokens=TokenConfig(bad_words=((12,), (13, 14)), min_new_tokens=4),
        stops=StopConfig(stop_ids=tuple(range(20, 40))),
    ),
]


def test_rows_with_any_settings_are_what_each_is_alone_and_run_one_program(generator):
    prompts = [[i + 1, 2, 3] for i in range(len(VARIED))]
    seeds = list(range(len(VARIED)))
    together = generator.generate(prompts, VARIED, seeds=seeds)
    order = [3, 1, 10, 0, 7, 8, 2, 4, 6, 9, 5]
    mixed = [VARIED[i] for i in order]
    with nothing_compiled():
        again = generator.generate(
            [prompts[i] for i in order], mixed, seeds=[seeds[i] for i in order]
        )
    assert again == [together[i] for i in order]
    first = generator.generate(prompts[:1], VARIED[0], seeds=[0])
    assert first == [together[0]]
    # The 20 stop tokens of the last row are more than there is room for by default.
    with nothing_compiled():
        for i, config in enumerate(VARIED[:-1]):
            assert generator.generate([prompts[i]], config, seeds=[i]) == [together[i]]
    assert len(together[5]) == 3
    assert together[8][0] == 10 and together[8][-1] == 9 and set(together[8]) <= {9, 10, 11}
    assert not {5, 7, 8} & set(together[7])
    bigrams = list(zip(together[6], together[6][1:]))
    assert len(set(bigrams)) == len(bigrams)


def test_min_new_tokens_holds_tokens_that_end_and_no_others(generator):
    free = generator.generate([PROMPT], GREEDY)[0]
    ends = dataclasses.replace(GREEDY, stops=StopConfig(stop_ids=(free[0], free[1])))
    assert generator.generate([PROMPT], ends) == [[]]
    held = dataclasses.replace(ends, tokens=TokenConfig(min_new_tokens=3))
    written = generator.generate([PROMPT], held)[0]
    assert len(written) >= 3 and not {free[0], free[1]} & set(written)


def test_scores_are_those_of_the_full_forward(generator, logits_after):
    penalized = dataclasses.replace(
        DRAWN, temperature=0.5, top_k=4, penalties=PenaltyConfig(repetition_penalty=1.5)
    )
    (raw,) = generator.complete([PROMPT], penalized, Wanted(logprobs=3))[0]
    (processed,) = generator.complete([PROMPT], penalized, Wanted(logprobs=3, kind="processed"))[0]
    assert raw.ids == processed.ids and raw.finish_reason == "length"
    row = list(PROMPT)
    for token, ours, theirs in zip(raw.ids, raw.scores, processed.scores, strict=True):
        logits = logits_after(row).astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum())
        assert ours.id == token
        assert ours.logprob == pytest.approx(logprobs[token], abs=1e-5)
        assert ours.rank == 1 + (logprobs > logprobs[token]).sum()
        best = np.argsort(-logprobs, kind="stable")[:3]
        assert [id for id, _ in ours.top] == best.tolist()
        np.testing.assert_allclose([p for _, p in ours.top], logprobs[best], atol=1e-5)
        seen = np.isin(np.arange(V), row)
        logits = np.where(seen, np.where(logits < 0, logits * 1.5, logits / 1.5), logits) / 0.5
        logits[logits < np.sort(logits)[-4]] = -np.inf
        logprobs = logits - np.log(np.exp(logits).sum())
        assert theirs.logprob == pytest.approx(logprobs[token], abs=1e-4)
        row.append(token)


def test_a_stream_scores_as_a_batch_does(generator):
    wanted = Wanted(logprobs=2)
    (whole,) = generator.complete([PROMPT], DRAWN, wanted)[0]
    ended = []
    found = list(generator.stream_scored(PROMPT, DRAWN, wanted, ended=ended.append))
    assert tuple(found) == whole.scores and ended == [whole]


def test_samples_share_their_prompt_and_have_seeds_that_follow(generator):
    prompts = [PROMPT, [7]]
    found = generator.complete(prompts, DRAWN, Wanted(samples=3), seeds=[5, 50])
    assert [[c.seed for c in each] for each in found] == [[5, 6, 7], [50, 51, 52]]
    for prompt, each, seed in zip(prompts, found, (5, 50)):
        apart = generator.generate([prompt] * 3, DRAWN, seeds=[seed, seed + 1, seed + 2])
        assert [c.ids for c in each] == apart
    by_default = generator.complete(prompts, DRAWN, Wanted(samples=2))
    assert [c.seed for each in by_default for c in each] == [0, 1, 2, 3]


def test_guidance_moves_away_from_what_follows_the_negative_prompt(generator, logits_after):
    negative = (40, 41)
    guided = dataclasses.replace(GREEDY, guidance_scale=2.5, negative_prompt=negative)
    mixed = generator.generate([PROMPT, PROMPT], [guided, GREEDY])
    assert mixed[1] == generator.generate([PROMPT], GREEDY)[0]
    assert generator.generate([PROMPT], guided) == mixed[:1]
    assert list(generator.stream(PROMPT, guided)) == mixed[0]
    written = []
    for token in mixed[0]:
        ours, theirs = (
            jax.nn.log_softmax(jnp.asarray(logits_after([*start, *written])))
            for start in (PROMPT, negative)
        )
        assert token == int(jnp.argmax(theirs + 2.5 * (ours - theirs)))
        written.append(token)
    # Without a negative prompt, it is the last token of the prompt.
    last = dataclasses.replace(guided, negative_prompt=(PROMPT[-1],))
    unset = dataclasses.replace(guided, negative_prompt="")
    assert generator.generate([PROMPT], unset) == generator.generate([PROMPT], last)


def test_ones_own_processor_sees_the_text_and_decides(generator):
    def even_after_odd(logits, history):
        last = jnp.take_along_axis(history.ids, history.length[:, None] - 1, axis=1)
        wanted = (jnp.arange(logits.shape[1])[None, :] + last) % 2 == 1
        return jnp.where(wanted, logits, -jnp.inf)

    (found,) = generator.complete([PROMPT], DRAWN, Wanted(processor=even_after_odd))[0]
    assert [token % 2 for token in found.ids] == [0, 1] * 4


CONTRADICTIONS = [
    ({"min_new_tokens": 9}, "min_new_tokens is 9 and max_new_tokens 8; lower"),
    ({"forced_first_id": 3, "suppress_ids": (3,)}, "forced_first_id is 3, which suppress_ids"),
    ({"forced_last_id": 3, "allowed_ids": (4,)}, "forced_last_id is 3, which suppress_ids"),
    ({"negative_prompt": (1,)}, "negative_prompt is .* and guidance_scale 1, which is off"),
    ({"stop": ("a",)}, "stop of row 0 is .*'a'.* has no tokenizer; give stop_ids"),
    ({"stop": ("",)}, "stop has ''; give texts that are not empty"),
    ({"bad_words": ("a",)}, "bad_words of row 0 has the text 'a'.*no tokenizer"),
    ({"bad_words": ((),)}, r"bad_words has \(\)"),
    ({"allowed_ids": (5,), "suppress_ids": (5,)}, "row 0: .* leave no token that may come"),
    ({"logit_bias": ((61, 1.0),)}, "logit_bias of row 0 has 61 at place 0; .* 0 to 60"),
    ({"logit_bias": ((6, float("nan")),)}, "logit_bias has .*nan"),
    ({"logit_bias": (6,)}, "logit_bias has 6; give pairs"),
    ({"suppress_ids": (-1,)}, r"^suppress_ids is \(-1,\); it must be at least 0"),
    ({"presence_penalty": 2.5}, "presence_penalty is 2.5; it must be at least -2 and at most 2"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be .*more than 0"),
    ({"typical_p": 0.0}, "typical_p is 0.0"),
    ({"watermark_width": 5}, "watermark_width is 5; it must be at least 1 and at most 4"),
    ({"contrastive_alpha": 0.6}, "contrastive_alpha is 0.6 and top_k 0"),
    ({"contrastive_alpha": 0.6, "top_k": 4, "top_p": 0.5}, "top_p: contrastive search"),
]


@pytest.mark.parametrize("settings, message", CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused(generator, settings, message):
    config = decode_config(settings, DRAWN)
    for call in (
        lambda: generator.generate([PROMPT], config),
        lambda: generator.stream(PROMPT, config),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_a_row_whose_tokens_are_all_banned_is_named(generator):
    """Each of three tokens may come once, so that a fourth has no place."""
    tokens = TokenConfig(allowed_ids=(4, 5, 6))
    penalties = PenaltyConfig(no_repeat_ngram_size=1)
    config = dataclasses.replace(DRAWN, tokens=tokens, penalties=penalties)
    with pytest.raises(ConfigError, match="row 1: the settings ban every token at new token 4"):
        generator.generate([PROMPT, PROMPT], [DRAWN, config])
    stream = generator.stream(PROMPT, config)
    assert {next(stream) for _ in range(3)} == {4, 5, 6}
    with pytest.raises(ConfigError, match="row 0: the settings ban every token at new token 4"):
        next(stream)


def test_what_a_call_wants_is_checked(generator):
    for wanted, message in (
        (Wanted(samples=0), "samples is 0"),
        (Wanted(logprobs=-1), "logprobs is -1; it must be from 0 to 61"),
        (Wanted(logprobs=62), "logprobs is 62"),
        (Wanted(kind="cooked"), "kind of logprobs is 'cooked'; use raw or processed"),
    ):
        with pytest.raises(ConfigError, match=message):
            generator.complete([PROMPT], DRAWN, wanted)
    with pytest.raises(ConfigError, match="2 settings for 1 prompts"):
        generator.generate([PROMPT], [DRAWN, DRAWN])
    vllm = dataclasses.replace(DRAWN, order="vllm")
    with pytest.raises(ConfigError, match="order is hf and vllm in one batch"):
        generator.generate([PROMPT] * 2, [DRAWN, vllm])
