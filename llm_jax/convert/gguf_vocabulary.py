"""The vocabulary and the special tokens in a GGUF file's metadata.

What the keys mean, and what holds where one is missing, is taken from llama.cpp's
``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.convert.gguf_pre_tokenizers import PRE_TOKENIZERS
from llm_jax.types import DataError

# Values of ``tokenizer.ggml.model``, which are named after the first models with such tokenizers.
BYTE_LEVEL = "gpt2"
SENTENCEPIECE = "llama"
# Types of tokens.
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
# llama.cpp's names of tokens that end generation.
_ENDS = frozenset(
    (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
        "[e~[",
    )
)
# Where a vocabulary has one of these sets, <|end|> ends one message of an answer, not the answer.
_SEVERAL_MESSAGES = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})
AGAIN = "convert the model to GGUF again with a current converter"


class SpecialTokens(NamedTuple):
    """Special tokens of a file.

    Attributes:
        bos, eos, unk, pad: Ids; None where the file does not name one.
        add_bos, add_eos: Whether ``bos`` is put before every text, and ``eos`` after it.
    """

    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    add_bos: bool
    add_eos: bool


def special_tokens(metadata: Mapping[str, Any], pre: str | None = None) -> SpecialTokens:
    """The special tokens of a file.

    A file that does not have ``add_bos_token`` adds ``bos`` as llama.cpp does: with a SentencePiece
    vocabulary, and with some of ``PRE_TOKENIZERS``.

    Args:
        metadata: Of a ``GgufFile``.
        pre: Name of the pre-tokenizer where the file has no ``tokenizer.ggml.pre``.

    Raises:
        DataError: An id is not in the vocabulary, a flag is not a boolean, or a flag is set without
            its token.
    """
    count = len(strings(metadata, "tokens"))
    bos = _id(metadata, "bos_token_id", count)
    eos = _id(metadata, "eos_token_id", count)
    unk = _id(metadata, "unknown_token_id", count)
    pad = _id(metadata, "padding_token_id", count)
    pre_tokenizer = PRE_TOKENIZERS.get(string(metadata, "pre") or pre or "")
    usual = metadata.get("tokenizer.ggml.model") == SENTENCEPIECE
    usual = usual or (pre_tokenizer is not None and pre_tokenizer.add_bos)
    add_bos = flag(metadata, "add_bos_token", bos is not None and usual)
    add_eos = flag(metadata, "add_eos_token", False)
    for added, id, name in ((add_bos, bos, "bos"), (add_eos, eos, "eos")):
        if added and id is None:
            raise DataError(
                f"tokenizer.ggml.add_{name}_token is true, and there is no"
                f" tokenizer.ggml.{name}_token_id; {AGAIN}"
            )
    return SpecialTokens(bos, eos, unk, pad, add_bos, add_eos)


def end_tokens(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end generation, as in llama.cpp: the file's eos, eot and eom, and control tokens
    whose name is that of an end.

    The file's eos comes first, if there is one. Files from before ``eot_token_id`` have the names
    only. Left out are tokens of fill-in-the-middle, and ``<|end|>`` where the vocabulary shows that
    it ends one of several messages of an answer.

    Raises:
        DataError: An id is not in the vocabulary.
    """
    tokens, types = vocabulary(metadata)
    declared = [_id(metadata, f"{name}_token_id", len(tokens)) for name in ("eos", "eot", "eom")]
    control = {token: id for id, (token, kind) in enumerate(zip(tokens, types)) if kind == CONTROL}
    by_name = [id for token, id in control.items() if token in _ENDS]
    ends = dict.fromkeys(id for id in (*declared, *by_name) if id is not None)
    several = any(names <= control.keys() for names in _SEVERAL_MESSAGES)
    message_end = control.get("<|end|>")
    if several and message_end is not None and message_end != declared[0]:
        ends.pop(message_end, None)
    return tuple(ends)


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """The Jinja source of the default chat template, or None.

    It comes from the file: render it in a sandbox only.

    Raises:
        DataError: The template is not a string.
    """
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise DataError(
            f"tokenizer.chat_template is {type(template).__name__} {reprlib.repr(template)}, and"
            f" must be a string; {AGAIN}"
        )
    return template


def vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Tokens, all different, and their types."""
    # As in llama.cpp an empty token gets a name, since an empty string is found in any text.
    tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(strings(metadata, "tokens"))]
    seen: dict[str, int] = {}
    for id, token in enumerate(tokens):
        if seen.setdefault(token, id) != id:
            raise DataError(
                f"tokens {seen[token]} and {id} are both {reprlib.repr(token)}; {AGAIN}"
            )
    types = numbers(metadata, "token_type", len(tokens), "iu")
    # As in llama.cpp a token with the name of an end is a control token, whatever its type in the
    # file is.
    return tokens, [CONTROL if token in _ENDS else kind for token, kind in zip(tokens, types)]


def strings(metadata: Mapping[str, Any], name: str) -> Sequence[str]:
    """A list of strings under ``tokenizer.ggml``."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(
            f"tokenizer.ggml.{name} must be a list of strings, and is {reprlib.repr(value)};"
            f" {AGAIN}"
        )
    return value


def numbers(metadata: Mapping[str, Any], name: str, count: int, kinds: str) -> list:
    """An array under ``tokenizer.ggml`` with a number for each token.

    Args:
        metadata: Of a ``GgufFile``.
        name: Name of the key.
        count: Number of tokens.
        kinds: Kinds of numpy types that are allowed, such as "iu" for integers.
    """
    value = metadata.get(f"tokenizer.ggml.{name}")
    if (
        not isinstance(value, np.ndarray)
        or value.shape != (count,)
        or value.dtype.kind not in kinds
        or np.isnan(value).any()
    ):
        what = "integer" if "i" in kinds else "float"
        raise DataError(
            f"tokenizer.ggml.{name} must be an array of {count:,} {what}s, one for each token, and"
            f" is {reprlib.repr(value)}; {AGAIN}"
        )
    return value.tolist()


def string(metadata: Mapping[str, Any], name: str) -> str | None:
    """A string under ``tokenizer.ggml``, or None."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"tokenizer.ggml.{name} must be a string, and is {reprlib.repr(value)}; {AGAIN}"
        )
    return value


def flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean under ``tokenizer.ggml``."""
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise DataError(
            f"tokenizer.ggml.{name} must be true or false, and is {reprlib.repr(value)}; {AGAIN}"
        )
    return value


def _id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise DataError(
            f"tokenizer.ggml.{name} is {reprlib.repr(value)}, and must be an id from 0 to"
            f" {count - 1}; {AGAIN}"
        )
    return value
