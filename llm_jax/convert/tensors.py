"""Which source tensors hold which parameters in a model of a family, and how one is laid out as the
other.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from llm_jax.config.model import ModelConfig
from llm_jax.config.sections import value_of
from llm_jax.convert import layout
from llm_jax.convert.family import Family, TensorMap
from llm_jax.types import DataError

# Tensors of each kind that an error lists.
_LISTED = 10


class Piece(NamedTuple):
    """Part of a source tensor: a slice of one parameter.

    Attributes:
        path: Path of the parameter.
        position: Indices of the slice along the parameter's leading axes (layer, expert).
        shape: Shape of the slice.
        layout: Pattern by which the slice is laid out in the source tensor.
    """

    path: str
    position: tuple[int, ...]
    shape: tuple[int, ...]
    layout: str


class Tensor(NamedTuple):
    """A source tensor and the pieces of parameters that it holds.

    Attributes:
        name: Name in the file.
        shape: Shape in the file.
        pieces: The pieces, which follow one another along ``axis``.
        axis: The axis.
        groups: Number of equal parts of the axis, each of which has a share of every piece.
        order: Order in which the indices of the axis are taken before the pieces are split.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    axis: int
    groups: int
    order: np.ndarray | None

    def to_native(self, x: np.ndarray) -> Iterator[tuple[Piece, np.ndarray]]:
        """Every piece of the source tensor ``x``, in its native layout."""
        if self.order is not None:
            x = np.take(x, self.order, self.axis)
        parts = [x]
        if len(self.pieces) > 1:
            parts = layout.split(x, self.axis, self.groups, self._sizes())
        for piece, part in zip(self.pieces, parts):
            yield piece, layout.to_native(part, piece.layout, piece.shape)

    def to_source(self, read: Callable[[Piece], np.ndarray]) -> np.ndarray:
        """The source tensor, from the native pieces that ``read`` returns."""
        parts = [layout.to_source(read(piece), piece.layout) for piece in self.pieces]
        x = layout.join(parts, self.axis, self.groups)
        return x if self.order is None else np.take(x, np.argsort(self.order), self.axis)

    def _sizes(self) -> list[int]:
        return [layout.source_shape(p.layout, p.shape)[self.axis] for p in self.pieces]


def tensors(
    family: Family, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> list[Tensor]:
    """The source tensors of a model. Each parameter is in exactly one of them.

    Rows of the family for which the model has no parameter are left out.

    Args:
        family: Tables of the family.
        model: Config of the model.
        shapes: Shape of every parameter, by path.

    Raises:
        DataError: No row has a place for a parameter, so the family cannot hold the model.
    """
    out = []
    covered = dict.fromkeys(shapes, 0)
    for row in family.rows:
        for tensor in _expanded(row, model, shapes):
            out.append(tensor)
            for piece in tensor.pieces:
                covered[piece.path] += math.prod(piece.shape)
    missing = [path for path, n in covered.items() if n != math.prod(shapes[path])]
    if missing:
        raise DataError(
            f"{family.model_type} has no tensor for the parameters {', '.join(missing[:5])}; export"
            " the model as another family"
        )
    return out


def _expanded(
    row: TensorMap, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Tensor]:
    """The tensors of a row: one for each layer and expert. Layers are numbered through all stacks
    of a decoder.
    """
    if not all(_holds(condition, model) for condition in row.when.split(" and ") if condition):
        return
    leading = [letter for letter in ("l", "e") if f"{{{letter}}}" in row.source]
    if not leading:
        yield from _of_stack(row, model, shapes, leading, stack="layers", first_layer=0)
        return
    first_layer = 0
    for stack, _, layers in model.stacks:
        yield from _of_stack(row, model, shapes, leading, stack=stack, first_layer=first_layer)
        first_layer += layers


def _of_stack(
    row: TensorMap,
    model: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    leading: list[str],
    *,
    stack: str,
    first_layer: int,
) -> Iterator[Tensor]:
    """The tensors of a row in one stack; none where the stack lacks one of the parameters."""
    parts = [(path.replace("layers/", f"{stack}/", 1), pattern) for path, pattern in row.parts]
    axes = len(leading)
    for path, pattern in parts:
        if path not in shapes or len(shapes[path]) != axes + layout.rank(pattern):
            return
    for position in np.ndindex(*shapes[parts[0][0]][:axes]):
        pieces = tuple(
            Piece(path, position, shapes[path][axes:], pattern) for path, pattern in parts
        )
        numbers = dict(zip(leading, position))
        if leading:
            numbers["l"] = position[0] + first_layer
        yield _tensor(row, model, row.source.format(**numbers), pieces)


def _holds(condition: str, model: ModelConfig) -> bool:
    """Whether one condition of ``TensorMap.when`` holds."""
    field, _, value = condition.removeprefix("not ").partition("=")
    found = value_of(model, field)
    holds = found == value if value else bool(found)
    return holds != condition.startswith("not ")


def _tensor(row: TensorMap, model: ModelConfig, name: str, pieces: tuple[Piece, ...]) -> Tensor:
    first = pieces[0]
    groups = layout.size_of(first.layout, row.per, first.shape) if row.per else 1
    shape = list(layout.source_shape(first.layout, first.shape))
    shape[row.axis] = sum(layout.source_shape(p.layout, p.shape)[row.axis] for p in pieces)
    order = row.order(model) if row.order else None
    return Tensor(name, tuple(shape), pieces, row.axis, groups, order)


def check_names(found: Mapping[str, tuple[int, ...]], wanted: list[Tensor], source: str) -> None:
    """Checks that a model's files have exactly the tensors of its config.

    Args:
        found: Name -> shape of the tensors in the files.
        wanted: The tensors that the config calls for.
        source: Name of the files, for the message.

    Raises:
        DataError: Tensors are missing, unexpected or of another shape; the message lists them with
            the nearest names.
    """
    shapes = {tensor.name: tensor.shape for tensor in wanted}
    extra = sorted(found.keys() - shapes.keys())
    missing = sorted(shapes.keys() - found.keys())
    other = [name for name in shapes if name in found and found[name] != shapes[name]]
    lines = []
    if missing:
        lines += [f"{len(missing)} missing", *_with_nearest(missing, extra)]
    if extra:
        lines += [f"{len(extra)} that the model has no place for", *_with_nearest(extra, missing)]
    if other:
        lines.append(f"{len(other)} of another shape")
    lines += [
        f"  {name} is {list(found[name])}, the config needs {list(shapes[name])}"
        for name in other[:_LISTED]
    ]
    if lines:
        raise DataError(
            f"the tensors of {source} are not those of its config:\n" + "\n".join(lines)
        )


def _with_nearest(names: list[str], others: Iterable[str]) -> list[str]:
    """A line for each of the first names, with the most similar of ``others``."""
    lines = []
    for name in names[:_LISTED]:
        similar = difflib.get_close_matches(name, others, 1, 0.8)
        nearest = f" (nearest: {similar[0]})" if similar else ""
        lines.append(f"  {name}{nearest}")
    return lines
