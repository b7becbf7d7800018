"""Training of word vectors, with the loop, the checkpoints and the records of every run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from llm_jax.checkpoints.checkpoint import Checkpoints
from llm_jax.checkpoints.folder_lock import FolderLock
from llm_jax.classic.word2vec.batches import Batches
from llm_jax.classic.word2vec.config import Word2VecConfig
from llm_jax.classic.word2vec.corpus import Corpus, read_corpus
from llm_jax.classic.word2vec.phrases import PhraseRule
from llm_jax.classic.word2vec.step import first_state, jit_step
from llm_jax.classic.word2vec.vectors import Vectors
from llm_jax.classic.words import WordRule
from llm_jax.config import Config, DataConfig, MeshConfig, TrainConfig
from llm_jax.files import RUN, check_folder, write_atomic
from llm_jax.goodput import Goodput
from llm_jax.multihost.global_batch import Feed
from llm_jax.progress import note
from llm_jax.sharding import make_mesh
from llm_jax.storage.paths import path_of
from llm_jax.training.flops import Flops, Peak, device_peak
from llm_jax.training.loop import Loop
from llm_jax.training.metrics import MetricsWriter, SilentWriter
from llm_jax.training.state import TrainState, from_saved, to_saved
from llm_jax.types import ConfigError

SETTINGS = "word2vec.json"
VECTORS = "vectors.txt"
_CONFIG = Word2VecConfig()
_RULE = WordRule()


def train_word2vec(
    texts: Iterable[str],
    config: Word2VecConfig = _CONFIG,
    *,
    rule: WordRule = _RULE,
    phrases: PhraseRule | None = None,
    out: str | Path | None = None,
    checkpoint_every: int = 500,
    mesh: Mesh | None = None,
) -> Vectors:
    """Trains word vectors.

    Args:
        texts: documents; no context goes from one to the next.
        config: the settings.
        rule: how a text becomes words.
        phrases: which words are joined first; None joins none.
        out: folder of the run, with its checkpoints, metrics and vectors; the same call goes on
            from the newest checkpoint there. None keeps nothing.
        checkpoint_every: steps between checkpoints.
        mesh: devices to run on: rows are split over ``data``, dimensions over ``tensor``; None is
            one device.

    Returns:
        The vectors, the most frequent word first.

    Raises:
        ConfigError: settings that cannot be honoured, or another run's in ``out``.
        DataError: texts without words, or without frequent ones.
        Stopped: after SIGINT or SIGTERM; the state is saved where there is ``out``.
    """
    corpus = read_corpus(
        texts, rule, min_count=config.min_count, max_size=config.max_size, phrases=phrases
    )
    return train_on_corpus(corpus, config, out=out, checkpoint_every=checkpoint_every, mesh=mesh)


def train_on_corpus(
    corpus: Corpus,
    config: Word2VecConfig,
    *,
    out: str | Path | None = None,
    checkpoint_every: int = 500,
    mesh: Mesh | None = None,
) -> Vectors:
    """``train_word2vec`` of words that were counted before."""
    if jax.process_count() > 1:
        raise ConfigError(
            f"word2vec runs in one process, and there are {jax.process_count()}; start it on one"
            " host"
        )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1]) if mesh is None else mesh
    batches = Batches(corpus, config)
    run = _run_config(config, batches, out, checkpoint_every)
    counts = corpus.vocabulary.counts
    # The loop looks into no batch.
    iterate: Any = batches.iterate
    state = first_state(config, counts, mesh)
    with contextlib.ExitStack() as held:
        checkpoints: Checkpoints = _Unsaved()
        writer: MetricsWriter | SilentWriter = SilentWriter()
        if out is not None:
            folder = path_of(out)
            check_folder(folder, resumes=(RUN,))
            held.enter_context(FolderLock(folder))
            _check_settings(folder, config, corpus)
            checkpoints = Checkpoints(folder / "checkpoints")
            held.callback(checkpoints.close)
            state = _newest(checkpoints, state, run)
            writer = MetricsWriter(folder, int(state.step))
            held.callback(writer.close)
        loop = Loop(
            config=run,
            step=jit_step(config, batches.updates, mesh),
            feed=Feed(mesh, batches.rows, batches.size.centers),
            batches=iterate,
            evaluate=None,
            checkpoints=checkpoints,
            writer=writer,
            ledger=Goodput(),
            flops=_flops(config, batches.size.centers),
            # Nothing reads it where no metrics are written, and it is measured.
            peak=Peak(math.inf, "none") if out is None else device_peak(0, "float32"),
        )
        state = loop.run(state)
    vectors = Vectors(corpus.vocabulary.words, np.asarray(state.trainable["inputs"]), counts)
    if out is not None:
        vectors.save(path_of(out) / VECTORS)
    return vectors


class _Unsaved(Checkpoints):
    """In place of checkpoints, where nothing is kept."""

    def __init__(self) -> None:
        pass

    def steps(self) -> list[int]:
        return []

    def save(self, step: int, state: Any, config: Config) -> None:
        pass

    def wait(self) -> None:
        pass


def _run_config(
    config: Word2VecConfig, batches: Batches, out: str | Path | None, checkpoint_every: int
) -> Config:
    """What the loop reads of a run's config."""
    return Config(
        name="word2vec",
        data=DataConfig(batch_size=batches.rows, seq_length=batches.size.centers, seed=config.seed),
        train=TrainConfig(
            steps=batches.steps,
            out="" if out is None else str(out),
            seed=config.seed,
            checkpoint_every=checkpoint_every,
        ),
    )


def _flops(config: Word2VecConfig, centers: int) -> Flops:
    """Of the products of a center, forward and backward; hierarchical softmax is not counted."""
    negatives = config.shared_negatives if config.softmax == "negative" else 0
    band = centers + 2 * config.window if config.architecture == "skip-gram" else 1
    count = 6.0 * config.dimensions * (band + negatives)
    return Flops(count, count)


def _newest(checkpoints: Checkpoints, state: TrainState, run: Config) -> TrainState:
    """The state of the newest intact checkpoint; ``state`` where there is none."""
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    saved = checkpoints.restore_newest(to_saved(abstract), run, note)
    if saved is None:
        return state
    note(f"going on from step {int(saved.step)}")
    return from_saved(saved, abstract)


def _check_settings(folder: Path, config: Word2VecConfig, corpus: Corpus) -> None:
    """Writes the settings of a new run, or compares them with those of the run that is there."""
    now = {**dataclasses.asdict(config), "text": _digest(corpus)}
    path = folder / SETTINGS
    if not path.exists():
        write_atomic(path, json.dumps(now, indent=1).encode() + b"\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if different:
        key = different[0]
        raise ConfigError(
            f"{str(folder)!r} holds a run with {key} {before.get(key)!r}, and this one has"
            f" {now.get(key)!r}; use the same settings and texts to go on, or another folder"
        )


def _digest(corpus: Corpus) -> str:
    """sha256 of the words and of where they occur."""
    digest = hashlib.sha256("\n".join(corpus.vocabulary.words).encode())
    digest.update(np.ascontiguousarray(corpus.text.ids).data)
    digest.update(np.ascontiguousarray(corpus.text.ends).data)
    return digest.hexdigest()
