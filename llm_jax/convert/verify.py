"""Compares a converted model with transformers' own reading of its source: logits of the same
tokens, position by position, or hidden states of a model without logits.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.convert.source import family_of, read_json
from llm_jax.files import readable_folder
from llm_jax.storage.paths import local_file, path_of
from llm_jax.types import Batch, ConfigError, Tokens


class Comparison(NamedTuple):
    """Outputs of two models for the same tokens.

    Attributes:
        tokens: [B, T].
        native: Float32 [B, T, V or D], of the converted model.
        source: Float32 [B, T, V or D], of transformers.
        what: "logits" or "hidden states".
    """

    tokens: np.ndarray
    native: np.ndarray
    source: np.ndarray
    what: str = "logits"

    @property
    def gap(self) -> np.ndarray:
        """[B, T]: the largest difference at each position."""
        return np.abs(self.native - self.source).max(axis=-1)


def compare(run: Run, source: Path, tokens: np.ndarray) -> Comparison:
    """Runs both models on the same rows. An encoder beside a decoder reads the same rows.

    Args:
        run: The converted model.
        source: Folder that transformers loads, or a .gguf file, which it de-quantizes.
        tokens: [B, T].

    Raises:
        ConfigError: torch or transformers is not installed.
    """
    both = run.config.model.encoder is not None
    with _readable(path_of(source)) as local:
        expected, has_logits = _source_output(local, tokens, both)
    B, T = tokens.shape
    given = jnp.asarray(tokens, jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))
    batch = Batch(
        inputs=Tokens(given, jnp.ones((B, T), jnp.int32), positions),
        targets=given,
        loss_mask=jnp.ones((B, T), bool),
    )
    if both:
        batch = batch._replace(encoder=batch.inputs)

    def output(params: Any, batch: Batch) -> jax.Array:
        hidden = run.model.apply(params, batch).hidden
        return run.model.logits(params, hidden) if has_logits else hidden

    native = jax.jit(output)(run.params, batch)
    what = "logits" if has_logits else "hidden states"
    return Comparison(tokens, np.asarray(native), expected, what)


@contextmanager
def _readable(source: Path) -> Iterator[Path]:
    """What transformers can open: ``source`` itself, or copies of what a bucket has there."""
    if source.suffix == ".gguf":
        yield local_file(source)
        return
    with readable_folder(source) as folder:
        yield folder


def _source_output(source: Path, tokens: np.ndarray, both: bool) -> tuple[np.ndarray, bool]:
    """The output of transformers, float32 [B, T, V or D], and whether these are logits.

    Args:
        source: As in ``compare``.
        tokens: [B, T].
        both: The model has an encoder and a decoder.
    """
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(f"verify needs {error.name}: pip install -e '.[parity]'") from error
    options: dict[str, Any] = {
        "attn_implementation": "eager",
        "dtype": torch.float32,
        "local_files_only": True,
    }
    folder = source
    class_name = "AutoModelForCausalLM"
    if source.suffix == ".gguf":
        folder = source.parent
        options["gguf_file"] = source.name
    else:
        config = read_json(source / "config.json")
        family = family_of(config, str(source / "config.json"))
        class_name = (config.get("architectures") or [family.architecture])[0]
    model = getattr(transformers, class_name).from_pretrained(folder, **options).eval()
    inputs = {"input_ids": torch.tensor(tokens)}
    if both:
        inputs["decoder_input_ids"] = torch.tensor(tokens)
    with torch.no_grad():
        logits = getattr(model(**inputs), "logits", None)
        # The logits of a classifier are one row a text, [B, classes].
        if logits is not None and logits.ndim == 3:
            return logits.float().numpy(), True
        return model.base_model(**inputs).last_hidden_state.float().numpy(), False


def table(c: Comparison, pieces: int = 8) -> str:
    """The largest difference in each of ``pieces`` stretches of positions, and both models' values
    at the worst place.
    """
    T = c.tokens.shape[1]
    edges = sorted({round(i * T / pieces) for i in range(pieces + 1)})
    lines = [
        f"  positions {a:>6} to {b - 1:>6}  {c.gap[:, a:b].max():.2e}"
        for a, b in itertools.pairwise(edges)
    ]
    row, at = np.unravel_index(c.gap.argmax(), c.gap.shape)
    id = int(np.abs(c.native[row, at] - c.source[row, at]).argmax())
    lines.append(
        f"  worst: row {row}, position {at}, number {id}: llm_jax {c.native[row, at, id]:.6f},"
        f" source {c.source[row, at, id]:.6f}"
    )
    same = (c.native.argmax(-1) == c.source.argmax(-1)).mean()
    lines.append(
        f"  {c.what} have a standard deviation of {c.source.std():.3f}; the largest is the same at"
        f" {same:.2%} of the positions"
    )
    return "\n".join(lines)
