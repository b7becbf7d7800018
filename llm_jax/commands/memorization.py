"""``llm-jax memorization`` and ``llm-jax contamination``: what a model repeats of its training
text, and which evaluation texts that text already has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.api.language_model import LanguageModel
from llm_jax.api.load import load
from llm_jax.commands.completing import complete_in_batches
from llm_jax.config import DecodeConfig
from llm_jax.data.shards.store import read_manifest
from llm_jax.evaluation.bias.records import read_jsonl
from llm_jax.evaluation.documents import documents
from llm_jax.evaluation.memorization.contamination import contamination as find_contamination
from llm_jax.evaluation.memorization.continuation import (
    ContinuationStatistics,
    continuation_statistics,
)
from llm_jax.evaluation.perplexity import without_end
from llm_jax.evaluation.shards import open_split
from llm_jax.evaluation.significance.intervals import Interval
from llm_jax.evaluation.text_metrics.words import unicode_words
from llm_jax.files import write_json
from llm_jax.ranges import Count, Natural, Seed, ShareBelowOne, checked
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError, DataError


@checked
def memorization(
    run: Path,
    data: Path,
    *,
    prompt: Count = 50,
    continuation: Count = 50,
    texts: Count = 200,
    lengths: tuple[Count, ...] = (10, 25, 50),
    step: Natural | None = None,
    batch_size: Count = 8,
    seed: Seed = 0,
) -> str:
    """How far a model goes on with its training text word for word (Carlini et al. 2023), beside
    the same for held-out text. Also written to ``memorization.json`` in the run's folder.

    Args:
        run: folder of the run.
        data: folder of the shards that it was trained on.
        prompt: tokens that are given.
        continuation: tokens that the model writes, at temperature 0.
        texts: places of each split, drawn from documents that are long enough.
        lengths: numbers of tokens from which on a text counts as extracted.
        step: which checkpoint; the newest if not given.
        batch_size: prompts that are written after at once.
        seed: of the choice of places.
    """
    too_long = [length for length in lengths if length > continuation]
    if too_long:
        raise ConfigError(
            f"lengths has {too_long[0]}, and continuation is {continuation}; it must be as long"
        )
    model = load(run, step)
    longest = model.config.model.max_length
    if prompt + continuation > longest:
        raise ConfigError(
            f"prompt {prompt} and continuation {continuation} are together longer than"
            f" model.max_length, {longest}; lower one of them"
        )
    manifest = read_manifest(data)
    found: dict[str, ContinuationStatistics] = {}
    for split in ("train", "validation"):
        if not manifest["splits"].get(split, {}).get("documents"):
            continue
        open_split(model.run, data, split)
        texts_of = (without_end(one, model.tokenizer.eos_id) for one in documents(data, split))
        rows = _drawn(texts_of, prompt + continuation, count=texts, seed=seed)
        if not rows:
            raise DataError(
                f"no document of the {split} split has {prompt + continuation} tokens; lower"
                " --prompt or --continuation"
            )
        given = _continued(model, [row[:prompt] for row in rows], continuation, batch_size)
        true = [row[prompt:] for row in rows]
        found[split] = continuation_statistics(given, true, lengths=lengths)
    record = {
        "step": model.step,
        "prompt": prompt,
        "continuation": continuation,
        "seed": seed,
        "splits": {split: _record(of) for split, of in found.items()},
    }
    write_json(run / "memorization.json", record)
    return "\n".join(_lines(found, lengths))


def _drawn(texts: Iterable[np.ndarray], length: int, *, count: int, seed: int) -> list[list[int]]:
    """``length`` tokens of each of ``count`` documents that are long enough, at a drawn place.

    Every such document is as likely as any other (reservoir sampling), and they are read once.
    """
    rng = np.random.default_rng(seed)
    kept: list[list[int]] = []
    seen = 0
    for text in texts:
        if len(text) < length:
            continue
        start = int(rng.integers(len(text) - length + 1))
        row = text[start : start + length].tolist()
        place = int(rng.integers(seen + 1))
        seen += 1
        if len(kept) < count:
            kept.append(row)
        elif place < count:
            kept[place] = row
    return kept


def _continued(
    model: LanguageModel, prompts: Sequence[list[int]], new: int, batch_size: int
) -> list[list[int]]:
    greedy = DecodeConfig(temperature=0.0, max_new_tokens=new)
    found = complete_in_batches(model, prompts, greedy, batch_size=batch_size, doing="continuing")
    return [only.ids for (only,) in found]


def _record(found: ContinuationStatistics) -> dict[str, Any]:
    return {
        "texts": len(found.lengths),
        "mean": found.mean._asdict(),
        "median": found.median,
        "longest": found.longest,
        "whole": found.whole,
        "extracted": {str(n): of and of._asdict() for n, of in found.extracted.items()},
    }


def _lines(found: dict[str, ContinuationStatistics], lengths: Sequence[int]) -> list[str]:
    head = f"{'':12}{'texts':>7}{'mean tokens':>24}{'longest':>9}"
    lines = [head + "".join(f"{f'{n} or more':>24}" for n in lengths)]
    for split, of in found.items():
        start = f"{split:12}{len(of.lengths):>7,}{_interval(of.mean):>24}{of.longest:>9}"
        lines.append(start + "".join(f"{_interval(of.extracted[n]):>24}" for n in lengths))
    return lines


def _interval(found: Interval | None) -> str:
    if found is None:
        return "no text as long"
    return f"{found.value:.3f} ({found.low:.3f}, {found.high:.3f})"


@checked
def contamination(
    data: Path,
    files: tuple[Path, ...],
    *,
    split: str = "train",
    field: str = "text",
    n: Count = 13,
    share: ShareBelowOne = 0.0,
    out: Path | None = None,
) -> str:
    """Which evaluation texts a folder of shards already has, by n-grams of words.

    Args:
        data: folder of shards.
        files: JSON lines of evaluation texts, each a set of its own.
        split: of the shards.
        field: key of the text.
        n: words of an n-gram.
        share: a text is contaminated where more than this share of its n-grams occurs; 0 asks for
            one.
        out: JSON file for the result, with the numbers of the texts; none if not given.
    """
    if not files:
        raise ConfigError("files is empty; give --files one or more files of evaluation texts")
    tokenizer = open_tokenizer(data / "tokenizer")
    sets = {
        str(path): [unicode_words(row.text(field)) for row in read_jsonl(path)] for path in files
    }
    corpus = (unicode_words(tokenizer.decode(one)) for one in documents(data, split))
    report = find_contamination(sets, corpus, n=n, share=share)
    if out is not None:
        of_sets = {name: of._asdict() for name, of in report.sets.items()}
        for of_set in of_sets.values():
            del of_set["overlaps"]
        write_json(out, {**report._asdict(), "sets": of_sets})
    lines = [f"{report.documents:,} documents of {data}, split {split}; {report.signature}"]
    for name, of in report.sets.items():
        rate = "nothing can be said" if of.rate is None else f"{of.rate:.2%} contaminated"
        lines.append(
            f"{name}: {rate}, {len(of.contaminated):,} of {of.texts:,} texts;"
            f" {of.too_short:,} shorter than {n} words"
        )
    return "\n".join(lines)
