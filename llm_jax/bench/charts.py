"""Charts of the report as inline SVG without scripts.

A chart's SVG element is its plot area. Marks are placed in per cent of it and labels lie outside,
so that one chart fits a phone, a screen and a printed page with text of the same size; only the
curves are stretched, in an inner viewBox.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llm_jax.bench.page import Html, number, percent, tag

MAX_POINTS = 1000
Points = Sequence[tuple[float, float]]
_COLUMNS = 120


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        name: for the legend.
        points: (step, value).
        colour: its CSS classes.
        dots: whether each point is marked too.
    """

    name: str
    points: Points
    colour: str
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """The range of an axis, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of ``value``, 0 at ``low`` and 1 at ``high``."""
        scale = math.log10 if self.log else float
        low = scale(self.low)
        return (scale(value) - low) / (scale(self.high) - low)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Values for labels inside the range.

        They are multiples of 1, 2 or 5 times a power of ten, or powers of ten on a logarithmic
        axis.
        """
        if self.log:
            first = math.floor(math.log10(self.low))
            last = math.ceil(math.log10(self.high))
            found = [10.0**power for power in range(first, last + 1)]
        else:
            step = nice_step(self.high - self.low, wanted)
            first = math.floor(self.low / step)
            last = math.ceil(self.high / step)
            found = [i * step for i in range(first, last + 1)]
        return [t for t in found if self.low * (1 - 1e-9) <= t <= self.high * (1 + 1e-9)]


def nice_step(span: float, wanted: int) -> float:
    """The smallest step that cuts ``span`` into at most ``wanted`` parts.

    Steps are 1, 2 or 5 times a power of ten.
    """
    power = 10.0 ** math.floor(math.log10(span / wanted))
    return next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= wanted * (1 + 1e-9))


def value_axis(values: Sequence[float], zero: bool) -> Axis:
    """An axis around ``values`` with a margin, from 0 if ``zero``.

    With ``zero`` it is logarithmic where outliers would flatten the curve.
    """
    low = min(values)
    high = max(values)
    if zero and low > 0 and high > 20 * sorted(values)[len(values) // 2]:
        return Axis(low / 1.2, high * 1.2, log=True)
    if zero and low >= 0:
        return Axis(0.0, high * 1.08 or 1.0)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin)


_SUFFIXES = ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k"))


def tick_label(value: float) -> str:
    """A short label: ``0.005``, ``250``, ``20k``, ``1.5M``, ``2e-5``."""
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    for limit, size, suffix in _SUFFIXES:
        if abs(value) >= limit:
            return f"{value / size:.6g}{suffix}"
    return f"{value:.6g}"


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most ``limit`` points: both ends, and the lowest and highest of equal groups, in order."""
    if len(points) <= limit:
        return points
    inner = points[1:-1]
    groups = (limit - 2) // 2
    kept = [points[0]]
    for g in range(groups):
        group = inner[g * len(inner) // groups : (g + 1) * len(inner) // groups]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return [*kept, points[-1]]


def smooth(points: Points) -> tuple[Points, int]:
    """A moving mean, and the size of its window.

    The window is centred on each point and smaller at the ends, so that the mean does not lag.
    """
    half = min(len(points) // 60, 200)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    out = []
    for i, (x, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        out.append((x, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return out, 2 * half + 1


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    *,
    levels: Sequence[tuple[str, float]] = (),
    zero: bool = False,
    note: str = "",
    class_: str = "",
) -> Html:
    """A figure of curves over steps, or a remark where nothing was recorded.

    Args:
        title: of the figure.
        unit: of the values.
        series: the curves; those without points are left out.
        levels: (name, value) of horizontal lines.
        zero: whether the value axis starts at 0.
        note: text below the chart.
        class_: CSS class; ``tall`` charts have a legend.
    """
    series = [s for s in series if s.points]
    key = []
    if class_ == "tall":
        key = [tag("span", tag("i", class_=f"swatch {s.colour}"), s.name) for s in series]
    legend = tag("span", *key, class_="legend")
    caption = tag("figcaption", tag("b", title), " ", tag("span", unit, class_="unit"), legend)
    if not series:
        return tag("figure", caption, tag("p", "Nothing recorded.", class_="missing"))
    x_axis = _step_axis(series)
    y_axis = value_axis([y for s in series for _, y in s.points] + [v for _, v in levels], zero)
    body = [
        *_grid(x_axis, y_axis),
        *(_curve(s, x_axis, y_axis) for s in series),
        *_levels(levels, series, y_axis),
        *_hovers(series, x_axis),
        *(dot for s in series for dot in _dots(s, x_axis, y_axis)),
    ]
    ends = ", ".join(
        f"{s.name} from {number(s.points[0][1])} to {number(s.points[-1][1])}" for s in series
    )
    svg = tag(
        "svg", *body, class_=f"plot {class_}", role="img", aria_label=f"{title} over steps: {ends}"
    )
    remarks = "; ".join(filter(None, (note, "logarithmic axis" if y_axis.log else "")))
    return tag("figure", caption, svg, tag("p", remarks, class_="remark") if remarks else "")


def _step_axis(series: Sequence[Series]) -> Axis:
    steps = [x for s in series for x, _ in s.points]
    if max(steps) > min(steps):
        return Axis(min(steps), max(steps))
    return Axis(steps[0] - 1, steps[0] + 1)


def _pc(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _grid(x_axis: Axis, y_axis: Axis) -> list[Html]:
    out = []
    for value in y_axis.ticks():
        y = _pc(1 - y_axis.at(value))
        out.append(tag("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
        out.append(tag("text", tick_label(value), x=-8, y=y, dy="0.32em", class_="y"))
    for value in (v for v in x_axis.ticks() if v == round(v)):
        x = _pc(x_axis.at(value))
        out.append(tag("text", tick_label(value), x=x, y="100%", dy="1.5em", class_="x"))
    out.append(tag("line", x1=0, x2="100%", y1="100%", y2="100%", class_="axis"))
    return [*out, tag("text", "step", x="100%", y="100%", dy="2.8em", class_="end")]


def _curve(s: Series, x_axis: Axis, y_axis: Axis) -> Html:
    at = " ".join(
        f"{10000 * x_axis.at(x):.0f},{2000 * (1 - y_axis.at(y)):.0f}" for x, y in thin(s.points)
    )
    size = {
        "viewBox": "0 0 10000 2000",
        "preserveAspectRatio": "none",
        "width": "100%",
        "height": "100%",
    }
    return tag("svg", tag("polyline", points=at, class_=s.colour), class_="curve", **size)


def _levels(
    levels: Sequence[tuple[str, float]], series: Sequence[Series], y_axis: Axis
) -> list[Html]:
    """Dashed lines, labelled on the right unless a curve ends close by."""
    out = []
    ends = [y_axis.at(s.points[-1][1]) for s in series]
    for name, value in levels:
        y = _pc(1 - y_axis.at(value))
        out.append(tag("line", x1=0, x2="100%", y1=y, y2=y, class_="level"))
        right = all(abs(y_axis.at(value) - end) > 0.12 for end in ends)
        place = {
            "x": "100%" if right else 0,
            "y": y,
            "dy": "-0.45em",
            "class_": "end level" if right else "level",
        }
        out.append(tag("text", f"{name} {number(value)}", **place))
    return out


def _dots(s: Series, x_axis: Axis, y_axis: Axis) -> list[Html]:
    if not s.dots and len(s.points) > 1:
        return []
    out = []
    radius = 4 if len(s.points) <= 20 else 2.5
    for x, y in thin(s.points):
        title = tag("title", f"step {x:,.0f}\n{s.name} {number(y, 4)}")
        at = {"cx": _pc(x_axis.at(x)), "cy": _pc(1 - y_axis.at(y))}
        out.append(tag("circle", title, class_=f"dot {s.colour}", r=radius, **at))
    return out


def _hovers(series: Sequence[Series], x_axis: Axis) -> list[Html]:
    """Invisible columns over the plot, with the steps and values under the pointer as titles."""
    count = min(_COLUMNS, max(len(s.points) for s in series))
    columns: list[dict[str, list[float]]] = [{} for _ in range(count)]
    for s in series:
        for x, y in s.points:
            column = columns[min(int(x_axis.at(x) * count), count - 1)]
            column.setdefault("step", []).append(x)
            column.setdefault(s.name, []).append(y)
    out = []
    for i, column in enumerate(columns):
        if column:
            text = "\n".join(_hover_line(name, values) for name, values in column.items())
            place = {"x": _pc(i / count), "width": _pc(1 / count), "height": "100%"}
            out.append(tag("rect", tag("title", text), class_="hit", **place))
    return out


def _hover_line(name: str, values: Sequence[float]) -> str:
    """A name with its value, or with the range of its values."""
    shown = [f"{v:,.0f}" if name == "step" else number(v, 4) for v in (min(values), max(values))]
    low, high = shown
    return f"{name} {low}" if low == high else f"{name} {low} – {high}"


class BarPart(NamedTuple):
    """A part of a stacked bar: its name, its amount as a number and as text, and its colour."""

    name: str
    amount: float
    shown: str
    colour: str


def stacked_bar(parts: Sequence[BarPart], label: str) -> Html:
    """A horizontal bar of parts; those of amount 0 are left out."""
    total = sum(part.amount for part in parts) or 1.0
    start = 0.0
    out = []
    for part in parts:
        if part.amount <= 0:
            continue
        share = part.amount / total
        title = tag("title", f"{part.name}: {part.shown} ({percent(share)})")
        place = {"x": _pc(start / total), "width": _pc(share), "height": "100%"}
        out.append(tag("rect", title, class_=f"part {part.colour}", **place))
        start += part.amount
    return tag("svg", *out, class_="stack", role="img", aria_label=label)
