"""A run's metrics on a split of shards. Where its objective predicts each token from the tokens
before it, these are perplexities of whole documents, beside unigram, bigram and 5-gram baselines
that are counted on the same shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.checkpoints.open_run import Run
from llm_jax.classic.kneser_ney import KENLM_FALLBACK
from llm_jax.config.validate import check_objective
from llm_jax.data.loading.loader import evaluation_batches
from llm_jax.data.shards.store import read_manifest
from llm_jax.evaluation.baselines import Bigram, FiveGram
from llm_jax.evaluation.documents import documents, unscored_text
from llm_jax.evaluation.metrics import sum_metrics
from llm_jax.evaluation.perplexity import Perplexity, perplexity, without_end
from llm_jax.host_memory import allocating
from llm_jax.objectives import OBJECTIVES, Objective, objective_of
from llm_jax.ranges import Count, Natural, checked
from llm_jax.sharding import batch_ways
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.training.step import pick_loss_chunk
from llm_jax.types import ConfigError, DataError

# The rows of the table, and what they are called there.
_ROWS = {"model": "model", "kneser_ney": "5-gram", "bigram": "bigram", "unigram": "unigram"}


class Split(NamedTuple):
    """One split of a folder of shards, with the tokenizer that the shards were made with."""

    folder: Path
    name: str
    manifest: dict[str, Any]
    tokenizer: Tokenizer


@checked
def evaluate_shards(
    run: Run,
    data: Path,
    split: str = "validation",
    *,
    context: Natural = 0,
    stride: Natural = 0,
    batch_size: Count = 16,
    baselines: bool = True,
) -> dict[str, Any]:
    """Evaluates a run on one split of a folder of shards.

    Args:
        run: an open run.
        data: folder of shards, made with the run's tokenizer.
        split: train or validation.
        context: tokens of a window; 0 is the length that the run was trained with.
        stride: tokens newly scored in each further window; 0 is half the context.
        batch_size: rows scored at once, over all devices; rounded up to a multiple of the devices
            that have rows of their own.
        baselines: also count and score a unigram, a bigram and a 5-gram (Kneser–Ney) model of the
            train split.

    Returns:
        ``{"step", "split", "model", "unigram", "bigram", "kneser_ney"}``, where each model has all
        figures of ``Perplexity.summary``. ``kneser_ney`` has besides its ``order``, the
        ``train_tokens`` that it counts, ``whole_train_split`` (False where the split has more), and
        ``fallback_orders`` (those with too few n-grams to estimate discounts). For an objective
        without windows ``{"step", "split", "objective", "model"}``, where the model has the
        metrics of ``Objective.evaluation`` and how much they count, under the name of
        ``Objective.unit``.

    Raises:
        ConfigError: a context or stride that does not fit the model or the objective, or nothing to
            score.
        DataError: shards that cannot be read, or were made with another tokenizer.
        NonFiniteError: the loss is NaN or infinite.
    """
    source = open_split(run, data, split)
    check_objective(run.config)
    objective = objective_of(run.config.data)
    ways = batch_ways(run.mesh)
    rows = -(-batch_size // ways) * ways
    results: dict[str, Any] = {"step": run.step, "split": split}
    if objective.pack_windows is None:
        if context or stride:
            raise ConfigError(
                f"context {context} and stride {stride} are of windows over texts, and the run's"
                f" objective is {objective.name!r}; leave them out"
            )
        model = _evaluate_rows(run, source, objective, rows)
        return results | {"objective": objective.name, "model": model}
    context, stride = window_sizes(run, context, stride)
    result = _evaluate_documents(run, source, context, stride, rows)
    results["model"] = result.summary()
    if baselines:
        results |= _evaluate_baselines(source, result, run.config.model.vocab_size)
    return results


def window_sizes(run: Run, context: int, stride: int) -> tuple[int, int]:
    """Tokens of a window and newly scored ones; 0 is the length of training, and half the window.

    Raises:
        ConfigError: a window is longer than the model's context, or shorter than the stride.
    """
    context = context or run.config.data.seq_length
    longest = run.config.model.max_length
    if context > longest:
        raise ConfigError(
            f"context is {context}; the model's max_length is {longest}, so it must be at most that"
        )
    stride = stride or max(context // 2, 1)
    if stride > context:
        raise ConfigError(f"stride is {stride}; it must be from 1 to the context, {context}")
    return context, stride


def open_split(run: Run, data: Path, split: str) -> Split:
    """Opens a split. Raises DataError if it was made with another tokenizer than the run's."""
    manifest = read_manifest(data)
    tokenizer = open_tokenizer(run.folder / "tokenizer")
    fingerprint = manifest["tokenizer"]["fingerprint"]
    if fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"data {str(data)!r} was made with tokenizer {fingerprint[:16]}…, the run was trained"
            f" with {tokenizer.fingerprint[:16]}…; prepare the text with {run.folder / 'tokenizer'}"
        )
    return Split(data, split, manifest, tokenizer)


def _evaluate_rows(
    run: Run, split: Split, objective: Objective, rows: int
) -> dict[str, float | int | None]:
    """The metrics of an objective over the batches that its transform makes of a split."""
    data = run.config.data
    vocab_size = run.config.model.vocab_size
    batches = evaluation_batches(
        split.folder,
        split=split.name,
        seq_length=data.seq_length,
        batch_size=rows,
        transform=objective.make_transform(data, run.config.model.start_token, split.tokenizer),
    )
    chunk = pick_loss_chunk(rows * data.seq_length, vocab_size)
    loss = objective.make_loss(run.model, run.config, chunk)
    sums = sum_metrics(objective, loss, run.params, run.mesh, batches)
    return sums.values() | {objective.unit: int(sums.loss_weight)}


def _evaluate_documents(run: Run, split: Split, context: int, stride: int, rows: int) -> Perplexity:
    """The perplexity of every document of a split, in windows."""
    manifest = split.manifest
    totals = manifest["splits"].get(split.name, {"words": 0, "text_bytes": 0})
    words = totals["words"]
    text_bytes = totals["text_bytes"]
    bos = manifest["options"]["add_bos"]
    if not bos:
        lost = unscored_text(documents(split.folder, split.name), split.tokenizer)
        words -= lost[0]
        text_bytes -= lost[1]
    with allocating(
        f"windows of {context} tokens, {rows} at once", "lower --context or --batch-size"
    ):
        return perplexity(
            run.model,
            run.params,
            run.mesh,
            documents(split.folder, split.name),
            words=words,
            text_bytes=text_bytes,
            context=context,
            stride=stride,
            batch_size=rows,
            vocab_size=run.config.model.vocab_size,
            bos=bos,
            config=run.config,
            eos_id=split.tokenizer.eos_id,
        )


def _evaluate_baselines(split: Split, model: Perplexity, vocab_size: int) -> dict[str, Any]:
    """Figures of the baselines on the tokens that ``model`` was scored on."""
    counted = Bigram(documents(split.folder, "train"), vocab_size)
    five_gram = FiveGram(documents(split.folder, "train"), vocab_size, bos=model.bos)
    unigram = 0.0
    bigram = 0.0
    kneser_ney = 0.0
    for document in documents(split.folder, split.name):
        text = without_end(document, split.tokenizer.eos_id)
        unigram += float(counted.unigram_nll(text).sum())
        bigram += float(counted.bigram_nll(text).sum())
        kneser_ney += float(five_gram.nll(text).sum())
    smoothed = five_gram.model
    context = smoothed.order - 1
    return {
        "unigram": model._replace(nll=unigram, context=0, stride=1).summary(),
        "bigram": model._replace(nll=bigram, context=1, stride=1).summary(),
        "kneser_ney": {
            **model._replace(nll=kneser_ney, context=context, stride=1).summary(),
            "order": smoothed.order,
            "train_tokens": smoothed.train_tokens,
            "whole_train_split": five_gram.whole,
            "fallback_orders": list(smoothed.fallback_orders),
        },
    }


def table(results: dict[str, Any]) -> str:
    """The results of ``evaluate_shards`` as text."""
    if "objective" in results:
        return _objective_table(results)
    model = results["model"]
    start = (
        "after <s>"
        if model["bos"]
        else "without <s>: the first token of a document is not scored, nor are its bytes counted"
    )
    head = (
        f"step {results['step']}, split {results['split']}: {model['tokens']:,} tokens,"
        f" {model['words']:,} words, {model['bytes']:,} bytes; context {model['context']}, stride"
        f" {model['stride']}, {start}, </s> not scored"
    )
    columns = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
    lines = [head, f"{'':10}" + "".join(f"{c.replace('_', ' '):>18}" for c in columns)]
    for name, label in _ROWS.items():
        if name in results:
            figures = (f"{figure(results[name][c]):>18}" for c in columns)
            lines.append(f"{label:10}" + "".join(figures))
    return "\n".join(lines + _five_gram_remarks(results.get("kneser_ney")))


def _five_gram_remarks(results: dict[str, Any] | None) -> list[str]:
    """What a reader has to know of the 5-gram's figures."""
    remarks = []
    if results and not results["whole_train_split"]:
        remarks.append(f"5-gram: counted on the first {results['train_tokens']:,} tokens of train")
    if results and results["fallback_orders"]:
        orders = ", ".join(map(str, results["fallback_orders"]))
        remarks.append(
            f"5-gram: train is too small to estimate the discounts of order {orders}, which are"
            f" {', '.join(map(str, KENLM_FALLBACK))}"
        )
    return remarks


def _objective_table(results: dict[str, Any]) -> str:
    objective = OBJECTIVES[results["objective"]]
    model = results["model"]
    figures = (f"{name} {figure(model[name])}" for name in objective.evaluation)
    return (
        f"step {results['step']}, split {results['split']}, objective {objective.name}:"
        f" {model[objective.unit]:,} {objective.unit} counted\n  {'  '.join(figures)}"
    )


def figure(value: float | None) -> str:
    """A figure with four decimals; "not defined" for None, which stands for a figure that is too
    large for a float or that divides by 0.
    """
    return "not defined" if value is None else f"{value:,.4f}"
