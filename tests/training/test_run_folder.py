"""What a training run accepts, refuses and leaves in its folder, and what readers of the folder
check.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from jobs import write_text

from llm_jax.checkpoints.checkpoint import CheckpointError, MismatchError
from llm_jax.checkpoints.folder_lock import FolderLock
from llm_jax.checkpoints.manifest import digest
from llm_jax.checkpoints.open_run import open_run
from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.data.shards.store import read_manifest, shards_fingerprint
from llm_jax.training.metrics import read_metrics
from llm_jax.training.run import train
from llm_jax.types import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_device")


def shards(text: Path, tokenizer: Path, out: Path) -> Path:
    prepare((str(text),), tokenizer, out, block_size=64, workers=1, validation_fraction=0)
    return out


def config(data: Path, out: Path, **changed) -> Config:
    small = {
        "num_layers": 1,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 16,
        "max_length": 64,
    }
    return override(
        Config(),
        {
            **{f"model.{name}": value for name, value in small.items()},
            "name": "small",
            "data.path": (str(data),),
            "data.seq_length": 64,
            "data.batch_size": 8,
            "optimizer.schedule": "constant",
            "optimizer.warmup_steps": 0,
            "train.steps": 2,
            "train.peak_tflops": 1.0,
            "train.out": str(out),
            **changed,
        },
    )


@pytest.fixture(scope="module")
def made(one_device, tmp_path_factory):
    """A run of two steps, its shards, others of the same tokenizer and others of another."""
    folder = tmp_path_factory.mktemp("made")
    one, two = (
        write_text(folder / f"{name}.jsonl", 60, seed) for seed, name in enumerate(("one", "two"))
    )
    for name, size in (("tokenizer", 300), ("another", 310)):
        train_tokenizer((str(one),), folder / name, vocab_size=size)
    shards(one, folder / "tokenizer", folder / "shards")
    shards(two, folder / "tokenizer", folder / "other text")
    shards(one, folder / "another", folder / "other tokenizer")
    train(config(folder / "shards", folder / "run"))
    return folder


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock's."""
    paths = (p for p in folder.rglob("*") if p.is_file() and ".lock" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


REFUSED = {
    "other tokenizer": (
        "other tokenizer",
        {},
        r"tokenizer: \w+ in the checkpoint, \w+ in this run",
    ),
    "other settings": (
        "shards",
        {"model.embed_dim": 32},
        r"model\.embed_dim: 16 in the checkpoint, 32 in this run",
    ),
    "other text": (
        "other text",
        {},
        r"data\.path: shards \w{12} in the checkpoint, \w{12} in this run",
    ),
    "one more folder": (
        "shards",
        {"data.path": ("shards", "other text")},
        r"data\.path: shards \w{12} in the checkpoint, \w{12} \+ \w{12} in this run",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refused_run_changes_nothing(made, run, why):
    data, changed, said = REFUSED[why]
    if "data.path" in changed:
        changed = {"data.path": tuple(str(made / name) for name in changed["data.path"])}
    before = contents(run)
    with pytest.raises(MismatchError, match=said):
        train(
            config(
                made / data,
                run,
                **changed,
                **{"train.steps": 4, "train.allow_changed": ("train.steps",)},
            )
        )
    assert contents(run) == before


def test_the_same_shards_elsewhere_are_the_same(made, run, tmp_path):
    moved = shutil.copytree(made / "shards", tmp_path / "moved")
    text = shutil.copy(made / "one.jsonl", tmp_path / "renamed.jsonl")
    again = shards(text, made / "tokenizer", tmp_path / "again")
    prints = {
        shards_fingerprint(read_manifest(folder)) for folder in (made / "shards", moved, again)
    }
    assert len(prints) == 1
    for folder in (moved, again):
        assert train(config(folder, run)) == run


@pytest.mark.parametrize("change", ["text", "option", "order", "split"])
def test_other_shards_have_another_fingerprint(made, tmp_path, change):
    lines = (made / "one.jsonl").read_text().splitlines(keepends=True)
    text = {
        "text": [*lines[:-1], json.dumps({"text": "Another end."}) + "\n"],
        "order": lines[::-1],
    }.get(change, lines)
    (tmp_path / "text.jsonl").write_text("".join(text))
    options = {"option": {"add_eos": False}, "split": {"validation_fraction": 0.5}}.get(change, {})
    options = {"block_size": 64, "workers": 1, "validation_fraction": 0.0, **options}
    prepare((str(tmp_path / "text.jsonl"),), made / "tokenizer", tmp_path / "out", **options)
    assert shards_fingerprint(read_manifest(tmp_path / "out")) != shards_fingerprint(
        read_manifest(made / "shards")
    )


def test_other_shards_that_are_allowed_are_written_down(made, run, capsys):
    allowed = {"train.steps": 3, "train.allow_changed": ("train.steps", "data.path")}
    train(config(made / "other text", run, **allowed))
    records = [r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "data_changed"]
    before, now = (
        shards_fingerprint(read_manifest(made / name)) for name in ("shards", "other text")
    )
    assert records == [{"kind": "data_changed", "step": 2, "before": [before], "now": [now]}]
    assert (
        f"after step 2 the run reads other shards: {before[:12]} before, {now[:12]} now"
        in capsys.readouterr().err
    )
    # From here on they are the run's own.
    with pytest.raises(MismatchError, match="data.path: shards"):
        train(config(made / "shards", run, **{"train.steps": 3}))
    assert train(config(made / "other text", run, **{"train.steps": 3})) == run


def test_a_run_of_an_earlier_version_that_does_not_name_its_shards_goes_on(made, run):
    path = run / "checkpoints" / "2" / "manifest" / "metadata"
    manifest = json.loads(path.read_text())
    del manifest["data"]
    path.write_text(json.dumps({**manifest, "sha256": digest(manifest)}))
    (run / "checkpoints" / "files_2.json").unlink()
    assert train(config(made / "other text", run)) == run


def test_a_run_is_not_read_with_another_tokenizer(made, run):
    assert open_run(run).step == 2
    shutil.rmtree(run / "tokenizer")
    # By its ids it can still be used.
    assert open_run(run).step == 2
    shutil.copytree(made / "another", run / "tokenizer")
    said = (
        r"run/tokenizer has the fingerprint \w{16}…, and the model was trained with \w{16}…; put"
        r" that tokenizer back"
    )
    with pytest.raises(CheckpointError, match=said):
        open_run(run)


@pytest.mark.parametrize("there", ["shards", "tokenizer", "one.jsonl"])
def test_a_folder_that_holds_something_else_is_refused(made, tmp_path, there):
    out = tmp_path / "out"
    if (made / there).is_dir():
        shutil.copytree(made / there, out)
    else:
        out.mkdir()
        shutil.copy(made / there, out)
    before = contents(out)
    what = {
        "shards": "token shards",
        "tokenizer": "a tokenizer",
        "one.jsonl": r"other files \(one\.jsonl\)",
    }[there]
    with pytest.raises(
        DataError, match=rf"train\.out .*out' holds {what}.*; choose another folder"
    ):
        train(config(made / "shards", out))
    assert contents(out) == before and not (out / ".lock").exists()


def test_a_folder_in_use_is_refused_and_stays_as_it_was(made, run):
    before = contents(run)
    with (
        FolderLock(run),
        pytest.raises(
            ConfigError, match=r"train\.out .*run' is in use by process \d+ on .*, since "
        ),
    ):
        train(
            config(
                made / "shards", run, **{"train.steps": 4, "train.allow_changed": ("train.steps",)}
            )
        )
    assert contents(run) == before
