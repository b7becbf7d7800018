"""The quickstart as a process: stopped by Ctrl-C at two of its stages, it goes on with the same
command to its report.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from words import WORDS

from llm_jax.commands.quickstart import STAGES, Clock, _claim, _make_shards, quickstart
from llm_jax.training.metrics import read_metrics
from llm_jax.types import ConfigError, DataError

pytestmark = pytest.mark.process

RUN_STEPS = 20


def start(folder: Path, log: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "llm_jax.cli",
        "quickstart",
        "--text",
        str(folder / "text.jsonl"),
        "--out",
        str(folder / "out"),
        "--vocab-size",
        "300",
        "--steps",
        str(RUN_STEPS),
    ]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    cache["JAX_ENABLE_COMPILATION_CACHE"] = "true"
    with log.open("w") as file:
        return subprocess.Popen(
            command,
            env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": "", **cache},
            stdout=file,
            stderr=file,
        )


def interrupt_when(process: subprocess.Popen, reached: Callable[[], bool]) -> int:
    deadline = time.monotonic() + 240
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    return process.wait(120)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[str]]:
    """A quickstart that was stopped in the tokenizer stage and in training, and then left to end;
    what each start printed.
    """
    folder = tmp_path_factory.mktemp("quickstart")
    with (folder / "text.jsonl").open("w") as file:
        for i in range(400):
            file.write(
                json.dumps(
                    {
                        "text": (
                            f"Story {i}. "
                            + " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 60))
                        )
                    }
                )
                + "\n"
            )
    logs = [folder / f"{i}.log" for i in range(3)]
    metrics = folder / "out" / "metrics.jsonl"

    def seen(text):
        return lambda: text in logs[0].read_text()

    def trained():
        return metrics.exists() and sum(r["kind"] == "train" for r in read_metrics(metrics)) >= 6

    assert interrupt_when(start(folder, logs[0]), seen("[1/6]")) == 130, logs[0].read_text()
    assert interrupt_when(start(folder, logs[1]), trained) == 130, logs[1].read_text()
    assert start(folder, logs[2]).wait(240) == 0, logs[2].read_text()
    return folder / "out", [log.read_text() for log in logs]


class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_a_ctrl_c_that_falls_into_a_finalizer_ends_the_stage_all_the_same(capfd):
    """Python drops what is raised there: the process would go on as if nobody had asked
    it to stop.
    """
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        Clock(STAGES).run("text", "reading", lambda: Finalized() and None)
    assert signal.getsignal(signal.SIGINT) is before and sys.unraisablehook is hook
    assert "Traceback" not in capfd.readouterr().err


def test_a_ctrl_c_that_becomes_another_error_is_one_all_the_same():
    """As in the start of a module written in C; without a Ctrl-C the error is itself."""

    def importing(interrupted: bool) -> None:
        if interrupted:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise ImportError("initialization failed") from None
        raise ImportError("no such module")

    with pytest.raises(KeyboardInterrupt):
        Clock(STAGES).run("text", "reading", lambda: importing(True))
    with pytest.raises(ImportError, match="no such module"):
        Clock(STAGES).run("text", "reading", lambda: importing(False))


def test_both_stops_say_how_to_go_on(finished):
    out, logs = finished
    for log in logs[:2]:
        assert (
            f"to go on: llm-jax quickstart --text {out.parent / 'text.jsonl'} --out {out}"
            f" --vocab-size 300 --steps {RUN_STEPS}" in log
        )
        assert "Traceback" not in log
    assert "interrupted" in logs[0] and "by SIGINT" in logs[1]


def test_what_was_done_is_not_done_again_and_every_step_is_there_once(finished):
    out, logs = finished
    assert (
        "[1/6]" not in logs[2]
        and "[2/6]" in logs[2]
        and "already complete" in logs[2]
        and "[6/6]" in logs[2]
    )
    assert "going on from step" in logs[2]
    assert [r["step"] for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "train"] == list(
        range(1, RUN_STEPS + 1)
    )


def test_it_leaves_what_it_promises(finished):
    out, logs = finished
    assert {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "report.html",
        "results.json",
        "shards",
    } <= {p.name for p in out.iterdir()}
    assert list(out.glob("**/events.out.tfevents*"))
    results = json.loads((out / "results.json").read_text())
    assert len(results["samples"]) == 3
    page = (out / "report.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org", "")
    assert results["model"]["tokens"] == results["bigram"]["tokens"] == results["unigram"]["tokens"]
    assert f"held-out perplexity {results['model']['perplexity']:.1f}" in logs[2]


def test_other_options_in_the_same_folder_are_refused(finished):
    out, _ = finished
    with pytest.raises(ConfigError, match=r"steps: 20 there, 21 now.*--overwrite"):
        quickstart((str(out.parent / "text.jsonl"),), out, vocab_size=300, steps=21)


def claim(out: Path, overwrite: bool = False, **changed) -> None:
    _claim(out, {"text": [], "vocab_size": 300, "steps": 4, **changed}, overwrite).close()


def test_overwrite_deletes_only_what_has_other_options(tmp_path):
    out = tmp_path / "run"
    claim(out)
    (out / "kept").write_text("")
    claim(out, overwrite=True)
    assert (out / "kept").exists()
    claim(out, overwrite=True, steps=5)
    assert sorted(p.name for p in out.iterdir()) == [".lock", "quickstart.json"] and list(
        tmp_path.iterdir()
    ) == [out]
    (out / "quickstart.json").write_text("")
    with pytest.raises(ConfigError, match=r"quickstart.json there is damaged.*--overwrite"):
        claim(out)


def test_options_that_cannot_work_leave_the_folder_free(tmp_path):
    with pytest.raises(ConfigError, match="steps is 0; it must be at least 1"):
        quickstart(out=tmp_path / "run", steps=0)
    with pytest.raises(DataError, match=r"nosuch.txt.*no such file"):
        claim(tmp_path / "run", text=["nosuch.txt"])
    assert not (tmp_path / "run").exists()


def test_a_book_in_one_file_is_held_out_in_part_and_a_single_page_is_refused_before_training(
    tmp_path,
):
    book, page = tmp_path / "book.txt", tmp_path / "page.txt"
    lines = [
        f"{i} " + " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 14)) for i in range(4000)
    ]
    book.write_text("\n\n".join(lines))
    page.write_text("\n\n".join(lines[:100]))
    manifest = json.loads(
        (
            _make_shards((str(book),), tmp_path / "a", 300, Clock(STAGES[1:])) / "manifest.json"
        ).read_text()
    )
    assert (
        manifest["splits"]["train"]["documents"] >= 3
        and manifest["splits"]["validation"]["documents"] >= 1
    )
    with pytest.raises(
        ConfigError,
        match="the text is one document of less than 64 kB, of which none can be held out",
    ):
        _make_shards((str(page),), tmp_path / "b", 300, Clock(STAGES[1:]))
