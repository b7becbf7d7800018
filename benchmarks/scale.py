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
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from llm_jax.bench.charts import Axis, tick_label
from llm_jax.bench.page import Html, tag
from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.config.saved import load_config
from llm_jax.plan.candidates import Candidate, candidates
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
    """A Markdown table whose columns after the first are aligned right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def published() -> str:
    """Published speeds beside the roofline, without and with full rematerialization."""
    rows = []
    for row in ROWS:
        target = parse_topology(row.topology)
        fast = plan_step(row.config("none"), target, analytic=True)
        full = plan_step(row.config("full"), target, analytic=True)
        causal = fast.flops["model, causal"] / fast.tokens * row.speed / (target.chip.tflops * 1e12)
        rows.append(
            [
                f"{row.model}, {row.seq_length:,} tokens",
                row.topology,
                f"{row.speed:,.0f}",
                f"{causal:.1%}",
                f"{_speed(fast):,.0f} ({mfu(fast):.1%})",
                f"{_speed(full):,.0f} ({mfu(full):.1%})",
                f"{row.speed / _speed(fast):.0%}",
            ]
        )
    head = [
        "model",
        "slice",
        "published tokens/s/chip",
        "its MFU, causal",
        "roofline, nothing recomputed (MFU)",
        "roofline, full remat (MFU)",
        "published / roofline",
    ]
    return markdown(head, rows)


def _speed(p: Plan) -> float:
    """Tokens/s of a chip at best."""
    return p.tokens / p.seconds.at_best / p.slice.chips


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
    """Bytes that a chip sends, from 8 to 8,960 chips."""
    rows = []
    for topology in TRAFFIC:
        p = plan_step(traffic_config(topology), parse_topology(topology))
        kinds = [
            sum(t.bytes for t in p.traffic if t.kind == kind)
            for kind in ("all-gather", "reduce-scatter", "all-reduce")
        ]
        total = sum(t.bytes for t in p.traffic)
        sizes = (*kinds, total - sum(kinds), total)
        rows.append(
            [
                f"{p.slice.chips:,}",
                topology,
                mesh_name(p.mesh),
                *(f"{size / 1e9:.1f}" for size in sizes),
                f"{p.seconds['links at best'] / p.seconds['compute']:.0%}",
                f"{sum(p.memory.values()) / 2**30:.1f}",
            ]
        )
        print(rows[-1], file=sys.stderr, flush=True)
    head = [
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
    ]
    return markdown(head, rows)


def cost() -> str:
    """The estimated cost of tokens by model and slice, for the cheapest way that fits."""
    lines: dict[str, list[Point]] = {}
    rows = []
    for name, shapes in COST_SLICES.items():
        config = load_config(_ROOT / f"configs/{name}.py")
        tokens = config.data.batch_size * config.data.seq_length
        for shape in shapes:
            target = parse_topology(f"v5p:{shape}")
            fitting = (c for c in candidates(config, target) if c.fits)
            best = min(fitting, key=lambda c: c.expected.seconds.serial, default=None)
            if best is None:
                rows.append([name, target.name, str(target.chips), "nothing fits", "", "", ""])
                continue
            seconds = best.expected.seconds.serial
            usd = 1e9 / tokens * seconds * target.chips / 3600 * PRICES["v5p"].usd
            lines.setdefault(name, []).append(Point(target.chips, usd))
            row = [f"{target.chips:,}", *_way(best), f"{tokens / seconds / target.chips:,.0f}"]
            rows.append([name, target.name, *row, f"{usd:,.2f}"])
            print(rows[-1], file=sys.stderr, flush=True)
    (_ROOT / "docs/cost.svg").write_text(chart(lines))
    head = [
        "config",
        "slice",
        "chips",
        "mesh, remat, accumulation",
        "GiB",
        "tokens/s/chip",
        "USD per billion tokens",
    ]
    return markdown(head, rows)


def _way(c: Candidate) -> list[str]:
    """How a candidate runs, and its memory in GiB."""
    config = c.config
    mesh = mesh_name(vars(config.mesh))
    how = f"{mesh}, {config.execution.remat}, {config.train.accumulation}"
    return [how, f"{c.memory / 2**30:.0f}"]


class Point(NamedTuple):
    """A cost on a slice."""

    chips: float
    usd: float


_WIDTH, _HEIGHT = 640, 360
# Room for the labels of the axes.
_LEFT, _BELOW = 70, 50
_TEXT = {"font_family": "sans-serif", "font_size": 12, "fill": "#444"}
_COLOURS = ("#1b6ca8", "#b8500f", "#2f7d32")


def chart(lines: dict[str, list[Point]]) -> str:
    """An SVG file of costs by chips, both axes logarithmic."""
    chips = [point.chips for line in lines.values() for point in line]
    costs = [point.usd for line in lines.values() for point in line]
    x_axis = Axis(min(chips) / 1.3, max(chips) * 2.2, log=True)
    y_axis = Axis(min(costs) / 1.6, max(costs) * 1.6, log=True)
    body = [tag("rect", width="100%", height="100%", fill="white")]
    for value in y_axis.ticks():
        y = _y(y_axis, value)
        label = {"x": _LEFT - 8, "y": y + 4, "text_anchor": "end", **_TEXT}
        body.append(tag("line", x1=_LEFT, x2=_WIDTH, y1=y, y2=y, stroke="#ddd"))
        body.append(tag("text", f"${tick_label(value)}", **label))
    for value in sorted(set(chips)):
        x = _x(x_axis, value)
        label = {"x": x, "y": _HEIGHT - _BELOW + 18, "text_anchor": "middle", **_TEXT}
        body.append(tag("line", x1=x, x2=x, y1=0, y2=_HEIGHT - _BELOW, stroke="#eee"))
        body.append(tag("text", f"{value:,.0f}", **label))
    for colour, (name, line) in zip(_COLOURS, lines.items()):
        body += _line(name, line, colour, x_axis, y_axis)
    title = {"x": (_LEFT + _WIDTH) / 2, "y": _HEIGHT - 8, "text_anchor": "middle", **_TEXT}
    body.append(tag("text", "chips of v5p; USD per billion tokens", **title))
    file = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
        "role": "img",
    }
    return f"{tag('svg', *body, **file)}\n"


def _line(name: str, line: list[Point], colour: str, x_axis: Axis, y_axis: Axis) -> list[Html]:
    """A named line with a dot at each point."""
    places = [(_x(x_axis, point.chips), _y(y_axis, point.usd)) for point in line]
    points = " ".join(f"{x:.0f},{y:.0f}" for x, y in places)
    out = [tag("polyline", points=points, fill="none", stroke=colour, stroke_width=2)]
    for (x, y), point in zip(places, line):
        title = tag("title", f"{name}, {point.chips:,.0f} chips: ${point.usd:,.2f}")
        out.append(tag("circle", title, cx=x, cy=y, r=4, fill=colour))
    x, y = places[-1]
    return [*out, tag("text", name, x=x + 8, y=y + 4, **{**_TEXT, "fill": colour})]


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.at(value) * (_WIDTH - _LEFT)


def _y(axis: Axis, value: float) -> float:
    return (1 - axis.at(value)) * (_HEIGHT - _BELOW)


def long_config() -> Config:
    return override(load_config(_ROOT / "configs/lm_8b.py"), LONG)


def long() -> str:
    """A context of a million tokens."""
    p = plan_step(long_config(), parse_topology("v5p:8x8x8"))
    head = [
        "model",
        "slice",
        "mesh",
        "tokens of a row",
        "GiB a chip",
        "GB sent by a chip",
        "MFU at best",
    ]
    row = [
        "lm_8b",
        p.slice.name,
        mesh_name(p.mesh),
        f"{2**20:,}",
        p.refused or f"{sum(p.memory.values()) / 2**30:.1f}",
        f"{sum(t.bytes for t in p.traffic) / 1e9:,.1f}",
        f"{mfu(p):.1%}",
    ]
    return markdown(head, [row])


def depth() -> str:
    """Processor time of tracing and compiling 16 and 80 layers, on all threads.

    Other programs on the machine change it little.
    """
    base = {
        "mesh.data": 1,
        "mesh.fsdp": -1,
        "model.vocab_size": 32000,
        "execution.remat": "full",
        "data.batch_size": 64,
    }
    target = parse_topology("v5e:2x2")
    # Loads the compiler.
    devices(target)
    rows = []
    first = 0.0
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
