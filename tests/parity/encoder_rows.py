"""Weights of transformers models by hand-written lists of (their name, our path, layout), for the parity tests of encoders.

A name with {l} is that of every layer. Layouts say what their array [out, in] becomes: ``same``; ``row``, the first alone; ``kernel``
[in, out]; ``into heads``
[D, N, H] and ``heads`` [N, H], of its bias; ``out of heads`` [N, H, D]. Several paths share one array, cut along its first axis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch

from llm_jax.config import ExecutionConfig, ModelConfig
from llm_jax.models import Model, build
from llm_jax.types import Params

Row = tuple[str, str, str]
TOLERANCE = 1e-4


def heads(theirs: str, ours: str, names: tuple[str, str, str, str], bias: bool) -> list[Row]:
    """Rows of one attention, whose projections they call ``names``: query, key, value, out."""
    rows = []
    for name, our in zip(names, ("query", "key", "value", "out"), strict=True):
        rows.append((f"{theirs}.{name}.weight", f"{ours}/{our}/kernel", "out of heads" if our == "out" else "into heads"))
        if bias:
            rows.append((f"{theirs}.{name}.bias", f"{ours}/{our}/bias", "same" if our == "out" else "heads"))
    return rows


def dense(theirs: str, ours: str, bias: bool = True) -> list[Row]:
    rows = [(f"{theirs}.weight", f"{ours}/kernel", "kernel")]
    return [*rows, (f"{theirs}.bias", f"{ours}/bias", "same")] if bias else rows


def norm(theirs: str, ours: str, bias: bool = True) -> list[Row]:
    rows = [(f"{theirs}.weight", f"{ours}/scale", "same")]
    return [*rows, (f"{theirs}.bias", f"{ours}/bias", "same")] if bias else rows


def laid_out(x: np.ndarray, layout: str, c: ModelConfig) -> np.ndarray:
    if layout == "row":
        return x[0]
    if layout == "same":
        return x
    if layout == "kernel":
        return x.T
    if layout == "heads":
        return x.reshape(-1, c.head_size)
    if layout == "into heads":
        return x.T.reshape(x.shape[1], -1, c.head_size)
    assert layout == "out of heads", layout
    return x.T.reshape(-1, c.head_size, x.shape[0])


def params_of(reference: torch.nn.Module, rows: list[Row], c: ModelConfig, layers: dict[str, range] | None = None) -> Params:
    """Our tree of their weights. layers: of the stack whose path begins so; every other {l} goes over ``num_layers``.

    Every array of theirs is used once, but for those that are tied or no weights.
    """
    theirs = {n: x.detach().numpy().astype(np.float32) for n, x in [*reference.named_parameters(), *reference.named_buffers()]}
    flat: dict[str, np.ndarray] = {}
    used = set()
    for name, paths, layout in rows:
        numbers = next((r for start, r in (layers or {}).items() if paths.startswith(start)), range(c.num_layers))
        names = [name.format(l=l) for l in numbers] if "{l}" in name else [name]
        used |= set(names)
        pieces = paths.split(",")
        for i, path in enumerate(pieces):
            arrays = [laid_out(np.split(theirs[n], len(pieces))[i], layout, c) for n in names]
            assert path not in flat, path
            flat[path] = np.stack(arrays) if "{l}" in name else arrays[0]
    weights = {n for n, _ in reference.named_parameters()} | {"final_logits_bias"} & set(theirs)
    assert used == weights - {n for n in weights if "embed_positions" in n and n not in used}
    tree: Params = {}
    for path, array in flat.items():
        *folders, last = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = jnp.asarray(array)
    return tree


def randomise(model: torch.nn.Module, seed: int, keep: tuple[str, ...] = ()) -> None:
    """Every weight away from its initial value, norms and biases too, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n == "final_logits_bias")]:
            if not any(k in name for k in keep):
                noise = torch.randn(p.shape, generator=generator)
                is_scale = p.ndim == 1 and name.endswith("weight")
                vector = p.ndim == 1 or p.shape[0] == 1
                p.copy_(1 + 0.3 * noise if is_scale else (0.3 if vector else 1.5 * p.shape[-1] ** -0.5) * noise)


def checked_build(config: ModelConfig, params: Params, layers: str = "unroll") -> Model:
    """Our model; its own parameter tree must have exactly the mapped names and shapes."""
    model = build(config, ExecutionConfig(layers=layers, compute_dtype="float32"))
    want = jax.tree.map(lambda x: x.shape, jax.eval_shape(model.init, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, params) == want
    return model
