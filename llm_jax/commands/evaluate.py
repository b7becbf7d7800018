"""``llm-jax eval``: a run's perplexity on a split of shards, printed and kept beside the run."""

from __future__ import annotations

from pathlib import Path

from llm_jax.api.verbs import evaluate
from llm_jax.evaluation.shards import table
from llm_jax.files import write_json
from llm_jax.ranges import Count, Natural, checked


@checked
def evaluate_run(
    run: Path,
    data: Path,
    split: str = "validation",
    *,
    step: Natural | None = None,
    context: Natural = 0,
    stride: Natural = 0,
    batch_size: Count = 16,
    baselines: bool = True,
) -> str:
    """Token, word and byte perplexity and bits per byte of a run on one split of a folder of
    shards. Of a run with another objective than the next token: perplexity and accuracy of the
    tokens that it is asked for, as in training.

    With --tasks instead of --data it asks the questions of data sets, and with --losses FILE it
    writes the loss of each document: `llm-jax eval --tasks NAMES --help` and `llm-jax eval --losses
    FILE --help` have the options.

    Args:
        run: folder of the run.
        data: folder of shards, made with the run's tokenizer.
        split: train or validation.
        step: which checkpoint; the newest if not given.
        context: tokens of a window; 0 is the length the run was trained with.
        stride: tokens newly scored in each further window; 0 is half the context.
        batch_size: rows scored at once, over all devices.
        baselines: also count and score a unigram, a bigram and a 5-gram (Kneser–Ney) model of the
            train split, where the next token is what is asked for.
    """
    results = evaluate(
        run,
        data,
        split=split,
        step=step,
        context=context,
        stride=stride,
        batch_size=batch_size,
        baselines=baselines,
    )
    write_json(run / f"eval_{split}.json", results)
    return table(results)
