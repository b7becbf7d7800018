"""``llm-jax task embed``: a model trained to give near vectors to the texts of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.classic.bm25 import learn_bm25
from llm_jax.commands.tasks.finetune import Source, Training, claim, finetune, open_source
from llm_jax.commands.tasks.results import results, write_results
from llm_jax.commands.tasks.texts import Long, encode, held_out
from llm_jax.commands.tasks.vectors import Embedder, ranking_figures
from llm_jax.data.examples.folder import Examples
from llm_jax.decode.embed import Pooling
from llm_jax.evaluation.bias.records import read_jsonl
from llm_jax.ranges import Count, Positive, Seed, ShareBelowOne, checked
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import ConfigError, DataError

Pair = tuple[str, tuple[str, str]]


@checked
def finetune_embedder(
    train: Path,
    *,
    model: Path,
    out: Path,
    test: Path | None = None,
    test_fraction: ShareBelowOne = 0.2,
    text_field: str = "text",
    second_field: str = "positive",
    epochs: Positive = 3.0,
    learning_rate: Positive = 2e-5,
    batch_size: Count = 64,
    max_length: Count = 256,
    long: Long = "refuse",
    pooling: Pooling = "mean",
    temperature: Positive = 0.05,
    symmetric: bool = False,
    seed: Seed = 0,
) -> str:
    """Train a model so that the vectors of the two texts of a pair (question and passage,
    paraphrases) are nearer than those of other pairs in the batch, and score it by looking for the
    partner of each held-out text among all of them, beside BM25.

    Args:
        train: JSON lines with two texts that belong together.
        model: folder of the run or converted model that training begins with.
        out: folder for the trained model, the figures, every answer and a page.
        test: JSON lines of the test pairs; a part of ``train`` if not given.
        test_fraction: share of ``train`` that is held out where ``test`` is not given.
        text_field: key of the text that looks for the other, such as a question.
        second_field: key of the text that is found.
        epochs: times that each pair is seen.
        learning_rate: the highest one, after a tenth of the steps.
        batch_size: pairs of a step; all others are what a pair must be nearer than.
        max_length: tokens of a text, at most; half of the model's context where that is less.
        long: what becomes of longer texts: refuse, skip (the pair is left out and counted) or
            truncate (cut at the end and counted).
        pooling: what makes the vector of a text: the mean of its tokens, the first or the last one,
            or the model's own pooler.
        temperature: divides the cosines in the loss.
        symmetric: the second text also looks for the first.
        seed: of the held-out pairs and the order.
    """
    use_compile_cache()
    training = Training(model, out, epochs, learning_rate, batch_size, seed)
    fields = (text_field, second_field)
    first = _read(train, fields)
    if test is None:
        kept, other = held_out(len(first), test_fraction, seed)
        first, second = [first[i] for i in kept], [first[i] for i in other]
    else:
        second = _read(test, fields)
    source = open_source(model, "embed")
    most = min(max_length, source.config.max_length // 2)
    objective = {
        "kind": "contrastive",
        "pooling": pooling,
        "temperature": temperature,
        "symmetric": symmetric,
    }
    asked = {"task": "embed", "train": str(train), "test": str(test), **objective}
    claim(training, {**asked, "max_length": max_length, "long": long})
    splits = {}
    kept_pairs = []
    long_texts = 0
    for name, pairs in (("train", first), ("validation", second)):
        examples, fitting, count = _examples(source, pairs, most, long)
        splits[name] = examples
        kept_pairs.append(fitting)
        long_texts += count
    if len(splits["train"]) < 2:
        raise DataError(f"there are {len(splits['train'])} training pairs; at least 2 are needed")
    training = training._replace(batch_size=min(batch_size, len(splits["train"])))
    run = finetune(training, source, splits, objective, {})
    embedder = Embedder(run, source.tokenizer, pooling, batch_size)
    about = {**objective, "long": long, "long_texts": long_texts, "trained_on": len(kept_pairs[0])}
    return _score(embedder, kept_pairs[1], out, about)


def _read(path: Path, fields: tuple[str, str]) -> list[Pair]:
    return [(row.where, (row.text(fields[0]), row.text(fields[1]))) for row in read_jsonl(path)]


def _examples(
    source: Source, pairs: Sequence[Pair], most: int, long: Long
) -> tuple[Examples, list[Pair], int]:
    """Pairs as examples, those that are kept, and how many had a text that is too long."""
    sides = []
    for n in (0, 1):
        texts = [(pair[1][n],) for pair in pairs]
        wheres = [pair[0] for pair in pairs]
        sides.append(encode(source.tokenizer, texts, wheres, most=most, long=long))
    rows = [dict(zip(side.kept, side.rows)) for side in sides]
    kept = [n for n in range(len(pairs)) if n in rows[0] and n in rows[1]]
    if not kept:
        raise DataError(f"all {len(pairs)} pairs have texts of more than {most} tokens")
    numbers: dict[str, int] = {}
    ids = [[numbers.setdefault(text, len(numbers)) for text in pairs[n][1]] for n in kept]
    tokens = [np.array([*rows[0][n], *rows[1][n]], np.int32) for n in kept]
    examples = Examples(
        tokens=np.concatenate(tokens),
        lengths=np.array([[len(rows[0][n]), len(rows[1][n])] for n in kept], np.int32),
        text_ids=np.array(ids, np.int32),
    )
    return examples, [pairs[n] for n in kept], sum(side.long for side in sides)


def _score(embedder: Embedder, pairs: Sequence[Pair], out: Path, about: dict[str, Any]) -> str:
    queries = list(dict.fromkeys(pair[1][0] for pair in pairs))
    documents = list(dict.fromkeys(pair[1][1] for pair in pairs))
    number = {text: n for n, text in enumerate(documents)}
    if len(documents) < 2:
        raise ConfigError("there is one held-out text to find; hold out more pairs")
    relevant: dict[str, set[int]] = {query: set() for query in queries}
    for _, (query, document) in pairs:
        relevant[query].add(number[document])
    wanted = [relevant[query] for query in queries]
    asked, found = (
        embedder.vectors(texts, ["held-out text"] * len(texts), long="truncate")[0]
        for texts in (queries, documents)
    )
    scores = asked @ found.T
    records = [
        {
            "item": n,
            "text": query,
            "relevant": sorted(documents[d] for d in wanted[n]),
            "nearest": documents[int(scores[n].argmax())],
            "cosine": float(scores[n].max()),
        }
        for n, query in enumerate(queries)
    ]
    words = learn_bm25(documents).scores(queries)
    results_of = results(
        "embed",
        embedder.run.folder,
        embedder.run.step,
        records,
        figures=ranking_figures(scores, wanted),
        baselines={"bm25": ranking_figures(words, wanted)},
        documents=len(documents),
        **about,
    )
    return write_results(out, results_of, records)
