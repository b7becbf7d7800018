"""Beam search on a CPU: llm_jax's ``beam_search`` against transformers' ``generate``.

Both sides have the model of ``decode_cpu.py`` in float32 and two threads each, and no stop token,
so that every search takes all its steps. The texts found are compared first. Each side is a process
of its own; they take turns. Speeds are tokens of the best text of each prompt a second, of whole
calls.

    python benchmarks/beams_cpu.py [--beams 4] [--rounds 5] [--new 64] [--prompt 64] [--batch 1 8]
        [--gguf FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from decode_cpu import THREADS, Generate, make, speeds

from llm_jax.host_memory import keep_freed_memory


def native(work: Path, beams: int) -> Generate:
    from llm_jax.checkpoints.open_run import open_run
    from llm_jax.config.search import BeamConfig
    from llm_jax.decode import Generator
    from llm_jax.decode.beams import beam_search

    run = open_run(work / "native")
    # It lays the parameters out as decoding reads them fastest.
    params = Generator(run.model, run.params).params

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        found = beam_search(
            run.model, params, prompts.tolist(), BeamConfig(beams), max_new_tokens=new
        )
        return np.array([texts[0].ids for texts in found])

    return generate


def transformers_side(work: Path, beams: int) -> Generate:
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
                num_beams=beams,
                max_new_tokens=new,
            )
        return out[:, prompts.shape[1] :].numpy()

    return generate


SIDES = {"ours": native, "transformers": transformers_side}


def side(name: str, pipe: Connection, work: Path, beams: int) -> None:
    """Sends back (seconds, tokens) for every (prompts, new) received."""
    assert keep_freed_memory()
    generate = SIDES[name](work, beams)
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        start = time.perf_counter()
        tokens = generate(*asked)
        pipe.send((time.perf_counter() - start, tokens))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--gguf", default="")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

    from importlib.metadata import version

    print(
        f"python {platform.python_version()}, jax {version('jax')}, torch {version('torch')},"
        f" transformers {version('transformers')}, {os.cpu_count()} cores, {THREADS} threads,"
        f" float32; beams {args.beams}, prompt {args.prompt}, {args.new} new tokens; alternating,"
        f" {args.rounds} rounds, medians"
    )
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), args.gguf)
        compare(Path(work), args)


def compare(work: Path, args: argparse.Namespace) -> None:
    """Both sides in turn, for each number of prompts."""
    vocabulary = json.loads((work / "source/config.json").read_text())["vocab_size"]
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in SIDES:
        pipes[name], end = context.Pipe()
        context.Process(target=side, args=(name, end, work, args.beams), daemon=True).start()
        assert pipes[name].recv() == "ready"

    def timed(name: str, prompts: np.ndarray) -> tuple[float, np.ndarray]:
        pipes[name].send((prompts, args.new))
        return pipes[name].recv()

    for batch in args.batch:
        prompts = np.random.default_rng(batch).integers(0, vocabulary, (batch, args.prompt))
        # This also warms up and compiles.
        found = {name: timed(name, prompts)[1] for name in pipes}
        same = np.mean(found["ours"] == found["transformers"])
        seconds: dict[str, list[float]] = {name: [] for name in pipes}
        for r in range(args.rounds):
            for name in list(pipes) if r % 2 == 0 else list(pipes)[::-1]:
                seconds[name].append(timed(name, prompts)[0])
        print(
            f"batch {batch}: {speeds(seconds, batch * args.new)}; {same:.1%} of the tokens equal",
            flush=True,
        )
    for pipe in pipes.values():
        pipe.send(None)


if __name__ == "__main__":
    main()
