"""What the command line's verbs do, as functions with the same names of arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import jax

from llm_jax.api.decode_settings import DecodeSettings
from llm_jax.api.language_model import LanguageModel
from llm_jax.api.load import load
from llm_jax.api.settings import with_settings
from llm_jax.config import Config, MeshConfig
from llm_jax.config.saved import load_config
from llm_jax.ranges import Count, Natural, checked
from llm_jax.storage.paths import path_of
from llm_jax.training import run as training_run
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import ConfigError


def train(
    config: Config | str | Path, set: Mapping[str, Any] | Sequence[str] | None = None
) -> Path:
    """Trains, or goes on with, a run, as ``llm-jax train`` does on one machine.

        run = llm_jax.train("configs/tiny_cpu.py", {"data.path": ("shards",), "train.steps": 200})

    Ctrl-C saves and raises ``Stopped``; the same call goes on from there. Several hosts are started
    with ``llm-jax train`` on each, which names the host that fails.

    Args:
        config: a ``Config``, a configs/*.py file or a saved config.json.
        set: changed settings by their dotted keys, or as ``section.key=value``.

    Returns:
        The run's folder, for ``load``, ``evaluate`` and ``generate``.

    Raises:
        ConfigError: a setting that is unknown, out of range, not read, or cannot run.
        DataError: shards or a tokenizer that cannot be used.
        CheckpointError: checkpoints of the folder that cannot be used.
        NonFiniteError: the loss became NaN or infinite.
        SpikeError: the loss rose beyond what ``train.spike`` allows.
        Stopped: SIGINT or SIGTERM, after the checkpoint of that step is saved.
    """
    loaded = config if isinstance(config, Config) else load_config(config)
    loaded = with_settings(loaded, set or {})
    use_compile_cache()
    if jax.process_count() > 1:
        raise ConfigError(
            f"train is called in one of {jax.process_count()} processes; start `llm-jax train` in"
            " each of them instead"
        )
    return training_run.train(loaded)


@checked
def evaluate(
    run: str | Path | LanguageModel,
    data: str | Path,
    split: str = "validation",
    *,
    step: Natural | None = None,
    context: Natural = 0,
    stride: Natural = 0,
    batch_size: Count = 16,
    baselines: bool = True,
) -> dict[str, Any]:
    """Perplexities and bits per byte of a run on one split of a folder of shards, as ``llm-jax
    eval`` prints them.

    Args:
        run: folder of the run or model, which is opened on all devices; or an open one.
        data: folder of shards, made with the run's tokenizer.
        split: train or validation.
        step: which checkpoint; the newest if not given.
        context: tokens of a window; 0 is the length the run was trained with.
        stride: tokens newly scored in each further window; 0 is half the context.
        batch_size: rows scored at once, over all devices.
        baselines: also count and score a unigram, a bigram and a 5-gram (Kneser–Ney) model of the
            train split, where the objective is the next token.

    Returns:
        ``{"step", "split", "model": {…}, "unigram": {…}, "bigram": {…}, "kneser_ney": {…}}``,
        each with every figure of ``Perplexity.summary``; with another objective ``{"step",
        "split", "objective", "model"}``.
    """
    # Its modules read shards, which a machine that only generates need not be able to.
    from llm_jax.evaluation.shards import evaluate_shards

    opened = _opened(run, step, MeshConfig())
    return evaluate_shards(
        opened.run,
        path_of(data),
        split,
        context=context,
        stride=stride,
        batch_size=batch_size,
        baselines=baselines,
    )


@checked
def generate(
    run: str | Path | LanguageModel,
    prompt: str | Sequence[str] = (),
    *,
    ids: tuple[Natural, ...] = (),
    chat: str | None = None,
    system: str | None = None,
    step: Natural | None = None,
    **settings: Unpack[DecodeSettings],
) -> Any:
    """What a run writes after a prompt, as ``llm-jax generate`` prints it.

    For many calls, ``load`` the run once and use its methods.

    Args:
        run: folder of the run or model, or an open one.
        prompt: text to continue; several prompts are one batch. Without one, a new text begins.
        ids: token ids to continue in place of text.
        chat: message to answer, in the chat template of the run's tokenizer.
        system: system message before the chat message.
        step: which checkpoint; the newest if not given.
        settings: of decoding, by their names; prompt number i draws with ``seed + i``.

    Returns:
        What is written, without the prompt: str, list[str] for several prompts, list[int] for ids.
    """
    check_request(prompt, ids, chat, system)
    opened = _opened(run, step)
    if ids:
        return opened.generate(ids, **settings)
    if chat is not None:
        return opened.chat(chat, system, **settings)
    return opened.generate(prompt or "", **settings)


def check_request(
    prompt: str | Sequence[str], ids: Sequence[int], chat: str | None, system: str | None
) -> None:
    """Raises ConfigError unless at most one of prompt, ids and chat is given."""
    beside_chat = chat is not None and prompt
    if beside_chat or (chat is None and system is not None):
        raise ConfigError(
            "--chat takes no --prompt beside it, and --system only goes with --chat; give either"
            " --prompt or --chat"
        )
    if ids and (prompt or chat is not None):
        raise ConfigError("--ids takes no --prompt and no --chat beside it; give one of them")


def _opened(
    run: str | Path | LanguageModel, step: int | None, mesh: MeshConfig | None = None
) -> LanguageModel:
    if not isinstance(run, LanguageModel):
        return load(run, step, mesh=mesh)
    if step is not None:
        raise ConfigError(f"step is {step}, and run is an open model; give step to load")
    return run
