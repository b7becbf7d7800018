"""Checks of a config that need no device: each raises ConfigError naming the key, its value and the
fix.
"""

from __future__ import annotations

import dataclasses

from llm_jax.config.data import (
    ClassificationConfig,
    ContrastiveConfig,
    TokenClassificationConfig,
)
from llm_jax.config.model import ModelConfig
from llm_jax.config.run import REMAT_NAMES, Config
from llm_jax.config.sections import kind_of
from llm_jax.config.support import refuse
from llm_jax.config.validate_model import require, validate_model
from llm_jax.ranges import check_fields
from llm_jax.storage.paths import check_place
from llm_jax.types import ConfigError


def remat_names(policy: str) -> tuple[str, ...]:
    """Names after ``names:`` or ``offload:`` in a remat policy; raises on a policy or a name that
    does not exist.
    """
    if policy in ("none", "full", "dots"):
        return ()
    prefix, _, rest = policy.partition(":")
    names = tuple(n.strip() for n in rest.split(",") if n.strip())
    unknown = [n for n in names if n not in REMAT_NAMES]
    if prefix not in ("names", "offload") or not names or unknown:
        raise ConfigError(
            f"execution.remat is {policy!r}; use none, full, dots, names:a,b or offload:a,b with"
            f" names out of {', '.join(REMAT_NAMES)}"
        )
    return names


def validate(config: Config) -> None:
    """Raise ConfigError, naming the key, its value and the fix, for a run that cannot start on any
    machine.
    """
    check_fields(config)
    validate_model(config.model)
    remat_names(config.execution.remat)
    check_objective(config)
    _check_data(config)
    _check_train(config)
    _check_mesh(config)


def _check_data(config: Config) -> None:
    data = config.data
    m = config.model
    require(
        data.batch_size % config.train.accumulation == 0,
        f"data.batch_size {data.batch_size} does not divide by train.accumulation"
        f" {config.train.accumulation}",
    )
    require(
        data.seq_length <= m.max_length,
        f"data.seq_length {data.seq_length} is longer than model.max_length {m.max_length}; raise"
        " model.max_length",
    )
    require(
        not data.weights or len(data.weights) == len(data.path),
        f"data.weights {data.weights} must be one for each of the {len(data.path)} folders of"
        " data.path",
    )
    _check_folders(config)


def _check_train(config: Config) -> None:
    train = config.train
    rule = config.optimizer.update.kind
    refuse(config.model, rule, f"optimizer.update {rule}")
    warmup = config.optimizer.warmup_steps
    require(
        bool(train.trainable),
        "train.trainable is empty, which trains nothing; ('*',) is all parameters",
    )
    profiled = train.profile_steps
    require(
        not profiled or (len(profiled) == 2 and sum(profiled) - 1 <= train.steps),
        f"train.profile_steps is {profiled}; give the first step and the number of steps, within 1"
        f" to train.steps {train.steps}",
    )
    require(
        warmup < train.steps or warmup == 0,
        f"optimizer.warmup_steps {warmup} is not less than train.steps {train.steps}; lower it",
    )
    chunk = config.execution.loss_chunk
    vocabulary = config.model.vocab_size
    require(
        not vocabulary or chunk <= vocabulary,
        f"execution.loss_chunk is {chunk}; it must be from 0 to the model.vocab_size {vocabulary}",
    )


def _check_mesh(config: Config) -> None:
    mesh = config.mesh
    if mesh.expert not in (1, -1):
        refuse(config.model, "expert", f"mesh.expert {mesh.expert}")
    axes = dataclasses.asdict(mesh)
    autos = [name for name, size in axes.items() if size == -1]
    require(
        len(autos) <= 1,
        f"mesh axes {autos} are all -1; only one can take the devices that are left",
    )
    for name, size in axes.items():
        require(size != 0, f"mesh.{name} is {size}; it must be at least 1, or -1 for the rest")


def check_objective(config: Config) -> None:
    """Raise ConfigError unless the objective is one that the architecture can learn and its lengths
    are there.
    """
    data = config.data
    m = config.model
    has = f"model.encoder is {kind_of(m.encoder)!r} and model.causal {m.causal}"
    objective = data.objective.kind
    fitting = _fitting_objectives(m)
    require(
        objective in fitting,
        f"data.objective is {objective!r}, and {has}; such a model learns from"
        f" {' or '.join(fitting)}",
    )
    if m.encoder:
        require(
            data.encoder_length >= 1,
            f"data.objective.encoder_length is {data.encoder_length}; an encoder reads at least 1"
            " token of a row",
        )
        require(
            data.encoder_length <= m.max_length,
            f"data.objective.encoder_length {data.encoder_length} is longer than model.max_length"
            f" {m.max_length}; raise model.max_length",
        )
    _check_examples(config)


# Objectives of models of one stack whose rows are examples of a task.
_OF_EXAMPLES = ("classification", "token_classification", "contrastive")


def _fitting_objectives(m: ModelConfig) -> tuple[str, ...]:
    if m.encoder:
        return ("spans", "pairs")
    return ("next_token" if m.causal else "masked", *_OF_EXAMPLES)


def _check_examples(config: Config) -> None:
    """The checks of objectives over rows that are examples of a task."""
    m = config.model
    objective = config.data.objective
    if objective.kind not in _OF_EXAMPLES:
        return
    require(
        config.mesh.context == 1,
        f"mesh.context is {config.mesh.context}, and data.objective is {objective.kind!r}, whose"
        " vectors are made of whole rows; set it to 1",
    )
    classes = m.pooler.num_classes if m.pooler else 0
    if isinstance(objective, ClassificationConfig | TokenClassificationConfig):
        of_tokens = isinstance(objective, TokenClassificationConfig)
        reads = m.pooler.reads if m.pooler else "none"
        require(
            classes >= 2,
            f"data.objective is {objective.kind!r}, and model.pooler.num_classes {classes}; set it"
            " to the number of classes, at least 2",
        )
        require(
            (reads == "each") == of_tokens,
            f"data.objective is {objective.kind!r}, and model.pooler.reads {reads!r}; set it to"
            f" {'each' if of_tokens else 'first, mean or last'}",
        )
        weights = objective.class_weights
        require(
            len(weights) in (0, classes),
            f"data.objective.class_weights has {len(weights)} weights, and there are {classes}"
            " classes; give one for each",
        )
    if isinstance(objective, ClassificationConfig) and objective.token_types:
        require(
            m.embedding.token_types >= 2,
            "data.objective.token_types is True, and model.embedding.token_types"
            f" {m.embedding.token_types}; set the first to False",
        )
    if isinstance(objective, ContrastiveConfig):
        _check_contrastive(config, objective)


def _check_contrastive(config: Config, objective: ContrastiveConfig) -> None:
    pooler = config.model.pooler
    require(
        objective.pooling != "model" or (pooler is not None and pooler.reads != "each"),
        "data.objective.pooling is 'model', and the model has no pooler of rows; use mean, first"
        " or last",
    )
    require(
        config.train.accumulation == 1,
        f"train.accumulation is {config.train.accumulation}, and data.objective 'contrastive'"
        " compares each pair with all of the batch; set it to 1, or spread the batch over more"
        " devices",
    )
    require(
        config.data.batch_size >= 2,
        f"data.batch_size is {config.data.batch_size}; data.objective 'contrastive' compares pairs"
        " of a batch, so give at least 2",
    )
    for name in ("z_loss", "label_smoothing"):
        value = getattr(config.train, name)
        require(
            value == 0,
            f"train.{name} is {value}, and data.objective 'contrastive' does not read it; set it"
            " to 0",
        )


def _check_folders(config: Config) -> None:
    for folder in config.data.path:
        check_place(folder, "data.path")
    check_place(config.train.start, "train.start")
    check_run_folder(config.train.out, "train.out")


def check_run_folder(folder: str, name: str) -> None:
    """Checks that checkpoints can be written where a setting says; imports nothing.

    Args:
        folder: the setting's value.
        name: of the setting.

    Raises:
        ConfigError: they cannot.
    """
    check_place(folder, name)
    require(
        not folder.startswith("s3:"),
        f"{name} is {folder!r}; checkpoints are written to folders and to gs://, since orbax has no"
        " commit protocol for other buckets; choose one of these, or mount the bucket",
    )
