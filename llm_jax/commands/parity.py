"""``llm-jax check-parity``: cached decoding against the full forward pass, on a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from llm_jax import models
from llm_jax.checkpoints.open_run import open_run
from llm_jax.decode.parity import ROUNDINGS, TOLERANCE, check_parity, measured_rounding
from llm_jax.ranges import Count, Natural, Seed, checked
from llm_jax.types import ConfigError


@checked
def check_run(
    run: Path, step: Natural | None = None, rows: Count = 4, length: Natural = 0, seed: Seed = 0
) -> int:
    """Compare log-probabilities of prefill and decode steps with one full forward pass, prompts of
    different lengths in one batch.

    They are equal where they differ by at most 1e-5 nats in float32 (5e-2 in bfloat16), or by what
    rounding is measured to move this model's log-probabilities.

    Args:
        run: folder of the run.
        step: which checkpoint; the newest if not given.
        rows: sequences of random tokens compared.
        length: tokens of the longest, at most half of model.max_length; 0 is the length the run was
            trained with, at most 256.
        seed: of the random tokens.
    """
    opened = open_run(run, step)
    m = opened.config.model
    longest = m.max_length // 2
    if length > longest:
        raise ConfigError(
            f"length is {length}; it must be at most {longest}, half of the model's max_length"
        )
    length = length or min(opened.config.data.seq_length, 256, longest)
    rng = np.random.default_rng(seed)
    lengths = [max(4, length - 7 * i) for i in range(rows)]
    tokens = [rng.integers(0, m.vocab_size, n).tolist() for n in lengths]
    reads = (
        [rng.integers(0, m.vocab_size, n).tolist() for n in reversed(lengths)]
        if m.encoder
        else None
    )
    result = check_parity(
        opened.model,
        opened.params,
        tokens,
        [max(1, n // (2 + i)) for i, n in enumerate(lengths)],
        reads,
    )
    dtype = models.resolve_execution(opened.config.execution, m).compute_dtype
    allowed = TOLERANCE[dtype]
    if result.difference > allowed:
        allowed = max(
            allowed,
            ROUNDINGS * measured_rounding(opened.model, opened.params, tokens, dtype, reads),
        )
    ok = result.difference <= allowed
    print(
        f"{run} step {opened.step}: cached decoding and full forward differ by at most"
        f" {result.difference:.2e} nats over {result.compared} positions ({dtype}, allowed"
        f" {allowed:.1e}): {'equal' if ok else 'NOT EQUAL'}"
    )
    if not ok:
        print(
            f"largest at row {result.row}, position {result.position}; please report this with the"
            " config",
            file=sys.stderr,
        )
    return 0 if ok else 1
