"""Drafts of speculative decoding: another model, the text itself, or the model's first layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from llm_jax.config import CacheConfig, DecodeConfig, ExecutionConfig, ModelConfig
from llm_jax.config.draft import DraftConfig, check_with_draft, validate_draft
from llm_jax.config.support import refuse
from llm_jax.decode.fixed_shape import DecodeShape
from llm_jax.decode.placement import Layout, compute_params, compute_shardings
from llm_jax.models import Model, build
from llm_jax.params.layout import STACKS
from llm_jax.types import ConfigError, Params

Passes = Callable[[int], bool]


class Draft(NamedTuple):
    """What ``Generator`` drafts with.

    Attributes:
        config: the settings.
        model: that drafts, for the kind "model".
        params: its parameters, as they are stored.
        execution: how the first layers run, for the kind "early_exit"; None is the default, in the
            model's compute type.
    """

    config: DraftConfig
    model: Model | None = None
    params: Params | None = None
    execution: ExecutionConfig | None = None


class Drafter(NamedTuple):
    """What is static of a draft.

    Attributes:
        config: the settings.
        model: that drafts; None for lookup.
        shared: layers of the model's own cache that an early exit reads and writes; 0 for a model
            with a cache of its own.
    """

    config: DraftConfig
    model: Model | None
    shared: int = 0

    @property
    def tokens(self) -> int:
        """Tokens drafted before they are verified, at most."""
        return self.config.tokens

    @property
    def has_cache(self) -> bool:
        """Whether the draft has a cache of its own."""
        return self.model is not None and not self.shared


class Pair(NamedTuple):
    """A model and what drafts for it; static."""

    target: Model
    drafter: Drafter


class Weights(NamedTuple):
    """Parameters of both, as decoding reads them.

    Attributes:
        target: of the model.
        draft: of the model that drafts; None for lookup.
    """

    target: Params
    draft: Params | None


def make_pair(
    target: Model,
    params: Params,
    draft: Draft,
    *,
    layout: Layout,
    mesh: Any = None,
    cache: CacheConfig = CacheConfig(),  # noqa: B008 (frozen)
) -> tuple[Pair, Weights]:
    """What speculative decoding runs.

    Args:
        target: the model.
        params: its parameters, as decoding reads them.
        draft: what drafts.
        layout: of the parameters.
        mesh: the devices; None for one device.
        cache: how a draft's own model keeps keys and values.

    Raises:
        ConfigError: the draft does not fit the model.
    """
    validate_draft(draft.config)
    kind = draft.config.kind
    given = draft.model is not None and draft.params is not None
    if (kind == "model") != given or (draft.model is None) != (draft.params is None):
        raise ConfigError(
            f"kind of draft is {kind}, and a model and its parameters are"
            f" {'' if given else 'not '}given; a draft of the kind model needs both, and the others"
            " have none"
        )
    refuse(target.config, "drafts", "drafts")
    if draft.model is not None:
        refuse(draft.model.config, "drafts", "draft models")
    if kind == "lookup":
        return Pair(target, Drafter(draft.config, None)), Weights(params, None)
    if kind == "early_exit":
        model, first = _early_exit(target, params, draft)
        drafter = Drafter(draft.config, model, shared=draft.config.layers)
        return Pair(target, drafter), Weights(params, first)
    assert draft.model is not None
    _check_model(target, params, draft.model, draft.params)
    shardings = None
    if mesh is not None:
        shardings = compute_shardings(draft.model, draft.params, mesh, layout)
    compute = jax.jit(partial(compute_params, draft.model, layout=layout), out_shardings=shardings)
    weights = Weights(params, compute(draft.params))
    model = draft.model
    if cache != CacheConfig():
        model = model._replace(init_cache=partial(model.init_cache, kind=cache))
    return Pair(target, Drafter(draft.config, model)), weights


def check_draft_shape(pair: Pair, shape: DecodeShape) -> None:
    """Raises ConfigError where the draft's own model has not the length of ``shape``."""
    if pair.drafter.has_cache:
        assert pair.drafter.model is not None
        most = pair.drafter.model.config.max_length
        if shape.length > most:
            raise ConfigError(
                f"shape.length is {shape.length}, and the max_length of the draft's model {most};"
                " lower it, or choose another draft"
            )


def check_draft_rows(pair: Pair, configs: Sequence[DecodeConfig], passes: Passes) -> None:
    """Raises ConfigError where rows cannot be written with a draft.

    Args:
        pair: the models.
        configs: settings of each row.
        passes: whether a row may pass this length while it is written.
    """
    for row, config in enumerate(configs):
        check_with_draft(config, row)
    for name, model in (("model", pair.target), ("draft's model", pair.drafter.model)):
        switch = 0 if model is None else model.config.rope_switch
        if switch and passes(switch):
            raise ConfigError(
                f"a row passes {switch} tokens, where the rotations of the {name} change"
                " (model.rope_switch): it is read again there, and no draft holds; write fewer"
                " tokens, or leave the draft out"
            )


def _check_model(target: Model, params: Params, draft: Model, draft_params: Params) -> None:
    sizes = [
        jax.eval_shape(model.head, weights).kernel.shape[0]
        for model, weights in ((target, params), (draft, draft_params))
    ]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"the draft's model has a vocabulary of {sizes[1]} tokens, and the model one of"
            f" {sizes[0]}; both must have the same, so choose a draft of the same tokenizer"
        )
    reads = [model.config.encoder is not None for model in (target, draft)]
    if reads[0] != reads[1]:
        having, lacking = ("model", "draft's model") if reads[0] else ("draft's model", "model")
        raise ConfigError(
            f"the {having} has an encoder and the {lacking} has none; both must read prompts in the"
            " same way, so choose another draft"
        )


def _early_exit(target: Model, params: Params, draft: Draft) -> tuple[Model, Params]:
    """The model of the first layers, with the model's own final norm and head, and its parameters.

    Stacked parameters of these layers are copied, once. Layers that are apart are shared.
    """
    layers = draft.config.layers
    config = target.config
    if layers >= config.num_layers:
        raise ConfigError(
            f"layers of an early exit is {layers}, and the model has {config.num_layers}; it must"
            " be fewer"
        )
    in_compute = partial(target.init_cache, 1, 1, kind=CacheConfig())
    dtype: Any = str(jax.eval_shape(in_compute).dtype)
    execution = draft.execution or ExecutionConfig()
    execution = dataclasses.replace(execution, compute_dtype=dtype)
    return build(first_layers_config(config, layers), execution), first_layers(params, layers)


def first_layers_config(config: ModelConfig, layers: int) -> ModelConfig:
    """The architecture of a model's first ``layers`` layers, from 1 to all but one."""
    leading = config.first_layers
    if leading is None or layers > leading.count:
        return dataclasses.replace(config, num_layers=layers)
    _, first, _ = config.stacks[0]
    return dataclasses.replace(first, num_layers=layers, first_layers=None)


def first_layers(params: Params, layers: int) -> Params:
    """The parameters of a model's first ``layers`` layers, and all that are not of layers."""
    own = {name: part for name, part in params.items() if name not in STACKS}
    left = layers
    kept = {}
    for name in STACKS:
        if name in params and left:
            taken = min(left, _depth(params[name]))
            kept[name] = _first(params[name], taken)
            left -= taken
    if list(kept) == ["first_layers"]:
        kept = {"layers": kept["first_layers"]}
    return own | kept


def _depth(stack: Any) -> int:
    return len(stack) if isinstance(stack, tuple) else len(jax.tree.leaves(stack)[0])


def _first(stack: Any, layers: int) -> Any:
    if isinstance(stack, tuple):
        return stack[:layers]
    return jax.tree.map(lambda a: a[:layers], stack)
