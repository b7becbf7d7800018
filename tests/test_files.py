"""The one rule for folders that commands write: what may be there, and what is said of anything
else.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_jax.files import (
    KINDS,
    QUICKSTART,
    RUN,
    SHARDS,
    TOKENIZER,
    check_folder,
    new_folder,
    write_atomic,
)
from llm_jax.types import DataError

# A file that commands of this project or others leave, and what its folder then holds.
LEFT = {
    "quickstart.json": "a quickstart",
    "task.json": "a task that a model was trained for",
    "checkpoints/2/manifest/metadata": "a training run",
    "checkpoints/files_2.json": "a training run",
    ".lock/1/owner.json": "a training run",
    "params.safetensors": "a converted model",
    ".params.safetensors.partial": "an unfinished conversion",
    "manifest.json": "token shards",
    "plan.json": "token shards",
    "tokens-train.array_record-00000": "token shards",
    "model.safetensors": "a Hugging Face model",
    "model-00001-of-00002.safetensors": "a Hugging Face model",
    "pytorch_model.bin": "a Hugging Face model",
    "tokenizer.model": "a tokenizer",
    "tokenizer.json": "a tokenizer",
    "imported.json": "a tokenizer",
    "thesis.tex": "other files",
    "config.json": "other files",
    "checkpoints/epoch1.pt": "other files",
    "mine-train.array_record-00000": "other files",
}
# What a file says that only with it is one of ours.
SAYS = {"manifest.json": '{"format_version": 1}', "plan.json": '{"format_version": 1}'}


def left(folder: Path, name: str) -> Path:
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(SAYS.get(name, ""))
    return folder


@pytest.mark.parametrize("name", LEFT)
def test_a_folder_in_use_is_refused_by_what_it_holds(tmp_path, name):
    folder = left(tmp_path / "there", name)
    shown = "" if name.startswith(".") else f" ({name.partition('/')[0]})"
    with pytest.raises(DataError) as caught:
        check_folder(folder)
    assert (
        str(caught.value) == f"out {str(folder)!r} holds {LEFT[name]}{shown}; choose another folder"
    )
    assert [p.name for p in folder.iterdir()] == [name.partition("/")[0]]


def test_each_kind_is_told_by_some_file():
    assert {kind.name for kind in KINDS} == set(LEFT.values()) - {"other files"}


def test_a_new_folder_and_an_empty_one_are_free(tmp_path):
    assert check_folder(tmp_path / "new") is None
    assert not (tmp_path / "new").exists()
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    (tmp_path / "disk" / ".gitkeep").write_text("")
    assert check_folder(tmp_path / "disk") is None


def test_what_is_continued_may_hold_the_users_own_files_too(tmp_path):
    run = left(tmp_path / "run", "checkpoints/2/manifest/metadata")
    (run / "notes.txt").write_text("")
    assert check_folder(run, resumes=(RUN, QUICKSTART)) == RUN
    with pytest.raises(
        DataError, match=r"holds a training run \(checkpoints, notes\.txt\); choose another folder"
    ):
        check_folder(run, resumes=(SHARDS,))


def test_only_the_same_kind_is_replaced(tmp_path):
    tokenizer = left(tmp_path / "tok", "tokenizer.model")
    with pytest.raises(
        DataError, match=r"pass overwrite \(--overwrite\) to replace it, or choose another folder"
    ):
        check_folder(tokenizer, replaces=TOKENIZER)
    assert check_folder(tokenizer, replaces=TOKENIZER, overwrite=True) == TOKENIZER
    with pytest.raises(
        DataError, match=r"holds other files \(thesis\.tex\); choose another folder"
    ):
        check_folder(left(tmp_path / "texts", "thesis.tex"), replaces=TOKENIZER, overwrite=True)


@pytest.mark.parametrize("text", ['{"name": "my app"}', "my plan", "[1]", "[" * 100_000, ""])
def test_a_file_of_the_same_name_is_not_ours(tmp_path, text):
    for name in ("manifest.json", "plan.json"):
        folder = left(tmp_path / name, name)
        (folder / name).write_text(text)
        with pytest.raises(DataError, match=rf"holds other files \({name}\)"):
            check_folder(folder, resumes=(SHARDS,), replaces=SHARDS, overwrite=True)


def test_what_the_command_did_not_write_is_not_replaced_with_the_rest(tmp_path):
    tokenizer = left(tmp_path / "tok", "tokenizer.json")
    for name in ("tokenizer_config.json", "config.json", "weights.gguf"):
        (tokenizer / name).write_text("")
    said = (
        r"holds a tokenizer and other files \(config\.json, weights\.gguf\); choose another folder,"
        r" or move them"
    )
    with pytest.raises(DataError, match=said):
        check_folder(tokenizer, replaces=TOKENIZER, overwrite=True)


def test_a_command_that_fails_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / ".keep").write_text("kept")
    for name in ("there", "new/deep"):
        with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / name):
            (tmp_path / name / "tokenizer").mkdir()
            (tmp_path / name / "tokenizer" / "a").write_text("")
            (tmp_path / name / "weights").write_text("")
            raise KeyboardInterrupt
    assert [p.name for p in (tmp_path / "there").iterdir()] == [".keep"]
    assert not (tmp_path / "new" / "deep").exists()
    with new_folder(tmp_path / "whole"):
        (tmp_path / "whole" / "a").write_text("")
    assert (tmp_path / "whole" / "a").exists()


def test_a_file_is_no_folder_and_many_names_are_cut(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"train\.out .*file' is a file; choose a folder"):
        check_folder(tmp_path / "file", option="train.out")
    (tmp_path / "many").mkdir()
    for n in range(7):
        (tmp_path / "many" / f"{n}.txt").write_text("")
    with pytest.raises(DataError, match=r"\(0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt …\)"):
        check_folder(tmp_path / "many")


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    write_atomic(tmp_path / "a", b"old")
    write_atomic(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(DataError, match=r"cannot be written"):
        write_atomic(tmp_path / "missing" / "a", b"")
