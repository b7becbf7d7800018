"""Texts of a task's files as rows of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from llm_jax.evaluation.bias.records import Row, read_jsonl
from llm_jax.tokenizers.tokenizer import Tokenizer, encoder_ids
from llm_jax.types import ConfigError, DataError

Long = Literal["refuse", "skip", "truncate"]


class Encoded(NamedTuple):
    """Rows of tokens made of texts.

    Attributes:
        rows: token ids of each row that is kept.
        types: which of two texts each token is of, 0 or 1.
        kept: the number of each kept row.
        long: how many rows were longer than allowed.
    """

    rows: list[list[int]]
    types: list[list[int]]
    kept: list[int]
    long: int


class Example(NamedTuple):
    """A record of a file.

    Attributes:
        where: file and line.
        texts: one, or two.
        label: of the record.
    """

    where: str
    texts: tuple[str, ...]
    label: str


def read_examples(
    path: Path, text_field: str, second_field: str, label_field: str
) -> list[Example]:
    """The records of a file of JSON lines: one text, or two where ``second_field`` names one, and
    a label, which may also be a whole number or a truth value.

    Raises:
        DataError: the file cannot be read, or a line lacks a field; it is named.
    """
    fields = (text_field, second_field) if second_field else (text_field,)
    return [
        Example(row.where, tuple(row.text(name) for name in fields), label_of(row, label_field))
        for row in read_jsonl(path)
    ]


def label_of(row: Row, field: str) -> str:
    """The label of a record: a text that is not empty, a whole number or a truth value."""
    value = row.fields.get(field)
    if isinstance(value, int):
        return json.dumps(value)
    return row.text(field)


def held_out(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the records that are trained on, and of those that are held out.

    Raises:
        ConfigError: there would be none of the one or of the other.
    """
    out = round(count * fraction)
    if not 0 < out < count:
        raise ConfigError(
            f"test_fraction is {fraction} of {count} texts, so that {out} would be held out;"
            " choose another share, or give --test"
        )
    order = np.random.default_rng(seed).permutation(count).tolist()
    return order[out:], order[:out]


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, ...]],
    wheres: Sequence[str],
    *,
    most: int,
    long: Long,
) -> Encoded:
    """Texts as rows of tokens, with ``<s>`` and ``</s>`` where the tokenizer adds them.

    Of two texts the second follows the first without another ``<s>``: ``[CLS] a [SEP] b [SEP]``.
    Where the tokenizer adds no ``</s>``, a line feed is between them.

    Args:
        tokenizer: of the model.
        texts: one or two of each row.
        wheres: file and line of each.
        most: tokens that a row may have.
        long: what becomes of longer rows: an error; left out and counted; or cut and counted, the
            longer text first, at its end, so that ``</s>`` stays.

    Raises:
        DataError: a row that is too long, or has no tokens.
        ConfigError: ``long`` is not known.
    """
    if long not in get_args(Long):
        raise ConfigError(f"long is {long!r}; it must be one of {', '.join(get_args(Long))}")
    found = Encoded([], [], [], 0)
    count = 0
    sides = [_parts(tokenizer, texts, n) for n in range(len(texts[0]) if texts else 1)]
    for number in range(len(texts)):
        parts = [side[number] for side in sides]
        total = sum(map(len, parts))
        if not total:
            raise DataError(f"{wheres[number]}: the text has no tokens; leave it out")
        if total > most:
            count += 1
            if long == "refuse":
                raise DataError(
                    f"{wheres[number]} has {total} tokens, and a row may have {most}; raise"
                    " --max-length up to the model's context, or choose --long skip or truncate"
                )
            if long == "skip":
                continue
            parts = _cut(parts, most, tokenizer)
        found.rows.append([id for part in parts for id in part])
        found.types.append([n for n, part in enumerate(parts) for _ in part])
        found.kept.append(number)
    return found._replace(long=count)


def _parts(tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], n: int) -> list[list[int]]:
    """Token ids of text ``n`` of each row, with the control tokens that belong to it."""
    rows = encoder_ids(tokenizer, [row[n] for row in texts])
    if n == 0:
        return rows
    begin = int(tokenizer.add_bos)
    between = [] if tokenizer.add_eos else tokenizer.encode("\n")
    return [[*between, *row[begin:]] for row in rows]


def _cut(parts: list[list[int]], most: int, tokenizer: Tokenizer) -> list[list[int]]:
    """The texts of a row without the last tokens of the longer one, until they fit."""
    keep = int(tokenizer.add_eos)
    while sum(map(len, parts)) > most:
        longest = max(parts, key=len)
        over = sum(map(len, parts)) - most
        second = max((len(part) for part in parts if part is not longest), default=0)
        drop = min(over, max(len(longest) - second, 1))
        end = len(longest) - keep
        del longest[max(end - drop, 0) : end]
        if len(longest) <= keep:
            raise ConfigError(f"max_length is {most}, which has no room for a text; raise it")
    return parts
