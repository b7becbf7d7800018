"""Published training speeds, measured by others: a plan's lower bound must not exceed them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from llm_jax.config import Config
from llm_jax.config.overrides import override

_LLAMA = {
    "model.attention.num_kv_heads": 8,
    "model.embedding.tied": False,
    "mesh.data": 1,
    "mesh.fsdp": -1,
    "execution.remat": "none",
}
_8B = {
    "model.num_layers": 32,
    "model.embed_dim": 4096,
    "model.attention.num_heads": 32,
    "model.mlp.hidden_dim": 14336,
    "model.vocab_size": 128256,
}
_70B = {
    "model.num_layers": 80,
    "model.embed_dim": 8192,
    "model.attention.num_heads": 64,
    "model.mlp.hidden_dim": 28672,
    "model.vocab_size": 128256,
}
_TRILLIUM = "github.com/AI-Hypercomputer/tpu-recipes, training/trillium/{}/README.md"


class Row(NamedTuple):
    """A published run.

    Attributes:
        model: its name.
        topology: the slice.
        seq_length: tokens of a row.
        speed: tokens/s/chip.
        mfu: as published; None where it was not.
        source: where it was read.
        shape: overrides that make the model.
    """

    model: str
    topology: str
    seq_length: int
    speed: float
    mfu: float | None
    source: str
    shape: dict[str, Any]

    def config(self, remat: str = "none") -> Config:
        """The model with one row per chip, as this trainer would run it."""
        sides = self.topology.partition(":")[2].split("x")
        rows = {
            "data.seq_length": self.seq_length,
            "model.max_length": self.seq_length,
            "data.batch_size": math.prod(int(side) for side in sides),
        }
        return override(Config(), {**_LLAMA, **self.shape, **rows, "execution.remat": remat})


ROWS = (
    Row(
        model="Llama-3.1-8B",
        topology="v6e:2x4",
        seq_length=8192,
        speed=7138.9,
        mfu=0.450,
        source=_TRILLIUM.format("Llama3.1-8B-MaxText/v6e-8"),
        shape=_8B,
    ),
    Row(
        model="Llama-3.1-8B",
        topology="v6e:16x16",
        seq_length=8192,
        speed=7207.3,
        mfu=0.4546,
        source=_TRILLIUM.format("Llama3.1-8B-MaxText/v6e-256"),
        shape=_8B,
    ),
    Row(
        model="Llama-3.1-70B",
        topology="v6e:4x8",
        seq_length=8192,
        speed=921.0,
        mfu=None,
        source=_TRILLIUM.format("Llama3.1-70B-MaxText/v6e-32"),
        shape=_70B,
    ),
    Row(
        model="Llama-3.1-70B",
        topology="v6e:16x16",
        seq_length=8192,
        speed=960.25,
        mfu=0.5033,
        source=_TRILLIUM.format("Llama3.1-70B-MaxText/v6e-256"),
        shape=_70B,
    ),
    Row(
        model="Llama-2-70B",
        topology="v5p:8x8x8",
        seq_length=4096,
        speed=692.0,
        mfu=0.654,
        source="github.com/AI-Hypercomputer/maxtext, docs/reference/models/tiering.md",
        shape={**_70B, "model.vocab_size": 32000},
    ),
)
