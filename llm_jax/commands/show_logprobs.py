"""Tokens with their probabilities on a terminal: colours, or plain lines where there are none."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from llm_jax.commands.written import Piece, Spelling, Written

BANDS = (
    (0.9, "green"),
    (0.5, "cyan"),
    (0.2, "yellow"),
    (0.05, "magenta"),
    (0.0, "red"),
)
"""The least probability of each colour, the largest first."""
_SHOWN_LINE_FEED = "⏎\n"


def show(written: Sequence[Written], spelling: Spelling) -> None:
    """Prints texts with the probabilities of their tokens."""
    draw = _show_colours if sys.stdout.isatty() else _show_lines
    for one in written:
        for completion in one.completions:
            draw(one.prompt, spelling.pieces(one.ids, completion))


def band(logprob: float) -> str:
    """The colour of a log-probability; "dim" where it is not a number."""
    if math.isnan(logprob):
        return "dim"
    probability = math.exp(logprob)
    return next(colour for least, colour in BANDS if probability >= least)


def _show_colours(prompt: str, pieces: Sequence[Piece]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    text = Text()
    text.append(prompt, style="dim")
    for piece in pieces:
        shown = piece.text.replace("\n", _SHOWN_LINE_FEED)
        text.append(shown, style=band(piece.score.logprob))
    console.print(text, soft_wrap=True)
    legend = Text("probability at least ")
    for least, colour in BANDS:
        legend.append(f" {least:g} ", style=colour)
    console.print(legend)


def _show_lines(prompt: str, pieces: Sequence[Piece]) -> None:
    print(prompt + "".join(piece.text for piece in pieces))
    print("probability\tlogprob\trank\ttoken\tmost likely")
    for piece in pieces:
        score = piece.score
        others = "  ".join(f"{name!r} {logprob:.4f}" for name, logprob in piece.others)
        numbers = f"{math.exp(score.logprob):.4f}\t{score.logprob:.4f}\t{score.rank}"
        print(f"{numbers}\t{piece.name!r}\t{others}")
