"""A converted model beside transformers' own reading of its source: logits of the same tokens, position by position."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.training.restore import Run
from llm_jax.types import Batch, ConfigError


class Comparison(NamedTuple):
    """ours, theirs: float32 logits [B, T, V] of ``tokens`` [B, T] · gap: [B, T], the largest difference at each position."""

    tokens: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        return np.abs(self.ours - self.theirs).max(axis=-1)


def compare(run: Run, source: Path, tokens: np.ndarray) -> Comparison:
    """Both models on the same rows. source: a folder that transformers loads, or a .gguf file, which it de-quantises.

    Raises ConfigError where torch or transformers are not installed.
    """
    try:
        torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(f"verify needs {error.name}: pip install -e '.[parity]'") from error
    options: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32, "local_files_only": True}
    folder = source
    if source.suffix == ".gguf":
        folder, options = source.parent, options | {"gguf_file": source.name}
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens)).logits.float().numpy()
    B, T = tokens.shape
    given = jnp.asarray(tokens, jnp.int32)
    at = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    batch = Batch(given, given, jnp.ones((B, T), bool), jnp.ones((B, T), jnp.int32), at)
    ours = jax.jit(lambda p, b: run.model.logits(p, run.model.apply(p, b).hidden))(run.params, batch)
    return Comparison(tokens, np.asarray(ours), theirs)


def table(c: Comparison, pieces: int = 8) -> str:
    """The largest difference over stretches of positions, and the worst place with what each model says there."""
    T = c.tokens.shape[1]
    edges = sorted({round(i * T / pieces) for i in range(pieces + 1)})
    lines = [f"  positions {a:>6} to {b - 1:>6}  {c.gap[:, a:b].max():.2e}" for a, b in itertools.pairwise(edges)]
    row, at = np.unravel_index(c.gap.argmax(), c.gap.shape)
    id = int(np.abs(c.ours[row, at] - c.theirs[row, at]).argmax())
    first = (c.ours.argmax(-1) == c.theirs.argmax(-1)).mean()
    return "\n".join([
        *lines,
        f"  worst: row {row}, position {at}, token {id}: ours {c.ours[row, at, id]:.6f}, theirs {c.theirs[row, at, id]:.6f}",
        f"  logits have a standard deviation of {c.theirs.std():.3f}; the most likely token is the same at {first:.2%} of the positions",
    ])
