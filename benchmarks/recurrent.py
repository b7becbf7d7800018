"""An LSTM beside a transformer of as many parameters: perplexity on the same text, tokens/s of
training, where a transformer reads all positions at once, and tokens/s of writing, where both go
token by token.

Both are trained on the same batches (configs/tiny_cpu.py and configs/lstm.py), then take turns for
``--rounds`` rounds of training steps and of writing. Printed are the perplexities on the validation
split, beside a bigram model's, and the medians of the rounds.

    python benchmarks/recurrent.py --shards shards/ [--steps 200] [--rows 16] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import llm_jax
from llm_jax.config import Config, DecodeConfig, load_config, override
from llm_jax.decode import Generator
from llm_jax.host_memory import keep_freed_memory
from llm_jax.models import rows_of
from llm_jax.sharding import device_put_batch
from llm_jax.training.build import build
from llm_jax.training.state import create_state
from llm_jax.training.step import jit_train_step, make_train_step

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = {"transformer": "tiny_cpu.py", "lstm": "lstm.py"}
WRITTEN = 128


class Side(NamedTuple):
    """One of the two models.

    Attributes:
        parameters: how many.
        perplexity: on the validation split, of this model and of a bigram model.
        train: one training step; returns its tokens.
        write: writes texts; returns their tokens.
    """

    parameters: int
    perplexity: dict[str, float]
    train: Callable[[], int]
    write: Callable[[], int]


def trained(name: str, arguments: argparse.Namespace) -> Side:
    """The side of a config, trained."""
    settings = {
        "data.path": (arguments.shards,),
        "data.batch_size": arguments.rows,
        "train.steps": arguments.steps,
        "train.eval_every": 0,
        "train.out": str(Path(arguments.out) / name),
    }
    config = override(load_config(CONFIGS / NAMES[name]), settings)
    run = llm_jax.train(config)
    scores = llm_jax.evaluate(run, arguments.shards)
    loaded = llm_jax.load(run)
    config = override(config, {"model.vocab_size": loaded.model.config.vocab_size})
    generator = Generator(loaded.model, loaded.params)
    settings_of_text = DecodeConfig(max_new_tokens=WRITTEN, temperature=0.0)

    def write() -> int:
        texts = generator.generate([[1, 2, 3]] * 8, settings_of_text, stop_ids=())
        return sum(map(len, texts))

    return Side(
        parameters=sum(a.size for a in jax.tree.leaves(loaded.params)),
        perplexity={who: scores[who]["perplexity"] for who in ("model", "bigram")},
        train=step_of(config),
        write=write,
    )


def step_of(config: Config) -> Callable[[], int]:
    """A training step on random rows, as a run makes it."""
    parts = build(config, jax.devices()[:1])
    step = jit_train_step(
        make_train_step(parts.loss, parts.optimizer, config, parts.model.specs),
        parts.model,
        parts.optimizer,
        parts.mesh,
    )
    shape = (config.data.batch_size, config.data.seq_length)
    ids = np.random.default_rng(0).integers(0, config.model.vocab_size, shape)
    batch = rows_of(ids.astype(np.int32), np.full(shape[0], shape[1]))
    with jax.set_mesh(parts.mesh):
        state = create_state(parts.model, parts.optimizer, parts.mesh, 0)

    def one() -> int:
        nonlocal state
        with jax.set_mesh(parts.mesh):
            state, metrics = step(state, device_put_batch(batch, parts.mesh))
            jax.block_until_ready(metrics)
        return shape[0] * shape[1]

    return one


def speeds(run: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """The median tokens/s of each, which take turns. The first round compiles: it is left out."""
    found: dict[str, list[float]] = {name: [] for name in run}
    for _ in range(rounds + 1):
        for name, once in run.items():
            began = time.perf_counter()
            tokens = once()
            found[name].append(tokens / (time.perf_counter() - began))
    return {name: statistics.median(values[1:]) for name, values in found.items()}


def table(sides: dict[str, Side], rounds: int) -> str:
    """The figures as lines of a table."""
    training = speeds({name: side.train for name, side in sides.items()}, rounds)
    writing = speeds({name: side.write for name, side in sides.items()}, rounds)
    lines = ["| model | parameters | perplexity | training, tokens/s | writing, tokens/s |"]
    lines.append("|---|---|---|---|---|")
    for name, side in sides.items():
        numbers: tuple[Any, ...] = (f"{side.parameters:,}", f"{side.perplexity['model']:.1f}")
        numbers += (f"{training[name]:,.0f}", f"{writing[name]:,.0f}")
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    bigram = next(iter(sides.values())).perplexity["bigram"]
    lines.append(f"| bigram | | {bigram:.1f} | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True, help="of data prepare, with a validation split")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=16, help="of a batch, 256 tokens each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="runs/recurrent", help="folder of both runs")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(table({name: trained(name, arguments) for name in NAMES}, arguments.rounds))


if __name__ == "__main__":
    main()
