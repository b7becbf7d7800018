"""Pre-tokenizers, which split text into words before byte-pair merging, by the names of GGUF's
``tokenizer.ggml.pre``.

What the names mean is defined in llama.cpp's ``src/llama-vocab.cpp`` only. Each pre-tokenizer is
written here as in the models' own ``tokenizer.json``, so that ids are those that the model was
trained with. Some therefore have an NFC normalization, which llama.cpp leaves out, and
contractions ignore case by Unicode's rules.
"""

from __future__ import annotations

from typing import NamedTuple

# A cut that makes every digit, by Unicode's numeric categories, a piece of its own.
DIGITS = "digits"


class PreTokenizer(NamedTuple):
    """How text is split.

    Attributes:
        cuts: Regular expressions whose matches become pieces of their own, or ``DIGITS``. Each
            splits the pieces of the one before.
        nfc: The text is normalized to NFC first.
        ignore_merges: A piece that is a token is taken whole, whether or not merges lead to it.
        add_bos: Default of ``add_bos_token``.
    """

    cuts: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
# Words that end in lower case, then words that end in upper case.
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_REST_SLASH = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_TEKKEN = rf"{_LOWER}|{_UPPER}|\p{{N}}|{_REST_SLASH}"
_GPT4O = rf"{_LOWER}{_CONTRACTION}?|{_UPPER}{_CONTRACTION}?|\p{{N}}{{1,3}}|{_REST_SLASH}"
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# By ``tokenizer.ggml.pre``.
PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "jais", "exaone4"), PreTokenizer((_GPT2,))),
    **dict.fromkeys(("olmo", "mpt"), PreTokenizer((_GPT2,), nfc=True)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell"), PreTokenizer((DIGITS, _GPT2))),
    "command-r": PreTokenizer((DIGITS, _GPT2), nfc=True),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"),
        PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer((_LLAMA3,))),
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), PreTokenizer((_QWEN2,))),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), PreTokenizer((_GPT4O,))),
    "deepseek-v3": PreTokenizer(
        (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK)
    ),
}
