"""Products of groups of rows, with all their derivatives, against one product for each row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from llm_jax.ops.grouped import grouped_product

COUNTS = jnp.array([2, 0, 4])
ROWS = jax.random.normal(jax.random.key(0), (6, 3))
KERNELS = jax.random.normal(jax.random.key(1), (3, 3, 5))
TWO_ROWS = jnp.stack([ROWS, ROWS + 1])
TWO_KERNELS = jnp.stack([KERNELS, KERNELS + 1])


def one_by_one(rows: Array, kernels: Array, counts: Array) -> Array:
    group = np.repeat(np.arange(3), np.asarray(counts))
    return jnp.einsum("md,mdf->mf", rows, kernels[group])


def loss_of(product):
    def loss(rows, kernels):
        return jnp.sum(jnp.sin(product(rows, kernels, COUNTS)))

    return loss


def gradients(loss):
    return jax.grad(loss, (0, 1))


def twice_reverse(loss):
    """The gradient of a number that is made of the gradient."""

    def size(rows, kernels):
        return sum(jnp.sum(jnp.sin(g)) for g in gradients(loss)(rows, kernels))

    return gradients(size)


DERIVATIVES = {
    "gradient": lambda loss: gradients(loss)(ROWS, KERNELS),
    "forward over reverse": lambda loss: jax.jvp(gradients(loss), (ROWS, KERNELS), (ROWS, KERNELS)),
    "reverse over reverse": lambda loss: twice_reverse(loss)(ROWS, KERNELS),
    "third": lambda loss: jax.jvp(twice_reverse(loss), (ROWS, KERNELS), (ROWS, KERNELS)),
    "many rows": lambda loss: jax.vmap(gradients(loss), (0, None))(TWO_ROWS, KERNELS),
    "many kernels": lambda loss: jax.vmap(gradients(loss), (None, 0))(ROWS, TWO_KERNELS),
    "many of both": lambda loss: jax.vmap(jax.vmap(gradients(loss), (0, None)), (None, 0))(
        TWO_ROWS, TWO_KERNELS
    ),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_are_those_of_products_one_by_one(name):
    derivative = DERIVATIVES[name]
    actual = jax.jit(lambda: derivative(loss_of(grouped_product)))()
    wanted = jax.jit(lambda: derivative(loss_of(one_by_one)))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), actual, wanted
    )
