"""What each token of a Hugging Face ``tokenizer.json`` stands for in bytes, from its decoder's
description.

A decoder of ``tokenizers`` works on a whole list of tokens. Those in use treat each token by
itself, and the first one in a way of its own: Metaspace leaves out all its blanks, WordPiece puts
none before it. So two functions are made here, and ids can be decoded one by one as they are
generated. Bytes that are no UTF-8 become U+FFFD as Python decodes them, one for each sequence that
is cut short; ``tokenizers``' ByteFallback writes one for each byte of such a run, which a stream
cannot know before the run ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llm_jax.types import DataError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What a WordPiece decoder does to the blanks that it has put before punctuation and short forms.
_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def byte_characters() -> dict[str, int]:
    """The character that byte-level vocabularies write for each byte: itself where it is printable,
    else from U+0100 on.

    Source: GPT-2's ``bytes_to_unicode``.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTES = byte_characters()
# A step of a decoder: text to text, or to bytes, after which nothing changes it any more.
Step = Callable[[str], str | bytes]


class TokenDecoder(NamedTuple):
    """Steps by which a token becomes bytes, after other tokens (``later``) and as the first one.

    strips: whether one blank is cut off the text that all tokens make together.
    """

    later: tuple[Step, ...]
    first: tuple[Step, ...]
    strips: bool

    @property
    def adds_prefix(self) -> bool:
        """Whether the first token is written without the blank that it has elsewhere."""
        return self.strips or self.first != self.later

    def later_bytes(self, token: str) -> bytes:
        """The bytes of a token after others."""
        return _run(self.later, token)

    def first_bytes(self, token: str) -> bytes:
        """The bytes of a token before all others."""
        data = _run(self.first, token)
        return data.removeprefix(b" ") if self.strips else data


def token_decoder(decoder: dict[str, Any] | None, where: str) -> TokenDecoder:
    """How the ``decoder`` of a tokenizer.json decodes one token.

    Raises DataError for a decoder whose tokens cannot be decoded one by one; ``where`` names the
    file.
    """
    if decoder is None:
        return TokenDecoder(later=(_after_a_blank,), first=(), strips=False)
    later: list[Step] = []
    first: list[Step] = []
    strips = fused = False
    parts = _parts(decoder)
    if fault := _order_fault(parts):
        raise DataError(
            f"{where}: decoder {str(decoder)[:200]} has {fault}; use the model's SentencePiece file"
            " if there is one"
        )
    for part in parts:
        kind = part.get("type")
        if kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and _is_strip_of_a_blank(part):
            strips = strips or part["start"] == 1
        else:
            steps = _steps(part, fused)
            if steps is None:
                raise DataError(
                    f"{where}: decoder {kind!r} ({str(part)[:80]}){' after Fuse' * fused} is"
                    " unknown here; known are ByteLevel, ByteFallback, Replace of a string, Strip"
                    " of a blank at the start, Metaspace and WordPiece, then Fuse, and after it"
                    " Replace of one character and Strip; use the model's SentencePiece file if"
                    " there is one"
                )
            later.append(steps[0])
            first.append(steps[-1])
    return TokenDecoder(tuple(later), tuple(first), strips)


def _order_fault(parts: Sequence[dict[str, Any]]) -> str:
    """What keeps a sequence from treating each token by itself though each of its parts does;
    nothing where that holds.
    """
    kinds = [part.get("type") for part in parts]
    after_fuse = kinds[kinds.index("Fuse") :] if "Fuse" in kinds else []
    if "Strip" in after_fuse[:-1]:
        return "a Strip after Fuse that is not its last part"
    if "Metaspace" in kinds and "Strip" in after_fuse:
        return "Metaspace, which takes blanks of the first token, and a Strip of the whole text"
    if "Metaspace" in kinds and any(
        kind == "Replace" and not part.get("content") for kind, part in zip(kinds, parts)
    ):
        return (
            "Metaspace, which treats the first token in a way of its own, and a Replace that can"
            " leave a token empty"
        )
    return ""


def _parts(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [inner for part in decoder["decoders"] for inner in _parts(part)]


def _steps(decoder: dict[str, Any], fused: bool) -> tuple[Step, ...] | None:
    """The step for any token or, of two, for tokens after the first and for the first; None where
    there is none.
    """
    kind = decoder.get("type")
    if kind == "ByteLevel":
        return None if fused else (_byte_level,)
    if kind == "ByteFallback":
        return None if fused else (_byte_fallback,)
    if kind == "Replace" and "String" in decoder.get("pattern", {}):
        # A longer one could begin in a token and end in the next.
        old, new = decoder["pattern"]["String"], decoder["content"]
        return (lambda token: token.replace(old, new),) if not fused or len(old) == 1 else None
    if kind == "Strip" and _is_strip_of_a_blank(decoder):
        return (lambda token: token.removeprefix(" " * decoder["start"]),)
    if kind == "Metaspace" and not fused:
        return _metaspace(decoder)
    if kind == "WordPiece" and not fused:
        return _word_piece(decoder["prefix"], decoder["cleanup"])
    return None


def _is_strip_of_a_blank(decoder: dict[str, Any]) -> bool:
    return (decoder["content"], decoder["stop"]) == (" ", 0) and decoder["start"] in (0, 1)


def _run(steps: Sequence[Step], token: str) -> bytes:
    out: str | bytes = token
    for step in steps:
        out = step(out)
        if isinstance(out, bytes):
            return out
    return out.encode()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTES[c] for c in token])
    except KeyError:
        return token.encode()


def _byte_fallback(token: str) -> str | bytes:
    found = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token


def _after_a_blank(token: str) -> str:
    return f" {token}"


def _metaspace(decoder: dict[str, Any]) -> tuple[Step, ...]:
    mark = decoder["replacement"]

    def later(token: str) -> str:
        return token.replace(mark, " ")

    def first(token: str) -> str:
        return token.replace(mark, "")

    # Files from before prepend_scheme say add_prefix_space.
    older = "always" if decoder.get("add_prefix_space", True) else "never"
    return (later,) if decoder.get("prepend_scheme", older) == "never" else (later, first)


def _word_piece(prefix: str, cleanup: bool) -> tuple[Step, ...]:
    def first(token: str) -> str:
        for old, new in _CLEANUP if cleanup else ():
            token = token.replace(old, new)
        return token

    def later(token: str) -> str:
        inner = bool(prefix) and token.startswith(prefix)
        return first(token[len(prefix) :] if inner else f" {token}")

    return later, first
