"""``llm-jax plan``: a config's train step, or its decoding, compiled for a TPU slice that is not there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple


class _Decoding(NamedTuple):
    batch: int
    context: int
    prompt: int


def plan(
    config: str = "configs/lm_1b.py",
    topology: str = "",
    set: tuple[str, ...] = (),
    vocab_size: int = 32000,
    analytic: bool = False,
    decode: bool = False,
    batch: int = 0,
    context: int = 0,
    prompt: int = 0,
    tokens: int = 0,
    price: float = 0.0,
    pue: float = 0.0,
    grid: float = 0.0,
    out: str = "",
) -> str:
    """Compile the train step of a config for a TPU slice, on this machine: memory per chip, collectives, time at best, cost.

    Args:
        config: a configs/*.py file or a saved config.json.
        topology: chip and shape of the slice, such as v5e:4x4, v6e:16x16 or v5p:4x4x4; h100:8 or h200:8x4 (GPUs a node x nodes) and
            cpu:8 are planned without a compiler. Default: each slice that the config names.
        set: changed settings, as section.key=value.
        vocab_size: tokens of the vocabulary, where the config leaves it to the tokenizer.
        analytic: do without the compiler: state, FLOPs, bounds and cost only.
        decode: plan prefill and one step of decoding, as `llm-jax generate` runs them, in place of the train step.
        batch: rows decoded together; 0 takes 64.
        context: tokens of each row that the cache has room for; 0 takes model.max_length.
        prompt: tokens of each row that prefill reads; 0 takes 1,024, or the context if that is less.
        tokens: whose cost is estimated; 0 takes all steps of the config, or with --decode a million tokens written.
        price: USD per chip-hour; 0 takes the table's list price.
        pue: energy of the building per energy of the chips; 0 takes the table's.
        grid: g CO2e per kWh; 0 takes the world's average.
        out: also write the figures to this JSON file.
    """
    # The host stays a CPU; the compiler for TPU is asked for by name.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from llm_jax.overrides import load_config, parse_assignments
    from llm_jax.plan.cost import Assumed
    from llm_jax.plan.topology import parse_topology, slices_of
    from llm_jax.training.run import with_vocabulary
    from llm_jax.types import ConfigError

    loaded = parse_assignments(load_config(config), set)
    if loaded.model.vocab_size == 0:
        loaded = with_vocabulary(loaded, vocab_size)
    if not decode and (batch or context or prompt):
        raise ConfigError("--batch, --context and --prompt are those of decoding: give --decode too, or set data.batch_size")
    wanted = _Decoding(batch or 64, context or loaded.model.max_length, prompt) if decode else None
    targets = [parse_topology(t, loaded.train.peak_tflops) for t in ([topology] if topology else slices_of(config))]
    assumed = Assumed(price, pue, grid)
    planned = [
        _decoding(loaded, target, wanted, analytic, tokens, assumed) if wanted else _training(loaded, target, analytic, tokens, assumed)
        for target in targets
    ]
    numbers = [n for n, _ in planned]
    if out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_text(json.dumps(numbers if len(numbers) > 1 else numbers[0], indent=1) + "\n")
    return "\n\n".join([f"plan {' '.join([config, *set])}\n{planned[0][1]}", *(text for _, text in planned[1:])])


def _training(config: Any, target: Any, analytic: bool, tokens: int, assumed: Any) -> tuple[dict, str]:
    from llm_jax.plan.cost import cost
    from llm_jax.plan.report import figures, table
    from llm_jax.plan.step import plan_step

    p = plan_step(config, target, analytic=analytic)
    money = None if p.refused else cost(target, tokens or p.tokens * config.train.steps, p.tokens, (p.at_best, p.at_worst), assumed)
    return figures(p, money), table(p, money)


def _decoding(config: Any, target: Any, wanted: _Decoding, analytic: bool, tokens: int, assumed: Any) -> tuple[dict, str]:
    from llm_jax.plan.cost import cost
    from llm_jax.plan.decode import plan_decode
    from llm_jax.plan.report import decode_figures, decode_table

    batch, context, prompt = wanted
    p = plan_decode(config, target, batch=batch, context=context, prompt=prompt or min(1024, context), analytic=analytic)
    money = None if p.step.refused else cost(target, tokens or 1_000_000, batch, (p.step.at_best, p.step.at_worst), assumed)
    return decode_figures(p, money), decode_table(p, money)
