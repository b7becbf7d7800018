"""One self-contained HTML page with the attention of a text."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.bench.page import STYLE, Html, join, number, section, table, tag
from llm_jax.evaluation.attention import HeadFigures
from llm_jax.models.attention_maps import AttentionMap

_OWN_STYLE = Html("""
.heads{display:grid;grid-template-columns:repeat(auto-fill,minmax(180px,1fr));gap:20px}
canvas{width:100%;aspect-ratio:1;image-rendering:pixelated;border:1px solid var(--rule);
cursor:crosshair;display:block}
.pointed{position:sticky;top:0;background:var(--page);padding:8px 0;min-height:40px;z-index:1}
""")
# Draws each map from its bytes, and names what the pointer is at.
_SCRIPT = Html("""
const pointed=document.querySelector('.pointed');
for(const canvas of document.querySelectorAll('canvas')){
const bytes=Uint8Array.from(atob(canvas.dataset.weights),c=>c.charCodeAt(0));
const queries=JSON.parse(canvas.dataset.queries),keys=JSON.parse(canvas.dataset.keys);
const draw=canvas.getContext('2d'),image=draw.createImageData(keys.length,queries.length);
bytes.forEach((b,i)=>image.data.set([11,106,166,b],4*i));
draw.putImageData(image,0,0);
canvas.addEventListener('pointermove',e=>{
const box=canvas.getBoundingClientRect();
const at=(x,size,n)=>Math.min(n-1,Math.max(0,Math.floor(x/size*n)));
const t=at(e.clientY-box.top,box.height,queries.length);
const s=at(e.clientX-box.left,box.width,keys.length);
pointed.textContent=`${canvas.dataset.name}: ${queries[t]} (${t}) looks at ${keys[s]} (${s}): `+
`${(bytes[t*keys.length+s]/255*100).toFixed(1)} %`;});}
""")
_PARTS = {"encoder": "Encoder", "decoder": "Self-attention", "cross": "Attention to the encoder"}


class AttentionPage(NamedTuple):
    """What the page shows.

    Attributes:
        title: of the page.
        tokens: names of the tokens of the text.
        encoder_tokens: names of those that the encoder reads.
        maps: the layers that are drawn, of one row.
        figures: of all heads.
    """

    title: str
    tokens: Sequence[str]
    encoder_tokens: Sequence[str]
    maps: Sequence[AttentionMap]
    figures: Sequence[HeadFigures]


def page(shown: AttentionPage) -> str:
    """The page as text."""
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width"),
            tag("title", shown.title),
            tag("style", STYLE, _OWN_STYLE),
        ]
    )
    explanation = tag(
        "p",
        "Each row of a map is a token that looks, each column a token that it looks at; the darker,"
        " the more weight. Point at a map to read it.",
        class_="soft",
    )
    pointed = tag("p", "", class_="pointed", aria_live="polite")
    body = tag(
        "main",
        tag("h1", shown.title),
        tag("p", " ".join(shown.tokens)),
        explanation,
        pointed,
        *[_layer(one, shown) for one in shown.maps],
        _figures(shown.figures),
    )
    script = tag("script", _SCRIPT)
    document = tag("html", tag("head", head), tag("body", body, script), lang="en")
    return f"<!doctype html>\n{document}\n"


def _layer(one: AttentionMap, shown: AttentionPage) -> Html:
    queries = shown.encoder_tokens if one.part == "encoder" else shown.tokens
    keys = shown.tokens if one.part == "decoder" else shown.encoder_tokens
    heads = []
    for head, weights in enumerate(np.asarray(one.weights[0])):
        name = f"{_PARTS[one.part]}, layer {one.layer}, head {head}"
        levels = np.round(np.clip(weights, 0, 1) * 255).astype(np.uint8)
        canvas = tag(
            "canvas",
            width=len(keys),
            height=len(queries),
            role="img",
            aria_label=name,
            data_name=name,
            data_weights=base64.b64encode(levels.tobytes()).decode(),
            data_queries=_json(queries),
            data_keys=_json(keys),
        )
        heads.append(tag("figure", tag("figcaption", f"Head {head}"), canvas))
    title = f"{_PARTS[one.part]}, layer {one.layer}"
    return section(title, tag("div", *heads, class_="heads"))


def _json(tokens: Sequence[str]) -> str:
    return json.dumps(list(tokens), ensure_ascii=False)


def _figures(figures: Sequence[HeadFigures]) -> Html:
    head = (
        "part",
        "layer",
        "head",
        "entropy, nats",
        "norm of the output",
        "weight of the first token",
        "distance, tokens",
    )
    rows = [
        (
            _PARTS[one.part],
            one.layer,
            one.head,
            number(one.entropy),
            number(one.norm),
            number(one.first),
            number(one.distance),
        )
        for one in figures
    ]
    return section("Every head", table(head, rows, numeric=range(1, 7)))
