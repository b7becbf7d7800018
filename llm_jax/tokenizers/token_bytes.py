"""The bytes of each token of a Hugging Face ``tokenizer.json``, by the description of its decoder.

A decoder of ``tokenizers`` works on a whole list of tokens. The decoders in use treat each token
separately, and only the first one differently: Metaspace drops all blanks of it, and WordPiece puts
none before it. Two functions are therefore made here, and ids can be decoded one by one as they are
generated.

Bytes that are not UTF-8 become U+FFFD as Python decodes them, one for each incomplete sequence.
``tokenizers``' ByteFallback writes one for each byte of such a run, which a stream cannot know
before the run ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llm_jax.types import DataError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# The replacements by which a WordPiece decoder removes the blanks that it put before punctuation
# and short forms.
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
    """Character -> the byte that it stands for in byte-level vocabularies.

    Printable bytes are their own characters; the others are characters from U+0100 on.

    Source: GPT-2's ``bytes_to_unicode``.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTES = byte_characters()
# A step of a decoder: text to text, or to bytes, which no further step changes.
Step = Callable[[str], str | bytes]


class TokenDecoder(NamedTuple):
    """The steps by which a token becomes bytes.

    Attributes:
        later: Steps for a token after other tokens.
        first: Steps for the first token.
        strips: Whether one blank is removed from the start of the whole text.
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
    """The steps of a decoder for one token.

    Args:
        decoder: ``decoder`` of a tokenizer.json.
        where: Name of the file, for messages.

    Raises:
        DataError: The decoder is unknown, or does not treat each token separately.
    """
    if decoder is None:
        return TokenDecoder(later=(_after_a_blank,), first=(), strips=False)
    later: list[Step] = []
    first: list[Step] = []
    strips = False
    fused = False
    parts = _parts(decoder)
    fault = _order_fault(parts)
    if fault:
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
                place = " after Fuse" if fused else ""
                raise DataError(
                    f"{where}: decoder {kind!r} ({str(part)[:80]}){place} is not supported;"
                    " supported are ByteLevel, ByteFallback, Replace of a string, Strip of a blank"
                    " at the start, Metaspace and WordPiece, then Fuse, and after it Replace of one"
                    " character and Strip; use the model's SentencePiece file if there is one"
                )
            later.append(steps[0])
            first.append(steps[-1])
    return TokenDecoder(tuple(later), tuple(first), strips)


def _order_fault(parts: Sequence[dict[str, Any]]) -> str:
    """Why a sequence does not treat each token separately although each of its parts does; empty
    where it does.
    """
    kinds = [part.get("type") for part in parts]
    after_fuse = kinds[kinds.index("Fuse") :] if "Fuse" in kinds else []
    if "Strip" in after_fuse[:-1]:
        return "a Strip after Fuse that is not its last part"
    if "Metaspace" in kinds and "Strip" in after_fuse:
        return "Metaspace, which drops blanks of the first token, and a Strip of the whole text"
    can_empty = any(part.get("type") == "Replace" and not part.get("content") for part in parts)
    if "Metaspace" in kinds and can_empty:
        return (
            "Metaspace, which treats the first token differently, and a Replace that can leave a"
            " token empty"
        )
    return ""


def _parts(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder.get("type") != "Sequence":
        return [decoder]
    return [inner for part in decoder["decoders"] for inner in _parts(part)]


def _steps(decoder: dict[str, Any], fused: bool) -> tuple[Step, ...] | None:
    """The step for every token, or two steps: for tokens after the first one, and for the first
    one. None means that the part is not supported.
    """
    kind = decoder.get("type")
    if kind == "ByteLevel":
        return None if fused else (_byte_level,)
    if kind == "ByteFallback":
        return None if fused else (_byte_fallback,)
    if kind == "Replace" and "String" in decoder.get("pattern", {}):
        return _replace(decoder["pattern"]["String"], decoder["content"], fused)
    if kind == "Strip" and _is_strip_of_a_blank(decoder):
        prefix = " " * decoder["start"]
        return (lambda token: token.removeprefix(prefix),)
    if kind == "Metaspace" and not fused:
        return _metaspace(decoder)
    if kind == "WordPiece" and not fused:
        return _word_piece(decoder["prefix"], decoder["cleanup"])
    return None


def _replace(old: str, new: str, fused: bool) -> tuple[Step, ...] | None:
    if fused and len(old) != 1:
        # A longer string could begin in one token and end in the next.
        return None
    return (lambda token: token.replace(old, new),)


def _is_strip_of_a_blank(decoder: dict[str, Any]) -> bool:
    return (decoder["content"], decoder["stop"]) == (" ", 0) and decoder["start"] in (0, 1)


def _run(steps: Sequence[Step], token: str) -> bytes:
    text = token
    for step in steps:
        out = step(text)
        if isinstance(out, bytes):
            return out
        text = out
    return text.encode()


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

    # Older files have add_prefix_space in place of prepend_scheme.
    older = "always" if decoder.get("add_prefix_space", True) else "never"
    return (later,) if decoder.get("prepend_scheme", older) == "never" else (later, first)


def _word_piece(prefix: str, cleanup: bool) -> tuple[Step, ...]:
    def first(token: str) -> str:
        for old, new in _CLEANUP if cleanup else ():
            token = token.replace(old, new)
        return token

    def later(token: str) -> str:
        if prefix and token.startswith(prefix):
            return first(token.removeprefix(prefix))
        return first(f" {token}")

    return later, first
