"""Tasks whose answers are written: summaries, translations and answers to questions."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from llm_jax.api.load import load
from llm_jax.commands.tasks.results import Record
from llm_jax.config import DecodeConfig, MeshConfig
from llm_jax.config.decode import StopConfig
from llm_jax.evaluation.bias.records import Row, read_jsonl
from llm_jax.evaluation.text_model import TextModel
from llm_jax.types import ConfigError, DataError

LongPrompts = Literal["refuse", "skip"]
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


class Asked(NamedTuple):
    """A record of a file.

    Attributes:
        where: file and line.
        fields: texts that the prompt is made of, by name.
        references: the right answers, at least one.
    """

    where: str
    fields: Mapping[str, str]
    references: tuple[str, ...]


class Answers(NamedTuple):
    """What a model wrote.

    Attributes:
        step: of the model's checkpoint.
        template: of the prompts.
        asked: the records that were asked.
        texts: what was written for each.
        long: records whose prompts were longer than the context, and were left out.
    """

    step: int
    template: str
    asked: list[Asked]
    texts: list[str]
    long: int

    @property
    def references(self) -> list[tuple[str, ...]]:
        """Those of each text."""
        return [one.references for one in self.asked]

    @property
    def records(self) -> list[Record]:
        """A record of each answer."""
        return [
            {"item": n, "where": a.where, **a.fields, "text": t, "references": list(a.references)}
            for n, (a, t) in enumerate(zip(self.asked, self.texts))
        ]


def read_asked(path: Path, fields: Sequence[str], reference_field: str) -> list[Asked]:
    """The records of a file of JSON lines.

    Raises:
        DataError: a line that lacks a field, or has no reference; it is named.
    """
    return [
        Asked(
            row.where, {name: row.text(name) for name in fields}, _references(row, reference_field)
        )
        for row in read_jsonl(path)
    ]


def _references(row: Row, field: str) -> tuple[str, ...]:
    value = row.fields.get(field)
    given = value if isinstance(value, list) else [value]
    texts = tuple(text.strip() for text in given if isinstance(text, str) and text.strip())
    if texts and len(texts) == len(given):
        return texts
    raise DataError(
        f"{row.where}: {field} is {value!r}; a reference is expected, a text or a list of texts"
    )


def write_answers(
    model: Path,
    asked: Sequence[Asked],
    *,
    template: str,
    of_decoder: str,
    max_new_tokens: int,
    batch_size: int,
    long: LongPrompts,
    step: int | None,
) -> Answers:
    """What a model writes greedily after each prompt.

    Args:
        model: folder of the run or model.
        asked: the records.
        template: of the prompts, with fields in braces; empty takes the first field alone where an
            encoder reads it, else ``of_decoder``.
        of_decoder: the template of decoders; empty where one must be given.
        max_new_tokens: tokens of an answer, at most; an answer of a decoder ends at a line feed.
        batch_size: answers written together.
        long: what becomes of prompts that do not fit the context with their answer.
        step: which checkpoint.

    Raises:
        ConfigError: an encoder, which does not write; a template that is missing or has fields that
            there are not.
        DataError: a prompt that is too long, where long is refuse, or no prompt that fits.
    """
    lm = load(model, step, mesh=MeshConfig())
    reads = lm.config.model.encoder is not None
    if not lm.config.model.causal:
        raise ConfigError(
            f"{model} is an encoder (model.causal False), which writes no text; use a decoder or an"
            " encoder–decoder"
        )
    text_model = TextModel(lm.run, lm.tokenizer, batch_size)
    names = list(asked[0].fields)
    template = template or (f"{{{names[0]}}}" if reads and len(names) == 1 else of_decoder)
    _check_template(template, names, model)
    kept = []
    prompts = []
    for one in asked:
        ids = text_model.prompt_ids(template.format(**one.fields))
        excess = text_model.excess_to_write(len(ids), max_new_tokens)
        if not excess:
            kept.append(one)
            prompts.append(ids)
        elif long != "skip":
            raise DataError(
                f"{one.where}: the prompt has {len(ids)} tokens, {excess} too many for the context"
                f" of {text_model.max_length} with {max_new_tokens} new ones; write fewer, or"
                " choose --long skip"
            )
    if not kept:
        raise DataError(f"no prompt fits the context of {text_model.max_length} tokens")
    stops = StopConfig() if reads else StopConfig(stop=("\n",))
    config = DecodeConfig(max_new_tokens=max_new_tokens, temperature=0.0, stops=stops)
    texts = [text.strip() for text in text_model.write(prompts, config)]
    return Answers(lm.step, template, kept, texts, len(asked) - len(kept))


def _check_template(template: str, names: Sequence[str], model: Path) -> None:
    if not template:
        raise ConfigError(
            f"template is empty, and {model} is a decoder, which goes on with a text; give one,"
            f" such as --template 'English: {{{names[0]}}}\\nPortuguese:'"
        )
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ConfigError(f"template is {template!r} ({error}); write {{{{ for a brace") from None
    if names[0] not in found or not found <= set(names):
        raise ConfigError(
            f"template is {template!r}, whose fields are {sorted(found)}; there are {list(names)},"
            " of which the first must be there"
        )


def first_sentences(text: str, count: int) -> str:
    """The first sentences of a text: those that end with a stop, a question or an exclamation mark
    before white space.
    """
    return " ".join(_SENTENCE.split(text.strip())[:count])
