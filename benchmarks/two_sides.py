"""llm_jax and another program in turn, each in a process of its own, on the same model.

What the benchmarks of decoding on a CPU share; it prints nothing by itself.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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
"""A Llama of about 30 M parameters."""

Task = Callable[..., Any]
Maker = Callable[..., Task]


def make(work: Path, gguf: str) -> None:
    """Writes the model for both sides: ``native`` for llm_jax, ``source`` for transformers.

    Args:
        work: an empty folder.
        gguf: file of the model; empty for a random one.
    """
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


def vocabulary(work: Path) -> int:
    """Number of tokens of the model that ``make`` wrote."""
    return json.loads((work / "source/config.json").read_text())["vocab_size"]


def load_transformers(work: Path) -> Any:
    """The model of ``make`` in transformers, in float32, which stops at no token."""
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        work / "source", dtype=torch.float32, local_files_only=True
    ).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


class TwoSides:
    """Two programs that do the same task in turn.

    Args:
        makers: name of each side -> the function that makes its task, called in its process.
        arguments: what every maker is given.
    """

    def __init__(self, makers: Mapping[str, Maker], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: dict[str, Connection] = {}
        for name, maker in makers.items():
            self._pipes[name], end = context.Pipe()
            given = (end, maker, arguments)
            context.Process(target=_serve, args=given, daemon=True).start()
            if self._pipes[name].recv() != "ready":
                raise RuntimeError(f"the side {name} did not start")

    def names(self, round: int = 0) -> list[str]:
        """The sides in the order of a round; every other round goes backwards."""
        names = list(self._pipes)
        return names if round % 2 == 0 else names[::-1]

    def timed(self, name: str, *given: Any) -> tuple[float, Any]:
        """Seconds that a side took for a task, and its result."""
        self._pipes[name].send(given)
        return self._pipes[name].recv()

    def seconds(self, rounds: int, *given: Any) -> dict[str, list[float]]:
        """Seconds of each side in each round."""
        found: dict[str, list[float]] = {name: [] for name in self._pipes}
        for round in range(rounds):
            for name in self.names(round):
                found[name].append(self.timed(name, *given)[0])
        return found

    def close(self) -> None:
        """Ends both processes."""
        for pipe in self._pipes.values():
            pipe.send(None)


def _serve(pipe: Connection, maker: Maker, arguments: tuple) -> None:
    """Sends back (seconds, result) for every task received."""
    if not keep_freed_memory():
        raise RuntimeError("freed memory is not kept: jax was imported before")
    task = maker(*arguments)
    pipe.send("ready")
    while (given := pipe.recv()) is not None:
        start = time.perf_counter()
        result = task(*given)
        pipe.send((time.perf_counter() - start, result))


def speeds(seconds: dict[str, list[float]], tokens: int) -> str:
    """Both sides' tokens/s, and their ratio in each round."""
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["transformers"])]
    ours = tokens / statistics.median(seconds["ours"])
    other = tokens / statistics.median(seconds["transformers"])
    return (
        f"ours {ours:.0f} tokens/s, transformers {other:.0f} tokens/s, ratio"
        f" {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def set_environment() -> str:
    """Puts both sides on the CPU with as many threads; returns what they are, for the heading."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    return (
        f"python {platform.python_version()}, jax {version('jax')}, torch {version('torch')},"
        f" transformers {version('transformers')}, {os.cpu_count()} cores, {THREADS} threads,"
        " float32"
    )
