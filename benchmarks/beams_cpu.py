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
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from two_sides import TwoSides, load_transformers, make, set_environment, speeds, vocabulary

Search = Callable[[np.ndarray, int], np.ndarray]


def native(work: Path, beams: int) -> Search:
    from llm_jax.checkpoints.open_run import open_run
    from llm_jax.config.search import BeamConfig
    from llm_jax.decode import Generator
    from llm_jax.decode.beams import beam_search

    run = open_run(work / "native")
    # It lays the parameters out as decoding reads them fastest.
    params = Generator(run.model, run.params).params

    def search(prompts: np.ndarray, new: int) -> np.ndarray:
        found = beam_search(
            run.model, params, prompts.tolist(), BeamConfig(beams), max_new_tokens=new
        )
        return np.array([texts[0].ids for texts in found])

    return search


def transformers_side(work: Path, beams: int) -> Search:
    import torch

    model = load_transformers(work)

    def search(prompts: np.ndarray, new: int) -> np.ndarray:
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

    return search


SIDES = {"ours": native, "transformers": transformers_side}


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
    print(
        f"{set_environment()}; beams {args.beams}, prompt {args.prompt}, {args.new} new tokens;"
        f" alternating, {args.rounds} rounds, medians"
    )
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), args.gguf)
        sides = TwoSides(SIDES, Path(work), args.beams)
        for batch in args.batch:
            compare(sides, vocabulary(Path(work)), batch, args)
        sides.close()


def compare(sides: TwoSides, tokens: int, batch: int, args: argparse.Namespace) -> None:
    """Both sides in turn on prompts of random tokens."""
    prompts = np.random.default_rng(batch).integers(0, tokens, (batch, args.prompt))
    # This also warms up and compiles.
    found = [sides.timed(name, prompts, args.new)[1] for name in sides.names()]
    same = np.mean(found[0] == found[1])
    seconds = sides.seconds(args.rounds, prompts, args.new)
    print(
        f"batch {batch}: {speeds(seconds, batch * args.new)}; {same:.1%} of the tokens equal",
        flush=True,
    )


if __name__ == "__main__":
    main()
