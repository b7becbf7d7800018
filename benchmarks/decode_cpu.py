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
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from two_sides import TwoSides, load_transformers, make, set_environment, speeds, vocabulary

Generate = Callable[[np.ndarray, int], np.ndarray]


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

    model = load_transformers(work)

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


SIDES = {"ours": native, "transformers": transformers_side}


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
    print(
        f"{set_environment()}; prompt {args.prompt}, {args.new} new tokens; alternating,"
        f" {args.rounds} rounds, medians"
    )
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), args.gguf)
        sides = TwoSides(SIDES, Path(work))
        for batch in args.batch:
            compare(sides, vocabulary(Path(work)), batch, args)
        sides.close()


def compare(sides: TwoSides, tokens: int, batch: int, args: argparse.Namespace) -> None:
    """Both sides in turn on prompts of random tokens."""
    prompts = np.random.default_rng(batch).integers(0, tokens, (batch, args.prompt))
    # This also warms up and compiles.
    for name in sides.names():
        sides.timed(name, prompts, 1)
    found = [sides.timed(name, prompts, args.new)[1] for name in sides.names()]
    same = np.mean(found[0] == found[1])
    whole: dict[str, list[float]] = {name: [] for name in sides.names()}
    steps: dict[str, list[float]] = {name: [] for name in sides.names()}
    for round in range(args.rounds):
        for name in sides.names(round):
            prompt = sides.timed(name, prompts, 1)[0]
            whole[name].append(sides.timed(name, prompts, args.new)[0])
            steps[name].append(whole[name][-1] - prompt)
    print(
        f"batch {batch}: {speeds(whole, batch * args.new)}; {same:.1%} of the tokens equal",
        flush=True,
    )
    if args.new > 1:
        print(f"batch {batch}, steps: {speeds(steps, batch * (args.new - 1))}", flush=True)


if __name__ == "__main__":
    main()
