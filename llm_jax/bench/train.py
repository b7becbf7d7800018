"""``llm-jax bench train``: tokens/s and MFU of the real train step on random tokens."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax

from llm_jax import models
from llm_jax.config import Config
from llm_jax.config.overrides import parse_assignments
from llm_jax.config.saved import load_config
from llm_jax.files import write_json
from llm_jax.objectives import objective_of
from llm_jax.ranges import Count, checked
from llm_jax.sharding import device_put_batch
from llm_jax.storage.paths import path_of
from llm_jax.training.build import build, first_state, step_of, with_vocabulary
from llm_jax.training.environment import environment, environment_text
from llm_jax.training.flops import flops_of, measure_matmul
from llm_jax.training.summary import run_summary


@checked
def bench_train(
    config: str = "configs/tiny_cpu.py",
    set: tuple[str, ...] = (),
    *,
    steps: Count = 10,
    repeats: Count = 5,
    vocab_size: Count = 4096,
    out: str = "",
) -> str:
    """Time the compiled train step of a config, without data loading.

    Args:
        config: a configs/*.py file or a saved config.json.
        set: changed settings, as section.key=value.
        steps: steps in one timed block.
        repeats: timed blocks; the median counts.
        vocab_size: tokens of the vocabulary, where the config leaves it to the tokenizer.
        out: also write the figures to this JSON file.
    """
    place = path_of(out) if out else None
    loaded = parse_assignments(load_config(config), set)
    if loaded.model.vocab_size == 0:
        loaded = with_vocabulary(loaded, vocab_size)
    result = measure(loaded, steps, repeats)
    if place:
        settings = {"environment": environment(), "config": config, "set": list(set)}
        write_json(place, {**settings, **result})
    method = (
        "the compiled train step on one batch of random tokens; median of"
        f" {repeats} blocks of {steps} steps after one step"
    )
    return report(f"{config} {' '.join(set)}", method, result)


def measure(config: Config, steps: int, repeats: int) -> dict[str, Any]:
    """Figures of a config's train step.

    Args:
        config: the config; its vocabulary must be known.
        steps: steps in one timed block.
        repeats: timed blocks.

    Returns:
        Tokens/s (median and range over blocks), MFU, compile time, peak memory, and the measured
        peak of a matrix product.
    """
    parts = build(config)
    batch = device_put_batch(objective_of(config.data).example(config), parts.mesh)
    step = step_of(parts)
    dtype = models.resolve_execution(config.execution, config.model).compute_dtype
    tokens = config.data.batch_size * config.data.seq_length
    rates = []
    with jax.set_mesh(parts.mesh):
        state = first_state(parts)
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        compile_seconds = time.perf_counter() - started
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in range(steps):
                state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            rates.append(tokens * steps / (time.perf_counter() - started))
    # The peak is measured after the blocks in the same process, so in the same conditions.
    peak = measure_matmul(dtype)
    flops = flops_of(config)
    rate = statistics.median(rates)
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "tokens_per_second": rate,
        "tokens_per_second_range": [min(rates), max(rates)],
        "tokens_per_second_per_device": rate / parts.mesh.size,
        "step_seconds": tokens / rate,
        "compile_seconds": compile_seconds,
        "mfu_causal": rate * flops.causal / (peak * parts.mesh.size),
        "mfu_full": rate * flops.full / (peak * parts.mesh.size),
        "matmul_peak_tflops": peak / 1e12,
        "dtype": dtype,
        "loss": float(metrics["loss"]),
        "peak_memory_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
        **run_summary(parts),
    }


def report(what: str, method: str, result: dict[str, Any]) -> str:
    """The figures of ``measure`` as lines of text."""
    r = result
    low, high = r["tokens_per_second_range"]
    peak = r["peak_memory_gib"]
    memory = f"{peak:.1f} GiB" if peak else "not reported by this device"
    lines = [
        f"bench train {what}",
        f"  {environment_text()}",
        f"  method: {method}",
        f"  parameters {r['parameters']:,}; {r['global_tokens_per_step']:,} tokens per step;"
        f" mesh {r['mesh']}; {r['dtype']}",
        f"  tokens/s {r['tokens_per_second']:,.0f} (blocks from {low:,.0f} to {high:,.0f});"
        f" per device {r['tokens_per_second_per_device']:,.0f}",
        f"  step {r['step_seconds'] * 1e3:,.1f} ms; first step with compilation"
        f" {r['compile_seconds']:.1f} s; peak memory {memory}",
        f"  MFU {r['mfu_causal']:.1%} causal, {r['mfu_full']:.1%} full attention, against"
        f" {r['matmul_peak_tflops']:.2f} TFLOP/s per device measured by a {r['dtype']} matmul in"
        " this run",
    ]
    return "\n".join(lines)
