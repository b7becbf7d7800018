"""Files of ranks (``*.tiktoken``: a token in base64 and its rank a line) as a ``tokenizer.json``.

Such a file says how often-used each token is, and merging takes the neighbours whose union has the
lowest rank. The merges that ``tokenizers`` wants are recovered: every way to cut a token into two
others, by the rank of the token. A whole word that is a token is taken as it is
(``ignore_merges``). Where two overlapping pairs would make the same token, tiktoken takes the left
one and ``tokenizers`` the one that comes first in the list; the tests have met no text on which
that makes a difference.

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

# Longer tokens are in no vocabulary, and each is cut everywhere.
_LONGEST = 512
# A lone = is no token, and only keeps its rank from being used: Whisper's file has one.
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}|=) ([0-9]{1,8})")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tiktoken's keeps blanks at the end of the text together; older versions of it, and transformers,
# cut them as Llama 3 does.
_CL100K = _LLAMA3_CUT.replace(r"|\s*[\r\n]+", r"|\s+\z|\s*[\r\n]+")
_UPPER, _LOWER, _SHORT = (
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
)
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
_LLAMA3 = (
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


class Encoding(NamedTuple):
    """What a file of ranks does not say: where text is cut, and the special tokens.

    special: text -> id; None is the next id that no rank has.
    bos, eos: texts of special tokens; "" where there is none.
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
        _LLAMA3_CUT, dict.fromkeys(_LLAMA3), "<|begin_of_text|>", "<|end_of_text|>", True
    ),
    "qwen": Encoding(
        _LLAMA3_CUT.replace("{1,3}", ""),
        dict.fromkeys(
            ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205)))
        ),
        "",
        "<|endoftext|>",
    ),
}
# Names of published files, less what follows their first point.
_FILES = {"r50k_base": "gpt2", "p50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}


def is_ranks(data: bytes) -> bool:
    """Whether the first line of a file is that of a file of ranks."""
    return bool(_LINE.fullmatch(data[:1024].split(b"\n", 1)[0].rstrip()))


def encoding_of(name: str, file: str, where: str) -> Encoding:
    """The encoding called ``name``, or, where that is empty, the one that the file's name says.
    Raises DataError.
    """
    stem = file.partition(".")[0]
    found = ENCODINGS.get(name or _FILES.get(stem, stem))
    if found is None:
        raise DataError(
            f"{where}: encoding {name or stem!r} is unknown; a file of ranks does not say where it"
            f" cuts text, so name one with encoding (--encoding): {', '.join(ENCODINGS)}"
        )
    return found


def read_ranks(data: bytes, where: str) -> dict[bytes, int]:
    """Token -> rank. Raises DataError for anything but one token and its rank a line, each once,
    with all 256 bytes among them.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line:
            continue
        found = _LINE.fullmatch(line)
        try:
            token, rank = (
                (base64.b64decode(found[1].lstrip(b"="), validate=True), int(found[2]))
                if found
                else (b"", -1)
            )
        except binascii.Error:
            token, rank = b"", -1
        if len(token) > _LONGEST or not 0 <= rank < MAX_IDS or token in ranks:
            raise DataError(
                f"{where}, line {number}: {line[:60]!r} is not a token of at most {_LONGEST} bytes"
                " in base64 and its rank, each once; get the file again"
            )
        ranks[token] = rank
    if len(set(ranks.values())) < len(ranks):
        raise DataError(f"{where}: a rank is given to two tokens; get the file again")
    if missing := [b for b in range(256) if bytes([b]) not in ranks]:
        raise DataError(
            f"{where}: byte {missing[0]} is no token, so not every text has an encoding; get the"
            " file again"
        )
    return ranks


def ranks_to_json(
    ranks: dict[bytes, int], encoding: Encoding
) -> tuple[dict[str, Any], dict[str, int]]:
    """``(tokenizer.json, special tokens)`` that give the ids of the ranks."""
    character = {byte: c for c, byte in byte_characters().items()}
    text = {token: "".join(map(character.__getitem__, token)) for token in ranks}
    merges: list[tuple[int, int, int, bytes, bytes]] = []
    for token, rank in ranks.items():
        cuts = ((token[:n], token[n:]) for n in range(1, len(token)))
        merges += [
            (rank, ranks[left], ranks[right], left, right)
            for left, right in cuts
            if left in ranks and right in ranks
        ]
    # In the vocabulary as well: tokens that are only added are given the next free id, whatever
    # they ask for.
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
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {text[token]: rank for token, rank in ranks.items() if token} | special,
        "merges": [f"{text[left]} {text[right]}" for *_, left, right in sorted(merges)],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "decoder": level,
        "model": model,
        "added_tokens": [{"id": id, "content": t, **flags} for t, id in special.items()],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]},
    }, special


def _special_ids(ranks: dict[bytes, int], encoding: Encoding) -> dict[str, int]:
    used = set(ranks.values())
    free = (id for id in range(MAX_IDS + len(encoding.special)) if id not in used)
    special = {token: next(free) if id is None else id for token, id in encoding.special.items()}
    if taken := used & set(special.values()):
        raise DataError(
            f"id {min(taken)} of a special token is the rank of a token in this file; name another"
            " encoding (--encoding)"
        )
    return special
