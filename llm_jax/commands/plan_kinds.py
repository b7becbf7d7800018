"""The kinds of plans of ``llm-jax plan``: a train step, a search, or decoding."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from llm_jax.config import CacheConfig, Config
from llm_jax.config.overrides import parse_assignments
from llm_jax.config.saved import load_config, to_json
from llm_jax.files import write_json
from llm_jax.plan import ranking, report
from llm_jax.plan.candidates import with_mesh
from llm_jax.plan.changes import cheapest_changes
from llm_jax.plan.cost import Assumed, Cost, cost
from llm_jax.plan.decode import Draft, plan_decode
from llm_jax.plan.memory import unknown
from llm_jax.plan.roofline import Seconds
from llm_jax.plan.search import Budget, search
from llm_jax.plan.step import plan_step
from llm_jax.plan.topology import Slice, parse_topology, slices_of
from llm_jax.storage.paths import path_of
from llm_jax.training.build import with_vocabulary
from llm_jax.types import ConfigError


class Options(NamedTuple):
    """Options of ``llm-jax plan``; its function ``plan`` describes each.

    Attributes:
        budget: limits of a search, or of looking for changes.
        assumed: price, PUE and carbon intensity; 0 takes the table's.
    """

    analytic: bool
    decode: bool
    batch: int
    context: int
    prompt: int
    cache: CacheConfig
    draft: str
    draft_tokens: int
    search: bool
    winner: str
    changes: int
    budget: Budget
    tokens: int
    assumed: Assumed
    out: str


class _Planned(NamedTuple):
    """The plan of one slice: its figures for a JSON file, and its text."""

    figures: dict[str, Any]
    text: str


def plan_slices(
    config: str, topology: str, set: tuple[str, ...], vocab_size: int, options: Options
) -> str:
    """Plans a config on a slice, or on each slice that it names, and writes ``options.out``.

    Returns:
        The text of all plans.

    Raises:
        ConfigError: options that exclude each other, or a config that cannot run on a slice.
    """
    given = parse_assignments(load_config(config), set)
    _check(options)
    place = path_of(options.out) if options.out else None
    loaded = given if given.model.vocab_size else with_vocabulary(given, vocab_size)
    names = (topology,) if topology else slices_of(config)
    targets = [parse_topology(name, loaded.train.peak_tflops) for name in names]
    if options.winner and len(targets) > 1:
        raise ConfigError(
            f"--winner is one file, and {config} names {len(targets)} slices; give one of them:"
            f" --topology={targets[0].name}"
        )
    planned = [_plan(given, loaded, target, options) for target in targets]
    if place:
        figures = [one.figures for one in planned]
        write_json(place, figures if len(figures) > 1 else figures[0])
    return "\n\n".join(one.text for one in planned)


def _check(options: Options) -> None:
    """Raises ConfigError for options that exclude each other."""
    if not options.decode and (options.batch or options.context or options.prompt):
        raise ConfigError(
            "--batch, --context and --prompt are those of decoding: give --decode too, or set"
            " data.batch_size"
        )
    if not options.decode and (options.cache != CacheConfig() or options.draft):
        raise ConfigError(
            "--cache, --cache-dtype, --page and --draft are those of decoding: give --decode too,"
            " or leave them out"
        )
    if options.search and (options.decode or options.analytic):
        raise ConfigError("--search compiles train steps; leave out --decode and --analytic")
    if options.winner and not options.search:
        raise ConfigError("--winner is where a search writes its best config: give --search too")


def _plan(given: Config, loaded: Config, target: Slice, options: Options) -> _Planned:
    """One slice.

    Args:
        given: the config with the vocabulary of its file, which may be 0; a search writes it.
        loaded: the config with a vocabulary.
        target: the slice.
        options: of the command.
    """
    if options.decode:
        return _plan_decoding(loaded, target, options)
    if options.search:
        return _plan_search(given, loaded, target, options)
    return _plan_training(loaded, target, options)


def _plan_training(config: Config, target: Slice, options: Options) -> _Planned:
    plan = plan_step(config, target, analytic=options.analytic)
    if not plan.refused:
        money = _cost(target, config.train.steps, plan.tokens, plan.seconds, options)
        return _Planned(report.figures(plan, money), report.table(plan, money))
    figures = report.figures(plan)
    text = report.table(plan)
    if plan.analytic or options.changes == 0 or unknown(config):
        return _Planned(figures, text)
    found = cheapest_changes(config, target, options.budget, options.changes)
    here = with_mesh(config, target)
    changes = ranking.changes_table(here, target, found, options.changes)
    return _Planned(
        {**figures, "changes": ranking.changes_figures(here, found)}, f"{text}\n\n{changes}"
    )


def _plan_search(given: Config, config: Config, target: Slice, options: Options) -> _Planned:
    found = search(config, target, options.budget)
    figures: dict[str, Any] = {"search": ranking.search_figures(found)}
    text = ranking.search_table(found)
    if found.best is None or found.best.plan is None:
        reason = "the compiler refused all it was given"
        if found.not_ready:
            reason = f"nothing was ready in {options.budget.time_limit:g} s (--time-limit)"
        return _Planned(figures, f"{text}\n\n  no winner: {reason}")
    plan = found.best.plan
    path = options.winner or f"{config.name}.{target.name.replace(':', '-')}.json"
    best = dataclasses.replace(found.best.candidate.config, model=given.model)
    write_json(path_of(path), to_json(best))
    money = _cost(target, config.train.steps, plan.tokens, plan.seconds, options)
    written = f"  the best, written to {path}: llm-jax train {path}"
    return _Planned(
        {**figures, "winner": path, **report.figures(plan, money)},
        f"{text}\n\n{written}\n\n{report.table(plan, money)}",
    )


def _plan_decoding(config: Config, target: Slice, options: Options) -> _Planned:
    batch = options.batch or 64
    context = options.context or config.model.max_length
    plan = plan_decode(
        config,
        target,
        batch=batch,
        context=context,
        prompt=options.prompt or min(1024, context),
        cache=options.cache,
        draft=_draft(config, options),
        analytic=options.analytic,
    )
    money = None
    if not plan.step.refused:
        money = _cost(target, 1_000_000 / batch, batch, plan.step.seconds, options)
    return _Planned(report.decode_figures(plan, money), report.decode_table(plan, money))


def _draft(config: Config, options: Options) -> Draft | None:
    """The draft model, on the mesh of the model."""
    if not options.draft:
        return None
    own = with_vocabulary(load_config(options.draft), config.model.vocab_size)
    return Draft(dataclasses.replace(own, mesh=config.mesh), options.draft_tokens)


def _cost(
    target: Slice, steps: float, tokens_per_step: int, seconds: Seconds, options: Options
) -> Cost:
    """The cost of ``options.tokens``, or of all steps where they are 0."""
    return cost(
        target,
        options.tokens or int(steps * tokens_per_step),
        tokens_per_step,
        (seconds.at_best, seconds.at_worst),
        options.assumed,
    )
