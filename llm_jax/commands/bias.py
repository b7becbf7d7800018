"""``llm-jax bias``: sets of texts about groups of people, measured with a model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llm_jax.api.language_model import LanguageModel
from llm_jax.api.load import load
from llm_jax.commands.completing import complete_in_batches
from llm_jax.config import DecodeConfig, MeshConfig
from llm_jax.decode.embed import Pooling
from llm_jax.evaluation.bias.associations import (
    measure_cooccurrence,
    measure_weat,
    read_cooccurrence,
)
from llm_jax.evaluation.bias.sets import SETS, CausalScores, MaskedScores, Measured, needed
from llm_jax.evaluation.masked_model import MaskedModel
from llm_jax.evaluation.text_model import TextModel
from llm_jax.evaluation.word_vectors import word_vectors
from llm_jax.files import write_json
from llm_jax.ranges import Count, Natural, Seed, checked
from llm_jax.storage.paths import path_of
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import ConfigError

RESULTS = "bias.json"
"""In the run's folder; ``llm-jax card`` shows it."""
_OF_VECTORS = ("weat", "seat")
_OF_TEXTS = "cooccurrence"
_NAMES = (*SETS, *_OF_VECTORS, _OF_TEXTS)
Record = dict[str, Any]


@checked
def measure_bias(
    run: Path,
    sets: str,
    *,
    template: str = "This is {}.",
    pooling: Pooling = "mean",
    samples: Count = 25,
    max_new_tokens: Count = 50,
    resamples: Count = 1000,
    batch_size: Count = 16,
    step: Natural | None = None,
    seed: Seed = 0,
) -> str:
    """How much more likely a model finds stereotypes than their opposites, with 95 % intervals and
    the number of items of each category. Also written to ``bias.json`` in the run's folder, in the
    place of an earlier one.

    Sets: crows-pairs, stereoset, winobias, bbq (their published files, or JSON lines with the same
    fields), counterfactual (prompts in Portuguese, or =FILE), weat and seat (tests in JSON, on
    input embeddings of words and on vectors of sentences), cooccurrence (JSON with groups, targets
    and prompts, counted in texts that the model writes). A model of masked tokens takes
    crows-pairs, winobias, weat and seat.

    Args:
        run: folder of the run or model.
        sets: NAME=FILE, several between commas.
        template: of seat: a sentence with {} for the word.
        pooling: of seat: mean over a sentence's tokens, or model: the model's own pooler.
        samples: of cooccurrence: texts of each prompt, at temperature 1.
        max_new_tokens: of cooccurrence: tokens of a text.
        resamples: of the bootstrap.
        batch_size: texts computed at once, over all devices.
        step: which checkpoint of a run; the newest if not given.
        seed: of the bootstrap, of partitions of weat and seat, and of texts of cooccurrence.
    """
    use_compile_cache()
    files = _files(sets)
    lm = load(run, step, mesh=MeshConfig())
    options = {"resamples": resamples, "seed": seed}
    found: Record = {"step": lm.step}
    if SETS.keys() & files.keys():
        measured = Measured(_scores(lm, batch_size), options)
        found |= {name: SETS[name](file, measured) for name, file in files.items() if name in SETS}
    for name in _OF_VECTORS:
        if name in files:
            embed = partial(_embedded, lm, name=name, pooling=pooling, batch_size=batch_size)
            used = template if name == "seat" else ""
            found[name] = measure_weat(needed(name, files[name]), embed, seed=seed, template=used)
    if _OF_TEXTS in files:
        path = needed(_OF_TEXTS, files[_OF_TEXTS])
        asked = read_cooccurrence(path)
        config = DecodeConfig(max_new_tokens=max_new_tokens, seed=seed)
        texts = _written(lm, asked.prompts, config, samples=samples, batch_size=batch_size)
        of_texts = measure_cooccurrence(path, asked, texts, options)
        found[_OF_TEXTS] = of_texts | {"samples": samples, "max_new_tokens": max_new_tokens}
    write_json(run / RESULTS, found)
    return bias_table(found)


def _files(sets: str) -> dict[str, Path | None]:
    """The file of each set that is named; None where only the set is."""
    found: dict[str, Path | None] = {}
    for part in filter(None, (part.strip() for part in sets.split(","))):
        name, is_given, file = part.partition("=")
        if name not in _NAMES:
            raise ConfigError(f"sets names {name!r}; the sets are {', '.join(_NAMES)}")
        if name in found:
            raise ConfigError(f"sets names {name} twice; give each set once")
        found[name] = path_of(file) if is_given else None
    if not found:
        raise ConfigError(
            f"sets is {sets!r}, which names nothing; the sets are {', '.join(_NAMES)}"
        )
    return found


def _scores(lm: LanguageModel, batch_size: int) -> CausalScores | MaskedScores:
    """How the model scores texts, by what it predicts."""
    if not lm.config.model.causal:
        return MaskedModel(lm.run, lm.tokenizer, batch_size)
    model = TextModel(lm.run, lm.tokenizer, batch_size)

    def by_token(prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        scores = model.score(
            [model.pair(*each) for each in zip(prompts, continuations, strict=True)]
        )
        return [score.total / len(score.logprobs) for score in scores]

    def excess(prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        pairs = [model.pair(*each) for each in zip(prompts, continuations, strict=True)]
        return [float(model.excess(pair)) for pair in pairs]

    return CausalScores(model.log_likelihoods, by_token, excess)


def _embedded(
    lm: LanguageModel, texts: Sequence[str], *, name: str, pooling: Pooling, batch_size: int
) -> dict[str, np.ndarray]:
    if name == "weat":
        return word_vectors(lm.run, lm.tokenizer, texts)
    vectors = lm.embed(texts, batch_size=batch_size, pooling=pooling)
    return dict(zip(texts, vectors, strict=True))


def _written(
    lm: LanguageModel,
    prompts: Sequence[str],
    config: DecodeConfig,
    *,
    samples: int,
    batch_size: int,
) -> list[str]:
    """Each prompt with each text that the model writes after it."""
    completed = complete_in_batches(
        lm,
        [lm.token_ids(prompt) for prompt in prompts],
        config,
        batch_size=batch_size,
        doing="writing",
        samples=samples,
    )
    pairs = zip(prompts, completed, strict=True)
    return [prompt + one.text for prompt, texts in pairs for one in texts]


def bias_table(found: Record) -> str:
    """The figures of every set as lines of text."""
    lines = []
    for name, of_set in found.items():
        if isinstance(of_set, dict):
            lines += [*([""] if lines else []), *_set_lines(name, of_set)]
    return "\n".join(lines)


def _set_lines(name: str, of_set: Record) -> list[str]:
    skipped = ", ".join(
        f"{n:,} {why.replace('_', ' ')}" for why, n in of_set.get("skipped", {}).items()
    )
    score = of_set.get("score") or of_set.get("template")
    head = [f"{name}, {of_set['file']}", f"{of_set['items']:,} items", skipped, score]
    lines = ["; ".join(filter(None, head))]
    groups = {"all": of_set["overall"]} if "overall" in of_set else {}
    for key in ("by_category", "by_test", "by_target"):
        groups |= of_set.get(key, {})
    for group, figures in groups.items():
        lines += [_line(group, figures["items"], *figure) for figure in _figures(figures)]
    return lines


def _figures(figures: Record) -> list[tuple[str, Any]]:
    """Names and values of those that are no counts."""
    return [
        (name.replace("_", " "), value)
        for name, value in figures.items()
        if not isinstance(value, int)
    ]


def _line(group: str, items: int, name: str, value: Any) -> str:
    shown = "not defined"
    if isinstance(value, dict):
        shown = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
    elif value is not None:
        shown = f"{value:.3f}"
    return f"  {group[:40]:42}{items:>7,}  {name:24}{shown}"
