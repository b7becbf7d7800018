"""Texts in the settings of decoding: what ends a text, what may not come, and streams."""

import math
import random

import jax
import pytest
from hf_builders import make_folder
from hypothesis import given
from hypothesis import strategies as st
from parameters import random_parameters

from llm_jax import models, sharding
from llm_jax.api.language_model import LanguageModel
from llm_jax.checkpoints.open_run import Run
from llm_jax.config import CacheConfig, Config, MeshConfig
from llm_jax.config.overrides import override
from llm_jax.config.search import BeamConfig
from llm_jax.decode.fixed_shape import DecodeShape
from llm_jax.decode.phrases import StopStream, first_stop, held_back
from llm_jax.decode.requests import Wanted
from llm_jax.tokenizers.import_tokenizer import import_tokenizer
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError

NEW = 24


@pytest.fixture(scope="module", params=["metaspace", "byte-level"])
def language_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    source = make_folder(folder / "source", request.param)
    import_tokenizer(source, folder / "tokenizer")
    size = open_tokenizer(folder / "tokenizer").vocab_size
    settings = {
        "vocab_size": size,
        "num_layers": 1,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 16,
        "max_length": 128,
        "init_std": 0.3,
    }
    config = override(Config(), {f"model.{name}": value for name, value in settings.items()})
    model = models.build(config.model)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    return LanguageModel(Run(folder, 0, config, mesh, model, random_parameters(model)))


def free_text(language_model, prompt="the", **settings):
    return language_model.generate(prompt, max_new_tokens=NEW, **settings)


def test_a_text_ends_before_the_first_stop_text_in_it(language_model):
    text = free_text(language_model)
    rng = random.Random(0)
    for _ in range(12):
        begin = rng.randrange(1, len(text) - 4)
        stop = text[begin : begin + rng.randint(1, 4)]
        if "\ufffd" in stop:
            continue
        before = text[: text.index(stop)]
        settings = {"max_new_tokens": NEW, "stop": (stop, "never to come")}
        (found,) = language_model.complete("the", **settings)
        assert found.text == before and found.stop == stop and found.finish_reason == "stop"
        with_stop = language_model.generate("the", **settings, include_stop=True)
        assert with_stop == before + stop
        assert "".join(language_model.stream("the", **settings)) == before
        # Tokens that begin in the text are its tokens.
        free = language_model.complete("the", max_new_tokens=NEW)[0].ids
        assert free[: len(found.ids)] == found.ids and len(found.ids) <= len(free)


def test_rows_of_a_batch_have_stop_texts_of_their_own(language_model):
    texts = language_model.generate(["the", "the"], max_new_tokens=NEW)
    stop = next(text for text in texts[1] if text not in texts[0] and text.isascii())
    found = language_model.complete(["the", "the"], each=[{}, {"stop": stop}], max_new_tokens=NEW)
    assert found[0][0].text == texts[0] and found[0][0].finish_reason == "length"
    assert found[1][0].text == texts[1][: texts[1].index(stop)]


def test_a_stream_tells_scores_times_and_why_it_ends(language_model):
    wanted = Wanted(logprobs=2)
    settings = {"max_new_tokens": NEW, "stop": free_text(language_model)[6:8]}
    (whole,) = language_model.complete("the", wanted=wanted, **settings)
    events = list(language_model.stream_events("the", wanted=wanted, **settings))
    assert "".join(event.text for event in events) == whole.text
    assert events[-1].completion == whole
    assert all(event.completion is None for event in events[:-1])
    scores = [score for event in events for score in event.scores]
    assert tuple(scores[: len(whole.scores)]) == whole.scores
    seconds = [event.seconds for event in events]
    assert seconds == sorted(seconds)


def test_bad_words_never_come_with_a_blank_or_without(language_model):
    text = free_text(language_model)
    words = [word for word in text.split() if "\ufffd" not in word][:3]
    assert words
    banned = free_text(language_model, bad_words=tuple(words))
    assert banned != text
    tokenizer = language_model.tokenizer
    written = language_model.complete("the", max_new_tokens=NEW, bad_words=tuple(words))[0].ids
    for word in words:
        for ids in (tokenizer.encode(f" {word}"), tokenizer.encode(f"\n{word}")[1:]):
            places = range(len(written) - len(ids) + 1)
            assert not any(written[at : at + len(ids)] == ids for at in places)


def test_a_bias_of_a_text_makes_it_come(language_model):
    tokenizer = language_model.tokenizer
    (id,) = [i for i in range(tokenizer.vocab_size) if tokenizer.decode_bytes([i]) == b" the"][:1]
    likely = language_model.generate(
        "the", max_new_tokens=4, temperature=0.0, sequence_bias={(id,): 1e4}
    )
    assert likely in (" the" * 4, "the the the the")
    pairs = language_model.generate("the", max_new_tokens=4, temperature=0.0, logit_bias={id: 1e4})
    assert pairs == likely


def test_a_negative_prompt_is_text_or_ids(language_model):
    settings = {"max_new_tokens": 6, "guidance_scale": 3.0}
    text = language_model.generate("the", **settings, negative_prompt="and so")
    ids = tuple(language_model.token_ids("and so"))
    assert text == language_model.generate("the", **settings, negative_prompt=ids)


def test_scores_of_a_text_are_its_loss_and_those_of_writing_it(language_model):
    (written,) = language_model.complete("the", wanted=Wanted(logprobs=1), max_new_tokens=NEW)
    prompt = language_model.token_ids("the")
    row = [*prompt, *written.ids]
    scored = language_model.score(row, top=3)
    assert [score.id for score in scored] == row[1:]
    for ours, theirs in zip(scored[len(prompt) - 1 :], written.scores, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert ours.top[0][0] == theirs.top[0][0]
    total = -sum(score.logprob for score in scored) / len(scored)
    assert total == pytest.approx(language_model.loss(row).loss, rel=1e-5)
    texts = ["the cat", "and the dog sat on the mat and the cat"]
    batch = language_model.score(texts)
    for text, of_text in zip(texts, batch):
        alone = language_model.score(text)
        assert [s.logprob for s in of_text] == pytest.approx([s.logprob for s in alone], abs=1e-5)
    assert math.isfinite(batch[0][0].logprob)
    with pytest.raises(ConfigError, match="top is 99999; it must be from 0 to"):
        language_model.score("the cat", top=99999)


def test_settings_have_the_same_names_everywhere(language_model):
    with pytest.raises(ConfigError, match="unknown setting of decoding 'repetition_penalti'; did"):
        language_model.generate("the", repetition_penalti=2.0)
    listed = language_model.generate("the", max_new_tokens=4, stop=["zz"], bad_words=[[1, 2]])
    assert listed == language_model.generate("the", max_new_tokens=4)


TEXTS = st.text("ab é", max_size=12)
STOPS = st.lists(st.text("ab é", min_size=1, max_size=3), max_size=3)


@given(st.lists(TEXTS, max_size=5), STOPS)
def test_a_stream_holds_back_what_may_begin_a_stop_text_and_no_more(pieces, stops):
    stream = StopStream(stops)
    shown = ""
    seen = ""
    for piece in pieces:
        shown += stream.push(piece)
        seen += piece
        ends = [seen.find(stop) + len(stop) for stop in stops if stop in seen]
        if ends:
            first = min(ends)
            longest = max(len(stop) for stop in stops if seen[:first].endswith(stop))
            assert shown == seen[: first - longest]
            break
        waits = [
            n
            for n in range(len(seen) + 1)
            if any(s.startswith(seen[len(seen) - n :]) for s in stops)
        ]
        kept = max(waits, default=0)
        assert shown == seen[: len(seen) - kept]
    else:
        assert shown + stream.flush() == seen


def test_the_stop_text_that_ends_first_wins_and_then_the_longest():
    assert first_stop("xabcd", ["abcd", "bc"]) == ("bc", 2, 4)
    assert first_stop("xabc", ["abc", "bc", "c"]) == ("abc", 1, 4)
    assert first_stop("x", ["abc"]) is None
    assert held_back("xab", ["abc", "bd"]) == 2


def test_beams_give_the_best_texts_and_have_the_phrases_that_are_required(language_model):
    search = BeamConfig(beams=3, returned=3)
    found = language_model.search("the", search, max_new_tokens=5)
    scores = [completion.score for completion in found]
    assert scores == sorted(scores, reverse=True) and len({c.text for c in found}) == 3
    best = language_model.score([*language_model.token_ids("the"), *found[0].ids])[-5:]
    assert found[0].score == pytest.approx(sum(score.logprob for score in best) / 5, abs=1e-4)
    (with_both,) = language_model.search(
        "the", BeamConfig(beams=4), required=("cat", ["qqq", "dog"]), max_new_tokens=16
    )
    assert "cat" in with_both.text and ("qqq" in with_both.text or "dog" in with_both.text)
    for settings, message in (
        ({"top_k": 3}, "row 0: top_k: beam search reads no such setting"),
        ({"stop": "a"}, "row 0: stop: beam search"),
        ({"temperature": 0.5}, "row 0: temperature is 0.5, which beam search does not read"),
    ):
        with pytest.raises(ConfigError, match=message):
            language_model.search("the", search, **settings)


@pytest.mark.parametrize(
    "language_model",
    ["byte-level", pytest.param("metaspace", marks=pytest.mark.slow)],
    indirect=True,
)
def test_caches_and_drafts_change_no_greedy_text_and_shapes_no_draw(language_model):
    settings = {"max_new_tokens": 8, "temperature": 0.0}
    greedy = language_model.generate("the", **settings)
    paged = language_model.with_cache(CacheConfig(layout="paged", page=16))
    assert paged.generate("the", **settings) == greedy
    assert language_model.with_draft("lookup:2", 3).generate("the", **settings) == greedy
    fixed = language_model.with_shape(DecodeShape(rows=2, length=64, chunk=16))
    drawn = language_model.generate(["the", "and"], max_new_tokens=8)
    assert fixed.generate(["the", "and"], max_new_tokens=8) == drawn
    for other in (paged, fixed):
        assert other is not language_model


def test_what_does_not_go_with_a_draft_is_refused(language_model, tmp_path):
    other = tmp_path / "tokenizer"
    import_tokenizer(
        make_folder(tmp_path / "source", "byte-level", chat_template="{{ '' }}"), other
    )
    run = language_model.run
    stranger = LanguageModel(run._replace(folder=tmp_path))
    if open_tokenizer(other).fingerprint != language_model.tokenizer.fingerprint:
        with pytest.raises(ConfigError, match="a draft's tokens must be those of the model"):
            language_model.with_draft(stranger)


@pytest.mark.slow
def test_a_draft_goes_with_every_cache_and_with_one_shape(language_model):
    for more in (
        language_model.with_cache(CacheConfig(dtype="int8")),
        language_model.with_cache(CacheConfig(layout="paged")),
        language_model.with_shape(DecodeShape(rows=2, length=64)),
    ):
        found = more.with_draft("lookup").generate("the", max_new_tokens=8, temperature=0.0)
        assert found == more.generate("the", max_new_tokens=8, temperature=0.0)
