"""Opens a run or a converted model for reading: config, model, parameters, tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from llm_jax import models, sharding
from llm_jax.checkpoints.checkpoint import CheckpointError, Checkpoints, MismatchError
from llm_jax.checkpoints.weights import WEIGHTS, read_source, read_weights
from llm_jax.config import Config, MeshConfig
from llm_jax.config.positions import LongRopeScalingConfig
from llm_jax.config.saved import from_json, load_config
from llm_jax.models import Model
from llm_jax.progress import note
from llm_jax.storage.paths import path_of
from llm_jax.types import Params


class Run(NamedTuple):
    """A model, ready to use.

    Attributes:
        folder: the run's, or the converted model's.
        step: of the checkpoint; 0 for a converted model.
        config: of the checkpoint.
        mesh: where the parameters are.
        model: the functions.
        params: the parameters.
    """

    folder: Path
    step: int
    config: Config
    mesh: Mesh
    model: Model
    params: Params


def open_run(folder: str | Path, step: int | None = None, mesh: MeshConfig | None = None) -> Run:
    """Opens a run, or a model that ``llm-jax convert`` wrote.

    Args:
        folder: of the run or the model.
        step: of the checkpoint; None takes the newest.
        mesh: where the parameters are placed; None takes one device.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        MismatchError: the tokenizer in the folder is not that of the checkpoint.
    """
    folder = path_of(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is not a run: it has no config.json; train one with `llm-jax train`"
        )
    if (folder / WEIGHTS).is_file():
        if step is not None:
            raise CheckpointError(
                f"{folder} is a converted model, which has no steps; leave step {step} out"
            )
        return _open_converted(folder, mesh)
    if not (folder / "checkpoints").is_dir():
        raise CheckpointError(
            f"{folder} has no checkpoint yet; let `llm-jax train` reach its first one"
        )
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        return _open_checkpoint(folder, checkpoints, step, mesh)
    finally:
        checkpoints.close()


def _open_converted(folder: Path, mesh: MeshConfig | None) -> Run:
    source = read_source(folder)
    _check_tokenizer(folder, source.get("tokenizer", ""))
    config = load_config(folder / "config.json")
    _note_missing_short_factors(folder, config, source)
    placed, model, abstract = placed_model(config, mesh)
    return Run(folder, 0, config, placed, model, read_weights(folder, abstract))


def _open_checkpoint(
    folder: Path, checkpoints: Checkpoints, step: int | None, mesh: MeshConfig | None
) -> Run:
    steps = checkpoints.steps()
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint {step}"
        raise CheckpointError(f"no {wanted} in {checkpoints.folder}; there are {steps or 'none'}")
    step = steps[-1] if step is None else step
    manifest = checkpoints.manifest(step)
    _check_tokenizer(folder, manifest["tokenizer"])
    config = from_json(manifest["config"], f"checkpoint {step}")
    placed, model, abstract = placed_model(config, mesh)
    return Run(folder, step, config, placed, model, checkpoints.restore_params(step, abstract))


def _check_tokenizer(folder: Path, trained_with: str) -> None:
    """Checks the tokenizer in a folder against the fingerprint that a model names.

    A folder without a tokenizer is used with token ids; an earlier version's conversion names no
    fingerprint.

    Raises:
        MismatchError: the tokenizer is another one.
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


def _note_missing_short_factors(folder: Path, config: Config, source: dict[str, Any]) -> None:
    """Warns of a model that an earlier version converted with the long rotary factors alone."""
    model = config.model
    original = source.get("config")
    longrope = model.rope and model.rope.scaling
    if not isinstance(longrope, LongRopeScalingConfig) or longrope.short_factors:
        return
    if not isinstance(original, dict):
        return
    scalings = [original.get(key) for key in ("rope_scaling", "rope_parameters")]
    if any(_has_short_factors(scaling, longrope.factors) for scaling in scalings):
        note(
            f"{folder} was converted by an earlier version, which kept the long rotary factors"
            f" alone: texts of up to {longrope.original_length} tokens get other logits than in"
            " transformers; convert the model again"
        )


def _has_short_factors(scaling: Any, long_factors: Sequence[float]) -> bool:
    """Whether a Hugging Face rope config has these long factors, and short ones beside them."""
    if not isinstance(scaling, dict) or "short_factor" not in scaling:
        return False
    return list(scaling.get("long_factor") or ()) == list(long_factors)


def stop_ids(run: Run) -> tuple[int, ...]:
    """The tokens that end a text: those of the run's tokenizer and of the files it came from.

    Ids that the model does not have are left out, since it never writes them.
    """
    from llm_jax.tokenizers.open_tokenizer import open_tokenizer

    folder = run.folder / "tokenizer"
    ends: list[Any] = list(open_tokenizer(folder).eos_ids) if folder.is_dir() else []
    source = read_source(run.folder)
    for key in ("generation", "config"):
        found = source.get(key)
        given = found.get("eos_token_id") if isinstance(found, dict) else None
        ends += given if isinstance(given, list) else [given]
    known = (id for id in ends if type(id) is int and 0 <= id < run.config.model.vocab_size)
    return tuple(dict.fromkeys(known))


def placed_model(config: Config, mesh: MeshConfig | None) -> tuple[Mesh, Model, Params]:
    """The mesh (default: one device), the model, and its parameters as ShapeDtypeStructs with
    shardings.
    """
    devices = None if mesh else jax.local_devices()[:1]
    placed = sharding.make_mesh(mesh or MeshConfig(), devices)
    layers = models.inference_layers(config.execution.layers)
    execution = dataclasses.replace(config.execution, layers=layers)
    model = models.build(config.model, execution)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shardings = sharding.parameter_shardings(model.specs, shapes, placed)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
    )
    return placed, model, abstract
