"""Training speed on a CPU: llm_jax's train step against the same decoder in plain PyTorch.

Each side is a process of its own that compiles and warms up first. Then they take turns for
``--rounds`` rounds of about ``--seconds`` each. Printed are medians over rounds of each side's
tokens/s, and of the rounds' ratios.

Run it on a machine that does nothing else: PyTorch's threads wait for each other, and lose far more
than llm_jax to a third process. Both sides keep freed memory (``llm_jax.host_memory``), as
``llm-jax`` does; PyTorch gains up to 5 % by it.

    python benchmarks/train_cpu.py [--mlp gated|plain] [--rounds 7] [--seconds 4] [--compiled]
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

from llm_jax.config import override
from llm_jax.host_memory import keep_freed_memory

THREADS = 2


def our_step(s) -> Callable[[], None]:
    """A function that does one step of ``training.step`` as a run does it, and waits for it."""
    import jax
    import numpy as np

    from llm_jax.config import (
        Config,
        DataConfig,
        MeshConfig,
        ModelConfig,
        OptimizerConfig,
        TrainConfig,
    )
    from llm_jax.models import build
    from llm_jax.objectives.token_loss import token_loss
    from llm_jax.sharding import device_put_batch, make_mesh
    from llm_jax.training.optimizer import make_optimizer
    from llm_jax.training.state import create_state
    from llm_jax.training.step import jit_train_step, make_train_step, pick_loss_chunk
    from llm_jax.types import Batch, Tokens

    model_config = override(
        ModelConfig(),
        {
            "vocab_size": s.V,
            "num_layers": s.L,
            "embed_dim": s.D,
            "attention.num_heads": s.N,
            "mlp.hidden_dim": s.F,
            "max_length": s.T,
            "mlp": "gated" if s.gated else "plain",
            "mlp.activation": "silu" if s.gated else "gelu_tanh",
        },
    )
    config = Config(
        model=model_config,
        data=DataConfig(seq_length=s.T, batch_size=s.B),
        optimizer=override(OptimizerConfig(), {"update": "adamw"}),
        train=TrainConfig(steps=100_000),
        mesh=MeshConfig(data=1),
    )
    mesh = make_mesh(config.mesh)
    model = build(config.model, config.execution)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    optimizer = make_optimizer(config.optimizer, config.train.steps, shapes, model.specs)
    state = create_state(model, optimizer, mesh, 0)
    chunk = config.execution.loss_chunk or pick_loss_chunk(s.B * s.T, s.V)
    step = jit_train_step(
        make_train_step(token_loss(model, chunk, 0.0), optimizer, config, model.specs),
        model,
        optimizer,
        mesh,
    )
    data = np.random.default_rng(0).integers(0, s.V, (s.B, s.T + 1)).astype(np.int32)
    ones = np.ones((s.B, s.T), np.int32)
    positions = np.broadcast_to(np.arange(s.T, dtype=np.int32), (s.B, s.T))
    batch = device_put_batch(
        Batch(
            inputs=Tokens(data[:, :-1], ones, positions),
            targets=data[:, 1:],
            loss_mask=ones.astype(bool),
        ),
        mesh,
    )

    def run() -> None:
        nonlocal state
        with jax.set_mesh(mesh):
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics["loss"])

    run()
    return run


def side(name: str, s, pipe: Connection) -> None:
    """Builds one side's step, then sends back tokens/s for every number of seconds received."""
    assert keep_freed_memory()
    if name == "ours":
        step = our_step(s)
    else:
        from pytorch_reference import make_step

        step = make_step(s, compiled=name == "compiled", threads=THREADS)
    for _ in range(5):
        step()
    pipe.send("ready")
    while (seconds := pipe.recv()) is not None:
        # Wake the threads.
        step()
        steps = 0
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            step()
            steps += 1
        pipe.send(steps * s.B * s.T / spent)


def compare(s, rivals: list[str], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Tokens/s per side and round; the sides take turns."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    workers = []
    for name in rivals:
        pipes[name], end = context.Pipe()
        workers.append(context.Process(target=side, args=(name, s, end), daemon=True))
        workers[-1].start()
        assert pipes[name].recv() == "ready"
    speeds: dict[str, list[float]] = {name: [] for name in rivals}
    for r in range(rounds):
        for name in rivals if r % 2 == 0 else rivals[::-1]:
            pipes[name].send(seconds)
            speeds[name].append(pipes[name].recv())
    for name, worker in zip(rivals, workers):
        pipes[name].send(None)
        worker.join()
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mlp", choices=("gated", "plain"), default="gated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--compiled", action="store_true", help="also torch.compile (needs a C++ compiler)"
    )
    parser.add_argument("--shape", type=int, choices=(0, 1), nargs="*", default=[0, 1])
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

    from importlib.metadata import version

    from pytorch_reference import shapes

    print(
        f"python {platform.python_version()}, jax {version('jax')}, torch {version('torch')},"
        f" {os.cpu_count()} cores, {THREADS} threads, float32; alternating, {args.rounds} rounds of"
        f" {args.seconds:g} s, medians"
    )
    rivals = ["ours", "eager"] + (["compiled"] if args.compiled else [])
    for index in args.shape:
        s = shapes(args.mlp == "gated")[index]
        speeds = compare(s, rivals, args.rounds, args.seconds)
        for name in rivals[1:]:
            ratios = [a / b for a, b in zip(speeds["ours"], speeds[name])]
            print(
                f"{s}: ours {statistics.median(speeds['ours']):.0f} tokens/s, PyTorch {name}"
                f" {statistics.median(speeds[name]):.0f} tokens/s, ratio"
                f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
