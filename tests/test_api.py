"""The front door: ``llm_jax.load`` and the verbs as functions do what the command line does."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pkgutil
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import make_shards

import llm_jax
from llm_jax import models, sharding
from llm_jax.checkpoints.open_run import Run
from llm_jax.cli import VERBS, main
from llm_jax.config import Config, DecodeConfig, MeshConfig, override
from llm_jax.config.decode import decode_settings
from llm_jax.decode import Generator
from llm_jax.types import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("kept_programs")

KEPT = Path(__file__).parent / "fixtures"
# Of the kept model, what it said on the day that it was saved (test_kept).
LOGITS = [-0.014419, 3.078938, -0.381973, 4.324180, -0.092789, -1.009419]
IDS = list(range(8))
SMALL = {
    "model.num_layers": 1,
    "model.embed_dim": 16,
    "model.attention.num_heads": 2,
    "model.mlp.hidden_dim": 24,
    "model.max_length": 64,
    "data.seq_length": 32,
    "data.batch_size": 8,
    "train.steps": 2,
    "train.checkpoint_every": 1,
    "train.eval_every": 2,
    "train.peak_tflops": 1.0,
    "optimizer.warmup_steps": 1,
    "optimizer.schedule": "constant",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"))[0]


@pytest.fixture(scope="module")
def run(shards, kept_programs, tmp_path_factory) -> Path:
    """A run of two steps, trained through the front door."""
    out = tmp_path_factory.mktemp("trained") / "run"
    values = SMALL | {"data.path": (str(shards),), "train.out": str(out)}
    assert llm_jax.train(override(Config(), values)) == out
    return out


@pytest.fixture(scope="module")
def opened(run) -> llm_jax.LanguageModel:
    return llm_jax.load(run)


@pytest.fixture(scope="module")
def kept() -> llm_jax.LanguageModel:
    return llm_jax.load(KEPT / "model")


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


# Names --------------------------------------------------------------------------------------------


def test_every_name_is_there_and_none_is_that_of_a_module():
    for name in llm_jax.__all__:
        assert name in dir(llm_jax) and getattr(llm_jax, name) is not None
    # Importing llm_jax.NAME would put the module in the place of the function.
    assert not set(llm_jax.__all__) & {m.name for m in pkgutil.iter_modules(llm_jax.__path__)}
    with pytest.raises(AttributeError, match="module 'llm_jax' has no attribute 'lode'"):
        llm_jax.lode  # noqa: B018


def signatures(name: str, verb: str) -> tuple[dict, dict]:
    """Parameters of the function and of its verb."""
    module, _, function = VERBS[verb].target.partition(":")
    command = getattr(importlib.import_module(f"llm_jax.{module}"), function)
    ours = inspect.signature(getattr(llm_jax, name)).parameters
    return dict(ours), dict(inspect.signature(command).parameters)


def test_evaluate_has_the_arguments_of_its_verb_with_the_same_defaults():
    ours, command = signatures("evaluate", "eval")
    assert list(ours) == list(command)
    assert [p.default for p in ours.values()] == [p.default for p in command.values()]


def test_generate_has_arguments_of_its_verb_with_the_same_defaults_and_every_setting():
    ours, command = signatures("generate", "generate")
    assert ours.pop("settings").kind is inspect.Parameter.VAR_KEYWORD
    assert list(ours) == [name for name in command if name in ours]
    assert all(ours[name].default == command[name].default for name in ours)
    for name, setting in decode_settings().items():
        assert command[name].default == setting.field.default


@pytest.mark.parametrize("name, verb", [("prepare", "data prepare"), ("train_tokenizer",) * 2])
def test_data_is_prepared_by_the_function_of_the_verb_itself(name, verb):
    verb = {"train_tokenizer": "tokenizer train"}.get(verb, verb)
    module, _, function = VERBS[verb].target.partition(":")
    command = getattr(importlib.import_module(f"llm_jax.{module}"), function)
    assert getattr(llm_jax, name) is command


# Verbs --------------------------------------------------------------------------------------------


@pytest.mark.mesh
def test_training_goes_on_with_settings_as_a_mapping_or_as_assignments(run, tmp_path):
    config = shutil.copytree(run, tmp_path / "run") / "config.json"
    out = str(tmp_path / "run")
    llm_jax.train(
        config, {"train.steps": 3, "train.out": out, "train.allow_changed": ("train.steps",)}
    )
    # Nothing is left to do.
    llm_jax.train(
        config, ["train.steps=3", f"train.out={out}", "train.allow_changed=('train.steps',)"]
    )
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    steps = [r["step"] for r in map(json.loads, lines) if r["kind"] == "train"]
    assert steps == [1, 2, 3]
    assert llm_jax.load(tmp_path / "run", 3).step == 3


def test_a_setting_that_cannot_be_is_refused_before_anything_is_written(tmp_path):
    out = {"train.out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match="unknown setting 'train.step'; did you mean"):
        llm_jax.train(Config(), {"train.step": 3} | out)
    with pytest.raises(
        ConfigError, match=r"data.objective.mask_rate was set \(train\(\)\) but nothing in"
    ):
        llm_jax.train(Config(), {"data.objective.mask_rate": 0.3} | out)
    with pytest.raises(ConfigError, match="set is the string 'train.steps=3'; give a mapping"):
        llm_jax.train(Config(), "train.steps=3")
    assert not list(tmp_path.iterdir())


def test_one_of_several_processes_is_sent_to_the_verb(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="in one of 2 processes; start `llm-jax train` in each"):
        llm_jax.train(Config())


@pytest.mark.mesh
@pytest.mark.slow
def test_a_model_on_a_mesh_writes_what_it_writes_on_one_device(kept):
    spread = llm_jax.load(KEPT / "model", mesh=MeshConfig())
    assert spread.mesh.size == 8
    rows = [[1, 2, 3 + i] for i in range(8)]
    settings = {"max_new_tokens": 4, "temperature": 0.0}
    assert spread.generate(rows, **settings) == kept.generate(rows, **settings)
    np.testing.assert_allclose(spread.logits(IDS), kept.logits(IDS), atol=1e-5)


@pytest.mark.mesh
def test_evaluating_gives_the_figures_that_the_verb_writes(run, opened, shards, capsys):
    found = llm_jax.evaluate(run, shards, step=opened.step, context=16, baselines=False)
    assert found.keys() == {"step", "split", "model"}
    words = ["--step", str(opened.step), "--context", "16", "--no-baselines"]
    assert main(["eval", str(run), "--data", str(shards), *words]) == 0
    assert json.loads((run / "eval_validation.json").read_text()) == found
    assert f"{found['model']['perplexity']:,.4f}" in capsys.readouterr().out
    # An open model is on one device, where sums are taken in another order.
    single = llm_jax.evaluate(opened, shards, context=16, baselines=False)
    assert single["model"]["loss"] == pytest.approx(found["model"]["loss"], abs=1e-5)
    with pytest.raises(ConfigError, match="step is 1, and run is an open model; give step to load"):
        llm_jax.evaluate(opened, shards, step=1)


@pytest.mark.mesh
def test_generating_gives_what_the_verb_prints(run, opened, capsys, monkeypatch):
    # One model for all calls: its programs are compiled once.
    once = functools.cache(llm_jax.load)
    for module in ("llm_jax.api.verbs", "llm_jax.commands.generate"):
        monkeypatch.setattr(
            f"{module}.load", lambda run, step, mesh=None: once(run, step, mesh=mesh)
        )
    settings = {"max_new_tokens": 12, "temperature": 0.9, "seed": 5, "step": opened.step}
    words = ["--max-new-tokens", "12", "--temperature", "0.9", "--seed", "5"]
    words += ["--step", str(opened.step)]
    written = llm_jax.generate(run, "the cat", **settings)
    assert main(["generate", str(run), "--prompt", "the cat", *words]) == 0
    assert capsys.readouterr().out == f"the cat{written}\n"
    both = llm_jax.generate(run, ["the cat", "nine"], **settings)
    assert main(["generate", str(run), "--prompt", "the cat", "nine", *words]) == 0
    line = "-" * 40
    assert capsys.readouterr().out == f"the cat{both[0]}\n{line}\nnine{both[1]}\n{line}\n"
    ids = llm_jax.generate(run, ids=(5, 6), **settings)
    assert main(["generate", str(run), "--ids", "5", "6", *words]) == 0
    assert capsys.readouterr().out == " ".join(map(str, ids)) + "\n"
    with pytest.raises(ConfigError, match="--ids takes no --prompt"):
        llm_jax.generate(run, "the cat", ids=(5,))
    with pytest.raises(ConfigError, match="temperature is -1; it must be at least 0"):
        llm_jax.generate(run, "the cat", temperature=-1)


# Text ---------------------------------------------------------------------------------------------


def test_generation_is_that_of_the_decoder_for_texts_and_ids(opened):
    settings = {"max_new_tokens": 10, "temperature": 0.8, "seed": 3}
    tokenizer = opened.tokenizer
    prompts = ["the cat", "nine small birds fly over"]
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in prompts]
    expected = Generator(opened.model, opened.params, stop_ids=tokenizer.eos_ids).generate(
        ids, DecodeConfig(**settings)
    )
    assert opened.generate(ids, **settings) == expected
    assert opened.generate(np.array(ids[0]), **settings) == expected[0]
    texts = opened.generate(prompts, **settings)
    assert texts[0] == opened.generate(prompts[0], **settings)
    for row, new, text in zip(ids, expected, texts):
        assert tokenizer.decode(row) + text == tokenizer.decode([*row, *new])
    assert "".join(opened.stream(prompts[0], **settings)) == texts[0]
    assert list(opened.stream(ids[0], **settings)) == expected[0]
    # Programs are kept: the same object answers.
    assert opened._generator is opened._generator


def test_a_model_without_a_tokenizer_takes_ids(kept):
    assert (
        kept.generate([1, 2, 3], max_new_tokens=4, temperature=0)
        == (kept.generate([[1, 2, 3]], max_new_tokens=4, temperature=0)[0])
    )
    with pytest.raises(ConfigError, match="fixtures/model has no tokenizer, so that it takes"):
        kept.generate("text")
    assert kept.loss(IDS).summary()["bits_per_byte"] is None


def test_settings_and_texts_that_cannot_be_are_named(opened):
    with pytest.raises(ConfigError, match="unknown setting of decoding 'temprature'; did you mean"):
        opened.generate("the", temprature=1.0)
    with pytest.raises(ConfigError, match="the list of texts is empty; give at least one"):
        opened.generate([])
    with pytest.raises(ConfigError, match=r"text 1 is 7 \(int\); it must be a string"):
        opened.logits(["the", 7])
    with pytest.raises(ConfigError, match="text 0 has 65 tokens; it must have from 1 to 64"):
        opened.logits([5] * 65)
    with pytest.raises(ConfigError, match=r"text 0 has 999 at place 1; this model has the ids"):
        opened.logits([5, 999])
    with pytest.raises(ConfigError, match="encoder is given, and this model has no encoder"):
        opened.logits("the cat", encoder="a mat")
    with pytest.raises(DataError, match="has no chat template: it was trained by llm_jax"):
        opened.chat("hello")


# Scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "model"])
def test_logits_are_those_of_the_kept_model(kind):
    logits = llm_jax.load(KEPT / kind).logits(IDS)
    assert logits.shape == (8, 16) and logits.dtype == np.float32
    np.testing.assert_allclose(logits[-1, :6], LOGITS, atol=1e-5)


def test_logits_of_several_texts_are_those_of_each(kept):
    rows = [IDS, [3, 1, 2]]
    for one, row in zip(kept.logits(rows), rows):
        np.testing.assert_allclose(one, kept.logits(row), atol=1e-5)


def test_a_loss_is_the_mean_of_what_the_logits_say(kept):
    told = log_probabilities(kept.logits(IDS))
    expected = -told[np.arange(7), IDS[1:]]
    found = kept.loss(IDS)
    assert found.tokens == 7 and found.loss == pytest.approx(expected.mean(), abs=1e-5)
    several = kept.loss([IDS, IDS[:4]])
    assert several[0] == found and several[1].tokens == 3
    assert several[1].nll == pytest.approx(expected[:3].sum(), abs=1e-5)


def test_a_text_longer_than_its_windows_has_each_token_scored_once(kept):
    text = [1, 5, 2, 7, 3, 9, 4, 8, 6]
    found = kept.loss(text, context=4, stride=2)
    # The first window scores four tokens, each later one two more of four.
    expected = 0.0
    for window, scored in ((text[0:5], 4), (text[2:7], 2), (text[4:9], 2)):
        told = log_probabilities(kept.logits(window[:-1]))
        expected -= told[np.arange(4), window[1:]][-scored:].sum()
    assert found.tokens == 8 and found.nll == pytest.approx(expected, abs=1e-4)
    assert (found.context, found.stride) == (4, 2)
    with pytest.raises(ConfigError, match="context is 33; the model's max_length is 32"):
        kept.loss(text, context=33)
    with pytest.raises(ConfigError, match="text of 1 tokens: nothing predicts its first one"):
        kept.loss([3])


def test_a_loss_of_text_counts_its_words_and_bytes(opened):
    text = "the cat sat on a mat"
    found = opened.loss(text)
    assert (found.tokens, found.words, found.bytes) == (
        len(opened.tokenizer.encode(text)),
        6,
        len(text),
    )
    assert found.bos
    assert found.summary()["bits_per_byte"] == pytest.approx(
        found.nll / len(text) / np.log(2), rel=1e-6
    )


def test_a_vector_is_the_mean_of_the_hidden_states(opened):
    text = "nine small birds"
    tokenizer = opened.tokenizer
    ids = jnp.asarray([[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]])
    batch = models.rows_of(ids, jnp.asarray([ids.shape[1]]))
    hidden = jax.jit(opened.model.apply)(opened.params, batch).hidden
    expected = np.asarray(hidden[0].mean(axis=0))
    np.testing.assert_allclose(opened.embed(text, normalize=False), expected, atol=1e-5)
    found = opened.embed([text, "rain"])
    assert found.shape == (2, 16)
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=1e-5)
    with pytest.raises(ConfigError, match="pooling is 'model', and model.pooler is none"):
        opened.embed(text, pooling="model")
    with pytest.raises(
        ConfigError, match="pooling is 'max'; it must be first, mean, last or model"
    ):
        opened.embed(text, pooling="max")


def built(opened: llm_jax.LanguageModel, changed: dict[str, Any]) -> llm_jax.LanguageModel:
    """A model of random parameters with the tokenizer of another."""
    values = {f"model.{name}": value for name, value in changed.items()}
    config = override(opened.config, values)
    model = models.build(config.model)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.jit(model.init)(jax.random.key(0))
    return llm_jax.LanguageModel(Run(opened.folder, 0, config, mesh, model, params))


def test_a_pooler_is_used_where_it_is_asked_for(opened):
    encoder = built(opened, {"causal": False, "pooler": "on"})
    tokenizer = encoder.tokenizer
    ids = jnp.asarray([[tokenizer.bos_id, *tokenizer.encode("rain"), tokenizer.eos_id]])
    batch = models.rows_of(ids, jnp.asarray([ids.shape[1]]))
    hidden = jax.jit(encoder.model.apply)(encoder.params, batch).hidden
    kernel, bias = (encoder.params["pooler"][name] for name in ("kernel", "bias"))
    expected = np.tanh(np.asarray(hidden[0, 0] @ kernel + bias))
    found = encoder.embed("rain", normalize=False, pooling="model")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ConfigError, match="model.causal is False: this model predicts masked"):
        encoder.loss("rain")
    assert encoder.logits("rain").shape == (ids.shape[1], encoder.config.model.vocab_size)


def test_an_encoder_reads_a_text_of_its_own(opened):
    both = built(opened, {"encoder.num_layers": 1, "encoder.start_token": 0})
    ids = both.token_ids("the cat")
    assert ids == [0, *both.tokenizer.encode("the cat")]
    said = both.logits("the cat", encoder="rain fell")
    other = both.logits("the cat", encoder="a mat")
    assert said.shape == other.shape == (len(ids), both.config.model.vocab_size)
    assert np.abs(said - other).max() > 1e-4
    told = log_probabilities(said)[np.arange(len(ids) - 1), ids[1:]]
    found = both.loss("the cat", encoder="rain fell")
    assert found.tokens == len(told) and found.loss == pytest.approx(-told.mean(), abs=1e-5)
    texts = ["the cat", "nine"]
    several = both.logits(texts, encoder=["rain fell", "a mat"])
    np.testing.assert_allclose(several[0], said, atol=1e-5)
    with pytest.raises(ConfigError, match="model.encoder is .on.: the encoder reads a text"):
        both.logits("the cat")
    with pytest.raises(ConfigError, match="encoder has 1 texts, and text 2; give one for each"):
        both.logits(texts, encoder="rain")


# Parameters ---------------------------------------------------------------------------------------


def test_other_parameters_are_another_model_and_are_saved(opened, tmp_path):
    doubled = jax.tree.map(lambda a: 2 * a, opened.params)
    changed = opened.with_params(doubled)
    assert np.abs(changed.logits("rain") - opened.logits("rain")).max() > 1e-3
    changed.save(tmp_path / "saved")
    again = llm_jax.load(tmp_path / "saved")
    assert again.step == 0
    np.testing.assert_array_equal(again.logits("rain"), changed.logits("rain"))
    assert again.generate("rain", max_new_tokens=8) == changed.generate("rain", max_new_tokens=8)
    with pytest.raises(ConfigError, match="params: embed/embedding has the shape absent"):
        opened.with_params({k: v for k, v in doubled.items() if k != "embed"})
    wide = {**doubled, "embed": {"embedding": jnp.ones((3, 4))}}
    with pytest.raises(ConfigError, match=r"embed/embedding has the shape \(3, 4\), and the model"):
        opened.with_params(wide)


def test_a_model_shows_what_it_is(opened):
    size = sum(a.size for a in jax.tree.leaves(opened.params))
    shown = repr(opened)
    assert str(opened.folder) in shown and f"step {opened.step}" in shown and f"{size:,}" in shown
