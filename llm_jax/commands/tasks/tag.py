"""``llm-jax task tag``: a model trained to label the words of sentences."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.commands.tasks.classifiers import CLASSES
from llm_jax.commands.tasks.finetune import Source, Training, claim, finetune, open_source
from llm_jax.commands.tasks.results import plain, results, write_results
from llm_jax.commands.tasks.texts import held_out
from llm_jax.config.model import PoolerConfig
from llm_jax.data.examples.folder import Examples, flat
from llm_jax.decode.classify import class_probabilities
from llm_jax.evaluation.bias.records import Row, read_jsonl
from llm_jax.evaluation.significance.sums import ItemSums
from llm_jax.evaluation.tasks.measures import Figures, figure
from llm_jax.evaluation.text_metrics.spans import bio_spans, span_scores
from llm_jax.files import write_json
from llm_jax.ranges import Count, Positive, Seed, ShareBelowOne, checked
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import ConfigError, DataError

Scheme = Literal["bio", "words"]
LongSentences = Literal["refuse", "skip"]


class Sentence(NamedTuple):
    """A sentence of a file.

    Attributes:
        where: file and line.
        words: at least one.
        tags: of each word.
    """

    where: str
    words: list[str]
    tags: list[str]


class Pieces(NamedTuple):
    """A sentence as tokens.

    Attributes:
        ids: of its tokens.
        first: the place of each word's first token.
    """

    ids: list[int]
    first: list[int]


@checked
def finetune_tagger(
    train: Path,
    *,
    model: Path,
    out: Path,
    test: Path | None = None,
    test_fraction: ShareBelowOne = 0.2,
    words_field: str = "tokens",
    tags_field: str = "tags",
    scheme: Scheme = "bio",
    epochs: Positive = 3.0,
    learning_rate: Positive = 5e-5,
    batch_size: Count = 32,
    long: LongSentences = "refuse",
    classes_only: bool = False,
    seed: Seed = 0,
) -> str:
    """Train a model to label each word of a sentence (names, parts of speech), and score it on
    sentences that were held out, beside each word's most frequent label. The first token of a word
    carries its label.

    Args:
        train: JSON lines with a list of words and a list of their labels.
        model: folder of the run or converted model that training begins with; an encoder sees
            the words on both sides.
        out: folder for the trained model, the figures, every answer and a page.
        test: JSON lines of the test sentences; a part of ``train`` if not given.
        test_fraction: share of ``train`` that is held out where ``test`` is not given.
        words_field: key of the list of words.
        tags_field: key of the list of labels, which are texts.
        scheme: bio, where labels are O, B-x and I-x, and spans are scored; or words, any labels,
            scored word by word.
        epochs: times that each sentence is seen.
        learning_rate: the highest one, after a tenth of the steps.
        batch_size: sentences of a step.
        long: what becomes of sentences longer than the model's context: refuse, or skip (left out
            and counted).
        classes_only: train the new layer alone, and leave the model as it is.
        seed: of the held-out sentences, the order and the new layer.
    """
    use_compile_cache()
    training = Training(
        model, out, epochs, learning_rate, batch_size, seed, classes_only=classes_only
    )
    first = read_sentences(train, words_field, tags_field, scheme)
    if test is None:
        kept, other = held_out(len(first), test_fraction, seed)
        first, second = [first[i] for i in kept], [first[i] for i in other]
    else:
        second = read_sentences(test, words_field, tags_field, scheme)
    labels = _labels(first, second)
    source = open_source(model, "tag")
    pooler = PoolerConfig("identity", "each", len(labels))
    source = source._replace(config=dataclasses.replace(source.config, pooler=pooler))
    settings = {"task": "tag", "train": str(train), "test": str(test), "labels": labels}
    claim(training, {**settings, "scheme": scheme, "long": long})
    most = source.config.max_length
    splits = []
    left_out = 0
    for sentences in (first, second):
        fitting, long_ones = _fitting(source.tokenizer, sentences, most, long)
        splits.append(fitting)
        left_out += long_ones
    run = _train(training, source, splits, labels)
    write_json(out / CLASSES, labels)
    about = {"labels": labels, "scheme": scheme, "long": long, "long_texts": left_out}
    return _score(run, splits, labels, out, about)


def read_sentences(path: Path, words_field: str, tags_field: str, scheme: Scheme) -> list[Sentence]:
    """The sentences of a file of JSON lines.

    Raises:
        DataError: a line that lacks a field, or has other numbers of words and labels, or a label
            that the scheme does not have; it is named.
        ConfigError: the scheme is not known.
    """
    if scheme not in ("bio", "words"):
        raise ConfigError(f"scheme is {scheme!r}; it must be bio or words")
    found = []
    for row in read_jsonl(path):
        words = _texts_of(row, words_field)
        tags = _texts_of(row, tags_field)
        if len(words) != len(tags):
            raise DataError(
                f"{row.where}: {words_field} has {len(words)} words and {tags_field}"
                f" {len(tags)} labels; give one for each"
            )
        if scheme == "bio":
            try:
                bio_spans(tags)
            except DataError as error:
                raise DataError(f"{row.where}: {error}, or choose --scheme words") from None
        found.append(Sentence(row.where, words, tags))
    return found


def _texts_of(row: Row, field: str) -> list[str]:
    value = row.fields.get(field)
    if isinstance(value, list) and value and all(isinstance(w, str) and w.strip() for w in value):
        return [word.strip() for word in value]
    raise DataError(f"{row.where}: {field} is {str(value)[:60]}; a list of texts is expected")


def _labels(train: Sequence[Sentence], test: Sequence[Sentence]) -> list[str]:
    labels = sorted({tag for sentence in train for tag in sentence.tags})
    if len(labels) < 2:
        raise DataError(
            f"all words of the {len(train):,} training sentences have the label {labels[0]!r}; give"
            " at least two labels"
        )
    for sentence in test:
        for tag in sentence.tags:
            if tag not in labels:
                raise DataError(
                    f"{sentence.where}: the label {tag!r} is not among those of the training"
                    f" sentences ({', '.join(labels[:8])}); leave it out, or train with it"
                )
    return labels


def pieces_of(tokenizer: Tokenizer, sentence: Sentence) -> Pieces:
    """A sentence as tokens: each word encoded as it is after a blank, but for the first.

    Raises:
        DataError: a word has no tokens.
    """
    blank = "" if tokenizer.adds_prefix else " "
    texts = [word if n == 0 else blank + word for n, word in enumerate(sentence.words)]
    ids = [tokenizer.bos_id] if tokenizer.add_bos else []
    first = []
    for word, own in zip(sentence.words, tokenizer.encode_batch(texts)):
        if not own:
            raise DataError(f"{sentence.where}: the word {word!r} has no tokens; leave it out")
        first.append(len(ids))
        ids += own
    return Pieces([*ids, tokenizer.eos_id] if tokenizer.add_eos else ids, first)


def _fitting(
    tokenizer: Tokenizer, sentences: Sequence[Sentence], most: int, long: LongSentences
) -> tuple[list[tuple[Sentence, Pieces]], int]:
    found = []
    for sentence in sentences:
        pieces = pieces_of(tokenizer, sentence)
        if len(pieces.ids) <= most:
            found.append((sentence, pieces))
        elif long != "skip":
            raise DataError(
                f"{sentence.where} has {len(pieces.ids)} tokens, and the model's context {most};"
                " split the sentence, or choose --long skip"
            )
    if not found:
        raise DataError(f"all {len(sentences)} sentences have more than {most} tokens")
    return found, len(sentences) - len(found)


def _train(
    training: Training,
    source: Source,
    splits: Sequence[Sequence[tuple[Sentence, Pieces]]],
    labels: Sequence[str],
) -> Run:
    number = {label: n for n, label in enumerate(labels)}

    def made(split: Sequence[tuple[Sentence, Pieces]]) -> Examples:
        marks = []
        for sentence, pieces in split:
            row = [-1] * len(pieces.ids)
            for at, tag in zip(pieces.first, sentence.tags):
                row[at] = number[tag]
            marks.append(row)
        rows = [pieces.ids for _, pieces in split]
        lengths = np.array([[len(row)] for row in rows], np.int32)
        return Examples(flat(rows), lengths, token_labels=flat(marks))

    examples = {name: made(split) for name, split in zip(("train", "validation"), splits)}
    objective = {"kind": "token_classification"}
    return finetune(training, source, examples, objective, {"classes": list(labels)})


def _score(
    run: Run,
    splits: Sequence[Sequence[tuple[Sentence, Pieces]]],
    labels: Sequence[str],
    out: Path,
    about: dict[str, Any],
) -> str:
    train, test = splits
    tables = class_probabilities(run, [pieces.ids for _, pieces in test])
    said = [
        [labels[n] for n in table[pieces.first].argmax(axis=1)]
        for table, (_, pieces) in zip(tables, test)
    ]
    truth = [sentence.tags for sentence, _ in test]
    usual = most_frequent([sentence for sentence, _ in train])
    guessed = [[usual(word) for word in sentence.words] for sentence, _ in test]
    records = [
        {"item": n, "where": s.where, "words": s.words, "tags": s.tags, "predicted": said[n]}
        for n, (s, _) in enumerate(test)
    ]
    spans = about["scheme"] == "bio"
    found = results(
        "tag",
        run.folder,
        run.step,
        records,
        figures=_figures(truth, said, spans),
        baselines={"each word's most frequent label": _figures(truth, guessed, spans)},
        trained_on=len(train),
        **about,
    )
    return write_results(out, found, records)


def most_frequent(sentences: Sequence[Sentence]) -> Callable[[str], str]:
    """The function from a word to its most frequent label; of a new word, that of all words."""
    by_word: dict[str, Counter[str]] = {}
    every: Counter[str] = Counter()
    for sentence in sentences:
        every.update(sentence.tags)
        for word, tag in zip(sentence.words, sentence.tags):
            by_word.setdefault(word, Counter())[tag] += 1
    usual = every.most_common(1)[0][0]

    def guess(word: str) -> str:
        return by_word[word].most_common(1)[0][0] if word in by_word else usual

    return guess


def _figures(truth: Sequence[Sequence[str]], said: Sequence[Sequence[str]], spans: bool) -> Figures:
    right = [[sum(a == b for a, b in zip(*pair)), len(pair[0])] for pair in zip(truth, said)]
    words = ItemSums(np.array(right, float), lambda sums: float(sums[0] / sums[1]))
    found = {"accuracy_of_words": figure(words)}
    if spans:
        scores = span_scores(truth, said)
        found["span_f1"] = figure(scores.sums)
        for name in ("precision", "recall"):
            found[f"span_{name}"] = plain(getattr(scores, name))
    return found
