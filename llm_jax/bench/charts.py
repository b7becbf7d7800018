"""How a report looks: markup that escapes by construction, figures to read, charts as inline SVG
without a script.

A chart's SVG *is* its plot area. Marks are placed in per cent of it and labels hang outside, so
that one chart fits a phone, a screen and a printed page with text of the same size; only the curves
are stretched, in an inner viewBox.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_jax.bench.page import Html, number, percent, tag

MAX_POINTS = 1000
Points = Sequence[tuple[float, float]]
_COLUMNS = 120


@dataclass(frozen=True)
class Series:
    """A curve: its name, (step, value) points, and the colour classes it is drawn in; ``dots``
    marks each point too.
    """

    name: str
    points: Points
    colour: str
    dots: bool = False


@dataclass(frozen=True)
class Axis:
    """A range of values on a side of a chart, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` lies, 0 at ``low`` and 1 at ``high``."""
        f = math.log10 if self.log else float
        return (f(value) - f(self.low)) / (f(self.high) - f(self.low))

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values (1, 2 or 5 times a power of ten; powers of ten if logarithmic) inside the
        range.
        """
        if self.log:
            found = [
                10.0**d
                for d in range(
                    math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
                )
            ]
        else:
            step = nice_step(self.high - self.low, wanted)
            found = [
                i * step
                for i in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)
            ]
        return [t for t in found if self.low * (1 - 1e-9) <= t <= self.high * (1 + 1e-9)]


def nice_step(span: float, wanted: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that cuts ``span`` into at most ``wanted``
    parts.
    """
    power = 10.0 ** math.floor(math.log10(span / wanted))
    return next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= wanted * (1 + 1e-9))


def value_axis(values: Sequence[float], zero: bool) -> Axis:
    """An axis that holds ``values`` with some air, from 0 if ``zero``; logarithmic where outliers
    would flatten it.
    """
    low, high = min(values), max(values)
    if zero and low > 0 and high > 20 * sorted(values)[len(values) // 2]:
        return Axis(low / 1.2, high * 1.2, log=True)
    if zero and low >= 0:
        return Axis(0.0, high * 1.08 or 1.0)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - air, high + air)


def tick_label(value: float) -> str:
    """A short label: ``0.005``, ``250``, ``20k``, ``1.5M``, ``2e-5``."""
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    for limit, size, suffix in (
        (1e12, 1e12, "T"),
        (1e9, 1e9, "B"),
        (1e6, 1e6, "M"),
        (1e4, 1e3, "k"),
    ):
        if abs(value) >= limit:
            return f"{value / size:.6g}{suffix}"
    return f"{value:.6g}"


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most ``limit`` points: both ends, and the lowest and highest of each of equal groups, in
    their order.
    """
    if len(points) <= limit:
        return points
    inner, groups = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for g in range(groups):
        group = inner[g * len(inner) // groups : (g + 1) * len(inner) // groups]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return [*kept, points[-1]]


def smooth(points: Points) -> tuple[Points, int]:
    """The mean over a window centred on each point (smaller at the ends, so that no curve lags),
    and its size.
    """
    half, sums = min(len(points) // 60, 200), [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    out = []
    for i, (x, _) in enumerate(points):
        r = min(half, i, len(points) - 1 - i)
        out.append((x, (sums[i + r + 1] - sums[i - r]) / (2 * r + 1)))
    return out, 2 * half + 1


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    levels: Sequence[tuple[str, float]] = (),
    zero: bool = False,
    note: str = "",
    class_: str = "",
) -> Html:
    """A figure of curves over steps with named horizontal ``levels``. Says so where there is
    nothing to draw.
    """
    series = [s for s in series if s.points]
    key = (
        [tag("span", tag("i", class_=f"swatch {s.colour}"), s.name) for s in series]
        if class_ == "tall"
        else []
    )
    legend = tag("span", *key, class_="legend")
    caption = tag("figcaption", tag("b", title), " ", tag("span", unit, class_="unit"), legend)
    if not series:
        return tag("figure", caption, tag("p", "Nothing recorded.", class_="missing"))
    xs = [x for s in series for x, _ in s.points]
    x_axis = Axis(min(xs), max(xs)) if max(xs) > min(xs) else Axis(xs[0] - 1, xs[0] + 1)
    y_axis = value_axis([y for s in series for _, y in s.points] + [v for _, v in levels], zero)
    body = [
        *_grid(x_axis, y_axis),
        *(_curve(s, x_axis, y_axis) for s in series),
        *_levels(levels, series, y_axis),
    ]
    body += [*_hovers(series, x_axis), *(d for s in series for d in _dots(s, x_axis, y_axis))]
    ends = ", ".join(
        f"{s.name} from {number(s.points[0][1])} to {number(s.points[-1][1])}" for s in series
    )
    svg = tag(
        "svg", *body, class_=f"plot {class_}", role="img", aria_label=f"{title} over steps: {ends}"
    )
    remarks = "; ".join(filter(None, (note, "logarithmic axis" if y_axis.log else "")))
    return tag("figure", caption, svg, tag("p", remarks, class_="remark") if remarks else "")


def _pc(share: float) -> str:
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"


def _grid(x_axis: Axis, y_axis: Axis) -> list[Html]:
    out = []
    for value in y_axis.ticks():
        y = _pc(1 - y_axis.at(value))
        out.append(tag("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
        out.append(tag("text", tick_label(value), x=-8, y=y, dy="0.32em", class_="y"))
    for value in (v for v in x_axis.ticks() if v == round(v)):
        out.append(
            tag(
                "text", tick_label(value), x=_pc(x_axis.at(value)), y="100%", dy="1.5em", class_="x"
            )
        )
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
    out, ends = [], [y_axis.at(s.points[-1][1]) for s in series]
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
    out, radius = [], 4 if len(s.points) <= 20 else 2.5
    for x, y in thin(s.points) if s.dots or len(s.points) == 1 else ():
        title = tag("title", f"step {x:,.0f}\n{s.name} {number(y, 4)}")
        at = {"cx": _pc(x_axis.at(x)), "cy": _pc(1 - y_axis.at(y))}
        out.append(tag("circle", title, class_=f"dot {s.colour}", r=radius, **at))
    return out


def _hovers(series: Sequence[Series], x_axis: Axis) -> list[Html]:
    """Invisible columns over the plot; their titles say the steps and the values, or their range,
    under the pointer.
    """
    count = min(_COLUMNS, max(len(s.points) for s in series))
    columns: list[dict[str, list[float]]] = [{} for _ in range(count)]
    for s in series:
        for x, y in s.points:
            column = columns[min(int(x_axis.at(x) * count), count - 1)]
            column.setdefault("step", []).append(x)
            column.setdefault(s.name, []).append(y)
    out = []
    for i, column in enumerate(columns):
        show: dict[str, Callable] = dict.fromkeys(column, lambda v: number(v, 4)) | {
            "step": lambda v: f"{v:,.0f}"
        }
        text = "\n".join(
            f"{name} {_range(min(v), max(v), show[name])}" for name, v in column.items()
        )
        place = {"x": _pc(i / count), "width": _pc(1 / count), "height": "100%"}
        out += [tag("rect", tag("title", text), class_="hit", **place)] if text else []
    return out


def _range(low: float, high: float, show: Callable[[float], str]) -> str:
    return show(low) if show(low) == show(high) else f"{show(low)} – {show(high)}"


def stacked_bar(parts: Sequence[tuple[str, float, str, str]], label: str) -> Html:
    """A horizontal bar cut into (name, amount, shown amount, colour class); amounts of nothing are
    left out.
    """
    total, start, out = sum(p[1] for p in parts) or 1.0, 0.0, []
    for name, amount, shown, colour in (p for p in parts if p[1] > 0):
        title = tag("title", f"{name}: {shown} ({percent(amount / total)})")
        place = {"x": _pc(start / total), "width": _pc(amount / total), "height": "100%"}
        out.append(tag("rect", title, class_=f"part {colour}", **place))
        start += amount
    return tag("svg", *out, class_="stack", role="img", aria_label=label)
