"""GGUF files written by hand, number by number, so that tests can lie in any of them; and lines of
mixed text.
"""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path
from pydoc_data import topics

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = dict(zip((U8, I8, U16, I16, U32, I32, F32, BOOL, U64, I64, F64), "BbHhIif?Qqd"))


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: int, value) -> bytes:
    """A value without its type. An array is ``(element type, values)``."""
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(scalar(inner, v) for v in values)
    return struct.pack("<" + _CODES[kind], value)


def key(name: str | bytes, kind: int, value) -> bytes:
    return text(name) + struct.pack("<I", kind) + scalar(kind, value)


def tensor(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    """An entry of the header; ``dims`` in GGUF's order, the last dimension first."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf(
    keys=(),
    tensors=(),
    data=b"",
    *,
    version=3,
    key_count=None,
    tensor_count=None,
    alignment=32,
    magic=b"GGUF",
) -> bytes:
    """A whole file of keys and tensors that are bytes already; the counts are true unless given."""
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


_PORTUGUESE = (
    "A atenção não é uma função de distância; ela é uma média ponderada.",
    "Coração, maçã, pão, avô e avó: três crianças à beira do rio.",
    "O preço é de R$ 1.234,56 — à vista, ou em 10x sem juros!",
    "Você já viu isso? Amanhã nós iremos ao Paraná às 15h30.",
)
_POOLS = (
    "ação você não é informação coração pão três à às Ünïcödé ",
    "👍🏽👨‍👩‍👧‍👦🇧🇷🎉😀e\u0301ß½²Ⅷ①",
    "日本語の文字列テスト你好，世界。한국어 一二三",
    "".join(map(chr, range(32))) + "\x7f\x80\x85\xa0\u200b\u2028\ufeff\ufffd\u2581",
    "  \t\n\r  123 4567 0.5 1,000 a1b2 ",
    "it's I'LL we've don'T 'S <|im_start|>user\n<|im_end|> def f(x): return x**2  # ok\n",
)


def mixed_lines(count: int, seed: int = 0) -> list[str]:
    """English, Portuguese, code, emoji, CJK, control characters, random code points; the same lines
    for the same seed.
    """
    rng = random.Random(seed)
    english = [
        line
        for topic in topics.topics.values()
        for line in topic.splitlines(keepends=True)
        if line.strip()
    ]
    code = Path(__file__).read_text().splitlines(keepends=True)

    def pieces() -> str:
        out = ""
        for pool in rng.choices(_POOLS, k=rng.randint(1, 6)):
            start = rng.randrange(len(pool))
            out += pool[start : start + rng.randint(1, 9)]
        return out

    def points() -> str:
        return "".join(
            chr(c) for c in (rng.randrange(0x30000) for _ in range(8)) if not 0xD800 <= c < 0xE000
        )

    makers = (
        lambda: rng.choice(english),
        lambda: rng.choice(_PORTUGUESE)[rng.randrange(20) :],
        lambda: rng.choice(code),
        pieces,
        pieces,
        points,
    )
    return [make() for make in itertools.islice(itertools.cycle(makers), count)]
