"""HTML elements, escaping, and number formats of the report."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = ("meta", "br")
_MISSING = "–"
# Control characters other than tab and line feed are shown as their symbols (␀ ␁ …).
_CONTROL = {
    **{c: 0x2400 + c for c in range(32) if c not in (9, 10)},
    **dict.fromkeys(range(127, 160), 0xFFFD),
}


class Html(str):
    """Text that is markup. Every other string is escaped before it enters a page."""

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
    """Escapes ``text``, with lone surrogates and control characters made visible."""
    if isinstance(text, Html):
        return text
    clean = str(text).encode("utf-8", "replace").decode("utf-8").translate(_CONTROL)
    return Html(html.escape(clean))


def join(parts: Iterable[Any]) -> Html:
    """Concatenates parts, escaping those that are not markup."""
    return Html("".join(map(escape, parts)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element.

    Args:
        name: of the tag.
        *children: its content.
        **attributes: ``class_`` is written ``class``, and ``aria_label`` is written
            ``aria-label``; None leaves an attribute out.
    """
    named = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    start = name + "".join(f' {k}="{escape(v)}"' for k, v in named.items())
    if name in _VOID:
        return Html(f"<{start}>")
    return Html(f"<{start}>{join(children)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], numeric: Sequence[int] = ()) -> Html:
    """A table in a box that scrolls where the page is too narrow.

    Args:
        head: cells of the header; empty leaves it out.
        rows: cells of each row.
        numeric: indices of the columns that are aligned right.
    """

    def row(kind: str, cells: Sequence[Any]) -> Html:
        return tag(
            "tr",
            *(
                tag(kind, cell, class_="n" if i in numeric else None)
                for i, cell in enumerate(cells)
            ),
        )

    header = tag("thead", row("th", head)) if head else ""
    body = tag("tbody", *(row("td", cells) for cells in rows))
    return tag("div", tag("table", header, body), class_="scroll")


def section(title: str, *body: Any) -> Html:
    """A titled part of the page."""
    return tag("section", tag("h2", title), *body)


def missing(title: str, why: str) -> Html:
    """A section that says why it has no content."""
    return section(title, tag("p", why, class_="missing"))


def finite(value: Any) -> float | None:
    """``value`` as a float if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def number(value: Any, digits: int = 3) -> str:
    """A number with ``digits`` significant digits and thousands separators.

    ``–`` where the value is missing or not finite.
    """
    v = finite(value)
    if v is None:
        return _MISSING
    mantissa, exponent = f"{v:.{digits - 1}e}".split("e")
    if v and int(exponent) < -3:
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    decimals = max(digits - 1 - int(exponent), 0) if v else 0
    return f"{v:,.{decimals}f}"


def compact(value: Any, unit: str = "") -> str:
    """Three digits and a decimal prefix: ``1.12 M``, ``2.29 MB``."""
    v = finite(value)
    if v is None:
        return _MISSING
    power = next((p for p in (12, 9, 6, 3) if abs(v) >= 0.9995 * 10**p), 0)
    prefix = {12: "T", 9: "G" if unit else "B", 6: "M", 3: "k", 0: ""}[power]
    return f"{number(v / 10**power)} {prefix}{unit}".rstrip()


def percent(value: Any) -> str:
    """A share in per cent."""
    v = finite(value)
    if v is None:
        return _MISSING
    if 0 < v < 0.0005:
        return "<\u00a00.1\u00a0%"
    return f"{100 * v:.1f}\u00a0%"


def duration(seconds: Any) -> str:
    """``850 ms``, ``4.2 s``, ``1 min 56 s``, ``3 h 05 min``."""
    s = finite(seconds)
    if s is None:
        return _MISSING
    if s < 0.9995:
        return f"{1000 * s:.0f} ms"
    if s < 59.95:
        return f"{s:.1f} s"
    minutes, rest = divmod(round(s), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def value_text(value: Any) -> str:
    """Any JSON value as text: ``yes``, ``4,096``, ``a, b``; ``–`` where it is empty or not finite."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {value_text(v)}" for k, v in value.items()) or _MISSING
    if isinstance(value, list):
        return ", ".join(map(value_text, value)) or _MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number_text(value)
    return _MISSING if value in (None, "") else str(value)


def _number_text(value: float) -> str:
    if finite(value) is None:
        return _MISSING
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
