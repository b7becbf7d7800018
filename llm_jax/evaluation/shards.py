"""A run's perplexity on a split of shards, beside unigram and bigram baselines from the same
shards.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from llm_jax.checkpoints.open_run import Run
from llm_jax.config.validate import check_objective
from llm_jax.data.loading.loader import evaluation_batches
from llm_jax.data.shards.store import read_manifest
from llm_jax.evaluation.baselines import Bigram
from llm_jax.evaluation.documents import documents, unscored_text
from llm_jax.evaluation.perplexity import Perplexity, objective_loss, perplexity
from llm_jax.host_memory import allocating
from llm_jax.models import zigzag_order
from llm_jax.objectives import make_transform
from llm_jax.ranges import Count, Natural, checked
from llm_jax.sharding import batch_ways
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError, DataError


@checked
def evaluate_shards(
    run: Run,
    data: Path,
    split: str = "validation",
    context: Natural = 0,
    stride: Natural = 0,
    batch_size: Count = 16,
    baselines: bool = True,
) -> dict[str, Any]:
    """``{"step", "split", "model": …, "unigram": …, "bigram": …}``; each has every figure of
    ``Perplexity.summary``. With another objective than the next token ``{"step", "split",
    "objective", "model"}``, of ``objective_loss``.
    """
    manifest = read_manifest(data)
    tokenizer = open_tokenizer(run.folder / "tokenizer")
    if manifest["tokenizer"]["fingerprint"] != tokenizer.fingerprint:
        raise DataError(
            f"data {str(data)!r} was made with tokenizer"
            f" {manifest['tokenizer']['fingerprint'][:16]}…, the run was trained with"
            f" {tokenizer.fingerprint[:16]}…; prepare the text with {run.folder / 'tokenizer'}"
        )
    data_config = run.config.data
    check_objective(run.config)
    order = partial(zigzag_order, run.config.model, run.config.execution)
    if data_config.objective != "next_token":
        if context or stride:
            raise ConfigError(
                f"context {context} and stride {stride} are of windows over texts, and the run's"
                f" objective is {data_config.objective!r}; leave them out"
            )
        transform = make_transform(data_config, run.config.model.start_token, tokenizer)
        batches = evaluation_batches(
            data,
            split=split,
            seq_length=data_config.seq_length,
            batch_size=_rows(batch_size, run),
            transform=transform,
        )
        scored = objective_loss(
            run.model, run.params, run.mesh, batches, run.config.model.vocab_size, order=order
        )
        return {
            "step": run.step,
            "split": split,
            "objective": data_config.objective,
            "model": scored,
        }
    context = context or data_config.seq_length
    longest = run.config.model.max_length
    if context > longest:
        raise ConfigError(
            f"context is {context}; the model's max_length is {longest}, so it must be at most that"
        )
    totals = manifest["splits"].get(split, {"words": 0, "text_bytes": 0})
    bos = manifest["options"]["add_bos"]
    lost_words, lost_bytes = (0, 0) if bos else unscored_text(documents(data, split), tokenizer)
    rows = _rows(batch_size, run)
    with allocating(
        f"windows of {context} tokens, {rows} at once", "lower --context or --batch-size"
    ):
        result = perplexity(
            run.model,
            run.params,
            run.mesh,
            documents(data, split),
            words=totals["words"] - lost_words,
            text_bytes=totals["text_bytes"] - lost_bytes,
            context=context,
            stride=stride or max(context // 2, 1),
            batch_size=rows,
            vocab_size=run.config.model.vocab_size,
            bos=bos,
            eos_id=tokenizer.eos_id,
            order=order,
        )
    out = {"step": run.step, "split": split, "model": result.summary()}
    return out | (
        _baselines(data, split, result, run.config.model.vocab_size, tokenizer.eos_id)
        if baselines
        else {}
    )


def _rows(batch_size: int, run: Run) -> int:
    ways = batch_ways(run.mesh)
    return -(-batch_size // ways) * ways


def _baselines(
    data: Path, split: str, like: Perplexity, vocab_size: int, eos_id: int
) -> dict[str, Any]:
    counted = Bigram(documents(data, "train"), vocab_size)
    sums = {"unigram": 0.0, "bigram": 0.0}
    for d in documents(data, split):
        d = d[:-1] if len(d) and d[-1] == eos_id else d
        sums["unigram"] += float(counted.unigram_nll(d).sum())
        sums["bigram"] += float(counted.bigram_nll(d).sum())
    return {
        name: like._replace(nll=nll, context={"unigram": 0, "bigram": 1}[name], stride=1).summary()
        for name, nll in sums.items()
    }


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    m = results["model"]
    if "objective" in results:
        head = (
            f"step {results['step']}, split {results['split']}, objective {results['objective']}:"
            f" {m['tokens']:,} tokens asked for"
        )
        return (
            f"{head}\n  loss {m['loss']:.4f}  perplexity {figure(m['perplexity'])}  accuracy"
            f" {m['accuracy']:.2%}"
        )
    head = (
        f"step {results['step']}, split {results['split']}: {m['tokens']:,} tokens, {m['words']:,}"
        f" words, {m['bytes']:,} bytes; "
    )
    first = (
        "after <s>"
        if m["bos"]
        else "without <s>: the first token of a document is not scored, nor are its bytes counted"
    )
    head += f"context {m['context']}, stride {m['stride']}, {first}, </s> not scored"
    columns = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
    lines = [head, f"{'':10}" + "".join(f"{c.replace('_', ' '):>18}" for c in columns)]
    for name in ("model", "bigram", "unigram"):
        if name in results:
            lines.append(f"{name:10}" + "".join(f"{figure(results[name][c]):>18}" for c in columns))
    return "\n".join(lines)


def figure(value: float | None) -> str:
    """A figure for people. ``Perplexity.summary`` has None for one that is too large for a float,
    or divides by nothing.
    """
    return "not defined" if value is None else f"{value:,.4f}"
