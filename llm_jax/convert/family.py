"""The tables that describe a family of models: the keys of its config file and its tensors, each
used in both directions.

In this folder *source* is the other program's name, value or layout, and *native* is llm_jax's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from llm_jax.config.model import ModelConfig

REQUIRED = object()


class ConfigKey(NamedTuple):
    """One key of ``config.json`` and the setting of ``ModelConfig`` with the same meaning.

    Attributes:
        source: Name of the key in ``config.json``.
        native: Dotted key of the setting, such as ``attention.num_heads``.
        default: Value for files that lack the key. ``REQUIRED`` means that every file must have it.
        values: Map from the value of the key to the value of the field, where the two differ.
        none: Value of the field for a JSON null.
        also: Another name that some files use for the key.
        some: The field's 0 has no equivalent in ``config.json`` and cannot be exported.
    """

    source: str
    native: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None
    none: Any = REQUIRED
    also: str = ""
    some: bool = False


class ConfigTransform(NamedTuple):
    """Several keys of ``config.json`` that together set fields of ``ModelConfig``.

    Attributes:
        keys: Every key that ``read`` uses.
        read: Function of (config.json, fields read so far) that returns more fields.
        write: Function of the ``ModelConfig`` that returns keys of ``config.json``.
    """

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


class TensorMap(NamedTuple):
    """A tensor of a model file and the parameter, or the parameters, that it holds.

    Attributes:
        source: Name in the file, with ``{l}`` for the layer and ``{e}`` for the expert. These are
            the leading axes of the parameter.
        native: Path of the parameter, or several paths where the tensor holds several parameters
            along ``axis``.
        layouts: One layout pattern for all parts, or one for each part (see ``layout``).
        axis: Axis of the source tensor along which the parts are concatenated.
        per: A letter of the first layout. The parts then repeat for each index of that letter, in
            place of following one another once.
        order: Function of the model's config that returns the order of the indices along ``axis``,
            for orders that no pattern can express.
        when: Condition for the tensor to exist: ``field`` (must be set), ``field=value``, or either
            of these after ``not``. Several conditions are joined by ``and``.
    """

    source: str
    native: str | tuple[str, ...]
    layouts: str | tuple[str, ...]
    axis: int = 0
    per: str = ""
    order: Callable[[ModelConfig], np.ndarray] | None = None
    when: str = ""

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """(path, layout) of each part."""
        paths = (self.native,) if isinstance(self.native, str) else self.native
        layouts = (self.layouts,) * len(paths) if isinstance(self.layouts, str) else self.layouts
        return tuple(zip(paths, layouts, strict=True))


class Family(NamedTuple):
    """A family of models, described by tables.

    Attributes:
        model_type: Value of ``model_type`` in ``config.json``.
        architecture: Default value of ``architectures`` in ``config.json``.
        fixed: Fields of ``ModelConfig`` with the same value in every model of the family.
        keys: Keys of ``config.json`` with one field each.
        codecs: Keys of ``config.json`` that set fields together.
        rows: The tensors.
        required_values: Keys that must have one of these values where a file has the key. Export
            writes the first value.
        unused: Keys that change nothing in what the family computes here.
        prefix: Prefix of most tensor names, which some files leave out.
        copies: Map from a tensor to the tensor that it repeats, where the model has no parameter
            for the first.
        duplicated_tensors: As ``copies``, but exported where embeddings are not tied.
        buffers: Endings of tensor names that are ignored where the model has no such parameter.
        endings: Map from endings of tensor names in old files to the present ones.
        heads: Map from each architecture to the fields that it sets. ``architecture`` is the
            default.
        bare: The architecture without a head, whose tensor names have no prefix.
    """

    model_type: str
    architecture: str
    fixed: Mapping[str, Any]
    keys: tuple[ConfigKey, ...]
    codecs: tuple[ConfigTransform, ...]
    rows: tuple[TensorMap, ...]
    required_values: Mapping[str, tuple[Any, ...]] = {}
    unused: tuple[str, ...] = ()
    prefix: str = ""
    copies: Mapping[str, str] = {}
    duplicated_tensors: Mapping[str, str] = {}
    buffers: tuple[str, ...] = ()
    endings: Mapping[str, str] = {}
    heads: Mapping[str, Mapping[str, Any]] = {}
    bare: str = ""

    @property
    def architectures(self) -> tuple[str, ...]:
        """Every supported architecture of the family, the default one first."""
        return tuple(self.heads) or (self.architecture,)

    @property
    def implicit_defaults(self) -> dict[str, Any]:
        """Keys that a file may leave out, with the values that export writes."""
        return {name: values[0] for name, values in self.required_values.items()}
