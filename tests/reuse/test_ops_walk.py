"""Every public function of ``llm_jax.ops`` as others call it: under each transformation, mesh and
dtype, with the values and gradients that it has by itself.
"""

import inspect
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from op_cases import CASES, OF_CACHES
from pairwise import cover, parametrize

from llm_jax import ops

pytestmark = pytest.mark.mesh

NO_FLOAT64 = {"attention, dot_product"}
ABORTED = {(asked, "partly manual", "bfloat16") for asked in ("grad", "hvp")}
# What is asked of a function, and where.
ASKED = ("value", "grad", "jvp", "hvp")
PLACES = (
    "no jit",
    "vmap",
    "scan",
    "shard_map",
    "partly manual",
    "automatic",
    "explicit",
    "with mesh",
)
DTYPES = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 5e-3, "float64": 1e-11}


def _cells():
    for cell in itertools.product(CASES, ASKED, PLACES, DTYPES):
        name, asked, place, dtype = cell
        case = CASES[name]
        if asked != "value" and not case.smooth:
            continue
        if name in NO_FLOAT64 and dtype == "float64":
            continue
        # The products that it asks for in float16 are none that XLA has on a CPU.
        if name == "attention, dot_product" and dtype == "float16":
            continue
        # XLA aborts on a CPU: "Invalid binary instruction opcode copy" in a sum over devices.
        if (asked, place, dtype) in ABORTED:
            continue
        yield cell


CELLS = list(_cells())
# By default each of these meets some functions; every function meets the other places.
FEW = {"no jit", "scan", "partly manual", "automatic", "with mesh"}
KINDS = [
    ("function", "place"),
    ("asked", "place"),
    ("asked", "few places"),
    ("dtype", "place"),
    ("dtype", "asked"),
]


def values_of(cell):
    name, asked, place, dtype = cell
    kind = "few places" if place in FEW else "place"
    return [("function", name), ("asked", asked), (kind, place), ("dtype", dtype)]


def test_no_function_is_forgotten():
    functions = {name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))}
    assert functions - OF_CACHES == {name.split(",")[0] for name in CASES}


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def objective_of(run):
    """The sum of what ``run`` returns, weighted by the place within a row."""

    def objective(*arguments):
        total = jnp.zeros((), jnp.float32)
        for leaf in jax.tree.leaves(run(*arguments)):
            if not is_float(leaf):
                continue
            weights = jnp.cos(jnp.arange(max(1, int(np.prod(leaf.shape[1:]))))).astype(leaf.dtype)
            weights = weights.reshape(1, *leaf.shape[1:]) if leaf.ndim else weights[0]
            total = total + jnp.sum(leaf * jnp.broadcast_to(weights, leaf.shape))
        return total

    return objective


def asked_of(run, asked, arguments):
    """A function of the arguments that returns what is asked."""
    places = [i for i, x in enumerate(arguments) if is_float(x)]
    if asked == "value":
        return run
    objective = objective_of(run)
    gradient = jax.grad(objective, argnums=tuple(places))
    if asked == "grad":
        return gradient

    def forward(*given):
        def of_floats(*floats):
            every = list(given)
            for i, x in zip(places, floats):
                every[i] = x
            return (gradient if asked == "hvp" else run)(*every)

        floats = [given[i] for i in places]
        return jax.jvp(of_floats, floats, [jnp.sin(3 * x) for x in floats])[1]

    return forward


def spread(f, case, asked, arguments, axes, mesh, **settings):
    """``f`` in a ``shard_map`` over rows."""
    whole = jax.eval_shape(f, *arguments)
    count = len(case.rows)
    row = P(axes)
    if asked in ("grad", "hvp"):
        places = [i for i, x in enumerate(arguments) if is_float(x)]
        out_specs = tuple(row if i < count else P() for i in places)
    else:
        out_specs = jax.tree.map(lambda x: row if x.ndim else P(), whole)

    def local(*given):
        out = f(*given)
        if asked in ("grad", "hvp"):
            return out
        # Float0 tangents and sums over rows have no axis of rows.
        return jax.tree.map(lambda x: jax.lax.psum(x, axes) if x.ndim == 0 else x, out)

    in_specs = (*[row] * count, *[P()] * len(case.shared))
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **settings)


def run_at(place, f, case, asked, arguments):
    """What f returns where it is called."""
    if place == "no jit":
        return f(*arguments)
    if place in ("vmap", "scan"):
        two = [
            jnp.stack([x, x[::-1]]) if i < len(case.rows) else jnp.stack([x, x])
            for i, x in enumerate(arguments)
        ]
        if place == "vmap":
            return jax.jit(jax.vmap(f))(*two)
        return jax.jit(lambda *xs: jax.lax.scan(lambda _, x: (None, f(*x)), None, xs)[1])(*two)
    kind = AxisType.Explicit if place == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2, 2), ("alpha", "beta"), (kind, kind))
    if place == "shard_map":
        return jax.jit(spread(f, case, asked, arguments, ("alpha", "beta"), mesh))(*arguments)
    if place == "partly manual":
        g = spread(f, case, asked, arguments, ("alpha",), mesh, axis_names={"alpha"})
        with jax.set_mesh(mesh):
            return jax.jit(g)(*arguments)
    by_row = NamedSharding(mesh, P(("alpha", "beta")))
    alike = NamedSharding(mesh, P())
    placed = [
        jax.device_put(x, by_row if i < len(case.rows) else alike) for i, x in enumerate(arguments)
    ]
    if place == "with mesh":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with mesh:
                return jax.jit(f)(*placed)
    with jax.set_mesh(mesh):
        return jax.jit(f)(*placed)


def assert_same(out, expected, tolerance):
    for got, wanted in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        assert got.dtype == wanted.dtype
        if wanted.dtype == jax.dtypes.float0:
            continue
        got, wanted = (np.asarray(x, np.float64) for x in (got, wanted))
        size = max(1.0, np.abs(wanted[np.isfinite(wanted)]).max(initial=0))
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * size)


def expected_at(place, f, case, arguments):
    f = jax.jit(f)
    if place not in ("vmap", "scan"):
        return f(*arguments)
    count = len(case.rows)
    turned = [x[::-1] if i < count else x for i, x in enumerate(arguments)]
    return jax.tree.map(lambda a, b: np.stack([a, b]), f(*arguments), f(*turned))


@parametrize("name, asked, place, dtype", CELLS, by_default=cover(CELLS, values_of, KINDS))
def test_it_returns_what_it_returns_by_itself(name, asked, place, dtype):
    case = CASES[name]
    with jax.enable_x64(dtype == "float64"):
        arguments = [
            jnp.asarray(x, dtype if np.issubdtype(x.dtype, np.floating) else None)
            for x in case.arguments
        ]
        f = asked_of(case.run, asked, arguments)
        expected = expected_at(place, f, case, arguments)
        assert_same(run_at(place, f, case, asked, arguments), expected, DTYPES[dtype])


SMOOTH = [name for name in CASES if CASES[name].smooth and name not in NO_FLOAT64]


@pytest.mark.parametrize("name", SMOOTH)
def test_its_gradient_is_that_of_its_values_in_float64(name):
    """Against central differences, which only sums kept in float64 meet so closely."""
    case = CASES[name]
    with jax.enable_x64(True):
        floats = [i for i, x in enumerate(case.arguments) if np.issubdtype(x.dtype, np.floating)]
        arguments = [jnp.asarray(x) for x in case.arguments]

        def along(step):
            every = list(arguments)
            for i in floats:
                # A weight of 0, which counts no token, stays 0.
                every[i] = every[i] * (1.0 + step * jnp.cos(7 * every[i]))
            return objective_of(case.run)(*every)

        both = jax.jit(jax.value_and_grad(along))
        step = 1e-5
        numeric = (both(step)[0] - both(-step)[0]) / (2 * step)
        exact = both(0.0)[1]
        np.testing.assert_allclose(exact, numeric, rtol=1e-7, atol=1e-7)
