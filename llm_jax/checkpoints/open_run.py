"""Opening a run, or a converted model, for reading: its config, its model, its parameters, its
tokenizer's folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from llm_jax import models, sharding
from llm_jax.checkpoints.checkpoint import CheckpointError, Checkpoints, MismatchError
from llm_jax.checkpoints.weights import WEIGHTS, read_source, read_weights
from llm_jax.config import Config, MeshConfig
from llm_jax.config.overrides import from_json, load_config
from llm_jax.models import Model
from llm_jax.progress import note
from llm_jax.types import Params


class Run(NamedTuple):
    """A trained model, ready to use. ``config`` is that of the checkpoint; ``step`` is 0 of a model
    that was not trained here.
    """

    folder: Path
    step: int
    config: Config
    mesh: Mesh
    model: Model
    params: Params


def open_run(folder: str | Path, step: int | None = None, mesh: MeshConfig | None = None) -> Run:
    """The newest (or given) checkpoint of a run, or the model that ``llm-jax convert`` wrote, on
    ``mesh`` (default: one device).

    Raises CheckpointError when there is none, when it is damaged, or when the tokenizer beside it
    is not the one it was trained with.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is no run: there is no config.json in it; train one with `llm-jax train`"
        )
    if (folder / WEIGHTS).is_file():
        if step is not None:
            raise CheckpointError(
                f"{folder} is a converted model, which has no steps; leave step {step} out"
            )
        source = read_source(folder)
        _check_tokenizer(folder, source.get("tokenizer", ""))
        config = load_config(folder / "config.json")
        _note_one_list_of_factors(folder, config, source)
        placed, model, abstract = placed_model(config, mesh)
        return Run(folder, 0, config, placed, model, read_weights(folder, abstract))
    if not (folder / "checkpoints").is_dir():
        raise CheckpointError(
            f"{folder} has no checkpoint yet; let `llm-jax train` run to its first one"
        )
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        steps = checkpoints.steps()
        if not steps or (step is not None and step not in steps):
            raise CheckpointError(
                f"no checkpoint{'' if step is None else f' {step}'} in {checkpoints.folder}; there"
                f" are {steps or 'none'}"
            )
        step = steps[-1] if step is None else step
        manifest = checkpoints.manifest(step)
        _check_tokenizer(folder, manifest["tokenizer"])
        config = from_json(manifest["config"], f"checkpoint {step}")
        placed, model, abstract = placed_model(config, mesh)
        return Run(folder, step, config, placed, model, checkpoints.restore_params(step, abstract))
    finally:
        checkpoints.close()


def _check_tokenizer(folder: Path, trained_with: str) -> None:
    """Raises MismatchError where the tokenizer beside a model is not the one that it was trained or
    converted with (a fingerprint).

    A folder without a tokenizer is read by its ids; one that an earlier version converted does not
    say what belongs to it.
    """
    from llm_jax.tokenizers.open_tokenizer import tokenizer_fingerprint

    if not trained_with or not (folder / "tokenizer").is_dir():
        return
    found = tokenizer_fingerprint(folder / "tokenizer")
    if found != trained_with:
        raise MismatchError(
            f"{folder / 'tokenizer'} has the fingerprint {found[:16]}…, and the model was trained"
            f" with {trained_with[:16]}…; put that tokenizer back, for example from the folder"
            " tokenizer/ of the shards it was trained on"
        )


def _note_one_list_of_factors(folder: Path, config: Config, source: dict[str, Any]) -> None:
    """Says so where an earlier version converted a model of two lists of rotary factors with the
    long one for every text.
    """
    model, found = config.model, source.get("config")
    if model.rope_scaling != "longrope" or model.rope_short_factors or not isinstance(found, dict):
        return
    for key in ("rope_scaling", "rope_parameters"):
        scaling = found.get(key)
        if (
            isinstance(scaling, dict)
            and list(scaling.get("long_factor") or ()) == list(model.rope_factors)
            and "short_factor" in scaling
        ):
            note(
                f"{folder} was converted by an earlier version, which kept the long rotary factors"
                f" alone: texts of up to {model.rope_original_length} tokens get other logits than"
                " in transformers; convert the model again"
            )
            return


def stop_ids(run: Run) -> tuple[int, ...]:
    """Every token that ends a text of a run: those of its tokenizer, and those of the files that it
    was converted from.

    A model without a tokenizer has only the latter. Ids that the model does not have are left out,
    since it never writes them.
    """
    from llm_jax.tokenizers.open_tokenizer import open_tokenizer

    folder = run.folder / "tokenizer"
    ends = list(open_tokenizer(folder).eos_ids) if folder.is_dir() else []
    source = read_source(run.folder)
    for declared in ("generation", "config"):
        found = source.get(declared)
        given = found.get("eos_token_id") if isinstance(found, dict) else None
        ends += given if isinstance(given, list) else [given]
    known = (id for id in ends if type(id) is int and 0 <= id < run.config.model.vocab_size)
    return tuple(dict.fromkeys(known))


def placed_model(config: Config, mesh: MeshConfig | None) -> tuple[Mesh, Model, Params]:
    """The mesh (default: one device), the model, and its parameters' shapes with their
    shardings.
    """
    devices = None if mesh else jax.local_devices()[:1]
    placed = sharding.make_mesh(mesh or MeshConfig(), devices)
    execution = config.execution
    if execution.layers == "auto" and jax.default_backend() == "cpu":
        # Without a gradient to compile, layers written out compile as fast, and no layer's weights
        # are copied out of the stack.
        execution = dataclasses.replace(execution, layers="unroll")
    model = models.build(config.model, execution)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    where = sharding.parameter_shardings(model.specs, shapes, placed)
    return (
        placed,
        model,
        jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where
        ),
    )
