"""From counted words to a transformer on one text, and why transformers train fast and write one
token at a time.

    python benchmarks/words_to_transformers.py runs/path plays/*.md

From the checkout's folder; about four minutes on two CPU cores. Prints the nearest words of some
word vectors; perplexities of held-out text of n-gram models, an LSTM and a transformer of the same
width, and of an encoder–decoder that reads a line and writes the next; the chain rule on one text;
and times of one pass over T tokens beside T steps.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import llm_jax
from llm_jax.classic import train_word2vec

STEPS = 150
TOKENS = 128
SMALL = {
    "model.num_layers": 2,
    "model.max_length": TOKENS,
    "data.seq_length": TOKENS,
    "data.batch_size": 16,
    "train.steps": STEPS,
    "train.eval_every": 0,
}
TEXT = "To be, or not to be, that is the question."
WORDS = ("king", "sword", "brother", "weep")


def nearest_words(texts: tuple[str, ...]) -> dict[str, list[str]]:
    """The words whose vectors are nearest to those of some words."""
    paragraphs = itertools.chain.from_iterable(
        Path(text).read_text().split("\n\n") for text in texts
    )
    vectors = train_word2vec(paragraphs)
    return {word: [near for near, _ in vectors.nearest(word, 5)] for word in WORDS}


def next_line_pairs(texts: tuple[str, ...], out: Path) -> Path:
    """Shards of lines with the line before each, from which an encoder–decoder learns."""
    file = out / "lines.jsonl"
    with file.open("w") as pairs:
        for text in texts:
            lines = [line for line in Path(text).read_text().splitlines() if line.strip()]
            for before, line in itertools.pairwise(lines):
                print(json.dumps({"before": before, "line": line}), file=pairs)
    llm_jax.prepare(
        (str(file),),
        out / "tokenizer",
        out / "pairs",
        text_field="line",
        encoder_field="before",
        validation_fraction=0.02,
        block_size=TOKENS,
        workers=1,
        overwrite=True,
    )
    return out / "pairs"


def encoder_decoder(texts: tuple[str, ...], out: Path) -> float:
    """The perplexity of held-out lines, given the line before each."""
    pairs = next_line_pairs(texts, out)
    settings = {
        "model.encoder.num_layers": 2,
        "model.embed_dim": 128,
        "model.mlp.hidden_dim": 384,
        "data.objective.encoder_length": TOKENS,
        "train.label_smoothing": 0.0,
        "data.path": (str(pairs),),
        "train.out": str(out / "translate_tiny"),
    }
    run = llm_jax.train("configs/translate_tiny.py", SMALL | settings)
    return llm_jax.evaluate(run, pairs)["model"]["perplexity"]


def perplexities(run: Path, shards: Path, names: tuple[str, ...]) -> dict[str, float]:
    found = llm_jax.evaluate(run, shards, baselines="bigram" in names)
    return {name: found[name]["perplexity"] for name in names}


def chain_rule(lm: llm_jax.LanguageModel) -> tuple[float, float]:
    """log p(x1 … xn) as a sum over the model's next-token distributions, one prefix at a time, and
    as the model's own score of the whole text.
    """
    ids = lm.token_ids(TEXT)
    total = 0.0
    for end in range(1, len(ids)):
        last = lm.logits(ids[:end])[-1]
        total += float(jax.nn.log_softmax(last)[ids[end]])
    return total, -lm.loss(TEXT).nll


def seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """The median time of a call that was compiled before."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def serial_against_parallel(lm: llm_jax.LanguageModel) -> tuple[float, float]:
    """Seconds of one pass that scores the tokens of a row, and of writing as many."""
    prompt = lm.token_ids(TEXT)[:4]
    new = TOKENS - len(prompt) - 1
    written = lm.generate(prompt, max_new_tokens=new, min_new_tokens=new, temperature=0.0)
    row = [*prompt, *written]
    writing = seconds(
        lambda: lm.generate(prompt, max_new_tokens=new, min_new_tokens=new, temperature=0.0)
    )
    return seconds(lambda: lm.loss([row])), writing


def main(out: Path, texts: tuple[str, ...]) -> None:
    llm_jax.train_tokenizer(texts, out / "tokenizer", vocab_size=2048, overwrite=True)
    llm_jax.prepare(
        texts, out / "tokenizer", out / "shards", block_size=256, workers=1, overwrite=True
    )
    for word, near in nearest_words(texts).items():
        print(f"nearest to {word}: {', '.join(near)}")
    where = {"data.path": (str(out / "shards"),)}
    runs = {}
    for name, config in (("LSTM", "lstm"), ("transformer", "tiny_cpu")):
        folder = {"train.out": str(out / config)}
        runs[name] = llm_jax.train(f"configs/{config}.py", SMALL | where | folder)
    found = perplexities(
        runs["transformer"], out / "shards", ("unigram", "bigram", "kneser_ney", "model")
    )
    found["transformer"] = found.pop("model")
    found["LSTM"] = perplexities(runs["LSTM"], out / "shards", ("model",))["model"]
    found["encoder–decoder, of lines"] = encoder_decoder(texts, out)
    for name, value in found.items():
        print(f"perplexity {name:26}{value:>10.1f}")
    for name, run in runs.items():
        lm = llm_jax.load(run)
        by_hand, score = chain_rule(lm)
        scoring, writing = serial_against_parallel(lm)
        print(f"{name}: log p by the chain rule {by_hand:.4f}, score of the text {score:.4f}")
        print(
            f"{name}: one pass over {TOKENS} tokens {scoring * 1e3:.1f} ms, writing them"
            f" {writing * 1e3:.1f} ms, {writing / scoring:.1f} times as long"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]))
