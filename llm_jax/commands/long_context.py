"""``llm-jax long-context``: what a run makes of long texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from llm_jax.api.language_model import LanguageModel
from llm_jax.api.load import load
from llm_jax.commands.completing import complete_in_batches
from llm_jax.config import DecodeConfig
from llm_jax.evaluation.documents import documents
from llm_jax.evaluation.long_context.needles import Found, find_needles, make_needles
from llm_jax.evaluation.long_context.positions import PositionLoss, loss_by_position
from llm_jax.evaluation.perplexity import without_end
from llm_jax.evaluation.shards import open_split
from llm_jax.files import write_json
from llm_jax.progress import progress
from llm_jax.ranges import Count, Natural, Seed, checked
from llm_jax.types import ConfigError

# Tokens in which a model must have named a number of four digits.
_ANSWER = 8


@checked
def long_context(
    run: Path,
    data: Path,
    split: str = "validation",
    *,
    step: Natural | None = None,
    context: Natural = 0,
    texts: Count = 64,
    needle_lengths: tuple[Count, ...] = (),
    needles: Count = 10,
    batch_size: Count = 8,
    seed: Seed = 0,
) -> str:
    """The loss by position, and how often a fact in the middle of a long text is found again. Also
    written to ``long_context.json`` in the run's folder.

    Args:
        run: folder of the run.
        data: folder of shards, made with the run's tokenizer.
        split: train or validation.
        step: which checkpoint; the newest if not given.
        context: tokens of a text that are scored; 0 is model.max_length.
        texts: documents of the split that are scored, from its beginning.
        needle_lengths: tokens of the prompts with a fact; none if not given.
        needles: prompts of each length and depth.
        batch_size: rows computed at once.
        seed: of the facts and their places.
    """
    model = load(run, step)
    longest = model.config.model.max_length
    if context > longest:
        raise ConfigError(f"context is {context}; it must be at most model.max_length, {longest}")
    for length in needle_lengths:
        if length + _ANSWER > longest:
            raise ConfigError(
                f"needle_lengths has {length}, and the answer takes {_ANSWER} more tokens; together"
                f" they must be at most model.max_length, {longest}"
            )
    open_split(model.run, data, split)
    rows = _rows(data, split, model.tokenizer.eos_id, context=context or longest, texts=texts)
    by_position = loss_by_position(_losses(model, rows, batch_size))
    found: list[Found] = []
    if needle_lengths:
        prompts = make_needles(
            documents(data, split),
            model.tokenizer,
            lengths=needle_lengths,
            each=needles,
            seed=seed,
        )
        found = find_needles(prompts, lambda ids: _answers(model, ids, batch_size))
    record = {
        "step": model.step,
        "split": split,
        "positions": [one._asdict() for one in by_position],
        "needles": [{**one._asdict(), "share": one.share._asdict()} for one in found],
    }
    write_json(run / "long_context.json", record)
    return "\n".join([*_position_lines(by_position), *_needle_lines(found)])


def _rows(data: Path, split: str, eos_id: int, *, context: int, texts: int) -> list[list[int]]:
    """The beginnings of documents, of at most ``context`` predictions, longest first."""
    found = [
        without_end(document, eos_id)[: context + 1].tolist()
        for document in islice(documents(data, split), texts)
    ]
    # Texts of one length are computed together.
    return sorted((row for row in found if len(row) > 1), key=len, reverse=True)


def _losses(
    model: LanguageModel, rows: Sequence[list[int]], batch_size: int
) -> Iterator[np.ndarray]:
    with progress("scoring", len(rows), "text") as bar:
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            for scores in model.score(some):
                yield np.array([-score.logprob for score in scores])
            bar.advance(len(some))


def _answers(model: LanguageModel, ids: Sequence[list[int]], batch_size: int) -> list[str]:
    greedy = DecodeConfig(temperature=0.0, max_new_tokens=_ANSWER)
    found = complete_in_batches(model, ids, greedy, batch_size=batch_size, doing="asking")
    return [only.text for (only,) in found]


def _position_lines(by_position: Sequence[PositionLoss]) -> list[str]:
    lines = [f"{'tokens before':>15}{'tokens':>10}{'loss':>9}{'95 %':>18}{'perplexity':>13}"]
    for one in by_position:
        span = f"{one.first}" if one.first == one.last else f"{one.first} to {one.last}"
        between = "one text" if one.low is None else f"{one.low:.3f} to {one.high:.3f}"
        lines.append(
            f"{span:>15}{one.tokens:>10,}{one.loss:>9.3f}{between:>18}{one.perplexity:>13,.2f}"
        )
    return lines


def _needle_lines(found: Sequence[Found]) -> list[str]:
    if not found:
        return []
    lines = ["", f"{'prompt':>10}{'fact at':>10}{'found':>12}{'95 %':>18}"]
    for one in found:
        of = f"{one.found} of {one.share.items}"
        between = f"{one.share.low:.0%} to {one.share.high:.0%}"
        lines.append(f"{one.length:>10,}{one.depth:>10.0%}{of:>12}{between:>18}")
    return lines
