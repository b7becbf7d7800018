"""Markup, escaping and the forms of numbers of the report page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = ("meta", "br")
# Control characters have no place in a page; their pictures (␀ ␁ …) do. Tab and line feed stay.
_CONTROL = {c: 0x2400 + c for c in range(32) if c not in (9, 10)} | dict.fromkeys(
    range(127, 160), 0xFFFD
)


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
    """``text`` as markup that shows exactly it; lone surrogates and control characters are made
    visible.
    """
    if isinstance(text, Html):
        return text
    clean = str(text).encode("utf-8", "replace").decode("utf-8").translate(_CONTROL)
    return Html(html.escape(clean))


def join(parts: Iterable[Any]) -> Html:
    """The parts one after another, escaped where they are not markup."""
    return Html("".join(map(escape, parts)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. ``class_`` is written ``class``, ``aria_label`` ``aria-label``; None leaves an
    attribute out.
    """
    named = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    start = name + "".join(f' {k}="{escape(v)}"' for k, v in named.items())
    return Html(f"<{start}>" if name in _VOID else f"<{start}>{join(children)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], numeric: Sequence[int] = ()) -> Html:
    """A table whose ``numeric`` columns are aligned right; it scrolls in its own box where the page
    is too narrow.
    """
    align = ["n" if i in numeric else None for i in range(99)]

    def cells(kind, row):
        return tag("tr", *(tag(kind, c, class_=a) for c, a in zip(row, align, strict=False)))

    body = tag("tbody", *(cells("td", row) for row in rows))
    return tag(
        "div", tag("table", tag("thead", cells("th", head)) if head else "", body), class_="scroll"
    )


def finite(value: Any) -> float | None:
    """``value`` as a float if it is a finite number, else None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def number(value: Any, digits: int = 3) -> str:
    """A figure to read: ``digits`` significant ones, thousands separated; ``–`` for what is missing
    or not finite.
    """
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
    return (
        f"{minutes} min {rest:02} s"
        if minutes < 60
        else f"{minutes // 60:,} h {minutes % 60:02} min"
    )


def value_text(value: Any) -> str:
    """Any value of a JSON file, to read: ``yes``, ``4,096``, ``a, b``; ``–`` for what is empty or
    not finite.
    """
    if isinstance(value, dict):
        return ", ".join(f"{k} {value_text(v)}" for k, v in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(value_text, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return (
            "–"
            if finite(value) is None
            else f"{value:,}"
            if isinstance(value, int)
            else f"{value:,.6g}"
        )
    return "–" if value in (None, "") else str(value)
