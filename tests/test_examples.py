"""The examples run, and show what they say."""

import ast
import functools
import json
import math
import runpy
import sys
from pathlib import Path

import jax
import pytest

import llm_jax
from llm_jax import models, sharding
from llm_jax.bench import train as bench
from llm_jax.checkpoints.open_run import Run
from llm_jax.config import Config, MeshConfig, override
from llm_jax.training import flops

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def small_peak(monkeypatch):
    """The peak of this machine is measured by small matrix products."""
    small = functools.partial(flops.measure_matmul, size=64)
    for module in (flops, bench):
        monkeypatch.setattr(module, "measure_matmul", small)


def test_reuse_ops_learns_to_repeat():
    losses = runpy.run_path(str(EXAMPLES / "reuse_ops.py"))["main"](steps=150)
    # It cannot do better than ln 16 without attending to the first half.
    assert losses[0] > 0.9 * math.log(16)
    assert losses[-1] < 0.05


def test_reuse_ops_stays_short():
    lines = [line for line in (EXAMPLES / "reuse_ops.py").read_text().splitlines() if line.strip()]
    assert len(lines) < 70


def run_example(monkeypatch, name: str, *words: str) -> dict:
    """Runs a script as ``python examples/NAME WORDS`` does from the checkout's folder."""
    monkeypatch.chdir(EXAMPLES.parent)
    monkeypatch.setattr(sys, "argv", [name, *words])
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.process
def test_training_goes_on_and_beats_nothing_at_all(
    one_device, small_peak, monkeypatch, capsys, tmp_path
):
    """Forty steps of a tiny model: its perplexity is below that of 512 equally likely tokens."""
    found = run_example(monkeypatch, "train_and_resume.py", str(tmp_path))
    said = capsys.readouterr()
    assert "1,235,814,400 parameters" in said.out and "memory per chip" in said.out
    assert "going on from step 30" in said.err
    assert found["results"]["step"] == 40
    assert found["results"]["model"]["perplexity"] < 512


@pytest.mark.process
def test_a_benchmark_measures_each_variant(small_peak, monkeypatch, capsys):
    figures = run_example(monkeypatch, "benchmark.py")["figures"].values()
    assert all(found["mfu_full"] > found["mfu_causal"] > 0 for found in figures)
    # What is recomputed is no part of the model: the loss is the same.
    losses = [found["loss"] for found in figures]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert capsys.readouterr().out.count("tokens/s") == 2


def test_a_model_is_used_as_an_object_and_as_pure_functions(monkeypatch, capsys, tmp_path):
    text = (str(EXAMPLES.parent / "README.md"),)
    tokenizer = llm_jax.train_tokenizer(text, tmp_path / "tokenizer", vocab_size=512)
    config = override(
        Config(),
        {
            "model.vocab_size": tokenizer.vocab_size,
            "model.num_layers": 1,
            "model.embed_dim": 16,
            "model.attention.num_heads": 2,
            "model.mlp.hidden_dim": 16,
            "model.max_length": 64,
        },
    )
    model = models.build(config.model)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.jit(model.init)(jax.random.key(0))
    made = llm_jax.LanguageModel(Run(tmp_path, 0, config, mesh, model, params))
    made.save(tmp_path / "model")
    found = run_example(monkeypatch, "use_a_model.py", str(tmp_path / "model"))
    assert float(found["value"]) == pytest.approx(found["score"].loss, abs=1e-4)
    assert f"over {found['score'].tokens} tokens" in capsys.readouterr().out
    # The example itself checks that no token comes soon again.
    found = run_example(monkeypatch, "own_sampler.py", str(tmp_path / "model"))
    assert len(found["own"].ids) > 0 and "with:" in capsys.readouterr().out


def test_our_model_learns_in_a_plain_optax_loop():
    losses = runpy.run_path(str(EXAMPLES / "optax_loop.py"))["main"](steps=60)
    assert losses[0] > 0.9 * math.log(16)
    assert losses[-1] < 0.1


@pytest.mark.parametrize(
    "name",
    ["train_and_resume.py", "benchmark.py", "use_a_model.py", "optax_loop.py", "own_sampler.py"],
)
def test_an_example_stays_short(name):
    tree = ast.parse((EXAMPLES / name).read_text())
    lines = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    assert len(lines) <= 36


def page(**texts: str) -> str:
    return (
        "<html><nav>menu</nav>"
        + "".join(f'<p id="{id}" class="x">{text}</p>' for id, text in texts.items())
        + "</html>"
    )


def test_pairs_of_the_help_are_split_by_page_and_nothing_held_out_is_trained_on(
    tmp_path, monkeypatch, capsys
):
    names = [f"guide/{i}.html" for i in range(200)]
    for i, name in enumerate(names):
        english = page(
            a=f"Open<br><b>page</b>\n {i}",
            same=f"Writer {i}",
            b="Close it",
            hid=f"Press <span hidden>never</span>key {i}",
            long="word " * 51,
            lonely=f"Only here {i}",
        )
        portuguese = page(
            a=f"Abra a p&aacute;gina {i}",
            same=f"Writer {i}",
            b="Feche",
            hid=f"Pressione a tecla {i}",
            long="palavra " * 51,
        )
        for language, text in (("en-US", english), ("pt-BR", portuguese)):
            file = tmp_path / "help" / language / "text" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    script = runpy.run_path(str(EXAMPLES / "libreoffice_pairs.py"))
    monkeypatch.setattr(sys, "argv", ["pairs", str(tmp_path / "help"), str(tmp_path / "out")])
    script["main"]()
    lines = {
        s: (tmp_path / f"out/{s}.jsonl").read_text().splitlines()
        for s in ("train", "validation", "test")
    }
    read = {split: [json.loads(line) for line in of] for split, of in lines.items()}
    splits = [script["split_of"](name) for name in names]
    for split, pairs in read.items():
        pages = [i for i, s in enumerate(splits) if s == split]
        expected = {(f"Open page {i}", f"Abra a página {i}") for i in pages} | {
            (f"Press key {i}", f"Pressione a tecla {i}") for i in pages
        }
        expected |= {("Close it", "Feche")} if split != "train" else set()
        assert {(p["en"], p["pt"]) for p in pairs} == expected and len(pairs) == len(expected)
    assert 0 < splits.count("validation") < splits.count("test") < 30
    assert "left out of train, since the English is held out: 1" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["pairs", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="is not there; name the folder help/"):
        script["main"]()
