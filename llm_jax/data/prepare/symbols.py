"""Symbols of a vocabulary: user symbols, which are texts with a token each, and control symbols."""

from __future__ import annotations

import re

from llm_jax.data.corpus.clean import CleanOptions, clean
from llm_jax.tokenizers.sentencepiece_model import BLANK
from llm_jax.types import DataError

SPECIAL = {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3}
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


def checked_symbols(
    user: tuple[str, ...], control: tuple[str, ...], sentinels: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Check the symbols of a new vocabulary.

    Args:
        user: texts that are to be one token each.
        control: tokens that stand for no text.
        sentinels: number of control symbols ``<extra_id_0>``, ``<extra_id_1>``, … to add.

    Returns:
        User symbols, and control symbols with the sentinels.

    Raises:
        DataError: a symbol that cannot be one token, or is given twice.
    """
    marks = tuple(f"<extra_id_{i}>" for i in range(sentinels))
    seen = {*SPECIAL, *marks}
    for name, option, symbols in (
        ("user_symbols", "--user-symbols", user),
        ("control_symbols", "--control-symbols", control),
    ):
        where = f"{name}={str(list(symbols))[:80]} ({option})"
        for symbol in symbols:
            fault = _fault(symbol)
            if fault:
                raise DataError(f"{where}: {symbol!r} {fault}")
            if symbol in seen:
                raise DataError(f"{where}: {symbol!r} is there already; leave it out")
            seen.add(symbol)
    return tuple(user), (*control, *marks)


def _fault(symbol: str) -> str:
    """Why the symbol cannot be one token; empty if it can."""
    if not symbol:
        return "is empty; give it some text or leave it out"
    if BLANK in symbol:
        return (
            "has U+2581 in it, which SentencePiece takes for a blank; write a blank, or another"
            " character"
        )
    if "\0" in symbol:
        return "has a NUL in it, at which SentencePiece ends a symbol; write another character"
    if any("\ud800" <= c <= "\udfff" for c in symbol):
        return "has an unpaired surrogate in it, which has no UTF-8 form; write another character"
    if _BYTE_TOKEN.fullmatch(symbol):
        return "is how the token of a byte is written; choose another text"
    return ""


def cleaned_away(symbols: tuple[str, ...], options: CleanOptions) -> list[str]:
    """Symbols that cleaning with ``options`` changes, so that no cleaned text has them."""
    return [symbol for symbol in symbols if symbol not in clean(f"x{symbol}x", options)]
