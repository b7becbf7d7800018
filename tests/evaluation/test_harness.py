"""The adapter of lm-evaluation-harness, against a stub of its interface where it is missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest
from jobs import write_text
from parameters import random_parameters

import llm_jax
from llm_jax import models, sharding
from llm_jax.checkpoints.open_run import Run
from llm_jax.config import Config, ExecutionConfig, MeshConfig, override
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.types import ConfigError


class Request(NamedTuple):
    """What the harness's ``Instance`` has that an adapter reads."""

    args: tuple[Any, ...]


class Hook:
    def __init__(self):
        self.kept = []

    def add_partial(self, kind, args, result):
        self.kept.append((kind, args, result))


class StubLM:
    def __init__(self):
        self.cache_hook = Hook()


@pytest.fixture(scope="module")
def harness():
    """The adapter's module, over the harness that is installed or over the stub."""
    name = "llm_jax.evaluation.harness"
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("lm_eval") is None:
            model = types.ModuleType("lm_eval.api.model")
            model.LM = StubLM
            for each in ("lm_eval", "lm_eval.api"):
                patch.setitem(sys.modules, each, types.ModuleType(each))
            patch.setitem(sys.modules, "lm_eval.api.model", model)
        yield importlib.import_module(name)
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harness")
    text = write_text(folder / "text.jsonl", 100, 0)
    train_tokenizer((str(text),), folder / "tokenizer", vocab_size=300)
    small = {
        "model.num_layers": 1,
        "model.embed_dim": 16,
        "model.attention.num_heads": 2,
        "model.mlp.hidden_dim": 24,
        "model.max_length": 48,
        "model.vocab_size": 300,
    }
    config = override(Config(), small)
    model = models.build(config.model, ExecutionConfig(layers="unroll", attention="xla"))
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    return llm_jax.LanguageModel(Run(folder, 0, config, mesh, model, random_parameters(model)))


@pytest.fixture(scope="module")
def adapter(harness, opened):
    return harness.HarnessModel(opened.run, opened.tokenizer, batch_size=4)


def test_log_likelihoods_are_those_of_the_model(adapter, opened):
    texts = [("A story of", " the"), ("A story of", " house"), ("", "A story")]
    found = adapter.loglikelihood([Request(args) for args in texts])
    for (context, continuation), (total, greedy) in zip(texts, found, strict=True):
        scores = opened.score(context + continuation)
        before = len(opened.token_ids(context)) if context else 1
        own = scores[before - 1 :]
        assert total == pytest.approx(sum(score.logprob for score in own), abs=1e-4)
        assert greedy == all(score.rank == 1 for score in own)


def test_rolling_scores_each_token_once(adapter, opened):
    text = "A story of the house and of the people in it. " * 5
    (found,) = adapter.loglikelihood_rolling([Request((text,))])
    expected = opened.loss(text, context=48, stride=48)
    assert expected.tokens > 96 and found == pytest.approx(-expected.nll, rel=1e-5)


def test_a_long_prompt_loses_its_beginning_and_is_counted(adapter):
    before = adapter.cut
    long = "A story of the house and of the people in it. " * 5
    ((total, _),) = adapter.loglikelihood([Request((long, " the"))])
    assert total < 0 and adapter.cut == before + 1


def test_requests_of_equal_settings_are_one_batch_in_their_order(adapter, opened, monkeypatch):
    calls = []

    def write(prompts, config):
        calls.append(config)
        return [opened.tokenizer.decode(ids).strip() for ids in prompts]

    monkeypatch.setattr(adapter._model, "write", write)
    greedy = {"until": ["e"], "max_gen_toks": 8, "do_sample": False, "temperature": 1.0}
    drawn = {"until": "x", "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5, "seed": 3}
    asked = [("A story", greedy), ("The house", drawn), ("In it", greedy)]
    found = adapter.generate_until([Request(args) for args in asked])
    assert found == ["A story", "The house", "In it"]
    by_length = {config.max_new_tokens: config for config in calls}
    assert len(calls) == 2
    assert by_length[8].temperature == 0 and by_length[8].stops.stop == ("e",)
    five = by_length[5]
    assert (five.temperature, five.top_p, five.seed, five.stops.stop) == (0.7, 0.9, 3, ("x",))
    if isinstance(adapter.cache_hook, Hook):
        kept = [one[2] for one in adapter.cache_hook.kept if one[0] == "generate_until"]
        assert kept == found


def test_a_setting_that_nothing_reads_is_refused(adapter):
    with pytest.raises(ConfigError, match="has num_beams, which this adapter does not read"):
        adapter.generate_until([Request(("a", {"num_beams": 2}))])
    with pytest.raises(ConfigError, match="max_gen_toks is 64"):
        adapter.generate_until([Request(("a", {"max_gen_toks": 64}))])


def test_without_the_harness_the_error_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "llm_jax.evaluation.harness", raising=False)
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'llm_jax\[harness\]'"):
        importlib.import_module("llm_jax.evaluation.harness")


def test_the_adapter_has_no_torch():
    source = Path(llm_jax.__file__).parent / "evaluation" / "harness.py"
    assert "torch" not in source.read_text()
