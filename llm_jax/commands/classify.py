"""``llm-jax task classify``: a classifier of texts by their words, scored on held-out texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_jax.classic.text_classifier import train_text_classifier
from llm_jax.commands.tasks.texts import held_out
from llm_jax.evaluation.bias.records import read_jsonl
from llm_jax.evaluation.bias.toxicity_scorer import EVALUATION, errors_by_label
from llm_jax.files import write_json
from llm_jax.ranges import Positive, Seed, ShareBelowOne, checked

Texts = tuple[list[str], list[str]]


@checked
def classify(
    train: Path,
    *,
    out: Path,
    test: Path | None = None,
    test_fraction: ShareBelowOne = 0.2,
    text_field: str = "text",
    label_field: str = "label",
    l2: Positive = 1.0,
    seed: Seed = 0,
) -> str:
    """Train a classifier of texts on their words (tf-idf and a linear model), and score it on texts
    that were held out, beside the most frequent label.

    Args:
        train: JSON lines with a text and a label.
        out: folder for the classifier and its evaluation.
        test: JSON lines of the test texts; a part of ``train`` if not given.
        test_fraction: share of ``train`` that is held out where ``test`` is not given.
        text_field: key of the text.
        label_field: key of the label.
        l2: weight of the squared weights in the loss.
        seed: of the choice of held-out texts.
    """
    texts, labels = _read(train, text_field, label_field)
    if test is None:
        (texts, labels), (held_texts, held_labels) = _split(texts, labels, test_fraction, seed)
    else:
        held_texts, held_labels = _read(test, text_field, label_field)
    classifier = train_text_classifier(texts, labels, l2=l2)
    scores = classifier.evaluate(held_texts, held_labels)
    probabilities = classifier.predict_proba(held_texts)
    scores["by_label"] = errors_by_label(probabilities, classifier.classes, held_labels)
    classifier.save(out)
    write_json(out / EVALUATION, scores)
    return _shown(scores, trained=len(texts), out=out)


def _read(path: Path, text_field: str, label_field: str) -> Texts:
    rows = list(read_jsonl(path))
    texts = [row.text(text_field) for row in rows]
    labels = [row.text(label_field) for row in rows]
    return texts, labels


def _split(texts: list[str], labels: list[str], fraction: float, seed: int) -> tuple[Texts, Texts]:
    def chosen(places: list[int]) -> Texts:
        return [texts[i] for i in places], [labels[i] for i in places]

    kept, out = held_out(len(texts), fraction, seed)
    return chosen(kept), chosen(out)


def _shown(scores: dict[str, Any], *, trained: int, out: Path) -> str:
    majority = scores["majority"]
    lines = [
        f"trained on {trained:,} texts, scored on {scores['documents']:,} others",
        f"{'':24}{'accuracy':>10}{'macro F1':>10}",
        f"{'words':24}{scores['accuracy']:>10.4f}{scores['macro_f1']:>10.4f}",
        f"{'always ' + majority['label'][:16]:24}{majority['accuracy']:>10.4f}"
        f"{majority['macro_f1']:>10.4f}",
    ]
    if not scores["converged"]:
        lines.append("training had not come to its end")
    return "\n".join([*lines, f"classifier in {out}"])
