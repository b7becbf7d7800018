"""``llm-jax plan``: a config's train step, or its decoding, compiled for a TPU slice that is not
there.
"""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.files import write_json
from llm_jax.ranges import Count, Large, Natural, NotNegative, Positive, checked


class _Decoding(NamedTuple):
    batch: int
    context: int
    prompt: int


@checked
def plan(
    config: str = "configs/lm_1b.py",
    topology: str = "",
    set: tuple[str, ...] = (),
    vocab_size: Count = 32000,
    analytic: bool = False,
    decode: bool = False,
    batch: Natural = 0,
    context: Natural = 0,
    prompt: Natural = 0,
    tokens: Large = 0,
    price: NotNegative = 0.0,
    pue: NotNegative = 0.0,
    grid: NotNegative = 0.0,
    search: bool = False,
    winner: str = "",
    changes: Natural = 3,
    candidates: Count = 8,
    workers: Natural = 0,
    time_limit: Positive = 1800.0,
    out: str = "",
) -> str:
    """Compile the train step of a config for a TPU slice, on this machine: memory per chip,
    collectives, time at best, cost.

    Args:
        config: a configs/*.py file or a saved config.json.
        topology: chip and shape of the slice, such as v5e:4x4, v6e:16x16 or v5p:4x4x4; h100:8 or
            h200:8x4 (GPUs a node x nodes) and cpu:8 are planned without a compiler. Default: each
            slice that the config names.
        set: changed settings, as section.key=value.
        vocab_size: tokens of the vocabulary, where the config leaves it to the tokenizer.
        analytic: do without the compiler: memory (of TPUs) estimated, FLOPs, bounds and cost.
        decode: plan prefill and one step of decoding, as `llm-jax generate` runs them, in place of
            the train step.
        batch: rows decoded together; 0 takes 64.
        context: tokens of each row that the cache has room for; 0 takes model.max_length.
        prompt: tokens of each row that prefill reads; 0 takes 1,024, or the context if that is
            less.
        tokens: whose cost is estimated; 0 takes all steps of the config, or with --decode a million
            tokens written.
        price: USD per chip-hour; 0 takes the table's list price.
        pue: energy of the building per energy of the chips; 0 takes the table's.
        grid: g CO2e per kWh; 0 takes the world's average.
        search: find the best mesh, remat, accumulation, sequence sharding and schedule of a
            pipeline for the slice, with the tokens of a step as they are; compiles those that
            promise most, prints the ranking and the plan of the best, and writes it as a config
            that `llm-jax train` takes.
        winner: where a search writes that config; empty is NAME.CHIP-SHAPE.json.
        changes: of a step that does not fit, how many changes that make it fit are looked for, each
            compiled; 0 looks for none.
        candidates: compiled at most in a search, or when looking for changes.
        workers: compiled side by side, each in 1 to 2 GB of memory; 0 takes one for each core.
        time_limit: seconds after which a search, or looking for changes, stops and prints what it
            has.
        out: also write the figures to this JSON file.
    """
    # The host stays a CPU; the compiler for TPU is asked for by name.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from llm_jax.config.overrides import parse_assignments
    from llm_jax.config.saved import load_config
    from llm_jax.plan.cost import Assumed
    from llm_jax.plan.search import Budget
    from llm_jax.plan.topology import parse_topology, slices_of
    from llm_jax.training.run import with_vocabulary
    from llm_jax.types import ConfigError

    given = parse_assignments(load_config(config), set)
    loaded = given if given.model.vocab_size else with_vocabulary(given, vocab_size)
    if not decode and (batch or context or prompt):
        raise ConfigError(
            "--batch, --context and --prompt are those of decoding: give --decode too, or set"
            " data.batch_size"
        )
    if search and (decode or analytic):
        raise ConfigError("--search compiles train steps; leave out --decode and --analytic")
    if winner and not search:
        raise ConfigError("--winner is where a search writes its best config: give --search too")
    effort = Budget(candidates, os.cpu_count() or 1 if workers == 0 else workers, time_limit)
    wanted = _Decoding(batch or 64, context or loaded.model.max_length, prompt) if decode else None
    targets = [
        parse_topology(t, loaded.train.peak_tflops)
        for t in ([topology] if topology else slices_of(config))
    ]
    if winner and len(targets) > 1:
        raise ConfigError(
            f"--winner is one file, and {config} names {len(targets)} slices; give one of them:"
            f" --topology={targets[0].name}"
        )
    estimated = partial(_estimated, tokens=tokens, assumed=Assumed(price, pue, grid))
    planned = []
    for target in targets:
        if wanted:
            planned.append(_decoding(loaded, target, wanted, analytic, estimated))
        elif search:
            place = winner or f"{loaded.name}.{target.name.replace(':', '-')}.json"
            planned.append(_searched(given, loaded, target, effort, Path(place), estimated))
        else:
            planned.append(_training(loaded, target, analytic, changes, effort, estimated))
    numbers = [n for n, _ in planned]
    if out:
        write_json(Path(out), numbers if len(numbers) > 1 else numbers[0])
    return "\n\n".join(
        [f"plan {' '.join([config, *set])}\n{planned[0][1]}", *(text for _, text in planned[1:])]
    )


def _estimated(
    target: Any, steps: float, tokens_per_step: float, seconds: Any, *, tokens: int, assumed: Any
) -> Any:
    from llm_jax.plan.cost import cost

    return cost(
        target,
        tokens or int(steps * tokens_per_step),
        tokens_per_step,
        (seconds.at_best, seconds.at_worst),
        assumed,
    )


def _training(
    config: Any, target: Any, analytic: bool, changes: int, effort: Any, estimated: Any
) -> tuple[dict, str]:
    from llm_jax.plan.candidates import with_mesh
    from llm_jax.plan.changes import cheapest_changes
    from llm_jax.plan.memory import unknown
    from llm_jax.plan.ranking import changes_figures, changes_table
    from llm_jax.plan.report import figures, table
    from llm_jax.plan.step import plan_step

    p = plan_step(config, target, analytic=analytic)
    if not p.refused:
        money = estimated(target, config.train.steps, p.tokens, p.seconds)
        return figures(p, money), table(p, money)
    if p.analytic or changes == 0 or unknown(config):
        return figures(p), table(p)
    found, here = cheapest_changes(config, target, effort, changes), with_mesh(config, target)
    return {
        **figures(p),
        "changes": changes_figures(here, found),
    }, f"{table(p)}\n\n{changes_table(here, target, found, changes)}"


def _searched(
    given: Any, config: Any, target: Any, effort: Any, place: Path, estimated: Any
) -> tuple[dict, str]:
    """given: the config with the vocabulary as its file has it, which the winner keeps."""
    from llm_jax.config.saved import to_json
    from llm_jax.plan.ranking import search_figures, search_table
    from llm_jax.plan.report import figures, table
    from llm_jax.plan.search import search

    found = search(config, target, effort)
    numbers, text = search_figures(found), search_table(found)
    if found.best is None or found.best.plan is None:
        why = (
            f"nothing was ready in {effort.time_limit:g} s (--time-limit)"
            if found.not_ready
            else "the compiler refused all it was given"
        )
        return {"search": numbers}, f"{text}\n\n  no winner: {why}"
    p = found.best.plan
    write_json(place, to_json(dataclasses.replace(found.best.candidate.config, model=given.model)))
    money = estimated(target, config.train.steps, p.tokens, p.seconds)
    written = f"  the best, written to {place}: llm-jax train {place}"
    return {
        "search": numbers,
        "winner": str(place),
        **figures(p, money),
    }, f"{text}\n\n{written}\n\n{table(p, money)}"


def _decoding(
    config: Any, target: Any, wanted: _Decoding, analytic: bool, estimated: Any
) -> tuple[dict, str]:
    from llm_jax.plan.decode import plan_decode
    from llm_jax.plan.report import decode_figures, decode_table

    batch, context, prompt = wanted
    p = plan_decode(
        config,
        target,
        batch=batch,
        context=context,
        prompt=prompt or min(1024, context),
        analytic=analytic,
    )
    money = None if p.step.refused else estimated(target, 1_000_000 / batch, batch, p.step.seconds)
    return decode_figures(p, money), decode_table(p, money)
