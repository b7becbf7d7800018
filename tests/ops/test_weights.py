"""The leaf types that stand in the place of a kernel: each multiplies as the array that it stands
for.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops.weights import (
    Joined,
    LowRank,
    OutputFirst,
    Quantized,
    add_low_rank,
    expand_specs,
    matmul,
    matmul_group,
    quantize,
    take_rows,
    to_array,
)
from llm_jax.types import ParamSpec

RNG = np.random.default_rng(0)
# Input and output axes of a kernel.
SIZES = [((6,), (5,)), ((6,), (2, 5)), ((3, 2), (5,)), ((3, 2), (2, 4))]


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def low_rank(kernel, num_inputs, base=None):
    a = normal(*kernel.shape[:num_inputs], 2)
    b = normal(2, *kernel.shape[num_inputs:])
    return LowRank(kernel if base is None else base, a, b, scale=0.5)


LEAVES = {
    "array": lambda kernel, n: kernel,
    "output first": OutputFirst.of,
    "int8": lambda kernel, n: quantize(kernel, range(n)),
    "low rank": low_rank,
    "low rank over int8": lambda kernel, n: low_rank(kernel, n, base=quantize(kernel, range(n))),
    "low rank over output first": lambda kernel, n: low_rank(
        kernel, n, base=OutputFirst.of(kernel, n)
    ),
}


@pytest.mark.parametrize("kind", LEAVES)
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_a_leaf_multiplies_as_the_array_that_it_stands_for(kind, inputs, outputs):
    leaf = LEAVES[kind](normal(*inputs, *outputs), len(inputs))
    x = normal(2, 3, *inputs)
    array = to_array(leaf, jnp.float32)
    assert array.shape == (*inputs, *outputs)
    y = matmul(x, leaf, len(inputs))
    assert y.shape == (2, 3, *outputs)
    np.testing.assert_allclose(y, np.tensordot(x, array, len(inputs)), rtol=1e-5, atol=1e-5)
    assert matmul(x.astype(jnp.bfloat16), leaf, len(inputs)).dtype == jnp.bfloat16


def test_what_a_low_rank_leaf_stands_for_by_hand():
    """base + scale · a·b, with numbers of which each can be followed."""
    leaf = LowRank(jnp.eye(2), jnp.array([[1.0], [2.0]]), jnp.array([[3.0, 4.0]]), 0.5)
    np.testing.assert_array_equal(to_array(leaf, jnp.float32), [[2.5, 2.0], [3.0, 5.0]])


def test_a_new_low_rank_part_adds_nothing_and_learns():
    """b is 0, so that a has no gradient at first, and b has."""
    kernel = normal(6, 5)
    leaf = add_low_rank(jax.random.key(0), kernel, kernel.shape, (0,), rank=2)
    x = normal(4, 6)
    np.testing.assert_array_equal(matmul(x, leaf), matmul(x, kernel))
    slope = jax.grad(lambda leaf: jnp.sum(jnp.square(matmul(x, leaf))))(leaf)
    assert not slope.a.any()
    assert slope.b.any()


def test_the_gradients_of_a_low_rank_part_are_those_of_its_kernel():
    """By the chain rule: with d the kernel's gradient, scale · d·bᵀ for a, and scale · aᵀ·d
    for b.
    """
    leaf, x = low_rank(normal(6, 5), 1), normal(4, 6)

    def loss(leaf):
        return jnp.sum(jnp.sin(matmul(x, leaf)))

    slope = jax.grad(loss)(leaf)
    d = jax.grad(loss)(to_array(leaf, jnp.float32))
    np.testing.assert_allclose(slope.a, 0.5 * d @ leaf.b.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slope.b, 0.5 * leaf.a.T @ d, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("contract", [(0,), (1,), (0, 1)])
def test_int8_is_within_half_a_step_of_each_output(contract):
    kernel = normal(6, 4, 5)
    leaf = quantize(kernel, contract)
    largest = np.abs(kernel).max(axis=contract, keepdims=True)
    assert leaf.values.dtype == jnp.int8
    assert leaf.scale.shape == largest.shape
    assert np.abs(leaf.values).max() == 127
    error = np.abs(to_array(leaf, jnp.float32) - kernel)
    assert (error <= largest / 254 * (1 + 1e-5)).all()


def test_an_output_of_zeros_is_quantized_to_zeros():
    leaf = quantize(jnp.zeros((3, 2)), (0,))
    np.testing.assert_array_equal(to_array(leaf, jnp.float32), np.zeros((3, 2)))


@pytest.mark.parametrize("rows", [1, 40])
def test_kernels_of_one_input_are_multiplied_as_one(rows):
    kernels = [normal(6, 4, 3), normal(6, 2, 3), normal(6, 5)]
    leaves = Joined.of(kernels)
    x = normal(rows, 6)
    for y, kernel in zip(matmul_group(x, leaves), kernels, strict=True):
        np.testing.assert_allclose(y, np.tensordot(x, kernel, 1), rtol=1e-5, atol=1e-5)
    products = str(jax.make_jaxpr(lambda x: matmul_group(x, leaves))(x)).count("dot_general")
    assert products == 1
    np.testing.assert_array_equal(to_array(leaves[0], jnp.float32), kernels[0])
    with pytest.raises(TypeError, match="kernel 2 of a Joined has no array of its own"):
        to_array(leaves[2], jnp.float32)


def test_rows_of_a_table_in_int8_are_those_of_its_array():
    leaf = quantize(normal(7, 4), (1,))
    ids = jnp.array([[3, 0], [6, 3]])
    expected = np.asarray(to_array(leaf, jnp.float32))[np.asarray(ids)]
    np.testing.assert_array_equal(take_rows(leaf, ids, jnp.float32), expected)


SPEC = ParamSpec(("layers", "heads", "head_dim", "embed"), (1, 2), "matrix")


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("int8", [SPEC.axes, ("layers", None, None, "embed")]),
        ("low rank", [SPEC.axes, ("layers", "heads", "head_dim", None), ("layers", None, "embed")]),
    ],
)
def test_each_array_of_a_leaf_has_the_axes_that_it_keeps(kind, axes):
    kernel = normal(2, 3, 4, 6)
    if kind == "int8":
        leaf = quantize(kernel, SPEC.contract)
    else:
        leaf = add_low_rank(jax.random.key(0), kernel, kernel.shape, SPEC.contract, rank=2)
    specs = jax.tree.leaves(expand_specs({"w": SPEC}, {"w": leaf}))
    assert [spec.axes for spec in specs] == axes
    assert [len(spec.axes) for spec in specs] == [a.ndim for a in jax.tree.leaves(leaf)]


def test_outputs_first_have_their_axes_first():
    leaf = OutputFirst.of(normal(3, 4, 6), 2)
    spec = expand_specs({"w": SPEC.of_one_layer()}, {"w": leaf})["w"].array
    assert spec.axes == ("embed", "heads", "head_dim")
    assert spec.contract == (1, 2)


@pytest.mark.parametrize("kind", ["int8", "low rank"])
def test_layers_are_scanned_over_as_they_are_taken_one_by_one(kind):
    kernels = normal(3, 6, 6)
    if kind == "int8":
        leaf = quantize(kernels, (1,))
    else:
        leaf = LowRank(kernels, normal(3, 6, 2), normal(3, 2, 6))
    x = normal(4, 6)
    scanned, _ = jax.lax.scan(lambda x, w: (jnp.tanh(matmul(x, w)), None), x, leaf)
    one_by_one = x
    for layer in range(3):
        of_layer = jax.tree.map(lambda a, layer=layer: a[layer], leaf)
        one_by_one = jnp.tanh(matmul(one_by_one, of_layer))
    np.testing.assert_allclose(scanned, one_by_one, rtol=1e-6, atol=1e-6)
    assert to_array(leaf, jnp.float32).shape == (3, 6, 6)


def test_a_leaf_is_a_pytree_of_its_arrays():
    leaf = LowRank(
        Quantized(jnp.ones((2, 2), jnp.int8), jnp.ones((1, 2))), normal(2, 1), normal(1, 2)
    )
    names = [
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree_util.tree_flatten_with_path({"kernel": leaf})[0]
    ]
    assert names == ["kernel/base/values", "kernel/base/scale", "kernel/a", "kernel/b"]
