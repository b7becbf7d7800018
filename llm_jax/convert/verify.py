"""A converted model beside transformers' own reading of its source: logits of the same tokens,
position by position, or hidden states of a model without them.
"""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.convert.source import family_of, read_json
from llm_jax.types import Batch, ConfigError


class Comparison(NamedTuple):
    """native, source: float32 [B, T, V or D] of ``tokens`` [B, T] · what: logits or hidden states ·
    gap: [B, T], the largest difference at each position.
    """

    tokens: np.ndarray
    native: np.ndarray
    source: np.ndarray
    what: str = "logits"

    @property
    def gap(self) -> np.ndarray:
        return np.abs(self.native - self.source).max(axis=-1)


def compare(run: Run, source: Path, tokens: np.ndarray) -> Comparison:
    """Both models on the same rows, which an encoder beside a decoder reads too. source: a folder
    that transformers loads, or a .gguf file, which it de-quantises.

    Raises ConfigError where torch or transformers are not installed.
    """
    try:
        torch, transformers = (
            importlib.import_module("torch"),
            importlib.import_module("transformers"),
        )
    except ImportError as error:
        raise ConfigError(f"verify needs {error.name}: pip install -e '.[parity]'") from error
    options: dict[str, Any] = {
        "attn_implementation": "eager",
        "dtype": torch.float32,
        "local_files_only": True,
    }
    folder, kind = source, "AutoModelForCausalLM"
    if source.suffix == ".gguf":
        folder, options = source.parent, options | {"gguf_file": source.name}
    else:
        config = read_json(source / "config.json")
        family = family_of(config, str(source / "config.json"))
        kind = (config.get("architectures") or [family.architecture])[0]
    reference = getattr(transformers, kind).from_pretrained(folder, **options).eval()
    both = run.config.model.encoder_layers > 0
    ids = {"input_ids": torch.tensor(tokens)} | (
        {"decoder_input_ids": torch.tensor(tokens)} if both else {}
    )
    with torch.no_grad():
        said = getattr(reference(**ids), "logits", None)
        writes = said is not None and said.ndim == 3
        theirs = (said if writes else reference.base_model(**ids).last_hidden_state).float().numpy()
    B, T = tokens.shape
    given = jnp.asarray(tokens, jnp.int32)
    at = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    batch = Batch(given, given, jnp.ones((B, T), bool), jnp.ones((B, T), jnp.int32), at)
    batch = (
        batch._replace(encoder_tokens=given, encoder_segment_ids=batch.segment_ids)
        if both
        else batch
    )
    says = run.model.logits if writes else lambda _, hidden: hidden
    native = jax.jit(lambda p, b: says(p, run.model.apply(p, b).hidden))(run.params, batch)
    return Comparison(tokens, np.asarray(native), theirs, "logits" if writes else "hidden states")


def table(c: Comparison, pieces: int = 8) -> str:
    """The largest difference over stretches of positions, and the worst place with what each model
    says there.
    """
    T = c.tokens.shape[1]
    edges = sorted({round(i * T / pieces) for i in range(pieces + 1)})
    lines = [
        f"  positions {a:>6} to {b - 1:>6}  {c.gap[:, a:b].max():.2e}"
        for a, b in itertools.pairwise(edges)
    ]
    row, at = np.unravel_index(c.gap.argmax(), c.gap.shape)
    id = int(np.abs(c.native[row, at] - c.source[row, at]).argmax())
    first = (c.native.argmax(-1) == c.source.argmax(-1)).mean()
    return "\n".join(
        [
            *lines,
            (
                f"  worst: row {row}, position {at}, number {id}: ours {c.native[row, at, id]:.6f},"
                f" theirs {c.source[row, at, id]:.6f}"
            ),
            (
                f"  {c.what} have a standard deviation of {c.source.std():.3f}; the largest is the"
                f" same at {first:.2%} of the positions"
            ),
        ]
    )
