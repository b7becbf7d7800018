"""``llm-jax plan``: compiles a config's train step, or its decoding, for a slice on any machine."""

from __future__ import annotations

import os
from typing import Literal

from llm_jax.ranges import Count, Large, Natural, NotNegative, Positive, checked


@checked
def plan(
    config: str = "configs/lm_1b.py",
    topology: str = "",
    set: tuple[str, ...] = (),
    *,
    vocab_size: Count = 32000,
    analytic: bool = False,
    decode: bool = False,
    batch: Natural = 0,
    context: Natural = 0,
    prompt: Natural = 0,
    cache: Literal["dense", "paged"] = "dense",
    cache_dtype: Literal["compute", "int8"] = "compute",
    page: Count = 64,
    draft: str = "",
    draft_tokens: Count = 4,
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
        cache: with --decode, how rows keep their tokens: dense, or paged.
        cache_dtype: with --decode, compute keeps keys and values as the model computes; int8 with
            one scale for each token and head.
        page: tokens of a page.
        draft: with --decode, the config of a draft model for speculative decoding; its vocabulary
            is the model's.
        draft_tokens: that the draft model writes in each round.
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
    # The host stays a CPU; the compiler for TPU is asked for by name. Set before jax is imported.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from llm_jax.commands.plan_kinds import Options, plan_slices
    from llm_jax.config import CacheConfig
    from llm_jax.plan.cost import Assumed
    from llm_jax.plan.search import Budget

    options = Options(
        analytic=analytic,
        decode=decode,
        batch=batch,
        context=context,
        prompt=prompt,
        cache=CacheConfig(layout=cache, dtype=cache_dtype, page=page),
        draft=draft,
        draft_tokens=draft_tokens,
        search=search,
        winner=winner,
        changes=changes,
        budget=Budget(candidates, workers or os.cpu_count() or 1, time_limit),
        tokens=tokens,
        assumed=Assumed(price, pue, grid),
        out=out,
    )
    text = plan_slices(config, topology, set, vocab_size, options)
    return f"plan {' '.join([config, *set])}\n{text}"
