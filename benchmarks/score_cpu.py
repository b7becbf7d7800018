"""Log-probabilities of given texts on a CPU: ``LanguageModel.score`` against transformers.

Both sides have the model of ``decode_cpu.py`` in float32 and two threads each. transformers
computes the logits of all positions, and torch the log-probabilities of the tokens that came. The
log-probabilities are compared first. Each side is a process of its own; they take turns. Speeds are
scored tokens a second.

    python benchmarks/score_cpu.py [--rounds 5] [--length 256] [--batch 1 8] [--gguf FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from decode_cpu import THREADS, make, speeds

from llm_jax.host_memory import keep_freed_memory

Score = Callable[[np.ndarray], np.ndarray]
"""int [B, T] to the log-probabilities [B, T - 1] of the tokens after the first."""


def native(work: Path) -> Score:
    import llm_jax

    lm = llm_jax.load(work / "native")

    def score(rows: np.ndarray) -> np.ndarray:
        found = lm.score(rows.tolist())
        return np.array([[token.logprob for token in row] for row in found])

    return score


def transformers_side(work: Path) -> Score:
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        work / "source", dtype=torch.float32, local_files_only=True
    ).eval()

    def score(rows: np.ndarray) -> np.ndarray:
        tokens = torch.tensor(rows)
        with torch.inference_mode():
            logits = model(tokens, use_cache=False).logits[:, :-1]
            found = torch.log_softmax(logits, dim=-1)
            return torch.gather(found, 2, tokens[:, 1:, None])[..., 0].numpy()

    return score


SIDES = {"ours": native, "transformers": transformers_side}


def side(name: str, pipe: Connection, work: Path) -> None:
    """Sends back (seconds, log-probabilities) for the rows received."""
    assert keep_freed_memory()
    score = SIDES[name](work)
    pipe.send("ready")
    while (rows := pipe.recv()) is not None:
        start = time.perf_counter()
        found = score(rows)
        pipe.send((time.perf_counter() - start, found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--gguf", default="")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

    from importlib.metadata import version

    print(
        f"python {platform.python_version()}, jax {version('jax')}, torch {version('torch')},"
        f" transformers {version('transformers')}, {os.cpu_count()} cores, {THREADS} threads,"
        f" float32; rows of {args.length} tokens; alternating, {args.rounds} rounds, medians"
    )
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), args.gguf)
        compare(Path(work), args)


def compare(work: Path, args: argparse.Namespace) -> None:
    """Both sides in turn, for each size of a batch."""
    vocabulary = json.loads((work / "source/config.json").read_text())["vocab_size"]
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in SIDES:
        pipes[name], end = context.Pipe()
        context.Process(target=side, args=(name, end, work), daemon=True).start()
        assert pipes[name].recv() == "ready"

    def timed(name: str, rows: np.ndarray) -> tuple[float, np.ndarray]:
        pipes[name].send(rows)
        return pipes[name].recv()

    for batch in args.batch:
        rows = np.random.default_rng(batch).integers(0, vocabulary, (batch, args.length))
        # This also warms up and compiles.
        found = {name: timed(name, rows)[1] for name in pipes}
        apart = np.max(np.abs(found["ours"] - found["transformers"]))
        seconds: dict[str, list[float]] = {name: [] for name in pipes}
        for r in range(args.rounds):
            for name in list(pipes) if r % 2 == 0 else list(pipes)[::-1]:
                seconds[name].append(timed(name, rows)[0])
        scored = batch * (args.length - 1)
        print(
            f"batch {batch}: {speeds(seconds, scored)}; at most {apart:.1e} nats apart",
            flush=True,
        )
    for pipe in pipes.values():
        pipe.send(None)


if __name__ == "__main__":
    main()
