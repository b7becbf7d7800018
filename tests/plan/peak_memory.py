"""Steps whose peak memory the TPU compiler was asked for, and what it said (peak_memory.json).

    python tests/plan/peak_memory.py            # compiles those that the table lacks
    python tests/plan/peak_memory.py --again    # all of them, one to three minutes each on one core
    python tests/plan/peak_memory.py --table    # the table of docs/scale.md; compiles nothing

``with_code`` names those read off the ranking of a search, whose figure includes the program's code
(0.04 GiB).
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import NamedTuple

from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.plan.memory import peak
from llm_jax.sharding import MESH_AXES

TABLE = Path(__file__).with_suffix(".json")
_MODELS = {
    "125M": {
        "vocab_size": 32000,
        "num_layers": 12,
        "embed_dim": 768,
        "attention.num_heads": 12,
        "attention.num_kv_heads": 12,
        "mlp.hidden_dim": 2048,
        "max_length": 2048,
    },
    "1B": {
        "vocab_size": 128256,
        "num_layers": 16,
        "embed_dim": 2048,
        "attention.num_heads": 32,
        "attention.num_kv_heads": 8,
        "mlp.hidden_dim": 8192,
        "max_length": 2048,
    },
    "8B": {
        "vocab_size": 128256,
        "num_layers": 32,
        "embed_dim": 4096,
        "attention.num_heads": 32,
        "attention.num_kv_heads": 8,
        "mlp.hidden_dim": 14336,
        "max_length": 8192,
        "embedding.tied": False,
    },
    "70B": {
        "vocab_size": 128256,
        "num_layers": 80,
        "embed_dim": 8192,
        "attention.num_heads": 64,
        "attention.num_kv_heads": 8,
        "mlp.hidden_dim": 28672,
        "max_length": 8192,
        "embedding.tied": False,
    },
}
_MODELS["125M of 16 experts"] = {
    **_MODELS["125M"],
    "mlp.hidden_dim": 1024,
    "experts.count": 16,
    "experts.per_token": 4,
}
# configs/moe_7b.py
_MODELS["7B of 64 experts"] = {
    "vocab_size": 50304,
    "num_layers": 16,
    "embed_dim": 2048,
    "attention.num_heads": 16,
    "mlp.hidden_dim": 1024,
    "max_length": 4096,
    "attention.qk_norm": "head",
    "embedding.tied": False,
    "experts.count": 64,
    "experts.per_token": 8,
    "experts.normalize": False,
    "experts.router_z_loss": 0.001,
}
_QKV = "names:query,key,value,attention_out"


def _through(microbatches: int, repeats: int = 1) -> dict[str, int]:
    """The schedule of a pipeline."""
    return {
        "execution.microbatches": microbatches,
        **({"execution.pipeline_repeats": repeats} if repeats > 1 else {}),
    }


class Point(NamedTuple):
    """A step. rows: of a step, in ``pieces`` accumulation steps."""

    model: str
    topology: str
    mesh: dict[str, int]
    remat: str
    rows: int
    pieces: int
    more: dict = {}  # noqa: RUF012 (read only)

    @property
    def name(self) -> str:
        mesh = " x ".join(f"{axis}={n}" for axis, n in self.mesh.items())
        more = "".join(f", {key.rpartition('.')[2]} {value}" for key, value in self.more.items())
        return (
            f"{self.model} on {self.topology}, {mesh}, {self.remat}, {self.rows} rows in"
            f" {self.pieces}{more}"
        )

    @property
    def config(self) -> Config:
        model = _MODELS[self.model]
        return override(
            Config(),
            {
                **{f"model.{key}": value for key, value in model.items()},
                **{f"mesh.{axis}": n for axis, n in {"data": 1, **self.mesh}.items()},
                "data.seq_length": model["max_length"],
                "data.batch_size": self.rows,
                "train.accumulation": self.pieces,
                "execution.remat": self.remat,
                **self.more,
            },
        )


_Z = {"train.z_loss": 1e-4}
_SHARED = {"model.experts.shared": 1}
_PLAIN = {"model.mlp": "plain", "model.mlp.activation": "gelu"}
POINTS = [
    Point("125M", "v5e:2x2", {"fsdp": 4}, "full", 128, 4),
    Point("125M", "v5e:2x2", {"fsdp": 4}, "none", 128, 16),
    Point("125M", "v5e:2x2", {"fsdp": 2, "tensor": 2}, "full", 32, 1),
    Point("125M", "v5e:2x2", {"data": 4}, "dots", 128, 8),
    Point(
        "125M",
        "v5e:2x2",
        {"fsdp": 2, "tensor": 2},
        "dots",
        64,
        4,
        {"execution.shard_sequence": False},
    ),
    Point("125M", "v5e:2x2", {"tensor": 4}, "none", 16, 2),
    Point("125M", "v6e:2x2", {"fsdp": 4}, "dots", 256, 4),
    Point("125M", "v5e:2x4", {"fsdp": 4, "context": 2}, "full", 64, 4),
    Point("1B", "v5e:2x4", {"fsdp": 8}, "dots", 256, 8),
    Point("1B", "v5e:2x4", {"fsdp": 8}, "full", 64, 1),
    Point("1B", "v6e:4x4", {"fsdp": 8, "tensor": 2}, "full", 128, 4),
    Point("1B", "v6e:2x4", {"fsdp": 8}, "names:attention_out,mlp_out", 128, 2),
    Point("8B", "v6e:16x16", {"fsdp": 128, "tensor": 2}, "dots", 512, 2, _Z),
    Point("8B", "v6e:16x16", {"data": 2, "fsdp": 64, "tensor": 2}, "dots", 512, 2, _Z),
    Point("8B", "v6e:16x16", {"data": 2, "fsdp": 128}, _QKV, 512, 1, _Z),
    Point("8B", "v6e:16x16", {"fsdp": 256}, _QKV, 512, 1, _Z),
    Point("70B", "v5p:8x8x8", {"data": 2, "fsdp": 128, "tensor": 2}, "dots", 512, 2, _Z),
    Point("70B", "v5p:8x8x8", {"data": 4, "fsdp": 32, "tensor": 4}, "dots", 512, 2, _Z),
    Point("70B", "v5p:8x8x8", {"data": 4, "fsdp": 64, "tensor": 2}, "dots", 512, 2, _Z),
    Point("70B", "v5p:8x8x8", {"data": 2, "fsdp": 64, "tensor": 4}, "dots", 512, 2, _Z),
    Point("125M of 16 experts", "v5e:2x2", {"fsdp": 4}, "full", 64, 4),
    Point("125M of 16 experts", "v5e:2x2", {"fsdp": 4}, "dots", 64, 4),
    Point("125M of 16 experts", "v5e:2x2", {"fsdp": 2, "tensor": 2}, "names:attention_out", 32, 4),
    Point("125M of 16 experts", "v5e:2x2", {"fsdp": 2, "tensor": 2}, "none", 16, 4),
    Point("125M of 16 experts", "v5e:2x2", {"fsdp": 2, "expert": 2}, "full", 64, 4),
    Point(
        "125M of 16 experts",
        "v5e:2x2",
        {"data": 2, "expert": 2},
        "names:attention_out",
        64,
        8,
        _PLAIN,
    ),
    Point("125M of 16 experts", "v5e:2x4", {"fsdp": 2, "expert": 4}, "full", 64, 4),
    Point("125M of 16 experts", "v5e:2x4", {"expert": 8}, "full", 64, 4),
    Point("125M of 16 experts", "v5e:2x4", {"fsdp": 2, "expert": 2, "tensor": 2}, "full", 32, 2),
    Point("125M of 16 experts", "v5e:2x4", {"fsdp": 4, "expert": 2}, "dots", 32, 4, _SHARED),
    Point("125M of 16 experts", "v5e:2x4", {"fsdp": 4, "expert": 2}, "none", 32, 4, _SHARED),
    Point(
        "125M of 16 experts",
        "v5e:2x4",
        {"fsdp": 2, "expert": 2, "pipeline": 2},
        "full",
        32,
        1,
        _through(4),
    ),
    Point("7B of 64 experts", "v5p:2x2x4", {"fsdp": 4, "expert": 4}, "full", 256, 2, _Z),
    Point("7B of 64 experts", "v5p:2x2x4", {"fsdp": 16}, "full", 256, 2, _Z),
    Point("125M", "v5e:2x4", {"fsdp": 4, "pipeline": 2}, "full", 64, 1),
    Point("125M", "v5e:2x4", {"fsdp": 4, "pipeline": 2}, "none", 32, 1, _through(8)),
    Point("125M", "v5e:2x4", {"fsdp": 4, "pipeline": 2}, "dots", 64, 2, _through(4)),
    Point("125M", "v5e:2x4", {"fsdp": 2, "pipeline": 4}, "full", 64, 2, _through(8)),
    Point("125M", "v5e:2x4", {"fsdp": 2, "pipeline": 2, "tensor": 2}, "dots", 32, 1, _through(4)),
    Point("125M", "v5e:2x4", {"fsdp": 4, "pipeline": 2}, "full", 64, 1, _through(4, 2)),
    Point("125M", "v5e:2x4", {"fsdp": 2, "pipeline": 4}, "dots", 64, 1, _through(8, 3)),
    Point("1B", "v5e:2x4", {"fsdp": 4, "pipeline": 2}, "full", 64, 1),
    Point("125M", "v5e:2x2", {"fsdp": 4}, "offload:attention_out,mlp_out", 128, 4),
    Point("125M", "v5e:2x2", {"fsdp": 4}, "offload:mlp_hidden,query", 128, 8),
]


def measured(point: Point) -> int:
    """Bytes of a device, by the compiler at full effort."""
    from llm_jax.plan.step import peak_memory
    from llm_jax.plan.topology import parse_topology

    return peak_memory(point.config, parse_topology(point.topology))


def estimated(config: Config) -> float:
    return sum(peak(config, {axis: getattr(config.mesh, axis) for axis in MESH_AXES}).values())


def markdown() -> str:
    said = json.loads(TABLE.read_text())["peak_memory_in_bytes"]
    lines = ["| step | estimate, GiB | compiler, GiB | off |", "| --- | ---: | ---: | ---: |"]
    for point in POINTS:
        ours, theirs = estimated(point.config), said[point.name]
        lines.append(
            f"| {point.name} | {ours / 2**30:.2f} | {theirs / 2**30:.2f} |"
            f" {ours / theirs - 1:+.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    if "--table" in sys.argv:
        return print(markdown())
    table = json.loads(TABLE.read_text())
    if "--again" in sys.argv:
        table = {"peak_memory_in_bytes": {}, "with_code": []}
    for point in POINTS:
        if point.name not in table["peak_memory_in_bytes"]:
            table["peak_memory_in_bytes"][point.name] = measured(point)
            print(point.name, table["peak_memory_in_bytes"][point.name], flush=True)
            table |= {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
            TABLE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
