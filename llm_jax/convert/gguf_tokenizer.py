"""The tokenizer of a GGUF file as a ``tokenizer.json`` of Hugging Face's ``tokenizers``.

GGUF stores a vocabulary, merges or scores, special tokens (see ``gguf_vocabulary``), and the name
of a pre-tokenizer (see ``gguf_pre_tokenizers``).
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llm_jax.convert.gguf_pre_tokenizers import DIGITS, PRE_TOKENIZERS, PreTokenizer
from llm_jax.convert.gguf_vocabulary import (
    AGAIN,
    BYTE_LEVEL,
    CONTROL,
    NORMAL,
    SENTENCEPIECE,
    UNKNOWN,
    USER_DEFINED,
    SpecialTokens,
    flag,
    numbers,
    special_tokens,
    string,
    strings,
    vocabulary,
)
from llm_jax.types import DataError

_SPACE = "\u2581"
# Every way to cut a token in two is tried, so the time grows with the square of its length.
_MAX_CHARACTERS = 1024
# Types of tokens that are added tokens of ``tokenizers``.
_ADDED = (UNKNOWN, CONTROL, USER_DEFINED)


class _Tokens(NamedTuple):
    """Texts, types and special tokens of a vocabulary."""

    texts: list[str]
    types: list[int]
    special: SpecialTokens


def tokenizer_json(
    metadata: Mapping[str, Any], pre: str | None = None, keeping: Sequence[str] | None = None
) -> dict[str, Any]:
    """The ``tokenizer.json`` of a file with byte-level BPE (``tokenizer.ggml.model`` "gpt2") or
    SentencePiece BPE ("llama").

    Control and unknown tokens become special added tokens, user-defined tokens become plain added
    tokens, and both are found in a text before anything else. ``<s>`` and ``</s>`` are added around
    a text, where special tokens are asked for, as ``special_tokens`` says.

    Byte-level ids equal those of the model's own ``tokenizer.json``, which also leaves out bytes
    that the vocabulary lacks. SentencePiece's space before a text
    (``tokenizer.ggml.add_space_prefix``) is also put after every added token, as llama.cpp and
    Llama's own ``tokenizer.json`` do. With "gpt2" that key is ignored, as in llama.cpp.

    Args:
        metadata: Of a ``GgufFile``.
        pre: Name of the pre-tokenizer where the file has no ``tokenizer.ggml.pre``.
        keeping: For families whose added tokens, with SentencePiece, take the blanks and line ends
            after them: the added tokens that do not. None for other families.

    Raises:
        DataError: The model or the pre-tokenizer is unknown, or the vocabulary is missing or not
            consistent.
    """
    model = metadata.get("tokenizer.ggml.model")
    if not isinstance(model, str) or model not in _MODELS:
        raise DataError(
            f"tokenizer.ggml.model {reprlib.repr(model)} is unknown; known: {', '.join(_MODELS)}"
        )
    texts, types = vocabulary(metadata)
    tokens = _Tokens(texts, types, special_tokens(metadata, pre))
    strips = keeping is not None and model == SENTENCEPIECE
    added = [
        _added_token(id, text, kind != USER_DEFINED, strips and text not in (keeping or ()))
        for id, (text, kind) in enumerate(zip(texts, types))
        if kind in _ADDED
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _post_processor(tokens),
        **_MODELS[model](metadata, pre, tokens),
    }


def _byte_level(metadata: Mapping, pre: str | None, tokens: _Tokens) -> dict[str, Any]:
    """Normalizer, pre-tokenizer, decoder and model of a byte-level vocabulary."""
    pre_tokenizer = _pre_tokenizer(metadata, pre)
    ids = {text: id for id, text in enumerate(tokens.texts)}
    to_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    steps = [*map(_cut, pre_tokenizer.cuts), to_bytes]
    return {
        "normalizer": {"type": "NFC"} if pre_tokenizer.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": _bpe(ids, _merges(metadata, ids), ignore_merges=pre_tokenizer.ignore_merges),
    }


def _pre_tokenizer(metadata: Mapping, pre: str | None) -> PreTokenizer:
    name = string(metadata, "pre") or pre
    known = ", ".join(PRE_TOKENIZERS)
    if name is None:
        raise DataError(
            "there is no tokenizer.ggml.pre, so how text is split into words is unknown; set pre"
            f" (--pre) to one of {known}"
        )
    if name not in PRE_TOKENIZERS:
        raise DataError(f"tokenizer.ggml.pre {reprlib.repr(name)} is unknown; known: {known}")
    return PRE_TOKENIZERS[name]


def _merges(metadata: Mapping, ids: Mapping[str, int]) -> list[list[str]]:
    """The merges of a file, each of two tokens of the vocabulary."""
    merges = []
    for index, merge in enumerate(strings(metadata, "merges")):
        left, _, right = merge.partition(" ")
        missing = [part for part in (left, right, left + right) if part not in ids]
        if missing:
            raise DataError(
                f"tokenizer.ggml.merges {index}, {reprlib.repr(merge)}: {reprlib.repr(missing[0])}"
                f" is not in the vocabulary; {AGAIN}"
            )
        merges.append([left, right])
    return merges


def _sentencepiece(metadata: Mapping, pre: str | None, tokens: _Tokens) -> dict[str, Any]:
    """Normalizer, pre-tokenizer, decoder and model of a SentencePiece vocabulary."""
    if (
        flag(metadata, "remove_extra_whitespaces", False)
        or "tokenizer.ggml.precompiled_charsmap" in metadata
    ):
        raise DataError(
            'tokenizer.ggml.model is "llama" with remove_extra_whitespaces or precompiled_charsmap,'
            " a normalization that is not supported; use the model's own tokenizer files"
        )
    ids = {text: id for id, text in enumerate(tokens.texts)}
    unk = tokens.special.unk
    if unk is None and not all(f"<0x{byte:02X}>" in ids for byte in range(256)):
        raise DataError(
            "the vocabulary has neither all byte tokens <0x00>…<0xFF> nor a"
            f" tokenizer.ggml.unknown_token_id; {AGAIN}"
        )
    normalizers: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    ]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if flag(metadata, "add_space_prefix", True):
        normalizers.insert(0, {"type": "Prepend", "prepend": _SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = _bpe(
        ids,
        _merges_by_score(metadata, tokens),
        unk_token=None if unk is None else tokens.texts[unk],
        fuse_unk=True,
        byte_fallback=True,
    )
    return {
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


# By ``tokenizer.ggml.model``.
_MODELS: dict[str, Callable[[Mapping, str | None, _Tokens], dict[str, Any]]] = {
    BYTE_LEVEL: _byte_level,
    SENTENCEPIECE: _sentencepiece,
}


def _merges_by_score(metadata: Mapping, tokens: _Tokens) -> list[list[str]]:
    """All pairs of tokens that make a token, best score first: SentencePiece joins the pair that
    makes the token with the best score.

    Only normal tokens take part: control and byte tokens are never made from text, and user-defined
    tokens are found before merging. Equal scores go by id, which is the order of training.
    """
    texts = tokens.texts
    scores = numbers(metadata, "scores", len(texts), "f")
    normal = {text: id for id, text in enumerate(texts) if tokens.types[id] == NORMAL}
    ranked = []
    for text, id in normal.items():
        if len(text) > _MAX_CHARACTERS:
            raise DataError(
                f"token {id} has {len(text):,} characters, and at most {_MAX_CHARACTERS:,} are"
                f" allowed; {AGAIN}"
            )
        for cut in range(1, len(text)):
            if text[:cut] in normal and text[cut:] in normal:
                ranked.append((-scores[id], id, -cut))
    return [[texts[id][:-cut], texts[id][-cut:]] for _, id, cut in sorted(ranked)]


def _bpe(ids: dict[str, int], merges: list[list[str]], **fields: Any) -> dict[str, Any]:
    empty = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
    }
    flags = {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **empty, **flags, **fields, "vocab": ids, "merges": merges}


def _cut(cut: str) -> dict[str, Any]:
    """One step of a pre-tokenizer."""
    if cut is DIGITS:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}


def _added_token(id: int, text: str, special: bool, rstrip: bool) -> dict[str, Any]:
    return {
        "id": id,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


def _post_processor(tokens: _Tokens) -> dict[str, Any] | None:
    """The post-processor that adds ``bos`` and ``eos`` around a text, or around each of a pair."""
    special = tokens.special
    before = [special.bos] if special.add_bos and special.bos is not None else []
    after = [special.eos] if special.add_eos and special.eos is not None else []
    if not before and not after:
        return None
    texts = tokens.texts

    def one(sequence: str, type_id: int) -> list[dict[str, Any]]:
        def token(id: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": texts[id], "type_id": type_id}}

        text = {"Sequence": {"id": sequence, "type_id": type_id}}
        return [*map(token, before), text, *map(token, after)]

    names = {
        texts[id]: {"id": texts[id], "ids": [id], "tokens": [texts[id]]} for id in before + after
    }
    return {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": one("A", 0) + one("B", 1),
        "special_tokens": names,
    }
