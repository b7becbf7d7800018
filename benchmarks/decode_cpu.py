"""Cached greedy decoding on a CPU: our ``Generator`` against transformers' ``generate`` with a static cache.

The same random Llama of about 30 M parameters, float32, two threads each; the weights are ours, copied into theirs, and the tokens
written are compared first. Each side is a process of its own; they take turns. A time is one whole call: prompt and new tokens.

    python benchmarks/decode_cpu.py [--rounds 5] [--new 128] [--prompt 64] [--batch 1 8]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from llm_jax.host_memory import keep_freed_memory

THREADS = 2
L, N, K, D, F, V, LENGTH = 8, 8, 8, 512, 1376, 8192, 1024
Generate = Callable[[np.ndarray, int], np.ndarray]


def our_model() -> tuple[Any, Any]:
    """Our model and its random parameters."""
    import jax

    from llm_jax.config import ModelConfig
    from llm_jax.models import build

    config = ModelConfig(
        vocab_size=V, num_layers=L, embed_dim=D, num_heads=N, num_kv_heads=K, mlp_dim=F, max_length=LENGTH, init_std=0.05
    )
    model = build(config)
    return model, jax.jit(model.init)(jax.random.key(0))


def ours() -> Generate:
    from llm_jax.config import DecodeConfig
    from llm_jax.decode import Generator

    generator = Generator(*our_model())
    return lambda prompts, new: np.array(
        generator.generate(prompts.tolist(), DecodeConfig(max_new_tokens=new, temperature=0.0))
    )


def theirs() -> Generate:
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    _, params = our_model()
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L, num_attention_heads=N, num_key_value_heads=K,
        max_position_embeddings=LENGTH, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    copy_weights(model, params)

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        tokens = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new, min_new_tokens=new,
                cache_implementation="static", disable_compile=True,
            )
        return out[:, prompts.shape[1] :].numpy()

    return generate


def copy_weights(model: Any, params: Any) -> None:
    """Our parameters into their Llama."""
    import torch

    def put(weight: Any, value: Any) -> None:
        value = np.asarray(value)
        weight.copy_(torch.tensor(value).reshape(-1, weight.shape[0]).T if weight.ndim == 2 else torch.tensor(value))

    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.tensor(np.asarray(params["embed"]["embedding"])))
        put(model.model.norm.weight, params["final_norm"]["scale"])
        for i, block in enumerate(model.model.layers):
            a, m = block.self_attn, block.mlp
            for weight, path in (
                (block.input_layernorm.weight, "attention_norm/scale"), (block.post_attention_layernorm.weight, "mlp_norm/scale"),
                (a.q_proj.weight, "attention/query/kernel"), (a.k_proj.weight, "attention/key/kernel"),
                (a.v_proj.weight, "attention/value/kernel"), (a.o_proj.weight, "attention/out/kernel"),
                (m.gate_proj.weight, "mlp/gate/kernel"), (m.up_proj.weight, "mlp/up/kernel"), (m.down_proj.weight, "mlp/down/kernel"),
            ):
                leaf = params["layers"]
                for name in path.split("/"):
                    leaf = leaf[name]
                put(weight, leaf[i])


def side(name: str, pipe: Connection) -> None:
    """A worker: for every (prompts, new) received sends back (seconds, tokens)."""
    assert keep_freed_memory()
    generate = ours() if name == "ours" else theirs()
    pipe.send("ready")
    while (work := pipe.recv()) is not None:
        start = time.perf_counter()
        tokens = generate(*work)
        pipe.send((time.perf_counter() - start, tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

    from importlib.metadata import version

    print(f"python {platform.python_version()}, jax {version('jax')}, torch {version('torch')}, transformers {version('transformers')}, "
          f"{os.cpu_count()} cores, {THREADS} threads, float32; prompt {args.prompt}, {args.new} new tokens; "
          f"alternating, {args.rounds} rounds, medians")
    context, pipes = multiprocessing.get_context("spawn"), {}
    for name in ("ours", "theirs"):
        pipes[name], end = context.Pipe()
        context.Process(target=side, args=(name, end), daemon=True).start()
        assert pipes[name].recv() == "ready"

    def timed(name: str, prompts: np.ndarray) -> tuple[float, np.ndarray]:
        pipes[name].send((prompts, args.new))
        return pipes[name].recv()

    for batch in args.batch:
        prompts = np.random.default_rng(batch).integers(0, V, (batch, args.prompt))
        same = np.mean(timed("ours", prompts)[1] == timed("theirs", prompts)[1])  # warms up and compiles, too
        seconds = {name: [] for name in pipes}
        for r in range(args.rounds):
            for name in list(pipes) if r % 2 == 0 else list(pipes)[::-1]:
                seconds[name].append(timed(name, prompts)[0])
        ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"])]
        speed = {name: batch * args.new / statistics.median(s) for name, s in seconds.items()}
        print(f"batch {batch}: ours {speed['ours']:.0f} tokens/s, transformers {speed['theirs']:.0f} tokens/s, ratio "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); {same:.1%} of the tokens equal", flush=True)
    for pipe in pipes.values():
        pipe.send(None)


if __name__ == "__main__":
    main()
