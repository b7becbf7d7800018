"""Tests that a vocabulary encodes and decodes text without loss: its own text, many scripts and
unusual characters.
"""

from __future__ import annotations

from collections.abc import Sequence

from llm_jax.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from llm_jax.types import DataError

LINES = 3000
SCRIPTS = {
    "Latin": "The naïve café, às vezes «não»; Łódź, Đà Nẵng and Straße.",
    "Cyrillic": "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "Greek": "Ταχίστη αλώπηξ βαφής ψημένη γη, δρασκελίζει υπέρ νωθρού κυνός.",
    "Arabic": "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر.",
    "Hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא חברה; שָׁלוֹם.",
    "Devanagari": "ऋषियों को सताने वाले दुष्ट राक्षसों का सर्वनाश। क्षत्रिय",
    "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า น้ำ",
    "Chinese": "天地玄黃，宇宙洪荒。日月盈昃，辰宿列张。𠜎𠜱",
    "Japanese": "いろはにほへと ちりぬるを。カタカナ、ﾊﾝｶｸ、漢字。",
    "Korean": "키스의 고유조건은 입술끼리 만나야 하고. \u1112\u1161\u11ab",
    "Emoji": "😀👍🏽👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈1️⃣🇧🇷❤️",
    "Combining": "e\u0301 A\u030a q\u0323\u0307 \u0301\u0301 \u212b",
}
_BLANKS = (
    " ",
    "  ",
    " " * 40,
    "\n",
    "\n\n",
    "\t",
    "\t\t",
    "\r\n",
    " \n ",
    "\n \t",
    "a b",
    " a",
    "a ",
    "hello world",
    "a\nb",
    "\u00a0",
    "\u3000",
)
_ODD = (
    "\u2581",
    "\u2581\u2581a \u2581",
    "\u2585",
    "\0",
    "\x0b\x0c",
    "\x1c\x1d\x1e\x7f",
    "\x85",
    "\u2028\u2029",
    "\ufeff",
    "\ufffd",
    "\ufffe\uffff",
    "\u200b\u200d\u2060",
    "\U0010ffff",
    "\U000e0001",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<0x0A>",
    "<0xZZ>",
)
_JOINED = tuple(text.replace(" ", "") for text in SCRIPTS.values())
_BUILT_IN = (*SCRIPTS.values(), *_JOINED, *_BLANKS, *_ODD, "\n".join(SCRIPTS.values()))


def check_round_trip(
    tokenizer: SentencePieceTokenizer, lines: Sequence[str], symbols: Sequence[str]
) -> None:
    """Check that text is the same after it is encoded and decoded.

    Args:
        tokenizer: the trained vocabulary.
        lines: text that it was trained on; at most ``LINES`` lines are tried, and the texts that
            are built into this module.
        symbols: its user symbols, each of which must be one token.

    Raises:
        DataError: a text that changes, or a symbol that is not one token.
    """
    texts = [*_spread(lines), *_BUILT_IN, *(f"x{symbol} {symbol}{symbol}\n" for symbol in symbols)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts)):
        back = tokenizer.decode(ids)
        if back != text:
            raise DataError(
                f"the trained vocabulary loses text: {text[:80]!r} comes back as {back[:80]!r};"
                " nothing was written. Train with another vocab_size (--vocab-size) or model_type"
                " (--model-type), and report this text"
            )
    for symbol in symbols:
        ids = tokenizer.encode(symbol)
        if len(ids) != 1:
            pieces = [tokenizer.piece(id) for id in ids]
            raise DataError(
                f"user_symbols (--user-symbols): {symbol!r} becomes {pieces}, and not one token;"
                " choose another text"
            )


def _spread(lines: Sequence[str]) -> list[str]:
    """At most ``LINES`` lines, spread evenly, then some of them together."""
    step = -(-len(lines) // LINES)
    chosen = list(lines[:: max(step, 1)])
    return [*chosen, "\n".join(chosen[:50])]
