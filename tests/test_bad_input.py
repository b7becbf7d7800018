"""Every mistake of the issue's list, through the command line: status 2, one message that names it,
no traceback.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from words import WORDS

from llm_jax.cli import main
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer

CONFIG = """
from llm_jax.config import Config
from llm_jax.config.overrides import override


def config():
    return override(Config(), {
        "model.num_layers": 1, "model.embed_dim": 16, "model.attention.num_heads": 2,
        "model.mlp.hidden_dim": 32, "model.max_length": 64, "data.path": (SHARDS,),
        "data.seq_length": 64,
        "data.batch_size": 8, "optimizer.warmup_steps": 0,
        "train.steps": 2, "train.checkpoint_every": 1, "train.peak_tflops": 1.0, "train.out": OUT,
    })
"""


def write_text(folder: Path, documents: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = [
        json.dumps({"text": f"{i}: " + " ".join(rng.choice(WORDS, 40))}) for i in range(documents)
    ]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "text.jsonl"


@pytest.fixture(scope="module")
def made(kept_programs, tmp_path_factory) -> Path:
    """text.jsonl, tok, shards, and a run of two steps. Never changed; tests copy."""
    folder = tmp_path_factory.mktemp("made")
    text = write_text(folder, 120)
    train_tokenizer((str(text),), folder / "tok", vocab_size=300)
    prepare(
        (str(text),),
        folder / "tok",
        folder / "shards",
        block_size=128,
        workers=1,
        validation_fraction=0.2,
    )
    assert main(["train", str(config(folder, folder / "shards", folder / "run"))]) == 0
    return folder


def config(folder: Path, shards: Path, out: Path) -> Path:
    path = folder / "config.py"
    path.write_text(CONFIG.replace("SHARDS", repr(str(shards))).replace("OUT", repr(str(out))))
    return path


def refused(capfd, *words: object) -> str:
    """The message of a command that must fail."""
    capfd.readouterr()
    status = main([str(w) for w in words])
    error = capfd.readouterr().err
    assert status == 2, error
    assert "Traceback" not in error
    [message] = [
        line for line in error.splitlines() if line.startswith("llm-jax ") and ": error: " in line
    ]
    return error[error.index(message) :]


# Text and vocabulary ------------------------------------------------------------------------------


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.txt", None, "missing.txt"),
        ("empty.txt", b"", "no documents: every input file is empty (1 files)"),
        ("binary.txt", b"\x7fELF\x00\x00\x00\x01" * 64, "binary.txt"),
        ("blank.txt", b" \n\n\t \n", "no text left to train on after cleaning"),
        ("picture.png", b"\x89PNG", "picture.png"),
    ],
)
def test_text_that_is_none(name, data, message, made, tmp_path, capfd):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert message in refused(
        capfd, "tokenizer", "train", "--input", tmp_path / name, "--out", tmp_path / "t"
    )
    text = refused(
        capfd,
        "data",
        "prepare",
        "--input",
        tmp_path / name,
        "--tokenizer",
        made / "tok",
        "--out",
        tmp_path / "s",
    )
    assert message in text or "no documents left after cleaning" in text


def test_no_documents_left_after_cleaning(made, tmp_path, capfd):
    text = refused(
        capfd,
        "data",
        "prepare",
        "--input",
        made / "text.jsonl",
        "--tokenizer",
        made / "tok",
        "--out",
        tmp_path / "s",
        "--min-characters",
        100_000,
    )
    assert "no documents left after cleaning: dropped" in text and "of 120 documents read" in text


def test_a_vocabulary_larger_than_the_text_allows(made, tmp_path, capfd):
    text = refused(
        capfd,
        "tokenizer",
        "train",
        "--input",
        made / "text.jsonl",
        "--out",
        tmp_path / "t",
        "--vocab-size",
        50_000,
    )
    assert "50000" in text.replace(",", "") and "vocab" in text


# Shards and run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_shards(made, tmp_path_factory) -> Path:
    """Shards made with another tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    text = write_text(folder, 60, seed=1)
    train_tokenizer((str(text),), folder / "tok", vocab_size=296)
    prepare(
        (str(text),),
        folder / "tok",
        folder / "shards",
        block_size=128,
        workers=1,
        validation_fraction=0.2,
    )
    return folder / "shards"


@pytest.mark.mesh
def test_a_tokenizer_that_does_not_match_the_shards(made, other_shards, tmp_path, capfd):
    run = config(tmp_path, made / "shards", tmp_path / "run")
    both = refused(capfd, "train", run, "--data.path", made / "shards", other_shards)
    assert "were made with different tokenizers" in both or "tokenizer" in both
    # Shards whose tokenizer was exchanged afterwards.
    mixed = Path(shutil.copytree(made / "shards", tmp_path / "mixed"))
    shutil.rmtree(mixed / "tokenizer")
    shutil.copytree(other_shards / "tokenizer", mixed / "tokenizer")
    text = refused(capfd, "train", run, f"--data.path={mixed}")
    assert "tokenizer" in text and str(mixed) in text
    text = refused(capfd, "eval", made / "run", "--data", other_shards)
    assert "was made with tokenizer" in text and "the run was trained with" in text
    assert str(made / "run" / "tokenizer") in text


@pytest.mark.mesh
def test_going_on_with_other_shards_of_another_tokenizer(made, other_shards, tmp_path, capfd):
    out = Path(shutil.copytree(made / "run", tmp_path / "run"))
    text = refused(capfd, "train", config(tmp_path, other_shards, out), "--train.steps=3")
    assert "does not fit this run" in text
    changed = (
        "model.vocab_size: 300 in the checkpoint, 296 in this run",
        "train.steps: 2 in the checkpoint, 3 in this run",
    )
    for part in ("tokenizer: ", *changed):
        assert part in text


@pytest.mark.mesh
def test_a_sequence_length_that_does_not_divide_the_block(made, tmp_path, capfd):
    text = refused(
        capfd, "train", config(tmp_path, made / "shards", tmp_path / "run"), "--data.seq_length=48"
    )
    assert "48" in text and "128" in text and "64" in text


@pytest.mark.mesh
def test_a_batch_that_does_not_divide_over_the_mesh(made, tmp_path, capfd):
    n = jax.device_count()
    assert n == 8
    text = refused(
        capfd, "train", config(tmp_path, made / "shards", tmp_path / "run"), "--data.batch_size=12"
    )
    assert (
        "data.batch_size (per accumulation step) 12 does not divide over data = 8 mesh shards; use"
        " 8 or 16" in text
    )


def test_a_mesh_that_does_not_fit_the_devices(made, tmp_path, capfd):
    text = refused(
        capfd,
        "train",
        config(tmp_path, made / "shards", tmp_path / "run"),
        "--mesh.data=3",
        "--mesh.fsdp=2",
    )
    assert "mesh data=3 x fsdp=2 does not fit 8 devices; the product must be 8" in text


def test_a_vocabulary_smaller_than_the_tokenizers(made, tmp_path, capfd):
    text = refused(
        capfd,
        "train",
        config(tmp_path, made / "shards", tmp_path / "run"),
        "--model.vocab_size=100",
    )
    assert "model.vocab_size is 100 but the tokenizer of data.path has 300 tokens" in text


@pytest.mark.mesh
def test_no_shards(made, tmp_path, capfd):
    run = config(tmp_path, made / "shards", tmp_path / "run")
    assert "/nowhere" in refused(capfd, "train", run, "--data.path=/nowhere")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(
        capfd, "train", run, f"--data.path={tmp_path / 'empty'}"
    )
    assert str(tmp_path / "empty") in refused(capfd, "data", "inspect", tmp_path / "empty")
    assert str(tmp_path / "empty") in refused(
        capfd, "eval", made / "run", "--data", tmp_path / "empty"
    )
    bare = tmp_path / "config2.py"
    bare.write_text("from llm_jax.config import Config\n\n\ndef config():\n    return Config()\n")
    assert "data.path is empty; make shards with `llm-jax data prepare`" in refused(
        capfd, "train", bare
    )


def test_a_prompt_longer_than_the_context(made, capfd):
    text = refused(capfd, "generate", made / "run", "--prompt", "the cat sat " * 60)
    assert "64" in text and "prompt" in text
    text = refused(
        capfd, "generate", made / "run", "--prompt", "a", "the cat sat " * 60, "--max-new-tokens", 4
    )
    assert "64" in text and "prompt" in text


def test_sampling_settings_outside_their_range(made, capfd):
    assert "top_p is 1.5; it must be more than 0 and at most 1" in refused(
        capfd, "generate", made / "run", "--top-p", 1.5
    )


@pytest.mark.mesh
def test_a_truncated_shard(made, tmp_path, capfd):
    shards = Path(shutil.copytree(made / "shards", tmp_path / "shards"))
    file = shards / json.loads((shards / "manifest.json").read_text())["shards"]["train"][0]["file"]
    file.write_bytes(file.read_bytes()[:-100])
    train = ("train", config(tmp_path, shards, tmp_path / "run"))
    for words in (train, ("eval", made / "run", "--data", shards), ("data", "inspect", shards)):
        text = refused(capfd, *words)
        assert file.name in text and "bytes" in text


@pytest.mark.mesh
def test_a_truncated_checkpoint(made, tmp_path, capfd):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    assert sorted(p.name for p in (run / "checkpoints").iterdir() if p.name.isdigit()) == ["1", "2"]
    truncate(run / "checkpoints" / "2")
    # Reading names it and does not silently take another.
    for words in (
        ("eval", run, "--data", made / "shards"),
        ("generate", run),
        ("check-parity", run),
    ):
        text = refused(capfd, *words)
        assert f"checkpoint 2 in {run / 'checkpoints'} is damaged" in text and "bytes" in text
    # Training says so and goes on from the one before; the new checkpoint 2 is whole.
    assert main(["train", str(config(tmp_path, made / "shards", run))]) == 0
    error = capfd.readouterr().err
    assert f"WARNING: checkpoint 2 in {run / 'checkpoints'} is damaged" in error
    assert "resuming from the intact checkpoint 1" in error
    assert main(["check-parity", str(run)]) == 0
    for step in ("1", "2"):
        truncate(run / "checkpoints" / step)
    text = refused(capfd, "train", config(tmp_path, made / "shards", run))
    assert "no checkpoint can be used: checkpoint 2" in text and "checkpoint 1" in text


def truncate(checkpoint: Path) -> None:
    file = max((p for p in (checkpoint / "state" / "d").iterdir()), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_step_that_is_not_there(made, capfd):
    assert "there are [1, 2]" in refused(capfd, "generate", made / "run", "--step", 7)


@pytest.mark.mesh
@pytest.mark.parametrize("verb", ["tokenizer train", "data prepare", "train", "quickstart"])
def test_an_output_that_cannot_be_written(verb, made, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"  # below a regular file: not even root can
    words = {
        "tokenizer train": ("--input", made / "text.jsonl", "--out", out),
        "data prepare": ("--input", made / "text.jsonl", "--tokenizer", made / "tok", "--out", out),
        "train": (config(tmp_path, made / "shards", out),),
        "quickstart": ("--text", made / "text.jsonl", "--out", out),
    }[verb]
    text = refused(capfd, *verb.split(), *words)
    assert str(out) in text
    assert "cannot be written" in text or "cannot write" in text or "cannot make" in text, text
