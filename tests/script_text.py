"""Letters of many scripts, and lines of one script alone."""

from __future__ import annotations

import random


def _between(first: int, last: int) -> list[str]:
    return [chr(code) for code in range(first, last + 1)]


ALPHABETS = {
    "Latin": [*_between(0x61, 0x7A), *"áçéñöüßđłž"],
    "Cyrillic": [*_between(0x430, 0x44F), "ё", "ї"],
    "Greek": [*_between(0x3B1, 0x3C9), "ά", "ΐ"],
    "Arabic": [*_between(0x627, 0x63A), *_between(0x641, 0x652)],
    "Hebrew": [*_between(0x5D0, 0x5EA), "\u05b8", "\u05b0"],
    "Devanagari": [*_between(0x905, 0x939), *_between(0x93E, 0x94D)],
    "Thai": [*_between(0xE01, 0xE2E), *_between(0xE30, 0xE39), *_between(0xE40, 0xE4E)],
    "Chinese": list("天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏𠜎"),
    "Japanese": [*_between(0x3042, 0x306F), *_between(0x30A2, 0x30CF), *"漢字日本語、。"],
    "Korean": [chr(0xAC00 + 28 * n + n % 28) for n in range(50)] + ["\u1112", "\u1161", "\u11ab"],
    "Emoji": [
        "😀",
        "👍🏽",
        "👩\u200d👩\u200d👧",
        "🇧🇷",
        "❤\ufe0f",
        "1\ufe0f\u20e3",
        "🏳\ufe0f\u200d🌈",
        "🧑🏿\u200d🚀",
    ],
    "Combining": ["e\u0301", "A\u030a", "q\u0323\u0307", "\u0301", "\u212b", "o\u0308", "n\u0303"],
}
# What tokenizers give a meaning of their own, and characters that text rarely has.
ODD = [
    "\u2581",
    "\u2581\u2581",
    "\u2585",
    "\0",
    "\r\n",
    "\x0b",
    "\x1c",
    "\x85",
    "\u2028",
    "\u3000",
    "\u00a0",
    "\ufeff",
    "\ufffd",
    "\U0010ffff",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<0x41>",
    "hello world",
]


def script_lines(script: str, count: int = 150, blanks: bool = True) -> list[str]:
    """Lines of 40 letters of one script; the same for the same script."""
    rng = random.Random(script)
    letters = ALPHABETS[script]

    def letter() -> str:
        return rng.choice(letters) + (" " if blanks and rng.random() < 0.2 else "")

    return ["".join(letter() for _ in range(40)).strip() for _ in range(count)]
