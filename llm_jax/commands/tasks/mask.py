"""``llm-jax task mask``: tokens that an encoder finds in place of masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.api.load import load
from llm_jax.checkpoints.open_run import Run
from llm_jax.commands.tasks.results import results, write_results
from llm_jax.commands.tasks.texts import Long, encode
from llm_jax.config import MeshConfig
from llm_jax.decode.row_batches import of_rows
from llm_jax.evaluation.bias.records import read_jsonl
from llm_jax.evaluation.significance.sums import ItemSums
from llm_jax.evaluation.tasks.measures import Figures, figure
from llm_jax.objectives.masked import MASKS
from llm_jax.objectives.special_tokens import control_tokens
from llm_jax.ranges import Count, InnerShare, Natural, Seed, checked
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import Batch, ConfigError, DataError, Params

_MOST = 5


class Masked(NamedTuple):
    """A text with masks.

    Attributes:
        ids: token ids, the mask where one is hidden.
        places: of the masks, at least one.
        hidden: the token ids there.
        seen: the other tokens, without control tokens.
    """

    ids: list[int]
    places: list[int]
    hidden: list[int]
    seen: list[int]


@checked
def mask(
    texts: Path,
    *,
    model: Path,
    out: Path,
    text_field: str = "text",
    rate: InnerShare = 0.15,
    long: Long = "refuse",
    batch_size: Count = 16,
    seed: Seed = 0,
    step: Natural | None = None,
) -> str:
    """Hidden tokens that an encoder predicts: how often its first guess, and one of its first five,
    is right, beside the tokens that are most frequent among those that are seen.

    Args:
        texts: JSON lines with a text.
        model: folder of the run or model: an encoder that was trained on masked tokens.
        out: folder for the figures, every guess and a page.
        text_field: key of the text.
        rate: share of the tokens of each text that are hidden, at least one; all are masked.
        long: what becomes of texts longer than the context: refuse, skip (left out and counted) or
            truncate (cut at the end and counted).
        batch_size: texts computed together.
        seed: of the choice of tokens.
        step: which checkpoint of a run; the newest if not given.
    """
    use_compile_cache()
    rows = list(read_jsonl(texts))
    given = [(row.text(text_field),) for row in rows]
    lm = load(model, step, mesh=MeshConfig())
    m = lm.config.model
    if m.causal or m.encoder is not None:
        kind = "an encoder–decoder" if m.encoder else "a decoder (model.causal True)"
        raise ConfigError(
            f"{model} is {kind}, which has no masked tokens to predict; use an encoder that was"
            " trained with data.objective masked"
        )
    found = encode(lm.tokenizer, given, [row.where for row in rows], most=m.max_length, long=long)
    if not found.rows:
        raise DataError(f"all {len(rows)} texts have more than {m.max_length} tokens")
    wheres = [rows[n].where for n in found.kept]
    masked = with_masks(lm.tokenizer, found.rows, wheres, rate=rate, seed=seed)
    guesses = _guesses(lm.run, masked, batch_size)
    often = Counter(id for one in masked for id in one.seen).most_common(_MOST)
    usual = np.array([id for id, _ in often] + [-1] * (_MOST - len(often)))
    piece = lm.tokenizer.piece
    records = [
        {
            "item": n,
            "where": wheres[n],
            "text": given[found.kept[n]][0],
            "hidden": [piece(id) for id in one.hidden],
            "guessed": [piece(int(top[0])) for top in guesses[n]],
        }
        for n, one in enumerate(masked)
    ]
    made = results(
        "mask",
        model,
        lm.step,
        records,
        figures=_figures(masked, guesses),
        baselines={
            "most frequent": _figures(masked, [np.tile(usual, (len(o.hidden), 1)) for o in masked])
        },
        hidden=sum(len(one.hidden) for one in masked),
        rate=rate,
        seed=seed,
        long=long,
        long_texts=found.long,
    )
    return write_results(out, made, records)


def with_masks(
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[int]],
    wheres: Sequence[str],
    *,
    rate: float,
    seed: int,
) -> list[Masked]:
    """Rows of tokens with a share of each hidden, a pure function of the seed and the row's number.

    Raises:
        DataError: the tokenizer has no mask, or a row has only control tokens.
    """
    control = control_tokens(tokenizer)
    masks = [control[name] for name in MASKS if name in control]
    if not masks:
        raise DataError(
            f"tokenizer {str(tokenizer.path)!r} has no {' or '.join(MASKS)}; use a model that was"
            " trained on masked tokens"
        )
    outside = set(control.values())
    found = []
    for number, row in enumerate(rows):
        open_places = [at for at, id in enumerate(row) if id not in outside]
        if not open_places:
            raise DataError(f"{wheres[number]}: the text has control tokens only; leave it out")
        rng = np.random.default_rng([seed, number])
        count = max(1, round(rate * len(open_places)))
        places = sorted(int(at) for at in rng.choice(open_places, count, replace=False))
        ids = list(row)
        for at in places:
            ids[at] = masks[0]
        seen = [row[at] for at in open_places if at not in places]
        found.append(Masked(ids, places, [row[at] for at in places], seen))
    return found


def _guesses(run: Run, masked: Sequence[Masked], batch_size: int) -> list[np.ndarray]:
    """The most likely tokens at each mask, int [masks, 5], for each text."""

    @jax.jit
    def most_likely(params: Params, batch: Batch) -> jax.Array:
        logits = run.model.logits(params, run.model.apply(params, batch).hidden)
        return jax.lax.top_k(logits, min(_MOST, logits.shape[-1]))[1].astype(jnp.int32)

    found = of_rows(run, [one.ids for one in masked], most_likely, batch_size=batch_size)
    return [guesses[one.places] for one, guesses in zip(masked, found)]


def _figures(masked: Sequence[Masked], guesses: Sequence[np.ndarray]) -> Figures:
    """Shares over all hidden tokens; the interval is over texts."""

    def share(first: int) -> ItemSums:
        right = [
            [(own[:, :first] == np.array(one.hidden)[:, None]).any(axis=1).sum(), len(one.hidden)]
            for one, own in zip(masked, guesses)
        ]
        return ItemSums(np.array(right, float), lambda sums: float(sums[0] / sums[1]))

    return {"accuracy": figure(share(1)), f"among_first_{_MOST}": figure(share(_MOST))}
