"""``llm-jax task label``: the labels that a trained classifier gives to new texts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from llm_jax.commands.tasks.classifiers import open_classifier
from llm_jax.commands.written import json_line
from llm_jax.evaluation.bias.records import read_jsonl
from llm_jax.files import write_atomic
from llm_jax.ranges import checked
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import ConfigError


@checked
def label_texts(
    classifier: Path,
    texts: Path,
    *,
    out: Path,
    text_field: str = "text",
    second_field: str = "",
) -> str:
    """Write each record of a file with the label that a classifier gives it, and the probability of
    every label.

    Args:
        classifier: folder of task classify, of words or with a model.
        texts: JSON lines with a text each.
        out: file of JSON lines to write: the record, with predicted and probabilities.
        text_field: key of the text.
        second_field: key of a second text, where the classifier was trained on two; empty for one.
    """
    if out.exists():
        raise ConfigError(f"out {str(out)!r} exists; give another file, or delete it")
    use_compile_cache()
    opened = open_classifier(classifier)
    fields = (text_field, second_field) if second_field else (text_field,)
    rows = list(read_jsonl(texts))
    given = [tuple(row.text(name) for name in fields) for row in rows]
    table = opened.probabilities(given, [row.where for row in rows])
    lines = []
    counts: Counter[str] = Counter()
    for row, probabilities in zip(rows, table.tolist(), strict=True):
        by_label = dict(zip(opened.classes, probabilities, strict=True))
        predicted = max(by_label, key=by_label.__getitem__)
        counts[predicted] += 1
        lines.append(json_line({**row.fields, "predicted": predicted, "probabilities": by_label}))
    write_atomic(out, "".join(lines).encode())
    shown = [f"{name[:30]:32}{counts[name]:>10,}" for name in opened.classes]
    return "\n".join([*shown, f"{len(rows):,} texts in {out}"])
