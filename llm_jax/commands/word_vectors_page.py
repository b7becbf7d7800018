"""One self-contained HTML page with pictures of words and their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm_jax.bench.page import STYLE, Html, join, number, section, table, tag
from llm_jax.classic.word2vec.projection import principal_plane, tsne_plane
from llm_jax.classic.word2vec.vectors import Vectors

_WIDTH = 960
_HEIGHT = 600
_MARGIN = 60
_LETTER = 6.6
_LINE = 13
_COLOURS = ("blue", "orange", "green", "purple", "red", "sky", "yellow", "grey")
_OWN_STYLE = Html("""
.words{width:100%;height:auto;border:1px solid var(--rule)}.words text{fill:var(--ink)}
.words text.asked{font-weight:700}
""")


class _Label(NamedTuple):
    """Where the text of a point lies: its left end, its base line, and its width."""

    x: float
    y: float
    width: float


def neighbour_page(
    vectors: Vectors, words: Sequence[str], *, count: int, tsne_seed: int | None = None
) -> str:
    """The page as text.

    Args:
        vectors: of the words.
        words: whose neighbours are shown.
        count: neighbours of each word.
        tsne_seed: of a second picture by t-SNE; None draws none.

    Raises:
        ConfigError: t-SNE needs a package that is not installed.
        DataError: a word has no vector, or there are too few words for a picture.
    """
    words = list(dict.fromkeys(words))
    near = {word: vectors.nearest(word, count) for word in words}
    # A neighbour of several words has the colour of the first.
    owner = {word: i for i, word in enumerate(words)}
    for i, word in enumerate(words):
        for other, _ in near[word]:
            owner.setdefault(other, i)
    shown = list(owner)
    units = vectors.units[[vectors.row(word) for word in shown]]
    pictures = [
        section("Principal components", _picture(principal_plane(units), shown, owner, len(words)))
    ]
    if tsne_seed is not None:
        plane = tsne_plane(units, tsne_seed)
        pictures.append(section("t-SNE", _picture(plane, shown, owner, len(words))))
    lists = [_neighbours(word, near[word], i) for i, word in enumerate(words)]
    title = "Neighbours of " + ", ".join(words)
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width"),
            tag("title", title),
            tag("style", STYLE, _OWN_STYLE),
        ]
    )
    explanation = tag(
        "p",
        f"{len(vectors):,} words, {vectors.values.shape[1]} dimensions. Words near each other in a"
        " picture need not be near in all dimensions; the cosines below are.",
        class_="soft",
    )
    body = tag(
        "main",
        tag("h1", title),
        explanation,
        *pictures,
        section("Cosines", tag("div", *lists, class_="columns")),
    )
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _neighbours(word: str, near: Sequence[tuple[str, float]], index: int) -> Html:
    swatch = tag("span", "", class_=f"swatch {_colour(index)}")
    rows = [(other, number(cosine)) for other, cosine in near]
    return tag("div", tag("h3", swatch, word), table((), rows, numeric=(1,)))


def _picture(plane: np.ndarray, words: Sequence[str], owner: dict[str, int], asked: int) -> Html:
    places = _scaled(plane)
    taken: list[_Label] = []
    marks = []
    for i, (word, (x, y)) in enumerate(zip(words, places.tolist())):
        label = _free_label(x, y, len(word) * _LETTER, taken)
        taken.append(label)
        dot = tag(
            "circle",
            tag("title", word),
            cx=f"{x:.1f}",
            cy=f"{y:.1f}",
            r=6 if i < asked else 4,
            class_=f"dot {_colour(owner[word])}",
        )
        text = tag(
            "text",
            word,
            x=f"{label.x:.1f}",
            y=f"{label.y:.1f}",
            class_="asked" if i < asked else None,
        )
        marks += [dot, text]
    return tag(
        "svg",
        *marks,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        class_="words",
        role="img",
        aria_label="words in a plane",
    )


def _scaled(plane: np.ndarray) -> np.ndarray:
    """Places in the picture; both axes have one scale."""
    low, high = plane.min(axis=0), plane.max(axis=0)
    size = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    spans = high - low
    scale = min((room / span for room, span in zip(size, spans) if span > 0), default=1.0)
    middle = (low + high) / 2
    return np.array([_WIDTH, _HEIGHT]) / 2 + (plane - middle) * scale * np.array([1, -1])


def _free_label(x: float, y: float, width: float, taken: Sequence[_Label]) -> _Label:
    """The first of four places around a point where a text is inside and covers no other; where
    there is none, the first that is inside.
    """
    tries = [
        _Label(x + 8, y + 4, width),
        _Label(x - 8 - width, y + 4, width),
        _Label(x - width / 2, y - 9, width),
        _Label(x - width / 2, y + 18, width),
    ]
    inside = [label for label in tries if label.x >= 0 and label.x + label.width <= _WIDTH]
    free = (label for label in inside if not any(_overlap(label, other) for other in taken))
    return next(free, inside[0] if inside else tries[0])


def _overlap(one: _Label, other: _Label) -> bool:
    beside = one.x + one.width < other.x or other.x + other.width < one.x
    return not beside and abs(one.y - other.y) < _LINE


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
