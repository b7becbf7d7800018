"""Tensors of theirs and parameters of ours: which is which in a model of a family, and how the one
is laid out as the other.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from llm_jax.config.model import ModelConfig
from llm_jax.convert import layout
from llm_jax.convert.family import Family, TensorMap
from llm_jax.types import DataError


class Piece(NamedTuple):
    """Part of a tensor of theirs: the parameter at ``path``, its slice at ``index`` (layer, expert)
    and how that is laid out.
    """

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    layout: str


class Tensor(NamedTuple):
    """A tensor of theirs: its name and shape, and the pieces of ours that follow one another along
    ``axis`` in each of ``groups``, once its indices are taken in ``order``.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    axis: int
    groups: int
    order: np.ndarray | None

    def to_ours(self, x: np.ndarray) -> Iterator[tuple[Piece, np.ndarray]]:
        """Every piece, laid out as ours."""
        x = x if self.order is None else np.take(x, self.order, self.axis)
        sizes = (
            [layout.their_shape(p.layout, p.shape)[self.axis] for p in self.pieces]
            if len(self.pieces) > 1
            else []
        )
        parts = layout.split(x, self.axis, self.groups, sizes) if sizes else [x]
        for piece, part in zip(self.pieces, parts):
            yield piece, layout.to_ours(part, piece.layout, piece.shape)

    def to_theirs(self, read: Callable[[Piece], np.ndarray]) -> np.ndarray:
        """The tensor, from the pieces that ``read`` gives."""
        x = layout.join(
            [layout.to_theirs(read(p), p.layout) for p in self.pieces], self.axis, self.groups
        )
        return x if self.order is None else np.take(x, np.argsort(self.order), self.axis)


def tensors(
    family: Family, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> list[Tensor]:
    """Every tensor of theirs of a model whose parameters have ``shapes`` (by path); each parameter
    is in exactly one.

    A row that the model has no parameter for is left out. DataError where a parameter is in no row:
    the family cannot hold it.
    """
    out, covered = [], dict.fromkeys(shapes, 0)
    for row in family.rows:
        for tensor in _expanded(row, model, shapes):
            out.append(tensor)
            for piece in tensor.pieces:
                covered[piece.path] += math.prod(piece.shape)
    missing = [path for path, n in covered.items() if n != math.prod(shapes[path])]
    if missing:
        raise DataError(
            f"{family.model_type} has no tensor for the parameters {', '.join(missing[:5])}; export"
            " as another family"
        )
    return out


def _expanded(
    row: TensorMap, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Tensor]:
    """The tensors of a row: one for each layer and expert. Layers count through the stacks that
    they are in; an encoder's by themselves.
    """
    if not all(_holds(condition, model) for condition in row.when.split(" and ") if condition):
        return
    leading = [letter for letter in ("l", "e") if f"{{{letter}}}" in row.source]
    start = 0
    for stack, _, layers in model.stacks if leading else (("", model, 0),):
        paths = (
            [path.replace("layers/", f"{stack}/", 1) for path, _ in row.parts]
            if leading
            else [path for path, _ in row.parts]
        )
        whole = [shapes.get(path) for path in paths]
        if all(
            s is not None and len(s) == len(leading) + layout.rank(p)
            for s, (_, p) in zip(whole, row.parts)
        ):
            for index in np.ndindex(*(whole[0] or ())[: len(leading)]):
                pieces = tuple(
                    Piece(path, index, s[len(leading) :], pattern)
                    for path, s, (_, pattern) in zip(paths, whole, row.parts)
                    if s
                )
                names = dict(zip(leading, index))
                yield _tensor(
                    row,
                    model,
                    row.source.format(**names | ({"l": index[0] + start} if leading else {})),
                    pieces,
                )
        start += layers


def _holds(condition: str, model: ModelConfig) -> bool:
    """One condition of ``TensorMap.when``."""
    field, _, value = condition.removeprefix("not ").partition("=")
    found = getattr(model, field)
    return bool(found == value if value else found) != condition.startswith("not ")


def _tensor(row: TensorMap, model: ModelConfig, name: str, pieces: tuple[Piece, ...]) -> Tensor:
    first, axis = pieces[0], row.axis
    groups = layout.size_of(first.layout, row.per, first.shape) if row.per else 1
    shape = list(layout.their_shape(first.layout, first.shape))
    shape[axis] = sum(layout.their_shape(p.layout, p.shape)[axis] for p in pieces)
    return Tensor(name, tuple(shape), pieces, axis, groups, row.order(model) if row.order else None)


def check_names(found: Mapping[str, tuple[int, ...]], wanted: list[Tensor], source: str) -> None:
    """DataError, listing all of them with the nearest names, for tensors that are missing, too many
    or of another shape.
    """
    want = {t.name: t.shape for t in wanted}

    def near(name, names):
        return "".join(f" (nearest: {n})" for n in difflib.get_close_matches(name, names, 1, 0.8))

    extra, missing = sorted(found.keys() - want.keys()), sorted(want.keys() - found.keys())
    other = [name for name in want if name in found and found[name] != want[name]]
    lines = [f"{len(missing)} missing"] * bool(missing) + [
        f"  {n}{near(n, extra)}" for n in missing[:10]
    ]
    lines += [f"{len(extra)} that the model has no place for"] * bool(extra) + [
        f"  {n}{near(n, missing)}" for n in extra[:10]
    ]
    lines += [f"{len(other)} of another shape"] * bool(other)
    lines += [f"  {n} is {list(found[n])}, the config wants {list(want[n])}" for n in other[:10]]
    if lines:
        raise DataError(
            f"the tensors of {source} are not those of its config:\n" + "\n".join(lines)
        )
