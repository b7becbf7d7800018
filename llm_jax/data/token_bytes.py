"""What each token of a Hugging Face ``tokenizer.json`` stands for in bytes, from its decoder's description.

A decoder of ``tokenizers`` works on a whole list of tokens. All in use are, but for the blank before the first token, the same
function of each token by itself; that function is made here, so that ids can be decoded one by one as they are generated.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from llm_jax.types import DataError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What a WordPiece decoder does to the blanks that it has put before punctuation and short forms.
_CLEANUP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


def byte_characters() -> dict[str, int]:
    """The character that byte-level vocabularies write for each byte: itself where it is printable, else from U+0100 on.

    Source: GPT-2's ``bytes_to_unicode``.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTES = byte_characters()
# A step of a decoder: text to text, or to bytes, after which nothing changes it any more.
Step = Callable[[str], str | bytes]


def token_decoder(decoder: dict[str, Any] | None, where: str) -> tuple[Callable[[str], bytes], bool]:
    """``(bytes of a token, whether a blank that leads the text is to be dropped)`` for the ``decoder`` of a tokenizer.json.

    Raises DataError for a decoder whose tokens cannot be decoded one by one; ``where`` names the file.
    """
    steps: list[Step] = []
    strips = _add_steps({"type": "Joined"} if decoder is None else decoder, steps, where)

    def decode(token: str) -> bytes:
        out: str | bytes = token
        for step in steps:
            out = step(out)
            if isinstance(out, bytes):
                return out
        return out.encode()

    return decode, strips


def _add_steps(decoder: dict[str, Any], steps: list[Step], where: str) -> bool:
    """Appends what the decoder does to a token; True if it drops the blank that leads the text."""
    kind = decoder.get("type")
    if kind == "Sequence":
        strips = [_add_steps(part, steps, where) for part in decoder["decoders"]]
        return any(strips)
    if kind == "ByteLevel":
        steps.append(_byte_level)
    elif kind == "ByteFallback":
        steps.append(_byte_fallback)
    elif kind == "Fuse":
        pass
    elif kind == "Replace" and "String" in decoder.get("pattern", {}):
        old, new = decoder["pattern"]["String"], decoder["content"]
        steps.append(lambda token: token.replace(old, new))
    elif kind == "Strip" and (decoder["content"], decoder["stop"]) == (" ", 0) and decoder["start"] in (0, 1):
        return bool(decoder["start"])
    elif kind == "Metaspace":
        mark = decoder["replacement"]
        steps.append(lambda token: token.replace(mark, " "))
        # Files from before prepend_scheme say add_prefix_space.
        return decoder.get("prepend_scheme", "always" if decoder.get("add_prefix_space", True) else "never") != "never"
    elif kind == "WordPiece":
        steps.append(_word_piece(decoder["prefix"], decoder["cleanup"]))
        return True
    elif kind == "Joined":
        steps.append(lambda token: f" {token}")
        return True
    else:
        raise DataError(
            f"{where}: decoder {kind!r} ({str(decoder)[:80]}) is unknown here; known are ByteLevel, ByteFallback, Fuse, Replace of a "
            "string, Strip of a blank at the start, Metaspace, WordPiece, and a Sequence of them"
        )
    return False


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTES[c] for c in token])
    except KeyError:
        return token.encode()


def _byte_fallback(token: str) -> str | bytes:
    found = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token


def _word_piece(prefix: str, cleanup: bool) -> Step:
    def decode(token: str) -> str:
        text = token[len(prefix) :] if prefix and token.startswith(prefix) else f" {token}"
        for old, new in _CLEANUP if cleanup else ():
            text = text.replace(old, new)
        return text

    return decode
