"""From a bag of words to GPT on one text: counts, word vectors, n-grams, an LSTM, attention, an
encoder–decoder and a decoder, each with a figure on text that it has not seen.

    python examples/from_words_to_transformers.py plays/ runs/path [--steps 200]

``plays/`` is a folder of text files (.txt or .md); the last tenth of each file is held out.
docs/from-words-to-transformers.md tells the same path with the figures of one run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import llm_jax
from llm_jax.classic import (
    Word2VecConfig,
    learn_bag_of_words,
    train_text_classifier,
    train_word2vec,
)
from llm_jax.commands.attention import show_attention

CONFIGS = Path(__file__).parents[1] / "configs"
PASSAGE = 20
"""Lines of a passage."""


class Text(NamedTuple):
    """Passages of lines, and the file that each is from.

    Attributes:
        passages: lines, joined by newlines.
        files: name of the file of each passage.
    """

    passages: list[str]
    files: list[str]


def read_texts(folder: Path) -> tuple[Text, Text]:
    """The passages to learn from, and those held out: the last tenth of each file."""
    learnt = Text([], [])
    held = Text([], [])
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".md"))
    if len(paths) < 2:
        raise SystemExit(f"{folder} has {len(paths)} files .txt or .md; give at least 2")
    for path in paths:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        passages = ["\n".join(lines[i : i + PASSAGE]) for i in range(0, len(lines), PASSAGE)]
        cut = len(passages) - max(1, len(passages) // 10)
        for text, part in ((learnt, passages[:cut]), (held, passages[cut:])):
            text.passages.extend(part)
            text.files.extend([path.stem] * len(part))
    return learnt, held


def bag_of_words(learnt: Text, held: Text) -> dict[str, Any]:
    """Which file is a passage from? The order of its words does not count."""
    bag, counts = learn_bag_of_words(learnt.passages)
    classifier = train_text_classifier(learnt.passages, learnt.files)
    scores = classifier.evaluate(held.passages, held.files)
    return {
        "words": len(bag.vocabulary),
        "share of counts that are not 0": counts.nnz / np.prod(counts.shape),
        "accuracy": scores["accuracy"],
        "accuracy of the most frequent file": scores["majority"]["accuracy"],
    }


def word_vectors(learnt: Text, words: tuple[str, ...], dimensions: int) -> dict[str, Any]:
    """Words that stand in the same contexts get vectors that are near each other."""
    config = Word2VecConfig(dimensions=dimensions, epochs=5, min_count=5)
    vectors = train_word2vec(learnt.passages, config)
    nearest = {w: [near for near, _ in vectors.nearest(w, 5)] for w in words if w in vectors}
    return {"vectors": len(vectors), "nearest": nearest}


def make_shards(learnt: Text, held: Text, out: Path, block_size: int) -> Path:
    """Passages as tokens, for the language models."""
    for name, text in (("learnt", learnt), ("held", held)):
        lines = [json.dumps({"text": passage}) for passage in text.passages]
        (out / f"{name}.jsonl").write_text("\n".join(lines))
    given = (str(out / "learnt.jsonl"),)
    llm_jax.train_tokenizer(given, out / "tokenizer", vocab_size=2048)
    llm_jax.prepare(
        given,
        out / "tokenizer",
        out / "shards",
        validation=(str(out / "held.jsonl"),),
        block_size=block_size,
        workers=1,
    )
    return out / "shards"


def make_pairs(learnt: Text, held: Text, out: Path, block_size: int) -> Path:
    """Each line with the line before it, for the encoder–decoder: it reads one, writes the next."""
    for name, text in (("learnt", learnt), ("held", held)):
        pairs = []
        for passage in text.passages:
            lines = passage.split("\n")
            for before, line in itertools.pairwise(lines):
                pairs.append(json.dumps({"before": before, "line": line}))
        (out / f"{name}_pairs.jsonl").write_text("\n".join(pairs))
    llm_jax.prepare(
        (str(out / "learnt_pairs.jsonl"),),
        out / "tokenizer",
        out / "pairs",
        validation=(str(out / "held_pairs.jsonl"),),
        text_field="line",
        encoder_field="before",
        block_size=block_size,
        workers=1,
    )
    return out / "pairs"


def language_model(config: str, shards: Path, out: Path, settings: dict[str, Any]) -> Path:
    """A trained run of a config."""
    where = {"data.path": (str(shards),), "train.out": str(out)}
    return llm_jax.train(CONFIGS / config, where | settings)


def chain_rule(run: Path, text: str) -> tuple[float, float]:
    """ln p(text), by one pass over all tokens, and by one pass for each token.

    p(x1 x2 x3 …) = p(x1) · p(x2 | x1) · p(x3 | x1 x2) · …
    """
    lm = llm_jax.load(run)
    at_once = sum(score.logprob for score in lm.score(text))
    ids = lm.token_ids(text)
    one_by_one = 0.0
    for i in range(1, len(ids)):
        logits = lm.logits(ids[:i])[-1]
        one_by_one += float(jax.nn.log_softmax(logits)[ids[i]])
    return float(at_once), one_by_one


def parallel_and_serial(run: Path, tokens: int, rounds: int = 5) -> tuple[float, float]:
    """Tokens/s of reading a text, all positions at once, and of writing as many, one by one."""
    lm = llm_jax.load(run)
    ids = list(range(10, 10 + tokens))

    def read() -> None:
        lm.logits(ids)

    def write() -> None:
        lm.generate(ids[:1], max_new_tokens=tokens, temperature=0.0, stop_ids=())

    speeds: dict[Any, list[float]] = {read: [], write: []}
    for task in (read, write):
        task()  # compiles
    for _ in range(rounds):
        for task, found in speeds.items():
            begin = time.perf_counter()
            task()
            found.append(tokens / (time.perf_counter() - begin))
    return statistics.median(speeds[read]), statistics.median(speeds[write])


def perplexities(run: Path, shards: Path) -> dict[str, float]:
    """Of the run on the held-out text; with next tokens also of counts of n-grams."""
    found = llm_jax.evaluate(run, shards)
    return {name: one["perplexity"] for name, one in found.items() if isinstance(one, dict)}


def show(title: str, figures: dict[str, Any]) -> None:
    """Prints the figures of a stage."""
    print(f"\n{title}")
    for name, value in figures.items():
        shown = f"{value:,.4g}" if isinstance(value, float) else value
        print(f"  {name}: {shown}")


def main() -> dict[str, dict[str, Any]]:
    """Runs all stages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--words", nargs="*", default=["king", "sword", "love"])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    settings = {
        "train.steps": given.steps,
        "optimizer.warmup_steps": given.steps // 10,
        "model.embed_dim": given.width,
        "data.seq_length": given.length,
        "data.batch_size": given.rows,
    }

    learnt, held = read_texts(given.texts)
    shards = make_shards(learnt, held, given.out, given.length)
    pairs = make_pairs(learnt, held, given.out, given.length)
    found: dict[str, dict[str, Any]] = {}

    def stage(title: str, figures: dict[str, Any]) -> None:
        found[title] = figures
        show(title, figures)

    stage("bag of words", bag_of_words(learnt, held))
    stage("word vectors", word_vectors(learnt, tuple(given.words), given.width))
    lstm = language_model("lstm.py", shards, given.out / "lstm", settings)
    stage("n-grams and LSTM, perplexity", perplexities(lstm, shards))
    gpt = language_model("tiny_cpu.py", shards, given.out / "gpt", settings)
    stage("decoder (GPT), perplexity", perplexities(gpt, shards))
    page = given.out / "attention.html"
    line = held.passages[0].split("\n")[0]
    show_attention(gpt, line, out=page)
    stage("attention", {"of": line, "drawn in": str(page)})
    translate = language_model(
        "translate_tiny.py",
        pairs,
        given.out / "encoder_decoder",
        settings | {"data.objective.encoder_length": given.length, "train.label_smoothing": 0.0},
    )
    stage("encoder–decoder: the next line, perplexity", perplexities(translate, pairs))
    at_once, one_by_one = chain_rule(gpt, line)
    stage("chain rule, ln p", {"at once": at_once, "token by token": one_by_one})
    read, write = parallel_and_serial(gpt, given.length - 1)
    stage("tokens/s", {"read in parallel": read, "written one by one": write})
    return found


if __name__ == "__main__":
    main()
