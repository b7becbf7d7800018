"""``llm-jax eval RUN --losses FILE``: the loss of each document of a split, as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.api.load import load
from llm_jax.config import MeshConfig
from llm_jax.config.validate import check_objective
from llm_jax.evaluation.document_losses import DocumentLoss, document_losses
from llm_jax.evaluation.documents import documents
from llm_jax.evaluation.perplexity import Perplexity
from llm_jax.evaluation.shards import figure, open_split, window_sizes
from llm_jax.evaluation.significance.intervals import interval_of_sums
from llm_jax.evaluation.significance.sums import ratios
from llm_jax.files import replacing, write_json
from llm_jax.objectives import objective_of
from llm_jax.progress import progress
from llm_jax.ranges import Count, Natural, checked
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers.tokenizer import StreamDecoder, Tokenizer
from llm_jax.types import ConfigError, DataError

_PERCENTILES = (5, 25, 50, 75, 95)
# Documents that are named.
_HIGHEST = 5


@checked
def write_losses(
    run: Path,
    data: Path,
    split: str = "validation",
    *,
    losses: Path,
    token_losses: bool = False,
    step: Natural | None = None,
    context: Natural = 0,
    stride: Natural = 0,
    batch_size: Count = 16,
) -> str:
    """The loss of each document of a split of shards, a JSON line each: document (its number from
    0 on), tokens, bytes and loss (nats, their sum). Their sums are the perplexity that is printed,
    the same as without --losses. Also written, in short, to ``losses_SPLIT.json`` in the run's
    folder, with a 95 % interval over documents.

    Args:
        run: folder of a run that predicts the next token.
        data: folder of shards, made with the run's tokenizer.
        split: train or validation.
        losses: the file.
        token_losses: also write ids, texts and losses of the tokens of each document.
        step: which checkpoint; the newest if not given.
        context: tokens of a window; 0 is the length the run was trained with.
        stride: tokens newly scored in each further window; 0 is half the context.
        batch_size: windows scored at once, over all devices.
    """
    opened = load(run, step, mesh=MeshConfig()).run
    check_objective(opened.config)
    objective = objective_of(opened.config.data)
    if objective.pack_windows is None:
        raise ConfigError(
            f"losses is given, and the run's objective is {objective.name!r}: only the next token"
            " gives each document a loss; leave --losses out"
        )
    source = open_split(opened, data, split)
    context, stride = window_sizes(opened, context, stride)
    found = document_losses(
        opened,
        source.tokenizer,
        documents(data, split),
        context=context,
        stride=stride,
        batch_size=batch_size,
    )
    path = path_of(losses)
    counts = []
    nats = []
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        progress("scoring", None, "document") as bar,
    ):
        for one in found:
            line = _line(one, source.tokenizer if token_losses else None)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            counts.append((len(one.ids), one.words, one.bytes))
            nats.append(one.loss)
            bar.advance(1)
    tokens, words, size = (sum(column) for column in zip(*counts))
    if not tokens:
        raise DataError(f"{data}, split {split}, has no token to score; choose another split")
    whole = Perplexity(
        nll=sum(nats),
        tokens=tokens,
        words=words,
        bytes=size,
        context=context,
        stride=stride,
        bos=source.manifest["options"]["add_bos"],
    )
    summary = _summary(whole, nats, [count[0] for count in counts])
    write_json(run / f"losses_{split}.json", {"step": opened.step, "split": split, **summary})
    return _shown(summary, path)


def _line(one: DocumentLoss, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What is written of a document; with its tokens where a tokenizer is given."""
    line: dict[str, Any] = {
        "document": one.number,
        "tokens": len(one.ids),
        "bytes": one.bytes,
        "loss": one.loss,
    }
    if tokenizer is not None:
        line["token_ids"] = one.ids.tolist()
        line["token_texts"] = _texts(one, tokenizer)
        line["token_losses"] = one.losses.tolist()
    return line


def _texts(one: DocumentLoss, tokenizer: Tokenizer) -> list[str]:
    """What each token adds to the text; a character of several tokens comes with its last one."""
    stream = StreamDecoder(tokenizer, one.before.tolist())
    texts = [stream.push(int(id)) for id in one.ids]
    if texts:
        texts[-1] += stream.flush()
    return texts


def _summary(whole: Perplexity, nats: list[float], tokens: list[int]) -> dict[str, Any]:
    scored = [at for at, count in enumerate(tokens) if count]
    some_nats = [nats[at] for at in scored]
    some_tokens = [tokens[at] for at in scored]
    interval = interval_of_sums(ratios(some_nats, some_tokens))
    by_document = np.array(some_nats) / np.array(some_tokens)
    percentiles = np.percentile(by_document, _PERCENTILES).tolist()
    return {
        "documents": len(scored),
        "without_tokens": len(tokens) - len(scored),
        "model": whole.summary(),
        "loss": {"value": interval.value, "low": interval.low, "high": interval.high},
        "percentiles": {str(n): value for n, value in zip(_PERCENTILES, percentiles)},
        "highest": [scored[at] for at in np.argsort(-by_document, kind="stable")[:_HIGHEST]],
    }


def _shown(summary: dict[str, Any], path: Path) -> str:
    model = summary["model"]
    loss = summary["loss"]
    spread = ", ".join(f"{n} %: {value:.3f}" for n, value in summary["percentiles"].items())
    return "\n".join(
        [
            f"{summary['documents']:,} documents, {model['tokens']:,} tokens,"
            f" {model['bytes']:,} bytes: perplexity {figure(model['perplexity'])},"
            f" bits per byte {figure(model['bits_per_byte'])}",
            f"loss {loss['value']:.4f} ({loss['low']:.4f} to {loss['high']:.4f}) nats a token;"
            f" of documents, {spread}",
            f"highest in documents {', '.join(map(str, summary['highest']))}",
            f"losses in {path}",
        ]
    )
