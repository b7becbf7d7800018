"""Lines of mixed text on which tokenizers differ if they can, the same for the same seed."""

from __future__ import annotations

import random

ENGLISH = [
    "the",
    "of",
    "and",
    "to",
    "a",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "When",
    "we",
    "it's",
    "don't",
    "I'LL",
    "they've",
    "O'Neill",
    "state-of-the-art",
    "e.g.",
    "Mr.",
    "naïve",
    "1st",
    "3.14159",
    "1,000,000",
    "50%",
    "$9.99",
]
PORTUGUESE = [
    "não",
    "é",
    "você",
    "são",
    "coração",
    "ação",
    "informação",
    "português",
    "então",
    "também",
    "três",
    "avó",
    "avô",
    "às",
    "à",
    "ÀS",
    "lingüiça",
    "pinguim",
    "maçã",
    "João",
    "São",
    "Paulo",
]
CODE = [
    "def f(x: int) -> int:",
    "    return x ** 2  # square",
    "\tif (a && b) { c += 1; }",
    "for (int i = 0; i < n; ++i)",
    "SELECT * FROM t WHERE a != 'b';",
    '<div class="x">&nbsp;</div>',
    "https://example.org/a?b=c&d=%20e#f",
    "x = {'a': [1, 2, 3], \"b\": None}",
    'printf("%d\\n", n);',
    "snake_case camelCase",
    "0xDEADBEEF",
    "1e-10",
    "a->b::c",
    "$HOME/.config",
    "```python",
    "=== !== <= >=",
    "\\begin{align} \\alpha_{i} \\end{align}",
]
EMOJI = [
    "😀",
    "👍🏽",
    "👩\u200d👩\u200d👧\u200d👦",
    "🇧🇷",
    "❤️",
    "☕",
    "🏳️\u200d🌈",
    "1️⃣",
    "🧑🏿\u200d🚀",
    "✨✨✨",
]
SCRIPTS = [
    "日本語のテキスト",
    "中文文本处理",
    "繁體中文",
    "한국어 문장입니다",
    "ｆｕｌｌｗｉｄｔｈ\u3000１２３",
    "カタカナ",
    "ﾊﾝｶｸ",
    "Привет мир",
    "Ελληνικά",
    "مرحبا بالعالم",
    "שלום",
    "हिन्दी पाठ",
    "ไทย",
    "𠜎𠜱",
    "𝒜𝓃𝒹 𝟙𝟚",
    "ﬁnance ﬂow",
    "e\u0301 vs é",
    "A\u030a \u212b Å",
    "ẞß",
    "İıiI",
    "Ⅷ ½ ² ™",
]
CONTROL = [chr(c) for c in (*range(0x20), 0x7F, 0x80, 0x85, 0x9F, 0xA0, 0xAD)]
CONTROL += [
    chr(c)
    for c in (
        *range(0x200B, 0x200F),
        0x2028,
        0x2029,
        0x202E,
        0x2060,
        0x3000,
        0xFEFF,
        0xFFFC,
        0xFFFD,
        0xFFFE,
        0xFFFF,
    )
]
BLANKS = [
    " ",
    "  ",
    "   ",
    " " * 7,
    " " * 16,
    " " * 40,
    " " * 131,
    "\t",
    "\t\t\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n ",
    "\n\n\n   \t",
]
BLANKS += ["\u00a0\u00a0", " \u3000 "]
# What tokenizers give a meaning of their own, and what is almost, but not quite, something else.
INVALID_ISH = [
    "▁",
    "▁▁a",
    "<0x0A>",
    "<0xZZ>",
    "Ġ",
    "ĊĊ",
    "##ing",
    "@@",
    "</w>",
    "\U0010ffff",
    "\U000e0001",
    "\u0301\u0301\u0301",
    "\u200d\u200d",
    "�����",
    "a\x00b",
    "\\ud800",
    "%C3%28",
    "Ã©",
    "â€™",
    "[UNK",
    "<s",
    "</",
    "<|",
    "|>",
]


def mixed_lines(count: int = 10_000, seed: int = 0, special: tuple[str, ...] = ()) -> list[str]:
    """``count`` lines: English, Portuguese, code, emoji, other scripts, control characters, long
    blanks, oddities, random characters.

    special: texts of special tokens, put into one line of fifty.
    """
    rng = random.Random(seed)
    kinds = [ENGLISH, ENGLISH, PORTUGUESE, CODE, EMOJI, SCRIPTS, CONTROL, INVALID_ISH]

    def line(number: int) -> str:
        own = rng.choice(kinds)
        parts = []
        for _ in range(rng.randint(0, 24)):
            kind = own if rng.random() < 0.7 else rng.choice(kinds)
            word = (
                rng.choice(kind)
                if rng.random() < 0.97
                else "".join(map(_character, [rng] * rng.randint(1, 12)))
            )
            if rng.random() < 0.1:
                word = rng.choice(
                    [
                        word.upper(),
                        word.title(),
                        word * rng.randint(2, 9),
                        word + rng.choice(".,;:!?…—\"'()"),
                    ]
                )
            parts += [
                word,
                rng.choice(BLANKS) if rng.random() < 0.15 else " " if rng.random() < 0.85 else "",
            ]
        if special and number % 50 == 0:
            parts.insert(rng.randint(0, len(parts)), rng.choice(special))
        return "".join(parts)

    return [line(number) for number in range(count)]


def _character(rng: random.Random) -> str:
    while True:
        code = int(0x110000 ** rng.random())
        if not 0xD800 <= code < 0xE000:
            return chr(code)
