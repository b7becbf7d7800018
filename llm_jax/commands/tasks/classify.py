"""``llm-jax task classify TRAIN --model MODEL``: a model of texts trained to give their labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.commands.tasks.classifiers import CLASSES
from llm_jax.commands.tasks.finetune import (
    Pooling,
    Source,
    Training,
    claim,
    finetune,
    open_source,
    with_classes,
)
from llm_jax.commands.tasks.results import plain, results, write_results
from llm_jax.commands.tasks.texts import Encoded, Example, Long, encode, held_out, read_examples
from llm_jax.data.examples.folder import Examples, flat
from llm_jax.decode.classify import class_probabilities
from llm_jax.evaluation.bias.toxicity_scorer import errors_by_label
from llm_jax.evaluation.significance.sums import means
from llm_jax.evaluation.tasks.measures import Figures, figure
from llm_jax.evaluation.text_metrics.calibration import calibration
from llm_jax.evaluation.text_metrics.label_sums import macro_f1_sums
from llm_jax.files import write_json
from llm_jax.ranges import Count, Positive, Seed, ShareBelowOne, checked
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import ConfigError, DataError

Weights = Literal["none", "balanced"]


class Split(NamedTuple):
    """The examples of a split that are kept, and what the model reads of them."""

    examples: list[Example]
    encoded: Encoded


@checked
def finetune_classifier(
    train: Path,
    *,
    model: Path,
    out: Path,
    test: Path | None = None,
    test_fraction: ShareBelowOne = 0.2,
    text_field: str = "text",
    second_field: str = "",
    label_field: str = "label",
    epochs: Positive = 3.0,
    learning_rate: Positive = 5e-5,
    batch_size: Count = 32,
    max_length: Count = 512,
    long: Long = "refuse",
    pooling: Pooling = "auto",
    class_weights: Weights = "none",
    classes_only: bool = False,
    seed: Seed = 0,
) -> str:
    """Train a model to give the label of a text, or of two texts (inference, paraphrase), and score
    it on texts that were held out, beside the most frequent label. The same command goes on where a
    stopped one was.

    Args:
        train: JSON lines with a text and a label.
        model: folder of the run or converted model that training begins with: an encoder or a
            decoder. Without it the classifier is one of words.
        out: folder for the trained model, the figures, every answer and a page.
        test: JSON lines of the test texts; a part of ``train`` if not given.
        test_fraction: share of ``train`` that is held out where ``test`` is not given.
        text_field: key of the text, such as premise.
        second_field: key of a second text, such as hypothesis; empty for one text.
        label_field: key of the label: a text, a whole number or a truth value.
        epochs: times that each text is seen.
        learning_rate: the highest one, after a tenth of the steps.
        batch_size: texts of a step.
        max_length: tokens of a text, at most; the model's context where that is shorter.
        long: what becomes of longer texts: refuse, skip (left out and counted) or truncate (cut at
            the end and counted).
        pooling: what the classes are made of: the model's own pooler if it has one, else the mean
            of an encoder's tokens or the last one of a decoder's (auto); or mean, first or last.
        class_weights: weights of the labels in the loss: none, or balanced, so that each label
            weighs the same.
        classes_only: train the new layer alone, and leave the model as it is.
        seed: of the held-out texts, the order and the new layer.
    """
    use_compile_cache()
    training = Training(
        model, out, epochs, learning_rate, batch_size, seed, classes_only=classes_only
    )
    first, second = _read(train, test, (text_field, second_field, label_field), test_fraction, seed)
    labels = classes_of(first, second)
    source = open_source(model, "classify")
    source = source._replace(config=with_classes(source.config, len(labels), pooling))
    settings = {"task": "classify", "train": str(train), "test": str(test), "labels": labels}
    claim(training, {**settings, "pooling": pooling, "long": long, "max_length": max_length})
    most = min(max_length, source.config.max_length)
    splits = [_encoded(source, examples, most, long) for examples in (first, second)]
    run = _train(training, source, splits, labels, class_weights)
    write_json(out / CLASSES, labels)
    about = {"labels": labels, "long": long, "long_texts": sum(s.encoded.long for s in splits)}
    return _score(run, splits, labels, out, about)


def _read(
    train: Path, test: Path | None, fields: tuple[str, str, str], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    examples = read_examples(train, *fields)
    if test is not None:
        return examples, read_examples(test, *fields)
    kept, out = held_out(len(examples), fraction, seed)
    return [examples[i] for i in kept], [examples[i] for i in out]


def classes_of(train: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """The labels in order.

    Raises:
        DataError: there is only one, or test texts have labels that training does not have.
    """
    labels = sorted({example.label for example in train})
    if len(labels) < 2:
        raise DataError(
            f"the {len(train):,} training texts all have the label {labels[0]!r}; give texts with"
            " at least two labels"
        )
    for example in test:
        if example.label not in labels:
            raise DataError(
                f"{example.where}: the label {example.label!r} is not among those of the training"
                f" texts ({', '.join(labels[:8])}); leave it out, or train with it"
            )
    return labels


def _encoded(source: Source, examples: list[Example], most: int, long: Long) -> Split:
    wheres = [example.where for example in examples]
    texts = [example.texts for example in examples]
    encoded = encode(source.tokenizer, texts, wheres, most=most, long=long)
    if not encoded.rows:
        raise DataError(
            f"all {len(texts):,} texts have more than {most} tokens; raise --max-length"
        )
    return Split([examples[i] for i in encoded.kept], encoded)


def _train(
    training: Training,
    source: Source,
    splits: Sequence[Split],
    labels: Sequence[str],
    class_weights: Weights,
) -> Run:
    typed = len(splits[0].examples[0].texts) == 2 and source.config.embedding.token_types >= 2
    number = {label: n for n, label in enumerate(labels)}
    made = {
        name: Examples(
            tokens=flat(split.encoded.rows),
            lengths=np.array([[len(row)] for row in split.encoded.rows], np.int32),
            labels=np.array([number[e.label] for e in split.examples], np.int32),
            token_types=flat(split.encoded.types) if typed else None,
        )
        for name, split in zip(("train", "validation"), splits)
    }
    objective: dict[str, Any] = {"kind": "classification", "token_types": typed}
    if class_weights == "balanced":
        objective["class_weights"] = _balanced(splits[0].examples, labels)
    elif class_weights != "none":
        raise ConfigError(f"class_weights is {class_weights!r}; it must be none or balanced")
    return finetune(training, source, made, objective, {"classes": list(labels)})


def _balanced(examples: Sequence[Example], labels: Sequence[str]) -> tuple[float, ...]:
    counts = Counter(example.label for example in examples)
    return tuple(len(examples) / (len(labels) * counts[label]) for label in labels)


def _score(
    run: Run, splits: Sequence[Split], labels: Sequence[str], out: Path, about: dict[str, Any]
) -> str:
    train, test = splits
    types = test.encoded.types if run.config.data.objective.token_types else None  # type: ignore[union-attr]
    table = np.stack(class_probabilities(run, test.encoded.rows, token_types=types))
    truth = [example.label for example in test.examples]
    said = [labels[n] for n in table.argmax(axis=1)]
    often = Counter(example.label for example in train.examples).most_common(1)[0][0]
    figures = label_figures(truth, said)
    right = np.array([a == b for a, b in zip(truth, said)])
    figures["ece"] = plain(calibration(table.max(axis=1), right).ece)
    records = [
        {
            "item": n,
            "where": example.where,
            "texts": list(example.texts),
            "label": example.label,
            "predicted": said[n],
            "probability": float(table[n].max()),
        }
        for n, example in enumerate(test.examples)
    ]
    found = results(
        "classify",
        run.folder,
        run.step,
        records,
        figures=figures,
        baselines={f"always {often}": label_figures(truth, [often] * len(truth))},
        trained_on=len(train.examples),
        by_label=errors_by_label(table, labels, truth),
        **about,
    )
    return write_results(out, found, records)


def label_figures(truth: Sequence[str], said: Sequence[str]) -> Figures:
    """Accuracy and macro F1, with intervals."""
    right = [float(a == b) for a, b in zip(truth, said)]
    return {
        "accuracy": figure(means(right)),
        "macro_f1": figure(macro_f1_sums(truth, said)),
    }
