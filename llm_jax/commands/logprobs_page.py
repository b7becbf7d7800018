"""One self-contained HTML page of texts, with the probabilities of their tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llm_jax.bench.page import Html, join, tag
from llm_jax.commands.written import Piece, Spelling, Written

_STYLE = Html("""
:root{color-scheme:light dark;--page:#fff;--ink:#18222d;--soft:#5a6775;--rule:#dde3e9;
--tint:1,105,178}
@media (prefers-color-scheme:dark){
:root{--page:#12171d;--ink:#e4e9ee;--soft:#98a5b3;--rule:#2c3641;--tint:245,138,60}}
body{margin:0 auto;max-width:900px;padding:32px 24px 160px;background:var(--page);
color:var(--ink);font:16px/1.9 system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
h1{font-size:22px;margin:0}
h2{font-size:14px;color:var(--soft);font-weight:500;margin:32px 0 4px}
.text{white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
.prompt{color:var(--soft)}
.soft{color:var(--soft);font-size:13px}
.t{position:relative;border-radius:3px;background:rgba(var(--tint),calc(var(--s)*.6));
outline:0;cursor:default}
.t:hover,.t:focus{box-shadow:0 0 0 2px rgba(var(--tint),1)}
.a{display:none;position:absolute;left:0;top:100%;z-index:1;min-width:220px;padding:8px 12px;
border:1px solid var(--rule);border-radius:6px;background:var(--page);color:var(--ink);
font-size:13px;line-height:1.5;white-space:normal;box-shadow:0 6px 24px rgba(0,0,0,.18)}
.t:hover>.a,.t:focus>.a{display:block}
.a span{display:flex;justify-content:space-between;gap:20px}
.a code{white-space:pre}
.a .own{font-weight:700}
.scale{display:inline-block;width:160px;height:10px;vertical-align:middle;margin:0 8px;
border-radius:3px;background:linear-gradient(90deg,rgba(var(--tint),0),rgba(var(--tint),.6))}
""")
# The least likely tokens have the full tint.
_UNLIKELY = math.log(0.01)


def page(written: Sequence[Written], spelling: Spelling, title: str) -> str:
    """The page: each token tinted by how unlikely it was, with the alternatives where the pointer
    is or the keyboard's focus.

    Args:
        written: prompts and what was written after them, with scores.
        spelling: how tokens are shown.
        title: of the page.
    """
    texts = [
        _text(one, number, sample, spelling)
        for number, one in enumerate(written)
        for sample in range(len(one.completions))
    ]
    scale = tag("span", class_="scale")
    legend = tag(
        "p", "likely", scale, "unlikely (1 in 100 or less). Point at a token.", class_="soft"
    )
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width"),
            tag("title", title),
            tag("style", _STYLE),
        ]
    )
    body = tag("body", tag("h1", title), legend, *texts)
    return f"<!doctype html>\n{tag('html', tag('head', head), body, lang='en')}\n"


def _text(one: Written, number: int, sample: int, spelling: Spelling) -> Html:
    completion = one.completions[sample]
    pieces = spelling.pieces(one.ids, completion)
    name = f"Prompt {number}, text {sample}, seed {completion.seed}"
    ended = f"ended by {completion.finish_reason}"
    if completion.stop is not None:
        stop = completion.stop
        ended += f": {spelling.name(stop) if isinstance(stop, int) else stop!r}"
    return join(
        [
            tag("h2", name),
            tag("p", tag("span", one.prompt, class_="prompt"), *map(_token, pieces), class_="text"),
            tag("p", ended, class_="soft"),
        ]
    )


def _token(piece: Piece) -> Html:
    score = piece.score
    strength = 0.0
    if math.isfinite(score.logprob):
        strength = min(score.logprob / _UNLIKELY, 1.0)
    rank = f"rank {score.rank}"
    lines = [_alternative(piece.name, score.logprob, "own"), tag("span", rank, class_="soft")]
    lines += [_alternative(name, logprob, None) for name, logprob in piece.others]
    # A part of a character adds no text, and is shown by its name.
    shown = piece.text or f"⟨{piece.name}⟩"
    box = tag("span", *lines, class_="a")
    return tag("span", shown, box, class_="t", style=f"--s:{strength:.2f}", tabindex=0)


def _alternative(name: str, logprob: float, kind: str | None) -> Html:
    shown = f"{math.exp(logprob):.2%}" if not math.isnan(logprob) else "–"
    return tag("span", tag("code", name), tag("b", shown), class_=kind)
