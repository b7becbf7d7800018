"""Cached greedy decoding on a CPU: llm_jax's ``Generator`` against transformers' ``generate``.

transformers uses a static cache. Both sides have the same model in float32 and two threads each: a
random Llama of about 30 M parameters, or one from a GGUF file, from the same converted weights. The
tokens written are compared first. Each side is a process of its own; they take turns.

The first speed is of whole calls, prompt and new tokens. That of the steps is of the time that such
a call takes longer than one for a single token, which reads the prompt.

    python benchmarks/decode_cpu.py [--rounds 5] [--new 128] [--prompt 64] [--batch 1 8]
        [--gguf FILE]
    python benchmarks/decode_cpu.py --gguf FILE --prompt 512 --new 1          # reading a prompt
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from llm_jax.host_memory import keep_freed_memory

THREADS = 2
RANDOM = {
    "model_type": "llama",
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}
Generate = Callable[[np.ndarray, int], np.ndarray]


def make(work: Path, gguf: str) -> None:
    """Writes the model for both sides: ``native`` for llm_jax, ``source`` for transformers."""
    from llm_jax.convert.config_json import read_config
    from llm_jax.convert.families import FAMILIES
    from llm_jax.convert.from_gguf import from_gguf
    from llm_jax.convert.hf import from_hf, to_hf
    from llm_jax.convert.model_folder import parameter_shapes
    from llm_jax.convert.tensor_writer import TensorWriter
    from llm_jax.convert.tensors import tensors

    if gguf:
        from_gguf(Path(gguf), work / "native")
        to_hf(work / "native", work / "source", family="llama")
        return
    model = read_config(FAMILIES["llama"], RANDOM)
    rng = np.random.default_rng(0)
    wanted = tensors(FAMILIES["llama"], model, parameter_shapes(model))
    folder = work / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(RANDOM))
    shapes = {t.name: (np.float32, t.shape) for t in wanted}
    with TensorWriter(folder / "model.safetensors", shapes, {"format": "pt"}) as file:
        for t in wanted:
            values = np.ones(t.shape, np.float32)
            if len(t.shape) > 1:
                values = 0.05 * rng.standard_normal(t.shape, np.float32)
            file.write(t.name, values)
    from_hf(work / "source", work / "native")


def native(work: Path) -> Generate:
    from llm_jax.checkpoints.open_run import open_run
    from llm_jax.config import DecodeConfig
    from llm_jax.decode import Generator

    run = open_run(work / "native")
    generator = Generator(run.model, run.params)

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        settings = DecodeConfig(max_new_tokens=new, temperature=0.0)
        return np.array(generator.generate(prompts.tolist(), settings))

    return generate


def transformers_side(work: Path) -> Generate:
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        work / "source", dtype=torch.float32, local_files_only=True
    ).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        tokens = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                max_new_tokens=new,
                min_new_tokens=new,
                cache_implementation="static",
                disable_compile=True,
            )
        return out[:, prompts.shape[1] :].numpy()

    return generate


def side(name: str, pipe: Connection, work: Path) -> None:
    """Sends back (seconds, tokens) for every (prompts, new) received."""
    assert keep_freed_memory()
    generate = native(work) if name == "ours" else transformers_side(work)
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        start = time.perf_counter()
        tokens = generate(*asked)
        pipe.send((time.perf_counter() - start, tokens))


def speeds(seconds: dict[str, list[float]], tokens: int) -> str:
    """Both sides' tokens/s, and their ratio in each round."""
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["transformers"])]
    ours = tokens / statistics.median(seconds["ours"])
    other = tokens / statistics.median(seconds["transformers"])
    return (
        f"ours {ours:.0f} tokens/s, transformers {other:.0f} tokens/s, ratio"
        f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--gguf", default="")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

    from importlib.metadata import version

    print(
        f"python {platform.python_version()}, jax {version('jax')}, torch {version('torch')},"
        f" transformers {version('transformers')}, {os.cpu_count()} cores, {THREADS} threads,"
        f" float32; prompt {args.prompt}, {args.new} new tokens; alternating, {args.rounds} rounds,"
        " medians"
    )
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), args.gguf)
        compare(Path(work), args)


def compare(work: Path, args: argparse.Namespace) -> None:
    """Both sides in turn, for each size of a batch."""
    vocabulary = json.loads((work / "source/config.json").read_text())["vocab_size"]
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in ("ours", "transformers"):
        pipes[name], end = context.Pipe()
        context.Process(target=side, args=(name, end, work), daemon=True).start()
        assert pipes[name].recv() == "ready"

    def timed(name: str, prompts: np.ndarray, new: int) -> tuple[float, np.ndarray]:
        pipes[name].send((prompts, new))
        return pipes[name].recv()

    for batch in args.batch:
        prompts = np.random.default_rng(batch).integers(0, vocabulary, (batch, args.prompt))
        # This also warms up and compiles.
        for name in pipes:
            timed(name, prompts, 1)
        same = np.mean(
            timed("ours", prompts, args.new)[1] == timed("transformers", prompts, args.new)[1]
        )
        whole: dict[str, list[float]] = {name: [] for name in pipes}
        steps: dict[str, list[float]] = {name: [] for name in pipes}
        for r in range(args.rounds):
            for name in list(pipes) if r % 2 == 0 else list(pipes)[::-1]:
                prompt = timed(name, prompts, 1)[0]
                whole[name].append(timed(name, prompts, args.new)[0])
                steps[name].append(whole[name][-1] - prompt)
        print(
            f"batch {batch}: {speeds(whole, batch * args.new)}; {same:.1%} of the tokens equal",
            flush=True,
        )
        if args.new > 1:
            print(f"batch {batch}, steps: {speeds(steps, batch * (args.new - 1))}", flush=True)
    for pipe in pipes.values():
        pipe.send(None)


if __name__ == "__main__":
    main()
