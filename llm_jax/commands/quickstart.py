"""``llm-jax quickstart``: the main job end to end, on real text, on whatever devices there are."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.config.validate import check_run_folder
from llm_jax.files import (
    QUICKSTART,
    check_folder,
    local_folder,
    remove_tree,
    write_atomic,
    write_json,
)
from llm_jax.progress import note
from llm_jax.ranges import Count, checked
from llm_jax.storage.paths import is_bucket, path_of
from llm_jax.types import ConfigError

if TYPE_CHECKING:
    from llm_jax.api.decode_settings import DecodeSettings
    from llm_jax.checkpoints.folder_lock import FolderLock

STAGES = ("text", "tokenizer", "shards", "train", "evaluate", "samples", "report")
# A book in one file becomes documents enough to hold some out.
_DOCUMENT_BYTES = 64 << 10
_SAMPLING: DecodeSettings = {
    "max_new_tokens": 120,
    "temperature": 0.7,
    "top_p": 0.95,
    "seed": 7,
}


@checked
def quickstart(
    text: tuple[str, ...] = (),
    out: Path = Path("runs/quickstart"),
    vocab_size: Count = 2048,
    steps: Count = 750,
    overwrite: bool = False,
) -> int:
    """Clean text, train a vocabulary, write shards, train a small model, evaluate it, write samples
    and a report.

    Everything lands in ``out``. After Ctrl-C the same command goes on where it was.

    Args:
        text: files, folders or patterns to learn from; the documentation of this Python and its
            library if none are given.
        out: folder of the run.
        vocab_size: tokens of the vocabulary.
        steps: training steps.
        overwrite: delete what an earlier quickstart with other options left in out.
    """
    from llm_jax.multihost.signals import Stopped

    out = path_of(out)
    check_run_folder(str(out), "out")
    lock = _claim(out, {"text": list(text), "vocab_size": vocab_size, "steps": steps}, overwrite)
    try:
        with lock:
            _stages(text, out, vocab_size, steps, lock)
    except (Stopped, KeyboardInterrupt) as stopped:
        why, signum = (
            (stopped, stopped.signum)
            if isinstance(stopped, Stopped)
            else ("interrupted", signal.SIGINT)
        )
        print(f"{why}\nto go on: {shlex.join(['llm-jax', *sys.argv[1:]])}", file=sys.stderr)
        return 128 + signum
    return 0


def _stages(
    text: tuple[str, ...], out: Path, vocab_size: int, steps: int, lock: FolderLock
) -> None:
    from llm_jax.training.run import train

    clock = Clock(STAGES if not text else STAGES[1:])
    shards = _make_shards(text, out, vocab_size, clock)
    clock.run(
        "train",
        f"training {steps} steps",
        lambda: train(quickstart_config(out, shards, steps), lock=lock),
    )
    results = clock.run("evaluate", "evaluating on held-out text", lambda: _evaluate(out, shards))
    results["samples"] = clock.run("samples", "writing samples", lambda: _samples(out, shards))
    results["stages"] = clock.seconds
    write_json(out / "results.json", results)
    write_atomic(out / "data.json", (shards / "manifest.json").read_bytes())
    from llm_jax.bench.report import write_report

    page = clock.run("report", "writing the report", lambda: write_report(out))
    print(_summary(results, page, clock))


def quickstart_config(out: Path, shards: Path, steps: int) -> Config:
    """The quickstart's model: small enough for two CPU cores. The batch is 8 rows, or one per
    device where there are more.
    """
    import jax

    return override(
        Config(),
        {
            "name": "quickstart",
            "model.num_layers": 4,
            "model.embed_dim": 192,
            "model.attention.num_heads": 6,
            "model.mlp.hidden_dim": 512,
            "model.max_length": 512,
            "data.path": (str(shards),),
            "data.seq_length": 256,
            "data.batch_size": -(-8 // jax.device_count()) * jax.device_count(),
            "optimizer.update": "muon",
            "optimizer.learning_rate": 0.02,
            "optimizer.update.adam_learning_rate": 0.006,
            "optimizer.schedule": "wsd",
            "optimizer.schedule.decay_fraction": 0.6,
            "optimizer.schedule.final_ratio": 0.02,
            "optimizer.warmup_steps": min(20, steps - 1),
            "train.out": str(out),
            "train.steps": steps,
            "train.eval_every": max(steps // 5, 1),
            "train.checkpoint_every": max(steps // 5, 1),
        },
    )


class Clock:
    """Runs stages, prints their number among ``names``, and records the seconds of each."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def run(self, name: str, description: str, stage: Callable[[], Any]) -> Any:
        note(f"[{self.names.index(name) + 1}/{len(self.names)}] {description}")
        began = time.perf_counter()
        with _interruptible():
            result = stage()
        self.seconds[name] = time.perf_counter() - began
        return result

    @property
    def total(self) -> float:
        return time.perf_counter() - self.start


@contextmanager
def _interruptible() -> Iterator[None]:
    """A Ctrl-C inside ends it, at the latest when it is done: one that falls into a callback of the
    garbage collector is lost there, and one that falls into the start of a module in C becomes an
    ImportError.
    """
    came: list[int] = []

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        came.append(signum)
        raise KeyboardInterrupt

    def lost(event: sys.UnraisableHookArgs) -> None:
        if not (came and isinstance(event.exc_value, KeyboardInterrupt)):
            unraisable(event)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    unraisable = sys.unraisablehook
    before = signal.signal(signal.SIGINT, on_signal)
    sys.unraisablehook = lost
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = unraisable
    if came:
        raise KeyboardInterrupt


def _claim(out: Path, options: dict[str, Any], overwrite: bool) -> FolderLock:
    """Takes ``out`` and notes the quickstart's options in it; returns the folder's lock. Raises
    ConfigError for options that cannot work, and for a folder that holds something else, is in use,
    or cannot be written; DataError for text that is not there.
    """
    from llm_jax.checkpoints.folder_lock import FolderLock
    from llm_jax.data.corpus.sources import expand

    if options["text"]:
        expand(options["text"])
    there = check_folder(out, resumes=(QUICKSTART,))
    lock = FolderLock(out, option="out")
    try:
        changed = _changed(out / QUICKSTART.marks[0], options) if there else []
        if changed and not overwrite:
            raise ConfigError(
                f"{out} holds a quickstart with other options ({'; '.join(changed)}); pass"
                " --overwrite or another --out"
            )
        if changed:
            _delete(out)
            lock.close()
            lock = FolderLock(out, option="out")
        if changed or not there:
            write_atomic(out / QUICKSTART.marks[0], (json.dumps(options) + "\n").encode())
    except BaseException as error:
        lock.close()
        if isinstance(error, OSError):
            raise ConfigError(
                f"out {str(out)!r} cannot be written: {error.strerror}; choose another folder"
            ) from error
        raise
    return lock


def _delete(out: Path) -> None:
    """Deletes an old quickstart: renamed first, so that a deletion cut short leaves no part of it
    where the new one looks.
    """
    if is_bucket(out):
        _delete_in_bucket(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old)
    remove_tree(old)


def _delete_in_bucket(out: Path) -> None:
    """Deletes what marks an old quickstart last, so that a deletion cut short can be repeated."""
    mark = out / QUICKSTART.marks[0]
    for child in out.iterdir():
        if child != mark:
            remove_tree(child)
    mark.unlink(missing_ok=True)


def _changed(path: Path, options: dict[str, Any]) -> list[str]:
    try:
        before = json.loads(path.read_text())
    except json.JSONDecodeError:
        return [f"{path.name} there is damaged"]
    return [
        f"{k}: {before.get(k)!r} there, {v!r} now" for k, v in options.items() if before.get(k) != v
    ]


def _make_shards(text: tuple[str, ...], out: Path, vocab_size: int, clock: Clock) -> Path:
    """Text, vocabulary and shards, each only where it is not there yet. Returns the folder of
    shards.
    """
    from llm_jax.data.prepare.pipeline import prepare
    from llm_jax.data.prepare.train_tokenizer import train_tokenizer

    corpus = out / "text"
    tokenizer = out / "vocabulary"
    shards = out / "shards"
    if not text:
        if not _whole(corpus).exists():
            clock.run(
                "text", "collecting the documentation of this Python", lambda: _collect(corpus)
            )
        text = (str(corpus),)
    if not (tokenizer / "tokenizer.json").exists():

        def learn() -> Any:
            return train_tokenizer(text, tokenizer, vocab_size=vocab_size, overwrite=True)

        clock.run("tokenizer", f"learning a vocabulary of {vocab_size}", learn)
    manifest = clock.run(
        "shards",
        "writing tokenized shards",
        lambda: prepare(text, tokenizer, shards, document_bytes=_DOCUMENT_BYTES),
    )
    if not manifest["shards"]["validation"]:
        size = f"{_DOCUMENT_BYTES >> 10} kB"
        raise ConfigError(
            f"the text is one document of less than {size}, of which none can be held out; give"
            " more with --text"
        )
    return shards


def _whole(corpus: Path) -> Path:
    """What is there when the corpus is whole: a bucket cannot rename it when it is."""
    return corpus / ".complete" if is_bucket(corpus) else corpus


def _collect(corpus: Path) -> None:
    """Writes the corpus, whole or not at all."""
    from llm_jax.data.corpus.python_docs import write_corpus

    if is_bucket(corpus):
        with local_folder(corpus) as folder:
            write_corpus(folder)
        _whole(corpus).touch()
        return
    partial = corpus.with_suffix(".partial")
    write_corpus(partial)
    partial.rename(corpus)


def _evaluate(out: Path, shards: Path) -> dict[str, Any]:
    from llm_jax.api.verbs import evaluate
    from llm_jax.evaluation.shards import table

    results = evaluate(out, shards, batch_size=8)
    print("\n" + table(results))
    return results


def _samples(out: Path, shards: Path) -> list[dict[str, str]]:
    """What the model writes after the beginnings of three held-out documents."""
    from llm_jax.api.load import load
    from llm_jax.evaluation.documents import documents

    opened = load(out)
    held_out = list(documents(shards, "validation"))
    long = [d for d in held_out if len(d) > 120] or held_out
    prompts = [_beginning(opened.tokenizer.decode(d)) for d in long[:: max(len(long) // 3, 1)][:3]]
    texts = opened.generate(prompts, **_SAMPLING)
    settings = "temperature {temperature}, top-p {top_p}, seed {seed}".format(**_SAMPLING)
    for prompt, after in zip(prompts, texts):
        print(f"\n--- {prompt!r} goes on:\n{prompt}{after}")
    return [{"prompt": p, "text": t, "settings": settings} for p, t in zip(prompts, texts)]


def _beginning(text: str, characters: int = 90) -> str:
    """The first words of a text; the blank after the last one is left to the model."""
    head = text[:characters].rsplit(None, 1)
    return head[0] if len(text) > characters and head else text


def _summary(results: dict[str, Any], page: Path, clock: Clock) -> str:
    model = results["model"]
    names = {"kneser_ney": "5-gram", "bigram": "bigram", "unigram": "unigram"}
    baselines = ", ".join(
        f"{name} {results[key]['perplexity']:.1f}" for key, name in names.items() if key in results
    )
    return (
        f"\nheld-out perplexity {model['perplexity']:.1f} ({baselines}),"
        f" {model['bits_per_byte']:.3f} bits per byte, in {clock.total:.0f} s\n"
        f'report: {page}\nwrite more:  llm-jax generate {page.parent} --prompt "Return a"'
    )
