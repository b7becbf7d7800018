"""``llm-jax task similarity`` and ``task retrieve``: the vectors of a model against what people say
is similar or relevant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.classic.bag_of_words import learn_bag_of_words
from llm_jax.classic.bm25 import learn_bm25
from llm_jax.classic.rank_correlation import spearman
from llm_jax.classic.tf_idf import tfidf
from llm_jax.commands.tasks.results import plain, results, write_results
from llm_jax.commands.tasks.texts import Long
from llm_jax.commands.tasks.vectors import AnyPooling, open_embedder, ranking_figures
from llm_jax.evaluation.bias.records import Row, read_jsonl
from llm_jax.evaluation.significance.intervals import bootstrap_interval
from llm_jax.evaluation.tasks.measures import Figures
from llm_jax.ranges import Count, Natural, checked
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import DataError

# A resample of fewer pairs may have one value only, which has no ranks.
_FEWEST = 20


@checked
def similarity(
    pairs: Path,
    *,
    model: Path,
    out: Path,
    text_field: str = "text",
    second_field: str = "other",
    score_field: str = "score",
    pooling: AnyPooling = "auto",
    long: Long = "refuse",
    batch_size: Count = 32,
    step: Natural | None = None,
) -> str:
    """How well the cosines of a model's vectors agree with scores of how similar two texts are:
    Spearman's rank correlation, beside that of tf-idf.

    Args:
        pairs: JSON lines with two texts and a score.
        model: folder of the run or model.
        out: folder for the figures, every answer and a page.
        text_field: key of a text.
        second_field: key of the other text.
        score_field: key of the score, a number.
        pooling: mean, first, last or model; auto is that which the model was trained with for
            vectors, else the mean.
        long: what becomes of texts longer than the context: refuse, or truncate (cut and counted).
        batch_size: texts computed together.
        step: which checkpoint of a run; the newest if not given.
    """
    use_compile_cache()
    rows = list(read_jsonl(pairs))
    sides = [[row.text(field) for row in rows] for field in (text_field, second_field)]
    scores = np.array([_number(row, score_field) for row in rows])
    if len(rows) < 2 or np.ptp(scores) == 0:
        raise DataError(f"{pairs} has {len(rows)} pairs with one score; give at least two scores")
    embedder = open_embedder(model, step, pooling, batch_size)
    wheres = [row.where for row in rows]
    (a, cut), (b, cut_too) = (embedder.vectors(side, wheres, long=long) for side in sides)
    cosines = np.sum(a * b, axis=1)
    bag, counts = learn_bag_of_words([*sides[0], *sides[1]])
    words = tfidf(counts, bag.vocabulary)
    shared = words[: len(rows)].multiply(words[len(rows) :])
    records = [
        {"item": n, "where": row.where, "texts": [sides[0][n], sides[1][n]]}
        | {"score": float(scores[n]), "cosine": float(cosines[n])}
        for n, row in enumerate(rows)
    ]
    found = results(
        "similarity",
        model,
        embedder.run.step,
        records,
        figures=_correlation(cosines, scores),
        baselines={"tf-idf": _correlation(np.asarray(shared.sum(axis=1)).ravel(), scores)},
        pooling=embedder.pooling,
        long=long,
        long_texts=cut + cut_too,
    )
    return write_results(out, found, records)


def _number(row: Row, field: str) -> float:
    value = row.fields.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{row.where}: {field} is {value!r}; a number is expected")
    return float(value)


def _correlation(said: np.ndarray, scores: np.ndarray) -> Figures:
    value = spearman(said, scores)
    if len(said) < _FEWEST or math.isnan(value):
        return {"spearman": plain(0.0 if math.isnan(value) else value)}
    found = bootstrap_interval(lambda at: _or_zero(spearman(said[at], scores[at])), len(said))
    return {"spearman": {"value": found.value, "low": found.low, "high": found.high}}


def _or_zero(value: float) -> float:
    """Equal values rank nothing, and agree with nothing."""
    return 0.0 if math.isnan(value) else value


@checked
def retrieve(
    queries: Path,
    *,
    documents: Path,
    model: Path,
    out: Path,
    text_field: str = "text",
    relevant_field: str = "relevant",
    id_field: str = "id",
    pooling: AnyPooling = "auto",
    long: Long = "refuse",
    batch_size: Count = 32,
    step: Natural | None = None,
) -> str:
    """How well the cosines of a model's vectors find the documents that are relevant for a query:
    recall at 1 and 10, MRR and nDCG at 10, beside BM25.

    Args:
        queries: JSON lines with a text and a list of the ids of its relevant documents.
        documents: JSON lines with an id and a text.
        model: folder of the run or model.
        out: folder for the figures, every answer and a page.
        text_field: key of the text of queries and of documents.
        relevant_field: key of the list of ids.
        id_field: key of the id of a document, a text or a whole number.
        pooling: mean, first, last or model; auto is that which the model was trained with for
            vectors, else the mean.
        long: what becomes of texts longer than the context: refuse, or truncate (cut and counted).
        batch_size: texts computed together.
        step: which checkpoint of a run; the newest if not given.
    """
    use_compile_cache()
    stored = list(read_jsonl(documents))
    asked = list(read_jsonl(queries))
    number = _numbers(stored, id_field)
    wanted = [_relevant(row, relevant_field, number) for row in asked]
    texts = [[row.text(text_field) for row in rows] for rows in (asked, stored)]
    embedder = open_embedder(model, step, pooling, batch_size)
    (a, cut), (b, cut_too) = (
        embedder.vectors(side, [row.where for row in rows], long=long)
        for side, rows in zip(texts, (asked, stored))
    )
    scores = a @ b.T
    ids = list(number)
    records = [
        {
            "item": n,
            "where": row.where,
            "text": texts[0][n],
            "relevant": sorted(ids[d] for d in wanted[n]),
            "found": [ids[d] for d in np.argsort(-scores[n], kind="stable")[:10]],
        }
        for n, row in enumerate(asked)
    ]
    found = results(
        "retrieve",
        model,
        embedder.run.step,
        records,
        figures=ranking_figures(scores, wanted),
        baselines={"bm25": ranking_figures(learn_bm25(texts[1]).scores(texts[0]), wanted)},
        documents=len(stored),
        pooling=embedder.pooling,
        long=long,
        long_texts=cut + cut_too,
    )
    return write_results(out, found, records)


def _numbers(rows: Sequence[Row], field: str) -> dict[str, int]:
    """The number of each document by its id."""
    found: dict[str, int] = {}
    for row in rows:
        name = _id(row.fields.get(field), row, field)
        if name in found:
            raise DataError(f"{row.where}: {field} {name!r} is that of another document too")
        found[name] = len(found)
    return found


def _relevant(row: Row, field: str, number: dict[str, int]) -> set[int]:
    given: Any = row.fields.get(field)
    if not isinstance(given, list) or not given:
        raise DataError(f"{row.where}: {field} is {given!r}; a list of ids is expected")
    names = [_id(one, row, field) for one in given]
    unknown = [name for name in names if name not in number]
    if unknown:
        raise DataError(f"{row.where}: {field} has {unknown[0]!r}, which is the id of no document")
    return {number[name] for name in names}


def _id(value: Any, row: Row, field: str) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
        return str(value)
    raise DataError(f"{row.where}: {field} is {value!r}; a text or a whole number is expected")
