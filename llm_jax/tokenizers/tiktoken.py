"""Files of ranks (``*.tiktoken``, with a token in base64 and its rank on each line) as a
``tokenizer.json``.

Merging takes the neighbours whose union has the lowest rank. The merges that ``tokenizers`` needs
are recovered: every way to cut a token into two others, by the rank of the token. A whole word that
is a token is taken as it is (``ignore_merges``). Where two overlapping pairs would make the same
token, tiktoken takes the left one and ``tokenizers`` the one that comes first in the list; the
tests have found no text on which that makes a difference.

Source: tiktoken's ``_byte_pair_merge``; transformers' ``TikTokenConverter`` orders the merges in
the same way.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, NamedTuple

from llm_jax.tokenizers.hf_config import MAX_IDS
from llm_jax.tokenizers.token_bytes import byte_characters
from llm_jax.types import DataError

# Bytes of a token. No vocabulary has longer ones, and every cut of each is tried.
_MAX_TOKEN = 512
# A lone = is an empty token, which only reserves its rank: Whisper's file has one.
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}|=) ([0-9]{1,8})")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tiktoken keeps blanks at the end of a text together. Its older versions, and transformers, split
# them as Llama 3 does.
_CL100K = _LLAMA3_CUT.replace(r"|\s*[\r\n]+", r"|\s+\z|\s*[\r\n]+")
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SHORT}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SHORT}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(3, 248)),
)


_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{n}|>" for n in range(205)),
)


class Encoding(NamedTuple):
    """How text is split and which tokens are special, which a file of ranks does not say.

    Attributes:
        pattern: Regular expression of the words.
        special: Text -> id; None means the next id that is not a rank.
        bos, eos: Texts of special tokens, or an empty string.
        add_bos: Whether a text gets ``bos`` before it.
    """

    pattern: str
    special: dict[str, int | None]
    bos: str
    eos: str
    add_bos: bool = False


ENCODINGS = {
    "gpt2": Encoding(_GPT2, {"<|endoftext|>": None}, "", "<|endoftext|>"),
    "cl100k": Encoding(
        _CL100K,
        {
            "<|endoftext|>": 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        "",
        "<|endoftext|>",
    ),
    "o200k": Encoding(
        _O200K, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}, "", "<|endoftext|>"
    ),
    "llama3": Encoding(
        _LLAMA3_CUT,
        dict.fromkeys(_LLAMA3_SPECIAL),
        "<|begin_of_text|>",
        "<|end_of_text|>",
        add_bos=True,
    ),
    "qwen": Encoding(
        _LLAMA3_CUT.replace("{1,3}", ""), dict.fromkeys(_QWEN_SPECIAL), "", "<|endoftext|>"
    ),
}
# Names of published files up to their first point -> name of the encoding.
_FILES = {"r50k_base": "gpt2", "p50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}


def is_ranks(data: bytes) -> bool:
    """Whether a file begins as a file of ranks does."""
    return bool(_LINE.fullmatch(data[:1024].split(b"\n", 1)[0].rstrip()))


def encoding_of(name: str, file: str, where: str) -> Encoding:
    """The encoding of a file of ranks.

    Args:
        name: Name of the encoding; empty means that the file's name decides.
        file: Name of the file.
        where: Name of the file, for messages.

    Raises:
        DataError: The encoding is unknown.
    """
    stem = file.partition(".")[0]
    found = ENCODINGS.get(name or _FILES.get(stem, stem))
    if found is None:
        raise DataError(
            f"{where}: encoding {name or stem!r} is unknown, and a file of ranks does not say how"
            f" it splits text; set encoding (--encoding) to one of {', '.join(ENCODINGS)}"
        )
    return found


def read_ranks(data: bytes, where: str) -> dict[bytes, int]:
    """Token -> rank.

    Args:
        data: Bytes of the file.
        where: Name of the file, for messages.

    Raises:
        DataError: A line is not a token and its rank, a token or a rank is repeated, or one of the
            256 bytes is not a token.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        token, rank = _read_line(line)
        if len(token) > _MAX_TOKEN or not 0 <= rank < MAX_IDS or token in ranks:
            raise DataError(
                f"{where}, line {number}: {line[:60]!r} is not a token of at most {_MAX_TOKEN}"
                " bytes in base64 and its rank, each once; download the file again"
            )
        ranks[token] = rank
    if len(set(ranks.values())) < len(ranks):
        raise DataError(f"{where}: two tokens have the same rank; download the file again")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"{where}: byte {missing[0]} is not a token, so that not every text has an encoding;"
            " download the file again"
        )
    return ranks


def _read_line(line: bytes) -> tuple[bytes, int]:
    """The token and the rank of a line; the rank is -1 where the line is not valid."""
    found = _LINE.fullmatch(line)
    if found is None:
        return b"", -1
    try:
        return base64.b64decode(found[1].lstrip(b"="), validate=True), int(found[2])
    except binascii.Error:
        return b"", -1


def ranks_to_json(
    ranks: dict[bytes, int], encoding: Encoding
) -> tuple[dict[str, Any], dict[str, int]]:
    """A ``tokenizer.json`` that gives the ids of the ranks, and its special tokens.

    Args:
        ranks: Token -> rank.
        encoding: How text is split, and the special tokens.

    Returns:
        The contents of the ``tokenizer.json``, and text -> id of the special tokens.

    Raises:
        DataError: The id of a special token is the rank of another token.
    """
    special = _special_ids(ranks, encoding)
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    cut = {
        "type": "Split",
        "pattern": {"Regex": encoding.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    contents = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "decoder": byte_level,
        "model": _bpe(ranks, special),
        "added_tokens": [{"id": id, "content": text, **flags} for text, id in special.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, byte_level]},
    }
    return contents, special


def _bpe(ranks: dict[bytes, int], special: dict[str, int]) -> dict[str, Any]:
    """The model of a ``tokenizer.json``.

    Special tokens are in its vocabulary too: tokens that are only added get the next free id,
    whatever id they have in the file.
    """
    character = {byte: c for c, byte in byte_characters().items()}
    text = {token: "".join(character[byte] for byte in token) for token in ranks}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {text[token]: rank for token, rank in ranks.items() if token} | special,
        "merges": [f"{text[left]} {text[right]}" for left, right in _merges(ranks)],
    }


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, by the ranks of that token and of the pair."""
    ranked: list[tuple[int, int, int, bytes, bytes]] = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left = token[:cut]
            right = token[cut:]
            if left in ranks and right in ranks:
                ranked.append((rank, ranks[left], ranks[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _special_ids(ranks: dict[bytes, int], encoding: Encoding) -> dict[str, int]:
    """Text -> id of the special tokens."""
    used = set(ranks.values())
    free = (id for id in range(MAX_IDS + len(encoding.special)) if id not in used)
    special = {token: next(free) if id is None else id for token, id in encoding.special.items()}
    taken = used & set(special.values())
    if taken:
        raise DataError(
            f"id {min(taken)} of a special token is the rank of a token in this file; name another"
            " encoding (--encoding)"
        )
    return special
