"""A model trained for a task: its data, its config, and the run that the trainer makes of them.

OUT/task.json    what was asked for
OUT/data         the examples, as rows of tokens
OUT/run          the trained model, as any run
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from llm_jax import models
from llm_jax.checkpoints.open_run import Run, open_run
from llm_jax.config import Config, ModelConfig
from llm_jax.config.model import PoolerConfig
from llm_jax.config.overrides import override
from llm_jax.data.examples.folder import Examples, write_examples
from llm_jax.files import TASK, check_folder, make_folder, write_json
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import ConfigError, DataError

Pooling = Literal["auto", "mean", "first", "last"]
# Parameters that no objective over examples reads.
_OF_VOCABULARY: tuple[str, ...] = ("head", "head_transform")


class Training(NamedTuple):
    """How a model is trained for a task.

    Attributes:
        model: folder of the run or converted model that training begins with.
        out: folder for all that is made.
        epochs: times that each example is seen.
        learning_rate: the highest one.
        batch_size: examples of a step.
        seed: of the order, of the new parameters and of dropout.
        classes_only: whether the body of the model stays as it is.
    """

    model: Path
    out: Path
    epochs: float
    learning_rate: float
    batch_size: int
    seed: int
    classes_only: bool = False


class Source(NamedTuple):
    """The model that training begins with.

    Attributes:
        config: its architecture.
        execution: how it runs.
        tokenizer: its tokenizer.
    """

    config: ModelConfig
    execution: Any
    tokenizer: Tokenizer


def open_source(model: Path, task: str) -> Source:
    """The model that training begins with.

    Raises:
        ConfigError: an encoder–decoder.
        DataError: it has no tokenizer.
        CheckpointError: there is no model.
    """
    run = open_run(model)
    if run.config.model.encoder is not None:
        raise ConfigError(
            f"{model} is an encoder–decoder, which has no vectors of rows for `task {task}`; use an"
            " encoder or a decoder, or train it to write the labels (data.objective pairs)"
        )
    if not (run.folder / "tokenizer").is_dir():
        raise DataError(f"{model} has no tokenizer, which reads the texts; put it into tokenizer/")
    tokenizer = open_tokenizer(run.folder / "tokenizer")
    return Source(run.config.model, run.config.execution, tokenizer)


def with_classes(model: ModelConfig, classes: int, pooling: Pooling) -> ModelConfig:
    """The model with classes of rows: of its own pooler where it has one and ``pooling`` is auto;
    else of the mean of an encoder's tokens, or of a decoder's last one.
    """
    own = model.pooler
    if pooling == "auto" and own is not None and own.reads != "each":
        pooler = dataclasses.replace(own, num_classes=classes)
    else:
        default: Literal["mean", "last"] = "last" if model.causal else "mean"
        reads = default if pooling == "auto" else pooling
        pooler = PoolerConfig("identity", reads, classes)
    return dataclasses.replace(model, pooler=pooler)


def claim(training: Training, settings: dict[str, Any]) -> None:
    """Takes the folder for a task, or goes on with the same task there.

    Raises:
        ConfigError: the folder has a task with other settings.
        DataError: the folder holds something else.
    """
    import json

    check_folder(training.out, resumes=(TASK,))
    asked = json.loads(json.dumps({**settings, **_settings(training)}, default=str))
    path = training.out / "task.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in {**before, **asked}:
            if before.get(name) != asked.get(name):
                raise ConfigError(
                    f"{name} is {asked.get(name)!r}, and {training.out} was begun with"
                    f" {before.get(name)!r}; give the same again, or another out"
                )
    make_folder(training.out)
    write_json(path, asked)


def _settings(training: Training) -> dict[str, Any]:
    return {name: value for name, value in training._asdict().items() if name != "out"}


def finetune(
    training: Training,
    source: Source,
    splits: dict[str, Examples],
    objective: dict[str, Any],
    options: dict[str, Any],
) -> Run:
    """Trains a model for a task, or goes on with it.

    Args:
        training: how.
        source: the model; its architecture is that of the run, with what the task adds.
        splits: the examples, ``train`` and ``validation``.
        objective: settings of ``data.objective``, with its name as ``kind``.
        options: what the examples were made with, for their fingerprint.

    Returns:
        The trained model.
    """
    from llm_jax.training.run import train

    data = training.out / "data"
    kind = objective["kind"]
    tokenizer = source.tokenizer
    write_examples(data, splits, task=kind, tokenizer=tokenizer, options=options)
    longest = max(examples.longest for examples in splits.values())
    config = task_config(training, source, objective, rows=len(splits["train"]), longest=longest)
    train(config)
    return open_run(training.out / "run")


def task_config(
    training: Training, source: Source, objective: dict[str, Any], *, rows: int, longest: int
) -> Config:
    """The run's config: AdamW with a linear schedule and a tenth of the steps to warm up, on all
    parameters that the task reads.

    Args:
        training: how.
        source: the model.
        objective: as of ``finetune``.
        rows: examples of the training split.
        longest: tokens of the longest example.
    """
    of_epoch = max(1, math.ceil(rows / training.batch_size))
    steps = max(1, round(training.epochs * of_epoch))
    config = dataclasses.replace(Config(), model=source.config, execution=source.execution)
    settings = {
        f"data.objective.{name}": value for name, value in objective.items() if name != "kind"
    }
    return override(
        config,
        {
            "name": objective["kind"],
            "data.path": (str(training.out / "data"),),
            "data.objective": objective["kind"],
            **settings,
            "data.seq_length": min(-(-longest // 8) * 8, source.config.max_length),
            "data.batch_size": training.batch_size,
            "data.seed": training.seed,
            "optimizer.learning_rate": training.learning_rate,
            "optimizer.schedule": "linear",
            "optimizer.schedule.final_ratio": 0.0,
            "optimizer.warmup_steps": steps // 10,
            "optimizer.weight_decay": 0.01,
            "train.start": str(training.model),
            "train.out": str(training.out / "run"),
            "train.steps": steps,
            "train.seed": training.seed,
            "train.trainable": _trainable(source.config, training.classes_only),
            "train.eval_every": of_epoch,
            "train.checkpoint_every": of_epoch,
            "train.keep": 1,
        },
    )


def _trainable(model: ModelConfig, classes_only: bool) -> tuple[str, ...]:
    """Patterns of the parameters that the task trains."""
    tree = jax.eval_shape(models.build(model).init, jax.random.key(0))
    on_top = ("classes", "pooler")
    if classes_only:
        return tuple(f"{name}/*" for name in tree if name in on_top)
    unread = _OF_VOCABULARY
    if model.pooler is not None and model.pooler.layer == "transform":
        unread = ("head",)
    if not any(name in tree for name in unread):
        return ("*",)
    return tuple(f"{name}/*" for name in tree if name not in unread)
