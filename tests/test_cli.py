"""The command line as a user meets it: help, suggestions, exit statuses, and the stages of the main
job in order.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from words import WORDS

from llm_jax.cli import VERBS, main
from llm_jax.config import Config
from llm_jax.config.explain import help_of
from llm_jax.config.sections import flatten, settings
from llm_jax.decode.results import Completion
from llm_jax.multihost.join import FLAGS
from llm_jax.storage.bucket_path import check_installed

ROOT = Path(__file__).resolve().parents[1]
ENV = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "COLUMNS": "200",
    "NO_COLOR": "1",
}


def shell(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "llm_jax.cli", *words],
        env=ENV,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(autouse=True)
def memory_of_the_tests_stays_as_it_is(monkeypatch):
    monkeypatch.setattr("llm_jax.cli.keep_freed_memory", lambda: False)


def call(*words: str) -> int:
    """In this process; the exit status, also where the parser exits by itself."""
    try:
        return main(list(words))
    except SystemExit as end:
        return int(end.code or 0)


def flat(text: str) -> str:
    """Without frames, colours and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


# Buckets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("quickstart", "--out=gs://b/run"),
        ("tokenizer train", "--input", __file__, "--out", "gs://b/tok"),
        ("data prepare", "--input", "gs://b/*", "--tokenizer", "t", "--out", "o"),
        ("data inspect", "gs://b/shards"),
        ("plan", f"{ROOT}/configs/lm_1b.py", "--out=s3://b/plan.json"),
        ("train", "gs://b/config.py"),
        ("eval", "gs://b/run", "--data", "shards"),
        ("generate", "gs://b/run"),
        ("check-parity", "gs://b/run"),
        ("bench train", "--out", "gs://b/x.json"),
        ("bench decode", "--config=gs://b/c.py"),
        ("bench data", "gs://b/shards"),
    ],
    ids=lambda words: words[0],
)
def test_no_verb_takes_a_bucket_for_a_folder(words, capsys, tmp_path, monkeypatch):
    """As a pathlib.Path, gs://b/run is the local folder gs:, which is lost with the machine."""
    monkeypatch.chdir(tmp_path)
    for package in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, package, None)
    check_installed.cache_clear()
    assert call(*words[0].split(), *words[1:]) == 2
    check_installed.cache_clear()
    said = flat(capsys.readouterr().err)
    assert re.search(r"(gs|s3):// needs the package (gcsfs|s3fs), which is not installed: ", said)
    assert re.search(r"pip install 'llm_jax\[(gcs|s3)\]'", said)
    assert not list(tmp_path.iterdir())


def test_a_prompt_may_be_anything(capsys):
    assert call("generate", "nowhere", "--prompt", "gs://b/x") == 2
    assert "nowhere is not a run" in capsys.readouterr().err


# Help ---------------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_imports_nothing_heavy():
    heavy = {"jax", "tyro", "numpy", "orbax", "grain", "rich"}
    code = (
        f"import sys\nfrom llm_jax.cli import main\nmain(['--help'])\nprint(sorted({heavy} &"
        " set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("[]")
    for name, verb in VERBS.items():
        assert f"llm-jax {name}" in done.stdout and verb.meaning in done.stdout


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_no_verb_is_help(words, capsys):
    assert call(*words) == 0
    assert capsys.readouterr().out.startswith("usage: llm-jax VERB")


def test_version(capsys):
    assert call("--version") == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


SPOTS = {
    "quickstart": ("--text", "--steps INT", "750", "training steps"),
    "tokenizer train": (
        "--vocab-size INT",
        "4096",
        "number of tokens, with the 4 special and 256 byte tokens",
        "{bpe,unigram}",
    ),
    "tokenizer import": (
        "--source PATH",
        "with tokenizer.json, a SentencePiece model or Marian's two; or a file",
        "--overwrite",
    ),
    "tokenizer export": (
        "--folder PATH",
        "folder to write to: new, empty, or of a Hugging Face model, whose files",
        "--overwrite",
    ),
    "data prepare": (
        "--text-field STR",
        "--validation-fraction {None}|FLOAT",
        "0.05",
        "share of documents held out",
        "{repair,refuse}",
    ),
    "data inspect": ("--rows INT", "--split STR", "train"),
    "plan": ("--topology STR", "v5e:4x4", "chip and shape of the slice"),
    "train": (
        "--train.steps INT",
        "1000",
        "Optimizer steps in all.",
        "usage: llm-jax train CONFIG",
    ),
    "eval": (
        "--split STR",
        "validation",
        "--stride INT",
        "folder of shards, made with the run's tokenizer",
    ),
    "eval compare": (
        "--results [PATH [PATH ...]]",
        "an .html file",
    ),
    "generate": (
        "--top-p FLOAT",
        "1.0",
        "Keep the smallest set of most likely tokens whose mass reaches p",
        "{hf,vllm}",
        "--seed INT",
    ),
    "chat": (
        "--system {None}|STR",
        "what the model is told before the conversation",
        "--temperature FLOAT",
    ),
    "card": ("--topology STR", "--price FLOAT", "g CO2e per kWh; 0 takes the world's mean"),
    "task classify": ("--label-field STR", "--test-fraction FLOAT", "share of", "held out"),
    "bias": ("--sets", "crows-pairs", "--template", "--batch-size"),
    "word2vec": (
        "--architecture {skip-gram,cbow}",
        "--min-count INT",
        "words with fewer occurrences are left out",
        "--softmax {negative,hierarchical}",
    ),
    "vectors nearest": ("--words [STR [STR ...]]", "--count INT", "how many are listed"),
    "vectors analogy": ("--words STR STR STR", "how many answers are listed"),
    "vectors eval": ("--similarity", "file with two words and a number a line"),
    "vectors page": ("--tsne, --no-tsne", "neighbours of each word", "HTML file to write"),
    "task label": ("--text-field STR", "key of a second text", "the record, with predicted"),
    "task tag": ("--scheme {bio,words}", "--words-field STR", "scored word by word"),
    "task embed": ("--temperature FLOAT", "0.05", "--pooling {mean,first,last,model}"),
    "task similarity": ("--score-field STR", "--pooling {auto,mean,first,last,model}"),
    "task retrieve": ("--documents PATH", "--relevant-field STR", "--long {refuse,skip,truncate}"),
    "task summarize": ("--summary-field STR", "--words {rouge_score,unicode}", "--template STR"),
    "task translate": ("--target-field STR", "a decoder needs one"),
    "task answer": ("--context-field STR", "a text that has the answer; empty for none"),
    "task mask": ("--rate FLOAT", "0.15", "share of the tokens of each text that are hidden"),
    "toxicity": ("--samples INT", "25", "--toxic-label STR", "its label of toxic texts"),
    "memorization": ("--continuation INT", "50", "tokens that are given", "extracted"),
    "contamination": ("--files [PATH [PATH ...]]", "13", "words of an n-gram"),
    "long-context": (
        "--needle-lengths [INT [INT ...]]",
        "tokens of the prompts with a fact; none if not given",
    ),
    "attention": (
        "--text STR",
        "--layer [INT [INT ...]]",
        "layers whose maps are drawn, from 0 on",
    ),
    "embed": (
        "--text [STR [STR ...]]",
        "--normalize, --no-normalize",
        "--batch-size INT",
        "texts computed together",
    ),
    "check-parity": ("--rows INT", "sequences of random tokens compared"),
    "convert from-hf": (
        "--path PATH",
        "folder with config.json and model.safetensors",
        "--ignore [STR [STR ...]]",
    ),
    "convert from-gguf": (
        "--path PATH",
        "how the tokenizer cuts text, such as llama-bpe, where the file does not say",
    ),
    "convert to-hf": ("--family STR", "what a run shall be, such as llama"),
    "convert inspect": ("--other", "a second one, compared name by name"),
    "convert verify": ("--tolerance FLOAT", "0.001", "largest difference that is allowed"),
    "config explain": (
        "--key STR",
        "dotted name of the setting, such as model.attention.num_kv_heads",
    ),
    "bench train": ("--config",),
    "bench decode": ("--config",),
    "bench data": ("--path",),
}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_its_options(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert call(*name.split(), "--help") == 0
    text = flat(capsys.readouterr().out)
    for spot in SPOTS[name]:
        assert spot in text


def test_a_form_of_a_verb_explains_its_own_options(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert call("eval", "--tasks", "piqa", "--help") == 0
    text = flat(capsys.readouterr().out)
    for spot in ("--shots STR", "--long {refuse,skip,truncate-left}", "--files {None}|PATH"):
        assert spot in text
    assert "--stride" not in text
    assert call("task", "classify", "--model", "runs/bert", "--help") == 0
    text = flat(capsys.readouterr().out)
    for spot in ("--second-field STR", "--class-weights {none,balanced}", "--classes-only"):
        assert spot in text
    assert "--l2" not in text


def test_help_of_train_has_every_setting_with_its_default_and_meaning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert call("train", "--help") == 0
    text = flat(capsys.readouterr().out)
    for key, (setting, *_) in settings(Config).items():
        value = setting.default
        assert f"--{key.replace('_', '-')}" in text or f"--{key}" in text, key
        assert " ".join(help_of(key).replace("`", "").split())[:50] in text.replace("`", ""), key
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert str(value) in text


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["trian", "c.py"], "train"),
        (["data", "prepar"], "data prepare"),
        (["tokenizer"], "tokenizer train"),
        (["chek-parity", "run"], "check-parity"),
        (["bench", "trian"], "bench train"),
        (["evaluate", "x"], "eval"),
    ],
)
def test_an_unknown_verb_suggests_the_nearest(words, near, capsys):
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert f"unknown verb {' '.join(words[:2])!r}; did you mean {near!r}?" in error
    assert "usage: llm-jax VERB" in error


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--train.step=5", "unknown setting 'train.step'; did you mean 'train.steps'?"),
        (
            "--model.num-hads=5",
            "unknown setting 'model.num_hads'; did you mean 'model.attention.num_heads'?",
        ),
        (
            "--learning_rate=1",
            "unknown setting 'learning_rate'; did you mean 'optimizer.learning_rate'?",
        ),
        (
            "--optimizer.update.momentum=0.5",
            "optimizer.update.momentum was set (command line) but nothing in this run reads it",
        ),
        ("--data.path=/nowhere", "/nowhere"),
        ("--train.steps=0", "train.steps is 0; it must be at least 1"),
    ],
)
def test_a_wrong_setting_of_train(word, message, tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text("from llm_jax.config import Config\n\n\ndef config():\n    return Config()\n")
    extra = [] if "data.path" in word else ["--data.path=/nowhere"]
    assert call("train", str(config), word, *extra) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("llm-jax train: error: ")


@pytest.mark.parametrize(
    "words",
    [
        ("train",),
        ("train", "missing.py"),
        ("eval", "/nowhere", "--data", "/nowhere"),
        ("generate", "/nowhere"),
    ],
)
def test_what_is_missing_is_named(words, capsys):
    assert call(*words) == 2
    error = capsys.readouterr().err
    assert {
        "train": "config",
        "eval": "/nowhere is not a run",
        "generate": "/nowhere is not a run",
    }[words[0]] in error


def test_a_value_of_the_wrong_type_is_refused(tmp_path, capsys):
    assert call("train", str(ROOT / "configs" / "tiny_cpu.py"), "--train.steps=many") == 2
    captured = capsys.readouterr()
    assert "many" in captured.err + captured.out


def test_a_mistake_shows_no_traceback():
    done = shell("train", "configs/tiny_cpu.py", "--train.step=5")
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "llm-jax train: error: unknown setting 'train.step'; did you mean 'train.steps'?"
    )


# The stages of the main job -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    (folder / "texts").mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        text = "\n\n".join(" ".join(rng.choice(WORDS, 60)) + f". Part {i}." for _ in range(4))
        (folder / "texts" / f"{i}.txt").write_text(text)
    return folder


STAGES = [
    ("tokenizer train --input {}/texts/*.txt --vocab-size 320 --out {}/tok/", "of text"),
    (
        (
            "data prepare --input {}/texts/*.txt --tokenizer {}/tok/ --out {}/shards/ --workers 1"
            " --validation-fraction 0.2"
        ),
        "tokenising",
    ),
    ("data inspect {}/shards/ --rows 1 --seq-length 64", "<s>"),
    (
        (
            "train {root}/configs/tiny_cpu.py --train.steps=12 --data.path={}/shards/"
            " --train.out={}/tiny --model.num-layers=2 --model.embed_dim=32"
            " --model.mlp.hidden_dim=64"
            " --model.max_length=64 --data.seq_length=64 --data.batch_size=8"
            " --optimizer.warmup_steps=2 --train.eval_every=6 --train.peak_tflops=1"
        ),
        "run in ",
    ),
    ("eval {}/tiny --data {}/shards/ --split validation", "bits per byte"),
    ("check-parity {}/tiny --rows 2", "equal"),
    ("config explain {root}/configs/lm_1b.py model.attention.num_kv_heads", "lm_1b.py:"),
    ("bench data {}/shards/ --seq-length 64 --batch-tokens 512 --steps 2 --repeats 1", "tokens/s"),
]


def run_stages(place: Path, capfd) -> None:
    for command, word in STAGES:
        words = command.replace("{root}", str(ROOT)).replace("{}", str(place)).split()
        assert call(*words) == 0, command
        captured = capfd.readouterr()
        assert word in captured.out + captured.err, command


@pytest.mark.process
def test_the_stages_run_in_order(place, capfd):
    run_stages(place, capfd)
    tiny = place / "tiny"
    there = {p.name for p in tiny.iterdir()}
    assert there >= {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "tokenizer",
        "eval_validation.json",
    }
    generate_twice(tiny, capfd)
    assert call("generate", str(tiny), "--chat", "hi") == 2
    assert "has no chat template: it was trained by llm_jax" in capfd.readouterr().err
    # The config saved with a run is a config to run.
    assert call("train", str(tiny / "config.json")) == 0
    assert "already at step 12 of 12" in capfd.readouterr().err
    assert call("config", "explain", str(tiny / "config.json"), "model.embed_dim") == 0
    assert "model.embed_dim = 32" in capfd.readouterr().out
    assert call("config", "explain", str(tiny / "config.json"), "model.embd_dim") == 2
    assert "did you mean 'model.embed_dim'?" in capfd.readouterr().err


def generate_twice(run: Path, capfd) -> None:
    def text(*words: str) -> str:
        assert call("generate", str(run), "--max-new-tokens", "12", *words) == 0
        return capfd.readouterr().out

    streamed = text("--prompt", "the cat", "--temperature", "0.8", "--top-p", "0.95", "--seed", "7")
    assert streamed.startswith("the cat")
    assert streamed == text(
        "--prompt", "the cat", "--temperature", "0.8", "--top-p", "0.95", "--seed", "7"
    )
    assert streamed != text(
        "--prompt", "the cat", "--temperature", "0.8", "--top-p", "0.95", "--seed", "8"
    )
    batch = text(
        "--prompt", "the cat", "nine", "--temperature", "0.8", "--top-p", "0.95", "--seed", "7"
    )
    assert batch.split("\n" + "-" * 40)[0] == streamed.rstrip("\n")
    assert text("--prompt", "nine", "--temperature", "0.0") == text(
        "--prompt", "nine", "--temperature", "0.0", "--seed", "3"
    )


@pytest.mark.process
def test_a_run_with_an_imported_tokenizer_answers_in_its_chat_template(place, tmp_path, capfd):
    pytest.importorskip("jinja2", reason="chat templates need the extra: pip install -e '.[hf]'")
    pytest.importorskip(
        "tokenizers", reason="imported tokenizers need the extra: pip install -e '.[hf]'"
    )
    from hf_builders import CHATML, make_folder

    source = make_folder(
        tmp_path / "model", "byte-level", chat_template=CHATML, eos_token="<|im_end|>"
    )
    (source / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    stages = (
        f"tokenizer import {source} --out {tmp_path}/tok",
        (
            f"data prepare --input {place}/texts/*.txt --tokenizer {tmp_path}/tok --out"
            f" {tmp_path}/shards --workers 1"
        ),
        (
            f"train {ROOT}/configs/tiny_cpu.py --train.steps=2 --data.path={tmp_path}/shards"
            f" --train.out={tmp_path}/run --model.num-layers=1 --model.embed_dim=32"
            " --model.mlp.hidden_dim=64 --model.max_length=128 --data.seq_length=64"
            " --data.batch_size=8"
            " --optimizer.warmup_steps=1 --train.peak_tflops=1"
        ),
        f"eval {tmp_path}/run --data {tmp_path}/shards",
        f"tokenizer export {tmp_path}/run/tokenizer --out {tmp_path}/back",
    )
    for command in stages:
        assert call(*command.split()) == 0, command
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (
        source / "tokenizer.json"
    ).read_bytes()
    capfd.readouterr()
    asked: list = []

    def ask(self, ids, config, wanted, *, ended):
        asked.append((ids, *self.ends_of([config])))
        ended(Completion(ids=[], finish_reason="length", stop=None, seed=0, order="hf"))
        return iter(())

    with pytest.MonkeyPatch.context() as patch:
        # What the model is asked, and where it stops, whatever this one has learned.
        patch.setattr("llm_jax.decode.Generator.stream_scored", ask)
        assert (
            call("generate", f"{tmp_path}/run", "--chat", "gs://hi", "--system", "Be brief.") == 0
        )
        assert call("generate", f"{tmp_path}/run", "--prompt", "hi") == 0
    from llm_jax.tokenizers.open_tokenizer import open_tokenizer

    t = open_tokenizer(tmp_path / "tok")
    text = (
        "<|im_start|>system\nBe"
        " brief.<|im_end|>\n<|im_start|>user\ngs://hi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert asked == [(t.encode(text), [5, 2]), ([t.bos_id, *t.encode("hi")], [5, 2])]
    assert t.encode(text)[0] == 4
    assert call("generate", f"{tmp_path}/run", "--chat", "hi", "--max-new-tokens", "4") == 0
    assert call("generate", f"{tmp_path}/run", "--chat", "hi", "--prompt", "x") == 2
    assert "give either --prompt or --chat" in capfd.readouterr().err


def test_a_reader_that_leaves_early_is_no_error():
    shell = (
        f"{sys.executable} -m llm_jax.cli config explain configs/lm_1b.py"
        " model.attention.num_kv_heads |"
        " true; echo ${PIPESTATUS[0]}"
    )
    done = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() in ("0", "141")


# Advice -------------------------------------------------------------------------------------------

PACKAGE = ROOT / "llm_jax"
# "--merge" is of llama.cpp's gguf-split; "--section.key" stands for any setting, "--xla_…" for any
# flag of XLA.
OTHER_OPTIONS = {"--help", "--version", "--section.key", "--merge"}
OPTION = re.compile(r"(?<![\w-])--(?!xla_)[a-z][a-z0-9._-]*[a-z0-9](?![a-z0-9-]*\{)")


def options_of(target: str) -> set[str]:
    module, _, function = target.partition(":")
    verb = getattr(importlib.import_module(f"llm_jax.{module}"), function)
    parameters = inspect.signature(verb, eval_str=True).parameters
    names = {
        name.replace("_", "-"): parameter.annotation is bool
        for name, parameter in parameters.items()
    }
    return {f"--{name}" for name in names} | {
        f"--no-{name}" for name, is_flag in names.items() if is_flag
    }


@pytest.fixture(scope="module")
def all_options() -> set[str]:
    targets = [to for verb in VERBS.values() for to in (verb.target, *verb.forms.values())]
    verbs = set().union(*map(options_of, targets))
    hosts = {f"--{name}" for name in FLAGS}
    settings = {f"--{name}" for name in flatten(Config())}
    return verbs | hosts | settings | OTHER_OPTIONS


# Pages have style sheets, whose variables look like options.
PAGES = set(PACKAGE.rglob("*page.py"))


@pytest.mark.parametrize(
    "path",
    sorted(set(PACKAGE.rglob("*.py")) - PAGES),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_an_option_that_a_text_of_the_package_names_exists(path, all_options):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert set(OPTION.findall(node.value)) <= all_options, (
                f"{path}:{node.lineno}: {node.value}"
            )


def test_the_walk_over_texts_sees_options():
    assert OPTION.findall(
        "give pre (--pre), --data.path or --no-add-bos; a--b, --xla_cpu_x, --{name}"
    ) == ["--pre", "--data.path", "--no-add-bos"]
