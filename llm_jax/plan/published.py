"""Training speeds that others published and measured, as data: what a plan's roofline must not fall
below.
"""

from __future__ import annotations

from typing import NamedTuple

from llm_jax.config import Config
from llm_jax.config.overrides import override

_LLAMA = {
    "model.num_kv_heads": 8,
    "model.tied_embeddings": False,
    "mesh.data": 1,
    "mesh.fsdp": -1,
    "execution.remat": "none",
}
_8B = {
    "model.num_layers": 32,
    "model.embed_dim": 4096,
    "model.num_heads": 32,
    "model.mlp_dim": 14336,
    "model.vocab_size": 128256,
}
_70B = {
    "model.num_layers": 80,
    "model.embed_dim": 8192,
    "model.num_heads": 64,
    "model.mlp_dim": 28672,
    "model.vocab_size": 128256,
}
_TRILLIUM = "github.com/AI-Hypercomputer/tpu-recipes, training/trillium/{}/README.md"


class Row(NamedTuple):
    """A published run. speed: tokens/s/chip · mfu: as published, None where it was not · source:
    where it was read.
    """

    model: str
    topology: str
    seq_length: int
    speed: float
    mfu: float | None
    source: str
    shape: dict

    def config(self, remat: str = "none") -> Config:
        """The model on one row for each chip, as our trainer would run it."""
        chips = 1
        for side in self.topology.partition(":")[2].split("x"):
            chips *= int(side)
        rows = {
            "data.seq_length": self.seq_length,
            "model.max_length": self.seq_length,
            "data.batch_size": chips,
        }
        return override(Config(), {**_LLAMA, **self.shape, **rows, "execution.remat": remat})


ROWS = (
    Row(
        "Llama-3.1-8B",
        "v6e:2x4",
        8192,
        7138.9,
        0.450,
        _TRILLIUM.format("Llama3.1-8B-MaxText/v6e-8"),
        _8B,
    ),
    Row(
        "Llama-3.1-8B",
        "v6e:16x16",
        8192,
        7207.3,
        0.4546,
        _TRILLIUM.format("Llama3.1-8B-MaxText/v6e-256"),
        _8B,
    ),
    Row(
        "Llama-3.1-70B",
        "v6e:4x8",
        8192,
        921.0,
        None,
        _TRILLIUM.format("Llama3.1-70B-MaxText/v6e-32"),
        _70B,
    ),
    Row(
        "Llama-3.1-70B",
        "v6e:16x16",
        8192,
        960.25,
        0.5033,
        _TRILLIUM.format("Llama3.1-70B-MaxText/v6e-256"),
        _70B,
    ),
    Row(
        "Llama-2-70B",
        "v5p:8x8x8",
        4096,
        692.0,
        0.654,
        "github.com/AI-Hypercomputer/maxtext, docs/reference/models/tiering.md",
        {**_70B, "model.vocab_size": 32000},
    ),
)
