"""The tokenizer that a GGUF file carries, written as a ``tokenizer.json`` of Hugging Face's
``tokenizers``.

GGUF stores a vocabulary, merges or scores, special tokens, and the name of a pre-tokenizer (see
``gguf_pre_tokenizers``). What the keys mean, and what holds where one is missing, is llama.cpp's
``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.convert.gguf_pre_tokenizers import DIGITS, PRE_TOKENIZERS
from llm_jax.types import DataError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "\u2581"
# Every way to cut a token is tried, which takes the square of its length.
_LONGEST = 1024
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
# Where these are, <|end|> ends a message after which the answer goes on.
_SEVERAL_MESSAGES = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})
_AGAIN = "convert the model to GGUF again with a current converter"


class SpecialTokens(NamedTuple):
    """Ids, None for those that the file does not name, and whether ``bos`` and ``eos`` go around
    every text.
    """

    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    add_bos: bool
    add_eos: bool


def tokenizer_json(
    metadata: Mapping[str, Any], pre: str | None = None, keeping: Sequence[str] | None = None
) -> dict[str, Any]:
    """The ``tokenizer.json`` of a file's ``metadata``, of ``tokenizer.ggml.model`` "gpt2"
    (byte-level) or "llama" (SentencePiece BPE).

    Control and unknown tokens become special added tokens, user-defined ones plain added tokens;
    both are found in text before anything else. ``<s>`` and ``</s>`` are added around a text (where
    special tokens are asked for) as ``special_tokens`` says. Byte-level ids equal those of the
    model's own ``tokenizer.json``: bytes that the vocabulary lacks are left out, as there.
    SentencePiece's space before a text (``tokenizer.ggml.add_space_prefix``) is also put after
    every added token, as llama.cpp and Llama's own ``tokenizer.json`` do; with "gpt2" llama.cpp
    ignores the key, and so does this.

    Args:
        metadata: of a ``GgufFile``.
        pre: name of the pre-tokenizer where the file has no ``tokenizer.ggml.pre``.
        keeping: of a family whose added tokens, with SentencePiece, take the blanks and line ends
            after them: those that do not.

    Raises:
        DataError: an unknown model or pre-tokenizer (with those known), a vocabulary that is
            missing or does not hold together.
    """
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str) or model not in _MODELS:
        raise DataError(
            f"tokenizer.ggml.model {reprlib.repr(model)} is unknown; known: {', '.join(_MODELS)}"
        )
    tokens, types = _vocabulary(metadata)
    special = special_tokens(metadata, pre)
    parts = _MODELS[model](metadata, pre, tokens, types, special)

    def strips(token):
        return keeping is not None and model == "llama" and token not in keeping

    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(i, token, kind != _USER_DEFINED, strips(token))
            for i, (token, kind) in enumerate(zip(tokens, types))
            if kind in _ADDED
        ],
        "post_processor": _around(special, tokens),
        **parts,
    }


def special_tokens(metadata: Mapping[str, Any], pre: str | None = None) -> SpecialTokens:
    """The special ids. A file that does not say adds ``bos`` as llama.cpp does: "llama", and some
    of ``PRE_TOKENIZERS``.

    Raises:
        DataError: an id that is no id of the vocabulary, a flag that is no boolean, a flag without
            its token.
    """
    tokens = _strings(metadata, "tokens")
    ids = [
        _id(metadata, f"{name}_token_id", len(tokens))
        for name in ("bos", "eos", "unknown", "padding")
    ]
    cut = PRE_TOKENIZERS.get(_name(metadata, "pre") or pre or "")
    default = ids[0] is not None and (
        metadata.get("tokenizer.ggml.model") == "llama" or bool(cut and cut.add_bos)
    )
    flags = [_flag(metadata, "add_bos_token", default), _flag(metadata, "add_eos_token", False)]
    for flag, id, name in zip(flags, ids, ("bos", "eos")):
        if flag and id is None:
            raise DataError(
                f"tokenizer.ggml.add_{name}_token is true, and there is no"
                f" tokenizer.ggml.{name}_token_id; {_AGAIN}"
            )
    return SpecialTokens(*ids, *flags)


def end_tokens(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that end generation, as in llama.cpp: eos, eot and eom of the file, and control tokens
    with a name that says so.

    The first is the file's eos, if there is one. Files from before ``eot_token_id`` have the names
    only. Tokens of fill-in-the-middle are left out, and ``<|end|>`` where the vocabulary says that
    it ends one of several messages of an answer.

    Raises:
        DataError: an id that is no id of the vocabulary.
    """
    tokens, types = _vocabulary(metadata)
    declared = [_id(metadata, f"{name}_token_id", len(tokens)) for name in ("eos", "eot", "eom")]
    control = {token: id for id, (token, kind) in enumerate(zip(tokens, types)) if kind == _CONTROL}
    by_name = [id for token, id in control.items() if token in _ENDS]
    ends = dict.fromkeys(id for id in (*declared, *by_name) if id is not None)
    several = any(names <= control.keys() for names in _SEVERAL_MESSAGES)
    if several and control.get("<|end|>") != declared[0]:
        ends.pop(control.get("<|end|>"), None)
    return tuple(ends)


def chat_template(metadata: Mapping[str, Any]) -> str | None:
    """The Jinja source of the default chat template, or None. It comes from the file: render it in
    a sandbox only.
    """
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise DataError(
            f"tokenizer.chat_template is {type(template).__name__} {reprlib.repr(template)}, and"
            f" must be a string; {_AGAIN}"
        )
    return template


def _byte_level(
    metadata: Mapping, pre: str | None, tokens: list[str], types: list[int], special: SpecialTokens
) -> dict[str, Any]:
    name = _name(metadata, "pre") or pre
    known = ", ".join(PRE_TOKENIZERS)
    if name is None:
        raise DataError(
            "there is no tokenizer.ggml.pre to say how text is cut into words; give pre (--pre),"
            f" one of {known}"
        )
    if name not in PRE_TOKENIZERS:
        raise DataError(f"tokenizer.ggml.pre {reprlib.repr(name)} is unknown; known: {known}")
    cut = PRE_TOKENIZERS[name]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    merges = []
    for index, merge in enumerate(_strings(metadata, "merges")):
        left, _, right = merge.partition(" ")
        missing = [part for part in (left, right, left + right) if part not in vocabulary]
        if missing:
            raise DataError(
                f"tokenizer.ggml.merges {index}, {reprlib.repr(merge)}: {reprlib.repr(missing[0])}"
                f" is not in the vocabulary; {_AGAIN}"
            )
        merges.append([left, right])
    to_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        "normalizer": {"type": "NFC"} if cut.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*map(_cut, cut.cuts), to_bytes]},
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": _bpe(vocabulary, merges, ignore_merges=cut.ignore_merges),
    }


def _sentencepiece(
    metadata: Mapping, pre: str | None, tokens: list[str], types: list[int], special: SpecialTokens
) -> dict[str, Any]:
    if (
        _flag(metadata, "remove_extra_whitespaces", False)
        or "tokenizer.ggml.precompiled_charsmap" in metadata
    ):
        raise DataError(
            'tokenizer.ggml.model "llama" with remove_extra_whitespaces or precompiled_charsmap, a'
            " normalization that is not supported; use the model's own tokenizer files"
        )
    vocabulary = {token: id for id, token in enumerate(tokens)}
    if special.unk is None and not all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        raise DataError(
            "the vocabulary has neither all byte tokens <0x00>…<0xFF> nor a"
            f" tokenizer.ggml.unknown_token_id; {_AGAIN}"
        )
    prefix = _flag(metadata, "add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, spaces] if prefix else [spaces]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *strip,
    ]
    unk = None if special.unk is None else tokens[special.unk]
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocabulary,
            _merges_by_score(metadata, tokens, types),
            unk_token=unk,
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


_ADDED = (_UNKNOWN, _CONTROL, _USER_DEFINED)
# By ``tokenizer.ggml.model``.
_MODELS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _merges_by_score(metadata: Mapping, tokens: list[str], types: list[int]) -> list[list[str]]:
    """All pairs of tokens that make a token, best score first: SentencePiece joins whatever gives
    the best-scored token.

    Only normal tokens take part: control and byte tokens are never made from text, user-defined
    ones are found before merging. Equal scores go by id, which is the order of training.
    """
    scores = _numbers(metadata, "scores", len(tokens), "f")
    normal = {token: id for id, token in enumerate(tokens) if types[id] == _NORMAL}
    ranked = []
    for token, id in normal.items():
        if len(token) > _LONGEST:
            raise DataError(
                f"token {id} has {len(token):,} characters, and at most {_LONGEST:,} are allowed;"
                f" {_AGAIN}"
            )
        for cut in range(1, len(token)):
            if token[:cut] in normal and token[cut:] in normal:
                ranked.append((-scores[id], id, -cut))
    return [[tokens[id][:-cut], tokens[id][-cut:]] for _, id, cut in sorted(ranked)]


def _bpe(vocabulary: dict[str, int], merges: list[list[str]], **fields: Any) -> dict[str, Any]:
    empty = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **empty, **flags, **fields, "vocab": vocabulary, "merges": merges}


def _cut(cut: str) -> dict[str, Any]:
    if cut is DIGITS:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}


def _added(id: int, token: str, special: bool, rstrip: bool) -> dict[str, Any]:
    return {
        "id": id,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


def _around(special: SpecialTokens, tokens: list[str]) -> dict[str, Any] | None:
    """The post-processor that adds ``bos`` and ``eos``; of a pair, around each."""
    before = [tokens[special.bos]] if special.add_bos else []
    after = [tokens[special.eos]] if special.add_eos else []
    if not before + after:
        return None

    def one(sequence: str, type_id: int) -> list[dict[str, Any]]:
        ends = [
            [{"SpecialToken": {"id": token, "type_id": type_id}} for token in end]
            for end in (before, after)
        ]
        return [*ends[0], {"Sequence": {"id": sequence, "type_id": type_id}}, *ends[1]]

    names = {
        token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}
        for token in before + after
    }
    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": one("A", 0) + one("B", 1),
        "special_tokens": names,
    }


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Tokens, all different, and their types."""
    # Named as llama.cpp names them: nothing in a text is empty.
    tokens = [token or f"[EMPTY_{id}]" for id, token in enumerate(_strings(metadata, "tokens"))]
    seen: dict[str, int] = {}
    for id, token in enumerate(tokens):
        if seen.setdefault(token, id) != id:
            raise DataError(
                f"tokens {seen[token]} and {id} are both {reprlib.repr(token)}; {_AGAIN}"
            )
    types = _numbers(metadata, "token_type", len(tokens), "iu")
    # As llama.cpp: a token with the name of an end is a control token, whatever a careless
    # converter called it.
    return tokens, [_CONTROL if token in _ENDS else kind for token, kind in zip(tokens, types)]


def _strings(metadata: Mapping[str, Any], name: str) -> Sequence[str]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(
            f"tokenizer.ggml.{name} must be a list of strings, and is {reprlib.repr(value)};"
            f" {_AGAIN}"
        )
    return value


def _numbers(metadata: Mapping[str, Any], name: str, count: int, kinds: str) -> list:
    """An array with a number for each token; ``kinds`` are numpy's of its dtype."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    if (
        not isinstance(value, np.ndarray)
        or value.shape != (count,)
        or value.dtype.kind not in kinds
        or np.isnan(value).any()
    ):
        what = "integer" if "i" in kinds else "float"
        raise DataError(
            f"tokenizer.ggml.{name} must be an array of {count:,} {what}s, one a token, and is"
            f" {reprlib.repr(value)}; {_AGAIN}"
        )
    return value.tolist()


def _name(metadata: Mapping[str, Any], name: str) -> str | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"tokenizer.ggml.{name} must be a string, and is {reprlib.repr(value)}; {_AGAIN}"
        )
    return value


def _id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is not None and (type(value) is not int or not 0 <= value < count):
        raise DataError(
            f"tokenizer.ggml.{name} is {reprlib.repr(value)}, and must be an id from 0 to"
            f" {count - 1}; {_AGAIN}"
        )
    return value


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, bool):
        raise DataError(
            f"tokenizer.ggml.{name} must be true or false, and is {reprlib.repr(value)}; {_AGAIN}"
        )
    return value
