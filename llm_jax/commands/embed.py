"""``llm-jax embed``: vectors of texts."""

from __future__ import annotations

import json
from pathlib import Path

from llm_jax.api.load import load
from llm_jax.decode.embed import Pooling
from llm_jax.ranges import Count, Natural, checked
from llm_jax.types import ConfigError


@checked
def embed(
    run: Path,
    text: tuple[str, ...] = (),
    *,
    normalize: bool = True,
    batch_size: Count = 32,
    pooling: Pooling = "mean",
    step: Natural | None = None,
) -> None:
    """Print a JSON line for each text, with its vector: the mean of the model's last hidden states
    (sentence embedding), or what the model's own pooler makes of them.

    Args:
        run: folder of the run or model, such as a BERT or a sentence encoder.
        text: one or more texts.
        normalize: scale each vector to length 1, so that the product of two is the cosine of their
            angle.
        batch_size: texts computed together.
        pooling: mean over a text's tokens, or the pooler of the model.
        step: which checkpoint of a run; the newest if not given.
    """
    if not text:
        raise ConfigError("text is empty; give --text one or more texts")
    vectors = load(run, step).embed(
        text, normalize=normalize, batch_size=batch_size, pooling=pooling
    )
    for one, vector in zip(text, vectors):
        print(json.dumps({"text": one, "vector": vector.tolist()}, ensure_ascii=False))
