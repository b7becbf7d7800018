"""Float64 references that carry a bound of what float32 arithmetic may differ from them, on any
processor.

A test against such a reference cannot depend on the order in which a processor sums: for n terms
a·b, in any order and with fused or separate products and sums, the error is at most n·u·sum|a·b| /
(1 - n·u), with u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, second edition,
section 3.1). What the operands were off already is added, by the derivative of each operation.
Nothing here was measured.
"""

from __future__ import annotations

import math

import numpy as np

# Half the distance from 1 to the next float32.
U = 2.0**-24
# Below the least normal float32 a processor may take 0.
LEAST = 2.0**-126
# An operation rounds once; where a compiler makes x / y of x times 1 / y, twice.
ROUNDINGS = 2
# exp, tanh and log are polynomials, right to a few last places in every libm and in XLA.
FUNCTION = 8 * U


class Rounded:
    """An array ``value`` in float64, of which float32 arithmetic computes something at most
    ``error`` away.
    """

    def __init__(self, value, error=0.0):
        self.value = np.asarray(value, np.float64)
        self.error = np.broadcast_to(np.asarray(error, np.float64), self.value.shape)

    def __add__(self, other):
        other = _rounded(other)
        return _once(self.value + other.value, self.error + other.error)

    __radd__ = __add__

    def __neg__(self):
        return Rounded(-self.value, self.error)

    def __sub__(self, other):
        return self + -_rounded(other)

    def __mul__(self, other):
        other = _rounded(other)
        error = self.error * (abs(other.value) + other.error) + abs(self.value) * other.error
        return _once(self.value * other.value, error)

    def __truediv__(self, other):
        other = _rounded(other)
        value = self.value / other.value
        return _once(
            value, (self.error + abs(value) * other.error) / (abs(other.value) - other.error)
        )

    def __getitem__(self, index):
        return Rounded(self.value[index], self.error[index])

    def reshape(self, *shape):
        return Rounded(self.value.reshape(*shape), self.error.reshape(*shape))

    def transpose(self, *order):
        return Rounded(self.value.transpose(order), self.error.transpose(order))

    def where(self, condition):
        """0 where ``condition`` is not true."""
        return Rounded(np.where(condition, self.value, 0), np.where(condition, self.error, 0))

    def sum(self, axis=None, keepdims=False):
        def add(a):
            return a.sum(axis, keepdims=keepdims)

        most = abs(self.value) + self.error
        return Rounded(add(self.value), add(self.error) + _growth(add(most != 0)) * add(most))


def einsum(formula, a, b):
    """Sums of products, as ``np.einsum`` of two."""
    a, b = _rounded(a), _rounded(b)
    most_a = abs(a.value) + a.error
    most_b = abs(b.value) + b.error
    terms = _products(formula, most_a != 0, most_b != 0)
    error = _growth(terms) * _products(formula, most_a, most_b) + terms * LEAST
    if a.error.any():
        error = error + _products(formula, a.error, most_b)
    if b.error.any():
        error = error + _products(formula, abs(a.value), b.error)
    return Rounded(_products(formula, a.value, b.value), error)


def _products(formula, a, b):
    """``np.einsum`` of two, as one product of matrices for each index of what both and the result
    have.
    """
    first, second, result = formula.replace("->", ",").split(",")
    shared = [n for n in first if n in second and n in result]
    summed = [n for n in first if n in second and n not in result]
    of_a = [n for n in first if n not in second]
    of_b = [n for n in second if n not in first]
    sizes = dict(zip(first + second, a.shape + b.shape))

    def size(names):
        return math.prod(sizes[n] for n in names)

    a, b = a.astype(np.float64), b.astype(np.float64)
    left = np.einsum(f"{first}->{''.join(shared + of_a + summed)}", a)
    right = np.einsum(f"{second}->{''.join(shared + summed + of_b)}", b)
    out = left.reshape(size(shared), size(of_a), size(summed)) @ right.reshape(
        size(shared), size(summed), size(of_b)
    )
    order = shared + of_a + of_b
    return np.einsum(f"{''.join(order)}->{result}", out.reshape([sizes[n] for n in order]))


def exp(x):
    value = np.exp(x.value)
    return Rounded(value, value * (np.expm1(x.error) + FUNCTION) + LEAST)


def softmax(x, seen):
    """Over the last axis, of those that are ``seen``; 0 elsewhere.

    What is added to all of a row cancels, and one number that has all the weight keeps it: with p
    the result, errors e of x become p_i ((1 - p_i) e_i + the sum of p_j e_j over the others), but
    for terms of second order.
    """
    below = np.where(seen, x.value, -np.inf) - np.where(seen, x.value, -np.inf).max(
        -1, keepdims=True
    )
    numerators = np.exp(below)
    p = numerators / numerators.sum(-1, keepdims=True)
    # The difference from the largest rounds, and its exponential.
    e = np.where(seen, x.error + ROUNDINGS * U * abs(np.where(seen, below, 0)) + FUNCTION, 0)
    others = (p * e).sum(-1, keepdims=True) - p * e
    carried = p * ((1 - p) * e + others) * np.exp(2 * e.max(-1, keepdims=True))
    return _once(p, carried + _growth(np.sum(seen, -1, keepdims=True)) * p).where(seen)


def joined(a, b, axis):
    """``b`` after ``a`` along ``axis``, along others repeated as often as it takes."""

    def both(x, y):
        shape = (*x.shape[:axis], y.shape[axis], *x.shape[axis + 1 :])
        return np.concatenate([x, np.broadcast_to(y, shape)], axis)

    return Rounded(both(a.value, b.value), both(a.error, b.error))


def log(x):
    value = np.log(x.value)
    return Rounded(value, -np.log1p(-x.error / x.value) + FUNCTION * abs(value))


def tanh(x):
    # Its slope is nowhere more than 1.
    return Rounded(np.tanh(x.value), x.error + FUNCTION * abs(np.tanh(x.value)))


def sigmoid(x):
    # Its slope is nowhere more than 1/4. Made of tanh, what is near 0 is a difference of what is
    # near 1/2.
    return Rounded(1 / (1 + np.exp(-x.value)), x.error / 4 + FUNCTION)


def cos(x):
    return Rounded(np.cos(x.value), x.error + FUNCTION)


def assert_close(actual, expected):
    """``actual`` is within the error of ``expected``, everywhere."""
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.value.shape
    off = abs(actual - expected.value)
    worst = np.unravel_index(np.argmax(np.nan_to_num(off - expected.error, nan=np.inf)), off.shape)
    assert (off <= expected.error).all(), (
        f"at {worst}: {actual[worst]} is {off[worst]:.2g} from {expected.value[worst]};"
        f" {expected.error[worst]:.2g} is allowed"
    )


def _rounded(x):
    return x if isinstance(x, Rounded) else Rounded(x)


def _once(value, error):
    return Rounded(value, error + ROUNDINGS * U * (abs(value) + error) + LEAST)


def _growth(terms):
    return terms * U / (1 - terms * U)
