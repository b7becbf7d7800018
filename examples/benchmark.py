"""Benchmarking: tokens a second and MFU of the real train step on the accelerator that is there.

    python examples/benchmark.py

From the checkout's folder; it needs neither data nor a tokenizer. Each figure is the median of
blocks of steps after compiling, and MFU is counted by both conventions, against a measured peak.
"""

# %% A config, and what is varied
from llm_jax.bench.train import measure
from llm_jax.config import load_config, override

base = override(
    load_config("configs/tiny_cpu.py"),
    {"model.vocab_size": 512, "model.num_layers": 1, "data.seq_length": 64},
)
variants = {
    "nothing recomputed": {"execution.remat": "none"},
    "layers recomputed": {"execution.remat": "full"},
}

# %% Measure
figures = {
    name: measure(override(base, {"data.batch_size": 8, **changed}), steps=2, repeats=2)
    for name, changed in variants.items()
}
for name, found in figures.items():
    low, high = found["tokens_per_second_range"]
    print(
        f"{name:18} {found['tokens_per_second']:10,.0f} tokens/s ({low:,.0f} to {high:,.0f}),"
        f" MFU {found['mfu_causal']:.1%} causal, {found['mfu_full']:.1%} full"
    )
