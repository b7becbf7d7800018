"""How a report looks: markup that escapes by construction, figures to read, charts as inline SVG without a script.

A chart's SVG *is* its plot area. Marks are placed in per cent of it and labels hang outside, so that one chart fits a
phone, a screen and a printed page with text of the same size; only the curves are stretched, in an inner viewBox.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_POINTS = 1000
_COLUMNS = 120
_VOID = ("meta", "br")
# Control characters have no place in a page; their pictures (␀ ␁ …) do. Tab and line feed stay.
_CONTROL = {c: 0x2400 + c for c in range(32) if c not in (9, 10)} | dict.fromkeys(range(127, 160), 0xFFFD)

Points = Sequence[tuple[float, float]]


class Html(str):
    """Text that is markup already. Every other string is escaped on its way into a page."""

    __slots__ = ()


STYLE = Html("""
:root{color-scheme:light dark;--page:#fff;--ink:#18222d;--soft:#5a6775;--rule:#dde3e9;--blue:#0b6aa6;--orange:#d95f02;
--green:#008a63;--purple:#a64d93;--red:#c0392b;--sky:#56a5d8;--yellow:#d9a400;--grey:#9aa5b1}
@media screen and (prefers-color-scheme:dark){
:root{--page:#12171d;--ink:#e4e9ee;--soft:#98a5b3;--rule:#2c3641;--blue:#58b0e8;--orange:#f58a3c;--green:#2fbf92;
--purple:#d48bc6;--red:#ef7567;--sky:#2f6f9c;--yellow:#e8c14a;--grey:#65717e}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);overflow-wrap:break-word;font:15px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"Liberation Sans",Arial,sans-serif}main{max-width:1040px;margin:0 auto;padding:40px 24px 32px}
section{margin-top:48px}p{margin:8px 0;max-width:80ch}
h1{font-size:32px;line-height:1.15;letter-spacing:-.02em;margin:0 0 6px}h2{font-size:19px;margin:0 0 12px}
h3{font-size:14px;margin:20px 0 6px}.soft,.unit,.remark,.missing,footer{color:var(--soft)}.remark{font-size:13px}
.facts{display:grid;grid-template-columns:1.5fr 1fr 1fr 1.25fr;margin:28px 0 0;border:solid var(--rule);
border-width:1px 0}.facts div{padding:14px 16px 14px 0}.facts>:first-child{grid-row:span 2}
dt{font-size:13px;color:var(--soft)}dd{margin:0;font-size:13px;color:var(--soft)}
dd.value{font-size:25px;line-height:1.3;font-weight:600;color:var(--ink);letter-spacing:-.01em}
.facts>:first-child .value{font-size:64px;line-height:1.15;margin:6px 0 8px;letter-spacing:-.03em;color:var(--blue)}
.charts{display:grid;grid-template-columns:repeat(3,1fr);gap:28px 24px}.charts .wide{grid-column:1/-1}
.charts>*{min-width:0}figure{margin:0}figcaption{margin-bottom:14px;font-size:14px}figcaption .unit{font-size:13px}
.legend{float:right;font-size:13px}.legend span{margin-left:16px;white-space:nowrap}
.swatch{display:inline-block;width:12px;height:12px;border-radius:2px;background:var(--c);margin-right:6px;
vertical-align:-1px}.plot{display:block;overflow:visible;width:calc(100% - 58px);height:150px;margin:0 10px 44px 48px}
.plot.tall{height:300px}.curve{overflow:visible}text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}
text.y,text.end{text-anchor:end}text.x{text-anchor:middle}
text.level{fill:var(--ink);stroke:var(--page);stroke-width:4px;paint-order:stroke}.grid{stroke:var(--rule)}
.axis{stroke:var(--grey)}.level{stroke:var(--soft);stroke-dasharray:5 4}
polyline{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.faint{opacity:.45}polyline.faint{stroke-width:1}.dot{fill:var(--c);stroke:var(--page);stroke-width:1.5}
.hit{fill:transparent}.hit:hover{fill:var(--ink);fill-opacity:.1}.blue{--c:var(--blue)}.orange{--c:var(--orange)}
.green{--c:var(--green)}.purple{--c:var(--purple)}.red{--c:var(--red)}.sky{--c:var(--sky)}.yellow{--c:var(--yellow)}
.grey{--c:var(--grey)}.stack{display:block;width:100%;height:34px;margin:4px 0 14px}
.part{fill:var(--c);stroke:var(--page);stroke-width:1.5}.bar{width:100%;min-width:90px;height:12px;display:block}
.bar rect{fill:var(--c)}.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:6px 16px 6px 0;border-bottom:1px solid var(--rule);vertical-align:baseline}
th{font-weight:500;color:var(--soft);font-size:13px}.n{text-align:right;white-space:nowrap}
td{font-variant-numeric:tabular-nums}tr>:last-child{padding-right:0}.columns{margin-top:28px;columns:2;column-gap:40px}
.columns>*{break-inside:avoid;margin-bottom:28px}.columns td{overflow-wrap:anywhere}.columns td:first-child{width:45%}
.key{white-space:nowrap}.columns h3{margin-top:0}
.sample{margin:0 0 18px;border-left:3px solid var(--blue);padding-left:16px}
pre{margin:0 0 6px;white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.55 ui-monospace,SFMono-Regular,Menlo,
Consolas,"Liberation Mono",monospace}pre b{color:var(--blue)}
.sample figcaption{margin:0;font-size:13px;color:var(--soft)}
code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}
summary{cursor:pointer;margin-bottom:10px}summary h2{display:inline}
footer{margin-top:48px;border-top:1px solid var(--rule);padding-top:12px;font-size:13px}
@media (max-width:760px){
main{padding:24px 16px}.charts{grid-template-columns:1fr}.facts{grid-template-columns:1fr 1fr}
.facts>:first-child{grid-area:auto/1/auto/-1}.columns{columns:1}.plot.tall{height:230px}
.legend{float:none;display:block}.legend span{margin:0 16px 0 0}section{margin-top:36px}}
@media print{
:root{color-scheme:light}main{max-width:none;padding:0}figure,tr,.sample{break-inside:avoid}h2,h3{break-after:avoid}
details::details-content{content-visibility:visible;display:block}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
""")


def escape(text: Any) -> Html:
    """``text`` as markup that shows exactly it; lone surrogates and control characters are made visible."""
    if isinstance(text, Html):
        return text
    clean = str(text).encode("utf-8", "replace").decode("utf-8").translate(_CONTROL)
    return Html(html.escape(clean))


def join(parts: Iterable[Any]) -> Html:
    """The parts one after another, escaped where they are not markup."""
    return Html("".join(map(escape, parts)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. ``class_`` is written ``class``, ``aria_label`` ``aria-label``; None leaves an attribute out."""
    named = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    start = name + "".join(f' {k}="{escape(v)}"' for k, v in named.items())
    return Html(f"<{start}>" if name in _VOID else f"<{start}>{join(children)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], numeric: Sequence[int] = ()) -> Html:
    """A table whose ``numeric`` columns are aligned right; it scrolls in its own box where the page is too narrow."""
    align = ["n" if i in numeric else None for i in range(99)]
    cells = lambda kind, row: tag("tr", *(tag(kind, c, class_=a) for c, a in zip(row, align, strict=False)))  # noqa: E731
    body = tag("tbody", *(cells("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", cells("th", head)) if head else "", body), class_="scroll")


def finite(value: Any) -> float | None:
    """``value`` as a float if it is a finite number, else None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def number(value: Any, digits: int = 3) -> str:
    """A figure to read: ``digits`` significant ones, thousands separated; ``–`` for what is missing or not finite."""
    v = finite(value)
    if v is None:
        return "–"
    mantissa, exponent = f"{v:.{digits - 1}e}".split("e")
    if v and int(exponent) < -3:
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{v:,.{max(digits - 1 - int(exponent), 0) if v else 0}f}"


def compact(value: Any, unit: str = "") -> str:
    """Three figures and a decimal prefix: ``1.12 M``, ``2.29 MB``."""
    v = finite(value)
    if v is None:
        return "–"
    power = next((p for p in (12, 9, 6, 3) if abs(v) >= 0.9995 * 10**p), 0)
    prefix = {12: "T", 9: "G" if unit else "B", 6: "M", 3: "k", 0: ""}[power]
    return f"{number(v / 10**power)} {prefix}{unit}".rstrip()


def percent(value: Any) -> str:
    """A share as per cent."""
    v = finite(value)
    return "–" if v is None else "<\u00a00.1\u00a0%" if 0 < v < 0.0005 else f"{100 * v:.1f}\u00a0%"


def duration(seconds: Any) -> str:
    """``850 ms``, ``4.2 s``, ``1 min 56 s``, ``3 h 05 min``."""
    s = finite(seconds)
    if s is None:
        return "–"
    if s < 59.95:
        return f"{1000 * s:.0f} ms" if s < 0.9995 else f"{s:.1f} s"
    minutes, rest = divmod(round(s), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"


def value_text(value: Any) -> str:
    """Any value of a JSON file, to read: ``yes``, ``4,096``, ``a, b``; ``–`` for what is empty or not finite."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {value_text(v)}" for k, v in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(value_text, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return "–" if finite(value) is None else f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
    return "–" if value in (None, "") else str(value)


@dataclass(frozen=True)
class Series:
    """A curve: its name, (step, value) points, and the colour classes it is drawn in; ``dots`` marks each point too."""

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
        """Round values (1, 2 or 5 times a power of ten; powers of ten if logarithmic) inside the range."""
        if self.log:
            found = [10.0**d for d in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)]
        else:
            step = nice_step(self.high - self.low, wanted)
            found = [i * step for i in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)]
        return [t for t in found if self.low * (1 - 1e-9) <= t <= self.high * (1 + 1e-9)]


def nice_step(span: float, wanted: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that cuts ``span`` into at most ``wanted`` parts."""
    power = 10.0 ** math.floor(math.log10(span / wanted))
    return next(m * power for m in (1, 2, 5, 10, 20) if span / (m * power) <= wanted * (1 + 1e-9))


def value_axis(values: Sequence[float], zero: bool) -> Axis:
    """An axis that holds ``values`` with some air, from 0 if ``zero``; logarithmic where outliers would flatten it."""
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
    for limit, size, suffix in ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / size:.6g}{suffix}"
    return f"{value:.6g}"


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most ``limit`` points: both ends, and the lowest and highest of each of equal groups, in their order."""
    if len(points) <= limit:
        return points
    inner, groups = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for g in range(groups):
        group = inner[g * len(inner) // groups : (g + 1) * len(inner) // groups]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return [*kept, points[-1]]


def smooth(points: Points) -> tuple[Points, int]:
    """The mean over a window centred on each point (smaller at the ends, so that no curve lags), and its size."""
    half, sums = min(len(points) // 60, 200), [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    out = []
    for i, (x, _) in enumerate(points):
        r = min(half, i, len(points) - 1 - i)
        out.append((x, (sums[i + r + 1] - sums[i - r]) / (2 * r + 1)))
    return out, 2 * half + 1


def line_chart(
    title: str, unit: str, series: Sequence[Series], levels: Sequence[tuple[str, float]] = (), zero: bool = False,
    note: str = "", class_: str = "",
) -> Html:
    """A figure of curves over steps with named horizontal ``levels``. Says so where there is nothing to draw."""
    series = [s for s in series if s.points]
    key = [tag("span", tag("i", class_=f"swatch {s.colour}"), s.name) for s in series] if class_ == "tall" else []
    legend = tag("span", *key, class_="legend")
    caption = tag("figcaption", tag("b", title), " ", tag("span", unit, class_="unit"), legend)
    if not series:
        return tag("figure", caption, tag("p", "Nothing recorded.", class_="missing"))
    xs = [x for s in series for x, _ in s.points]
    x_axis = Axis(min(xs), max(xs)) if max(xs) > min(xs) else Axis(xs[0] - 1, xs[0] + 1)
    y_axis = value_axis([y for s in series for _, y in s.points] + [v for _, v in levels], zero)
    body = [*_grid(x_axis, y_axis), *(_curve(s, x_axis, y_axis) for s in series), *_levels(levels, series, y_axis)]
    body += [*_hovers(series, x_axis), *(d for s in series for d in _dots(s, x_axis, y_axis))]
    ends = ", ".join(f"{s.name} from {number(s.points[0][1])} to {number(s.points[-1][1])}" for s in series)
    svg = tag("svg", *body, class_=f"plot {class_}", role="img", aria_label=f"{title} over steps: {ends}")
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
        out.append(tag("text", tick_label(value), x=_pc(x_axis.at(value)), y="100%", dy="1.5em", class_="x"))
    out.append(tag("line", x1=0, x2="100%", y1="100%", y2="100%", class_="axis"))
    return [*out, tag("text", "step", x="100%", y="100%", dy="2.8em", class_="end")]


def _curve(s: Series, x_axis: Axis, y_axis: Axis) -> Html:
    at = " ".join(f"{10000 * x_axis.at(x):.0f},{2000 * (1 - y_axis.at(y)):.0f}" for x, y in thin(s.points))
    size = {"viewBox": "0 0 10000 2000", "preserveAspectRatio": "none", "width": "100%", "height": "100%"}
    return tag("svg", tag("polyline", points=at, class_=s.colour), class_="curve", **size)


def _levels(levels: Sequence[tuple[str, float]], series: Sequence[Series], y_axis: Axis) -> list[Html]:
    """Dashed lines, labelled on the right unless a curve ends close by."""
    out, ends = [], [y_axis.at(s.points[-1][1]) for s in series]
    for name, value in levels:
        y = _pc(1 - y_axis.at(value))
        out.append(tag("line", x1=0, x2="100%", y1=y, y2=y, class_="level"))
        right = all(abs(y_axis.at(value) - end) > 0.12 for end in ends)
        place = {"x": "100%" if right else 0, "y": y, "dy": "-0.45em", "class_": "end level" if right else "level"}
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
    """Invisible columns over the plot; their titles say the steps and the values, or their range, under the pointer."""
    count = min(_COLUMNS, max(len(s.points) for s in series))
    columns: list[dict[str, list[float]]] = [{} for _ in range(count)]
    for s in series:
        for x, y in s.points:
            column = columns[min(int(x_axis.at(x) * count), count - 1)]
            column.setdefault("step", []).append(x)
            column.setdefault(s.name, []).append(y)
    out = []
    for i, column in enumerate(columns):
        show: dict[str, Callable] = dict.fromkeys(column, lambda v: number(v, 4)) | {"step": lambda v: f"{v:,.0f}"}
        text = "\n".join(f"{name} {_range(min(v), max(v), show[name])}" for name, v in column.items())
        place = {"x": _pc(i / count), "width": _pc(1 / count), "height": "100%"}
        out += [tag("rect", tag("title", text), class_="hit", **place)] if text else []
    return out


def _range(low: float, high: float, show: Callable[[float], str]) -> str:
    return show(low) if show(low) == show(high) else f"{show(low)} – {show(high)}"


def stacked_bar(parts: Sequence[tuple[str, float, str, str]], label: str) -> Html:
    """A horizontal bar cut into (name, amount, shown amount, colour class); amounts of nothing are left out."""
    total, start, out = sum(p[1] for p in parts) or 1.0, 0.0, []
    for name, amount, shown, colour in (p for p in parts if p[1] > 0):
        title = tag("title", f"{name}: {shown} ({percent(amount / total)})")
        place = {"x": _pc(start / total), "width": _pc(amount / total), "height": "100%"}
        out.append(tag("rect", title, class_=f"part {colour}", **place))
        start += amount
    return tag("svg", *out, class_="stack", role="img", aria_label=label)
