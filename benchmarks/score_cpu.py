"""Log-probabilities of given texts on a CPU: ``LanguageModel.score`` against transformers.

Both sides have the model of ``decode_cpu.py`` in float32 and two threads each. transformers
computes the logits of all positions, and torch the log-probabilities of the tokens that came. The
log-probabilities are compared first. Each side is a process of its own; they take turns. Speeds are
scored tokens a second.

    python benchmarks/score_cpu.py [--rounds 5] [--length 256] [--batch 1 8] [--gguf FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from two_sides import TwoSides, load_transformers, make, set_environment, speeds, vocabulary

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

    model = load_transformers(work)

    def score(rows: np.ndarray) -> np.ndarray:
        tokens = torch.tensor(rows)
        with torch.inference_mode():
            logits = model(tokens, use_cache=False).logits[:, :-1]
            found = torch.log_softmax(logits, dim=-1)
            return torch.gather(found, 2, tokens[:, 1:, None])[..., 0].numpy()

    return score


SIDES = {"ours": native, "transformers": transformers_side}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--gguf", default="")
    args = parser.parse_args()
    print(
        f"{set_environment()}; rows of {args.length} tokens; alternating, {args.rounds} rounds,"
        " medians"
    )
    with tempfile.TemporaryDirectory() as work:
        make(Path(work), args.gguf)
        sides = TwoSides(SIDES, Path(work))
        for batch in args.batch:
            compare(sides, vocabulary(Path(work)), batch, args)
        sides.close()


def compare(sides: TwoSides, tokens: int, batch: int, args: argparse.Namespace) -> None:
    """Both sides in turn on rows of random tokens."""
    rows = np.random.default_rng(batch).integers(0, tokens, (batch, args.length))
    # This also warms up and compiles.
    found = [sides.timed(name, rows)[1] for name in sides.names()]
    apart = np.max(np.abs(found[0] - found[1]))
    seconds = sides.seconds(args.rounds, rows)
    scored = batch * (args.length - 1)
    print(
        f"batch {batch}: {speeds(seconds, scored)}; at most {apart:.1e} nats apart",
        flush=True,
    )


if __name__ == "__main__":
    main()
