"""The tables and the chart of docs/scale.md.

    python benchmarks/scale.py published  # published speeds beside the roofline; a minute
    python benchmarks/scale.py cost       # cost of tokens by model and slice, and docs/cost.svg
    python benchmarks/scale.py traffic    # bytes that a chip sends, 8 to 8,960 chips; five compiles
    python benchmarks/scale.py long       # a context of a million tokens; one compile
    python benchmarks/scale.py depth      # cost of compiling 16 and 80 layers; two compiles

Tables are Markdown on stdout. Times of steps are rooflines by data-sheet peaks; ``depth`` measures
processor time on this machine.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from llm_jax.bench.charts import Axis, tick_label
from llm_jax.bench.page import tag
from llm_jax.config import Config
from llm_jax.config.overrides import load_config, override
from llm_jax.plan.candidates import candidates
from llm_jax.plan.cost import PRICES
from llm_jax.plan.published import ROWS
from llm_jax.plan.report import mesh_name, mfu
from llm_jax.plan.step import Plan, plan_step
from llm_jax.plan.topology import devices, parse_topology

_ROOT = Path(__file__).parents[1]
# One row for each chip. From 64 chips on fsdp and tensor stay and data grows; a torus with sides of
# 20 and 28 is split by whole sides only.
TRAFFIC = {
    "v5p:2x2x2": (1, 4, 2),
    "v5p:4x4x4": (1, 32, 2),
    "v5p:4x8x8": (4, 32, 2),
    "v5p:8x8x16": (16, 32, 2),
    "v5p:16x20x28": (560, 16, 1),
}
COST_SLICES = {
    "lm_1b": ("2x2x1", "2x2x2", "2x4x4", "4x4x8"),
    "lm_8b": ("2x2x2", "2x4x4", "4x4x8", "8x8x8"),
    "lm_70b": ("2x4x4", "4x4x8", "8x8x8", "8x16x16"),
}
LONG = {
    "model.max_length": 2**20,
    "data.seq_length": 2**20,
    "data.batch_size": 2,
    "train.accumulation": 1,
    "execution.remat": "full",
    "mesh.data": 1,
    "mesh.fsdp": 2,
    "mesh.context": 64,
    "mesh.tensor": 4,
}


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def published() -> str:
    rows = []
    for row in ROWS:
        target = parse_topology(row.topology)
        fast, full = (
            plan_step(row.config(remat), target, analytic=True) for remat in ("none", "full")
        )
        at_best = [p.tokens / p.seconds.at_best / target.chips for p in (fast, full)]
        causal = fast.flops["model, causal"] / fast.tokens * row.speed / (target.chip.tflops * 1e12)
        rows.append(
            [
                f"{row.model}, {row.seq_length:,} tokens",
                row.topology,
                f"{row.speed:,.0f}",
                f"{causal:.1%}",
                *(f"{x:,.0f} ({mfu(p):.1%})" for x, p in zip(at_best, (fast, full))),
                f"{row.speed / at_best[0]:.0%}",
            ]
        )
    return markdown(
        [
            "model",
            "slice",
            "published tokens/s/chip",
            "its MFU, causal",
            "roofline, nothing recomputed (MFU)",
            "roofline, full remat (MFU)",
            "published / roofline",
        ],
        rows,
    )


def traffic_config(topology: str) -> Config:
    data, fsdp, tensor = TRAFFIC[topology]
    return override(
        load_config(_ROOT / "configs/lm_8b.py"),
        {
            "mesh.data": data,
            "mesh.fsdp": fsdp,
            "mesh.tensor": tensor,
            "data.batch_size": data * fsdp * tensor,
            "train.accumulation": 1,
        },
    )


def traffic() -> str:
    rows = []
    for topology in TRAFFIC:
        p = plan_step(traffic_config(topology), parse_topology(topology))
        kinds = {
            kind: sum(t.bytes for t in p.traffic if t.kind == kind)
            for kind in ("all-gather", "reduce-scatter", "all-reduce")
        }
        total = sum(t.bytes for t in p.traffic)
        rows.append(
            [
                f"{p.slice.chips:,}",
                topology,
                mesh_name(p.mesh),
                *(
                    f"{size / 1e9:.1f}"
                    for size in (*kinds.values(), total - sum(kinds.values()), total)
                ),
                f"{p.seconds['links at best'] / p.seconds['compute']:.0%}",
                f"{sum(p.memory.values()) / 2**30:.1f}",
            ]
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return markdown(
        [
            "chips",
            "slice",
            "mesh",
            "all-gather GB",
            "reduce-scatter GB",
            "all-reduce GB",
            "collective-permute and other GB",
            "together GB",
            "links at best / compute",
            "GiB a chip",
        ],
        rows,
    )


def cost() -> str:
    """By the estimates that a search prunes by: the cheapest way that fits each slice."""
    lines: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for name, shapes in COST_SLICES.items():
        config = load_config(_ROOT / f"configs/{name}.py")
        for shape in shapes:
            target = parse_topology(f"v5p:{shape}")
            best = min(
                (c for c in candidates(config, target) if c.fits),
                key=lambda c: c.expected.seconds.serial,
                default=None,
            )
            if best is None:
                rows.append([name, target.name, str(target.chips), "nothing fits", "", "", ""])
                continue
            tokens = config.data.batch_size * config.data.seq_length
            seconds = best.expected.seconds.serial
            usd = 1e9 / tokens * seconds * target.chips / 3600 * PRICES["v5p"].usd
            lines.setdefault(name, []).append((target.chips, usd))
            way = (
                f"{mesh_name(vars(best.config.mesh))}, {best.config.execution.remat},"
                f" {best.config.train.accumulation}"
            )
            rows.append(
                [
                    name,
                    target.name,
                    f"{target.chips:,}",
                    way,
                    f"{best.memory / 2**30:.0f}",
                    f"{tokens / seconds / target.chips:,.0f}",
                    f"{usd:,.2f}",
                ]
            )
            print(rows[-1], file=sys.stderr, flush=True)
    (_ROOT / "docs/cost.svg").write_text(chart(lines))
    return markdown(
        [
            "config",
            "slice",
            "chips",
            "mesh, remat, accumulation",
            "GiB",
            "tokens/s/chip",
            "USD per billion tokens",
        ],
        rows,
    )


def chart(lines: dict[str, list[tuple[float, float]]]) -> str:
    """Logarithmic both ways, as a file of its own."""
    width, height, left, below = 640, 360, 70, 50
    xs, ys = ([point[i] for line in lines.values() for point in line] for i in (0, 1))
    x_axis, y_axis = (
        Axis(min(xs) / 1.3, max(xs) * 2.2, log=True),
        Axis(min(ys) / 1.6, max(ys) * 1.6, log=True),
    )

    def at(x, y):
        return (
            left + x_axis.at(x) * (width - left),
            (1 - y_axis.at(y)) * (height - below),
        )

    text = {"font_family": "sans-serif", "font_size": 12, "fill": "#444"}
    body = [tag("rect", width="100%", height="100%", fill="white")]
    for value in y_axis.ticks():
        y = at(max(xs), value)[1]
        body += [
            tag("line", x1=left, x2=width, y1=y, y2=y, stroke="#ddd"),
            tag("text", f"${tick_label(value)}", x=left - 8, y=y + 4, text_anchor="end", **text),
        ]
    for value in sorted(set(xs)):
        x = at(value, max(ys))[0]
        body += [
            tag("line", x1=x, x2=x, y1=0, y2=height - below, stroke="#eee"),
            tag("text", f"{value:,.0f}", x=x, y=height - below + 18, text_anchor="middle", **text),
        ]
    for colour, (name, line) in zip(("#1b6ca8", "#b8500f", "#2f7d32"), lines.items()):
        places = [at(*point) for point in line]
        body.append(
            tag(
                "polyline",
                points=" ".join(f"{x:.0f},{y:.0f}" for x, y in places),
                fill="none",
                stroke=colour,
                stroke_width=2,
            )
        )
        body += [
            tag(
                "circle",
                tag("title", f"{name}, {c:,.0f} chips: ${usd:,.2f}"),
                cx=x,
                cy=y,
                r=4,
                fill=colour,
            )
            for (x, y), (c, usd) in zip(places, line)
        ]
        body.append(
            tag("text", name, x=places[-1][0] + 8, y=places[-1][1] + 4, **{**text, "fill": colour})
        )
    body.append(
        tag(
            "text",
            "chips of v5p; USD per billion tokens",
            x=(left + width) / 2,
            y=height - 8,
            text_anchor="middle",
            **text,
        )
    )
    return (
        str(
            tag(
                "svg",
                *body,
                xmlns="http://www.w3.org/2000/svg",
                viewBox=f"0 0 {width} {height}",
                role="img",
            )
        )
        + "\n"
    )


def long_config() -> Config:
    return override(load_config(_ROOT / "configs/lm_8b.py"), LONG)


def long() -> str:
    p: Plan = plan_step(long_config(), parse_topology("v5p:8x8x8"))
    return markdown(
        [
            "model",
            "slice",
            "mesh",
            "tokens of a row",
            "GiB a chip",
            "GB sent by a chip",
            "MFU at best",
        ],
        [
            [
                "lm_8b",
                p.slice.name,
                mesh_name(p.mesh),
                f"{2**20:,}",
                p.refused or f"{sum(p.memory.values()) / 2**30:.1f}",
                f"{sum(t.bytes for t in p.traffic) / 1e9:,.1f}",
                f"{mfu(p):.1%}",
            ]
        ],
    )


def depth() -> str:
    """Processor time of tracing and compiling, of all threads: what other programs do meanwhile
    changes it little.
    """
    base = {
        "mesh.data": 1,
        "mesh.fsdp": -1,
        "model.vocab_size": 32000,
        "execution.remat": "full",
        "data.batch_size": 64,
    }
    target = parse_topology("v5e:2x2")
    devices(target)  # loads the compiler
    rows, first = [], 0.0
    for layers in (16, 80):
        began = time.process_time()
        plan_step(override(Config(), {**base, "model.num_layers": layers}), target)
        spent = time.process_time() - began
        first = first or spent
        rows.append([str(layers), f"{spent:.1f}", f"{spent / first:.2f}"])
    return markdown(["layers", "processor seconds", "of 16 layers"], rows)


if __name__ == "__main__":
    tables = {
        "published": published,
        "cost": cost,
        "traffic": traffic,
        "long": long,
        "depth": depth,
    }
    wanted = sys.argv[1:] or ["--help"]
    if set(wanted) - set(tables):
        sys.exit(__doc__)
    for name in wanted:
        print(f"\n{tables[name]()}\n", flush=True)
