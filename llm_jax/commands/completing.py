"""Texts after many prompts, a batch at a time, with a line of progress."""

from __future__ import annotations

from collections.abc import Sequence

from llm_jax.api.language_model import LanguageModel
from llm_jax.config import DecodeConfig
from llm_jax.decode.inputs import filled_rows
from llm_jax.decode.requests import Wanted
from llm_jax.decode.results import Completion
from llm_jax.progress import progress


def complete_in_batches(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    config: DecodeConfig,
    *,
    batch_size: int,
    doing: str,
    samples: int = 1,
) -> list[list[Completion]]:
    """The texts after each prompt: [prompts, samples].

    Text j of prompt i is drawn with seed ``config.seed + i * samples + j``, whatever the batch
    size.

    Args:
        model: that writes.
        prompts: token ids of each.
        config: how texts are drawn.
        batch_size: prompts that are written after at once.
        doing: what is done, for the line of progress.
        samples: texts of each prompt.
    """
    written: list[list[Completion]] = []
    with progress(doing, len(prompts), "prompt") as bar:
        for start in range(0, len(prompts), batch_size):
            some = prompts[start : start + batch_size]
            rows = filled_rows(some, model.mesh)
            seeds = [config.seed + (start + i) * samples for i in range(len(rows))]
            found = model.complete_ids(rows, config, Wanted(samples=samples), seeds=seeds)
            written += found[: len(some)]
            bar.advance(len(some))
    return written
