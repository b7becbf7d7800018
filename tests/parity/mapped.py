"""Their weights in our tree, by tables of (their name, our path, layout), and the tree checked against the model's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from test_transformers import array, stack

from llm_jax.types import Params

# their name within a layer (or the model) · our path, with / between keys · their array to ours
Rows = Sequence[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]


def as_is(w: np.ndarray) -> np.ndarray:
    return w


def transposed(w: np.ndarray) -> np.ndarray:
    """[..., outputs, inputs] -> [..., inputs, outputs]"""
    return np.swapaxes(w, -1, -2)


def into_heads(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """[N·H, D] -> [D, N, H], or a bias [N·H] -> [N, H]"""
    return lambda w: w.T.reshape(*w.shape[1:], heads, -1)


def out_of_heads(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """[D, N·H] -> [N, H, D]"""
    return lambda w: w.T.reshape(heads, -1, w.shape[0])


def tree(weights: Mapping[str, np.ndarray], rows: Rows, prefix: str = "") -> Params:
    out: Params = {}
    for theirs, ours, layout in rows:
        *parents, leaf = ours.split("/")
        inner = out
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = layout(weights[prefix + theirs])
    return out


def mapped(reference, top: Rows, stacks: Mapping[str, Sequence[Rows]]) -> Params:
    """The tree of a model. stacks: name of ours -> the table of each of its layers, the first stack's layers first in theirs."""
    weights = {name: array(w) for name, w in reference.state_dict().items()}
    params, layer = tree(weights, top), 0
    for name, tables in stacks.items():
        made = [tree(weights, rows, f"model.layers.{layer + i}.") for i, rows in enumerate(tables)]
        params[name], layer = stack(made), layer + len(tables)
    used = {theirs for theirs, _, _ in top}
    tables = [rows for of_stack in stacks.values() for rows in of_stack]
    used |= {f"model.layers.{i}.{theirs}" for i, rows in enumerate(tables) for theirs, _, _ in rows}
    assert used == set(weights), used ^ set(weights)
    return params


TOP: Rows = [
    ("model.embed_tokens.weight", "embed/embedding", as_is),
    ("model.norm.weight", "final_norm/scale", as_is),
    ("lm_head.weight", "head/kernel", transposed),
]
NORMS: Rows = [
    ("input_layernorm.weight", "attention_norm/scale", as_is),
    ("post_attention_layernorm.weight", "mlp_norm/scale", as_is),
]
