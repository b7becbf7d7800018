"""``llm-jax word2vec`` and ``llm-jax vectors``: word vectors from text, and what they know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.classic.word2vec import evaluation
from llm_jax.classic.word2vec.batches import keep_probabilities
from llm_jax.classic.word2vec.config import Architecture, Softmax, Window, Word2VecConfig
from llm_jax.classic.word2vec.phrases import PhraseRule
from llm_jax.classic.word2vec.vectors import Vectors, listed
from llm_jax.classic.words import WordRule
from llm_jax.data.corpus.sources import expand, read_documents
from llm_jax.evaluation.documents import documents as shard_documents
from llm_jax.files import RUN, SHARDS, check_folder, kind_of_folder, write_atomic
from llm_jax.ranges import Count, Natural, NotNegative, Positive, Seed, checked
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError

_SHOWN = 5


@checked
def train(
    input: tuple[str, ...],
    out: Path,
    *,
    architecture: Architecture = "skip-gram",
    softmax: Softmax = "negative",
    dimensions: Count = 100,
    window: Window = 5,
    negative: Count = 5,
    min_count: Count = 5,
    sample: NotNegative = 1e-3,
    epochs: Count = 5,
    learning_rate: Positive = 0.025,
    phrases: Natural = 0,
    phrase_threshold: Positive = 100.0,
    lowercase: bool = True,
    text_field: str = "text",
    checkpoint_every: Count = 500,
    seed: Seed = 0,
) -> str:
    """Train vectors of words (word2vec), and write them in the text format that gensim reads too.

    The same command goes on from the newest checkpoint in the folder.

    Args:
        input: text files, folders or patterns (.txt .md .jsonl, each also .gz or .zst, and
            .parquet), or one folder of shards, whose train split is read as text; no context goes
            from one document to the next.
        out: folder for the vectors (vectors.txt), checkpoints and metrics.
        architecture: skip-gram, a word predicts the words near it, or cbow, their mean predicts it.
        softmax: negative sampling, or hierarchical.
        dimensions: length of the vectors.
        window: largest distance of two words that are near each other.
        negative: words that each prediction is told from, on average.
        min_count: words with fewer occurrences are left out.
        sample: words of a larger share of the text are thinned out; 0 keeps all.
        epochs: times that the text is read.
        learning_rate: at the start; it falls linearly to 0.0001, or a tenth of it if that is less.
        phrases: how often neighbours that go together, as new york, are joined first; 0 joins none.
        phrase_threshold: score from which on they are joined.
        lowercase: whether Casa and casa are one word.
        text_field: field of .jsonl lines or column of .parquet files that holds the text.
        checkpoint_every: steps between checkpoints.
        seed: of the first vectors, and of all that is drawn.
    """
    from llm_jax.classic.word2vec.train import VECTORS, train_word2vec

    config = Word2VecConfig(
        architecture=architecture,
        softmax=softmax,
        dimensions=dimensions,
        window=window,
        negative=negative,
        min_count=min_count,
        sample=sample,
        epochs=epochs,
        learning_rate=learning_rate,
        final_rate=min(1e-4, learning_rate / 10),
        seed=seed,
    )
    rule = PhraseRule(threshold=phrase_threshold, passes=phrases) if phrases else None
    # Before the texts are read.
    check_folder(out, resumes=(RUN,))
    vectors = train_word2vec(
        _texts(input, text_field),
        config,
        rule=WordRule(lowercase=lowercase),
        phrases=rule,
        out=out,
        checkpoint_every=checkpoint_every,
    )
    lines = [f"{len(vectors):,} words; the nearest to some frequent ones:"]
    for word in _frequent(vectors):
        near = ", ".join(other for other, _ in vectors.nearest(word, _SHOWN))
        lines.append(f"  {word}: {near}")
    return "\n".join([*lines, f"vectors in {out / VECTORS}"])


@checked
def nearest(vectors: Path, words: tuple[str, ...], *, count: Count = 10) -> str:
    """The words of largest cosine with each word.

    Args:
        vectors: folder of `llm-jax word2vec`, or a file in the format of word2vec (.bin is binary).
        words: words of the vocabulary.
        count: how many are listed.
    """
    if not words:
        raise ConfigError("words is empty; give at least one word")
    opened = _open(vectors)
    blocks = ["\n".join([word, *listed(opened.nearest(word, count))]) for word in words]
    return "\n\n".join(blocks)


@checked
def analogy(vectors: Path, words: tuple[str, str, str], *, count: Count = 10) -> str:
    """What is to the third word as the second is to the first: man king woman.

    Args:
        vectors: folder of `llm-jax word2vec`, or a file in the format of word2vec (.bin is binary).
        words: three words of the vocabulary.
        count: how many answers are listed.
    """
    return "\n".join(listed(_open(vectors).analogy(*words, count)))


@checked
def evaluate(
    vectors: Path,
    *,
    similarity: Path | None = None,
    analogies: Path | None = None,
    lowercase: bool = True,
) -> str:
    """Rank correlation with people's similarities of words, and accuracy on analogies.

    Args:
        vectors: folder of `llm-jax word2vec`, or a file in the format of word2vec (.bin is binary).
        similarity: file with two words and a number a line, as WordSim353.
        analogies: file with four words a line and sections ": name", as questions-words.txt.
        lowercase: whether the words of these files are made lower case.
    """
    if similarity is None and analogies is None:
        raise ConfigError("similarity and analogies are not given; give at least one file")
    opened = _open(vectors)
    lines = []
    if similarity is not None:
        found = evaluation.word_similarity(opened, evaluation.read_pairs(similarity, lowercase))
        lines.append(
            f"similarity: Spearman {_number(found['spearman'])}, {_counts(found, 'pairs')}"
        )
    if analogies is not None:
        found = evaluation.analogies(opened, evaluation.read_analogies(analogies, lowercase))
        lines.append(
            f"analogies: accuracy {_number(found['accuracy'])}, {_counts(found, 'questions')}"
        )
        for name, part in found["sections"].items():
            lines.append(f"  {name}: {_number(part['accuracy'])} of {part['questions']:,}")
    return "\n".join(lines)


@checked
def page(
    vectors: Path,
    words: tuple[str, ...],
    *,
    out: Path,
    count: Count = 12,
    tsne: bool = False,
    seed: Seed = 0,
) -> str:
    """Write a page with a picture of words and their neighbours, by principal components.

    Args:
        vectors: folder of `llm-jax word2vec`, or a file in the format of word2vec (.bin is binary).
        words: words of the vocabulary.
        out: HTML file to write.
        count: neighbours of each word.
        tsne: whether a second picture is drawn by t-SNE (extra vectors).
        seed: of t-SNE.
    """
    from llm_jax.commands.word_vectors_page import neighbour_page

    if not words:
        raise ConfigError("words is empty; give at least one word")
    text = neighbour_page(_open(vectors), words, count=count, tsne_seed=seed if tsne else None)
    write_atomic(out, text.encode())
    return f"page in {out}"


def _texts(input: tuple[str, ...], text_field: str) -> Iterator[str]:
    """The documents of text files, or of a folder of shards.

    Raises:
        ConfigError: a field is named of shards, which have none.
        DataError: there is nothing to read, or it cannot be read.
    """
    folder = path_of(input[0])
    if len(input) > 1 or kind_of_folder(folder) is not SHARDS:
        documents = read_documents(expand(input), text_field=text_field)
        return (document.text for document in documents)
    if text_field != "text":
        raise ConfigError(f"text_field is {text_field!r}, and shards have no fields; leave it out")
    tokenizer = open_tokenizer(folder / "tokenizer")
    return (tokenizer.decode(ids.tolist()) for ids in shard_documents(folder, "train"))


def _frequent(vectors: Vectors) -> list[str]:
    """The most frequent words that say something: those that thinning out by 0.0001 leaves whole,
    or else the last ones.
    """
    assert vectors.counts is not None, "they were trained just now"
    whole = np.flatnonzero(keep_probabilities(vectors.counts, 1e-4) == 1)
    first = int(whole[0]) if len(whole) else max(0, len(vectors) - _SHOWN)
    return list(vectors.words[first : first + _SHOWN])


def _open(path: Path) -> Vectors:
    from llm_jax.classic.word2vec.train import VECTORS

    return Vectors.load(path / VECTORS if path.is_dir() else path)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _counts(found: dict[str, Any], what: str) -> str:
    text = f"{found[what]:,} {what}, {found['out_of_vocabulary']:,} out of vocabulary"
    return f"{text} (such as {', '.join(found['unknown'])})" if found["unknown"] else text
