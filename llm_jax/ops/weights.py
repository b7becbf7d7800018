"""What stands in the place of a weight matrix: an array, or one of the leaf types here.

``matmul(x, weight, num_inputs)`` multiplies with any of them, so that models, training and decoding
take each unchanged. A leaf type is a pytree of arrays; where layers are stacked, all of them have
the leading axis L, and ``jax.lax.scan`` or indexing takes one layer's from each.

| type | stands for |
| --- | --- |
| array | a kernel [inputs, outputs], as ``Model.init`` makes it |
| ``OutputFirst`` | its transpose [outputs, inputs], which a CPU multiplies faster |
| ``Joined``, ``JoinedPart`` | several kernels of one input as one, for one product |
| ``Quantized`` | int8 values and a scale for each output |
| ``LowRank`` | a kernel plus a product of two narrow ones (LoRA, Hu et al. 2021) |
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.ops.cpu import output_first_product, project


class WeightLeaf(ABC):
    """A leaf type: what it stands for is a kernel [inputs, outputs]."""

    @abstractmethod
    def matmul(self, x: Array, num_inputs: int) -> Array:
        """x [..., inputs] times the kernel, [..., outputs], in the type of x."""

    @abstractmethod
    def to_array(self, dtype: Any) -> Array:
        """The kernel as one array of ``dtype``."""

    @abstractmethod
    def specs(self, spec: Any) -> Any:
        """This type with a spec in the place of each array, out of the kernel's ``ParamSpec``."""

    def parts(self) -> dict[str, Any]:
        """The arrays and weights that the leaf is made of, by name."""
        flat, _ = jax.tree_util.tree_flatten_with_path(self, is_leaf=lambda x: x is not self)
        return {jax.tree_util.keystr(path, simple=True): value for path, value in flat}

    def with_parts(self, parts: Mapping[str, Any]) -> WeightLeaf:
        """The leaf with other parts; a part that is not given is None, which is no array."""
        leaf: Any = self
        return dataclasses.replace(leaf, **{name: parts.get(name) for name in self.parts()})


Weight = Array | WeightLeaf


@partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["num_inputs"])
@dataclasses.dataclass(frozen=True)
class OutputFirst(WeightLeaf):
    """A kernel over ``num_inputs`` input axes, stored as ``array`` [outputs, inputs]."""

    array: Array
    num_inputs: int = 1

    @classmethod
    def of(cls, kernel: Array, num_inputs: int) -> OutputFirst:
        """``kernel`` [inputs, outputs], transposed."""
        outputs = range(num_inputs, kernel.ndim)
        return cls(jnp.transpose(kernel, (*outputs, *range(num_inputs))), num_inputs)

    def matmul(self, x: Array, num_inputs: int) -> Array:
        return output_first_product(x, self.array.astype(x.dtype), num_inputs)

    def to_array(self, dtype: Any) -> Array:
        split = self.array.ndim - self.num_inputs
        inputs = range(split, self.array.ndim)
        return jnp.transpose(self.array, (*inputs, *range(split))).astype(dtype)

    def specs(self, spec: Any) -> OutputFirst:
        axes = spec.axes[self.num_inputs :] + spec.axes[: self.num_inputs]
        contract = tuple(range(len(axes) - self.num_inputs, len(axes)))
        turned = dataclasses.replace(spec, axes=axes, contract=contract)
        return OutputFirst(turned, self.num_inputs)


@partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["outputs"])
@dataclasses.dataclass(frozen=True)
class Joined(WeightLeaf):
    """Several kernels over the same one input axis, as ``array`` [all outputs, inputs].

    It stands where the first of them does; the others are a ``JoinedPart``. ``matmul_group``
    multiplies with all of them at once.

    outputs: shape of the outputs of each kernel.
    """

    array: Array
    outputs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, kernels: Sequence[Array]) -> tuple[Joined | JoinedPart, ...]:
        """The leaves that take the places of ``kernels``, each [inputs, outputs]."""
        rows = [kernel.reshape(kernel.shape[0], -1).T for kernel in kernels]
        outputs = tuple(kernel.shape[1:] for kernel in kernels)
        others = (JoinedPart(index) for index in range(1, len(kernels)))
        return cls(jnp.concatenate(rows), outputs), *others

    def products(self, x: Array) -> list[Array]:
        """x [..., inputs] times each of the kernels."""
        together = output_first_product(x, self.array.astype(x.dtype), 1)
        ends = np.cumsum([math.prod(shape) for shape in self.outputs])
        parts = jnp.split(together, ends[:-1], axis=-1)
        return [part.reshape(*x.shape[:-1], *shape) for part, shape in zip(parts, self.outputs)]

    def matmul(self, x: Array, num_inputs: int) -> Array:
        return self.products(x)[0]

    def to_array(self, dtype: Any) -> Array:
        first = self.outputs[0]
        rows = self.array[: math.prod(first)]
        return rows.T.reshape(-1, *first).astype(dtype)

    def specs(self, spec: Any) -> Joined:
        joined = dataclasses.replace(spec, axes=(None, spec.axes[0]), contract=(1,))
        return Joined(joined, self.outputs)


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["index"])
@dataclasses.dataclass(frozen=True)
class JoinedPart(WeightLeaf):
    """The place of a kernel that is part ``index`` of a ``Joined``. It has no arrays."""

    index: int

    def matmul(self, x: Array, num_inputs: int) -> Array:
        raise TypeError(f"kernel {self.index} of a Joined is multiplied by matmul_group")

    def to_array(self, dtype: Any) -> Array:
        raise TypeError(f"kernel {self.index} of a Joined has no array of its own")

    def specs(self, spec: Any) -> JoinedPart:
        return self


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Quantized(WeightLeaf):
    """A kernel as ``values * scale``: int8 values of the kernel's shape, and a float32 scale that
    is the same along the axes that a product sums over, which have size 1 in it.
    """

    values: Array
    scale: Array

    def matmul(self, x: Array, num_inputs: int) -> Array:
        y = project(x, self.values.astype(x.dtype), num_inputs)
        of_outputs = self.scale.reshape(self.scale.shape[num_inputs:]).astype(x.dtype)
        return y * jnp.expand_dims(of_outputs, range(x.ndim - num_inputs))

    def to_array(self, dtype: Any) -> Array:
        return self.values.astype(dtype) * self.scale.astype(dtype)

    def specs(self, spec: Any) -> Quantized:
        axes = tuple(None if i in spec.contract else axis for i, axis in enumerate(spec.axes))
        scale = dataclasses.replace(spec, axes=axes, contract=(), role="scale")
        return Quantized(spec, scale)


def quantize(kernel: Array, contract: Sequence[int]) -> Quantized:
    """``kernel`` in int8, with the largest magnitude along ``contract`` as 127.

    Args:
        kernel: a kernel, which may have leading axes of layers and experts.
        contract: the axes that a product sums over (``ParamSpec.contract``).
    """
    largest = jnp.max(jnp.abs(kernel.astype(jnp.float32)), axis=tuple(contract), keepdims=True)
    scale = jnp.where(largest == 0, 1.0, largest / 127)
    values = jnp.round(kernel.astype(jnp.float32) / scale).astype(jnp.int8)
    return Quantized(values, scale)


@partial(jax.tree_util.register_dataclass, data_fields=["base", "a", "b"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class LowRank(WeightLeaf):
    """A kernel ``base + scale * a·b`` of rank r at most more than its base.

    base: any weight [inputs, outputs]; a: [inputs, r]; b: [r, outputs].
    """

    base: Weight
    a: Array
    b: Array
    scale: float = 1.0

    def matmul(self, x: Array, num_inputs: int) -> Array:
        narrow = project(x, self.a.astype(x.dtype), num_inputs)
        added = project(narrow, self.b.astype(x.dtype), 1)
        return matmul(x, self.base, num_inputs) + added * jnp.asarray(self.scale, x.dtype)

    def to_array(self, dtype: Any) -> Array:
        base = to_array(self.base, jnp.float32)
        # Axes of layers or experts come first in all three.
        stacked = self.a.ndim + self.b.ndim - 2 - base.ndim
        a = self.a.reshape(*self.a.shape[:stacked], -1, self.a.shape[-1])
        b = self.b.reshape(*self.b.shape[: stacked + 1], -1)
        added = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32)).reshape(base.shape)
        return (base + self.scale * added).astype(dtype)

    def specs(self, spec: Any) -> LowRank:
        stacked = spec.axes[: spec.contract[0]]
        inputs = tuple(spec.axes[i] for i in spec.contract)
        outputs = spec.axes[spec.contract[-1] + 1 :]
        a = dataclasses.replace(spec, axes=(*stacked, *inputs, None))
        b = dataclasses.replace(spec, axes=(*stacked, None, *outputs), contract=(len(stacked),))
        base = self.base.specs(spec) if isinstance(self.base, WeightLeaf) else spec
        return LowRank(base, a, b, self.scale)


def add_low_rank(
    key: Array, kernel: Weight, shape: tuple[int, ...], contract: Sequence[int], rank: int
) -> LowRank:
    """``kernel`` with a low-rank part that adds nothing yet: b is 0, a is normal with variance 1 /
    inputs (Hu et al. 2021, section 4.1).

    Args:
        key: random key of a.
        kernel: the weight that is added to.
        shape: shape of the kernel, which may have leading axes of layers and experts.
        contract: the axes of ``shape`` that a product sums over (``ParamSpec.contract``).
        rank: r.
    """
    first = contract[0]
    last = contract[-1]
    inputs = shape[first : last + 1]
    a = jax.random.normal(key, (*shape[: last + 1], rank)) / math.prod(inputs) ** 0.5
    b = jnp.zeros((*shape[:first], rank, *shape[last + 1 :]))
    return LowRank(kernel, a, b)


def is_weight_leaf(x: object) -> bool:
    return isinstance(x, WeightLeaf)


def matmul(x: Array, weight: Weight, num_inputs: int = 1) -> Array:
    """x [..., inputs] times ``weight`` over ``num_inputs`` input axes: [..., outputs], in the type
    of x.
    """
    if isinstance(weight, WeightLeaf):
        return weight.matmul(x, num_inputs)
    return project(x, weight.astype(x.dtype), num_inputs)


def matmul_group(x: Array, weights: Sequence[Weight]) -> list[Array]:
    """x [..., inputs] times each of ``weights`` over one input axis; one product if they are
    ``Joined``.
    """
    if isinstance(weights[0], Joined):
        return weights[0].products(x)
    return [matmul(x, weight) for weight in weights]


def to_array(weight: Weight, dtype: Any) -> Array:
    """``weight`` as one array of ``dtype``, for products that ``matmul`` cannot make."""
    if isinstance(weight, WeightLeaf):
        return weight.to_array(dtype)
    return weight.astype(dtype)


def take_rows(table: Weight, ids: Array, dtype: Any) -> Array:
    """Rows ``ids`` of a table [rows, D] of embeddings, [..., D] in ``dtype``."""
    if isinstance(table, Quantized):
        values = jnp.take(table.values, ids, axis=0).astype(dtype)
        return values * jnp.take(table.scale, ids, axis=0).astype(dtype)
    if isinstance(table, WeightLeaf):
        return jnp.take(to_array(table, dtype), ids, axis=0)
    return jnp.take(table, ids, axis=0).astype(dtype)


def expand_specs(specs: Any, params: Any) -> Any:
    """``specs``, one for each weight of ``params``, with those of the arrays of each leaf type in
    its place.
    """

    def one(weight: Any, spec: Any) -> Any:
        return weight.specs(spec) if isinstance(weight, WeightLeaf) else spec

    return jax.tree.map(one, params, specs, is_leaf=is_weight_leaf)
