"""Models in other people's JAX code: every kind of model under meshes of other axis names, in
shard_map, pmap and vmap, in forward mode, in other precisions, and inside modules of NNX and of
equinox.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from pairwise import cover, parametrize
from small_kinds import (
    BASE,
    COMPUTATIONS,
    EXECUTION,
    KINDS,
    T,
    assert_close,
    batch_of,
    compiled,
    derivatives,
    expected,
    gradient,
    loss,
    made,
)
from ways_to_call import AUTO, EXPLICIT, FOREIGN, RARE, WAYS, by_rows, mesh_of, with_mesh

from llm_jax.config import ExecutionConfig, override
from llm_jax.models import build, class_logits, zigzag_order
from llm_jax.sharding import MESH_AXES, parameter_shardings, row_sharding

pytestmark = pytest.mark.mesh

CASES = [
    case
    for case in itertools.product(KINDS, COMPUTATIONS, WAYS)
    if case[:2] != ("encoder", "decoding")
]


@parametrize(
    "kind, computation, way",
    CASES,
    by_default=cover([case for case in CASES if case[2] not in RARE], enumerate, []),
)
def test_any_way_of_calling_gives_the_same_numbers(kind, computation, way):
    compute = COMPUTATIONS[computation](made(kind)[0])
    actual = WAYS[way]()(compute, made(kind)[1], batch_of(kind))
    assert_close(actual, expected(kind, computation))


# The choice of experts jumps; tests/ops/test_grouped.py has the derivatives of their products.
SMOOTH = [[kind] for kind in KINDS if "experts.count" not in KINDS[kind]]


@parametrize("kind", SMOOTH, by_default=[["dense"], ["latent"]])
def test_products_with_the_hessian_are_differences_of_gradients(kind):
    params = made(kind)[1]
    batch = batch_of(kind)
    out = expected(kind, "derivatives")
    direction = jax.tree.map(np.cos, params)
    step = 2e-3

    def shifted(by):
        moved = jax.tree.map(lambda p, d: p + by * d, params, direction)
        return compiled(kind, "gradient")(moved, batch)

    differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), shifted(step), shifted(-step))
    assert_close(out["slope"], differences["loss"], 1e-2)
    assert_close(out["product"], differences["gradient"], 1e-2)


# name -> (kind, sizes of the project's mesh, how the model runs on it).
OWN_MESHES = {
    "ring": ("dense", {"context": 2, "data": 2}, {"attention": "blockwise"}),
    "all-to-all": (
        "sinks",
        {"context": 2, "tensor": 2},
        {"attention": "blockwise", "context": "all_to_all"},
    ),
    "experts": ("experts", {"expert": 2, "tensor": 2}, {}),
    "pipeline": ("windows", {"pipeline": 2, "data": 2}, {}),
    "fsdp": ("latent", {"fsdp": 2, "tensor": 2}, {}),
}


def derivatives_on_own_mesh(name):
    """A function of the derivatives on a mesh of the project, its arguments, and the mesh."""
    kind, axes, options = OWN_MESHES[name]
    config = override(BASE, KINDS[kind])
    plain = {"layers": "unroll", "attention": "xla", "compute_dtype": "float32"}
    execution = ExecutionConfig(**plain | options)
    model = build(config, execution, context=axes.get("context", 1))
    mesh = mesh_of(dict.fromkeys(MESH_AXES, 1) | axes, AUTO)
    params = made(kind)[1]
    placed = jax.device_put(params, parameter_shardings(model.specs, params, mesh))
    rows = jax.device_put(batch_of(kind), row_sharding(mesh))

    def compute(params, batch):
        return derivatives(model)(params, zigzag_order(config, execution, batch))

    return compute, (placed, rows), mesh


@pytest.mark.parametrize("name", ["ring", "experts", "pipeline"])
def test_forward_mode_of_gradients_is_there_on_own_meshes(name):
    compute, arguments, mesh = derivatives_on_own_mesh(name)
    with jax.set_mesh(mesh):
        out = jax.eval_shape(compute, *arguments)
    assert jax.tree.structure(out["product"]) == jax.tree.structure(out["gradient"])


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_MESHES)
def test_all_derivatives_on_own_meshes_are_those_of_one_device(name):
    compute, arguments, mesh = derivatives_on_own_mesh(name)
    with jax.set_mesh(mesh):
        out = jax.jit(compute)(*arguments)
    assert_close(out, expected(OWN_MESHES[name][0], "derivatives"), 1e-4)


def under(mesh):
    def run(init, key):
        with jax.set_mesh(mesh):
            return jax.jit(init)(key)

    return run


def in_shard_map(init, key):
    mesh = mesh_of({"replica": 4}, AUTO)

    def local(key):
        params = init(jax.lax.pcast(key, "replica", to="varying"))
        return jax.tree.map(lambda a: jax.lax.pmax(a, "replica"), params)

    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P()))(key)


def under_with(init, key):
    return with_mesh(mesh_of(FOREIGN, AUTO), lambda key, _: init(key), key, ())


INITS = {
    "Auto axes": under(mesh_of(FOREIGN, AUTO)),
    "Explicit axes": under(mesh_of(FOREIGN, EXPLICIT)),
    "shard_map": in_shard_map,
    "with mesh": under_with,
}


@parametrize(
    "kind, way",
    itertools.product(KINDS, INITS),
    by_default=[("dense", "Explicit axes"), ("experts", "shard_map")],
)
def test_initial_parameters_are_the_same_anywhere(kind, way):
    init = made(kind)[0].init
    key = jax.random.key(3)
    actual = INITS[way](init, key)
    assert_close(actual, jax.jit(init)(key), 1e-6)


def test_results_have_the_explicit_axes_of_what_was_given():
    model, params = made("dense")
    mesh = mesh_of(FOREIGN, EXPLICIT)
    rows = P("replica", None, None)

    def call(params, batch, cache):
        out = model.apply(params, batch)
        logits = model.logits(params, out.hidden)
        assert jax.typeof(out.hidden).sharding.spec == rows
        assert jax.typeof(logits).sharding.spec == rows
        written = model.apply(params, batch, cache, begin=True).cache
        for before, after in zip(jax.tree.leaves(cache), jax.tree.leaves(written)):
            assert jax.typeof(after) == jax.typeof(before)
        return logits

    with jax.set_mesh(mesh):
        cache = by_rows(model.init_cache(4, T), mesh)
        jax.eval_shape(call, params, by_rows(batch_of("dense"), mesh), cache)


def test_heads_take_explicit_axes():
    """What a model's users call beside its own functions: classes of rows, and the transform
    before the output projection.
    """
    pooler = {"pooler.layer": "tanh", "pooler.num_classes": 3}
    model = build(override(BASE, KINDS["encoder"] | pooler), ExecutionConfig(attention="xla"))
    params = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda a: jnp.full(a.shape, 0.1), params)
    hidden = jax.random.normal(jax.random.key(1), (4, T, 16))
    mask = jnp.ones((4, T), bool)

    def call(params, hidden, mask):
        transformed = model.head(params).transformed(hidden)
        return class_logits(model.config, params, hidden, mask), transformed

    wanted = jax.jit(call)(params, hidden, mask)
    mesh = mesh_of(FOREIGN, EXPLICIT)
    with jax.set_mesh(mesh):
        split = jax.jit(call)(params, by_rows(hidden, mesh), by_rows(mask, mesh))
    assert_close(split, wanted)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_parameters_are_computed_with_as_they_are(dtype):
    model, params = made("biases")
    narrow = jax.tree.map(lambda a: a.astype(dtype), params)
    batch = batch_of("biases")
    rounded = jax.tree.map(lambda a: a.astype("float32"), narrow)
    wanted = compiled("biases", "gradient")(rounded, batch)
    actual = jax.jit(gradient(model))(narrow, batch)
    assert {a.dtype.name for a in jax.tree.leaves(actual["gradient"])} == {dtype}
    np.testing.assert_allclose(actual["loss"], wanted["loss"], rtol=1e-6)
    assert_close(actual["gradient"], wanted["gradient"], float(jnp.finfo(dtype).eps))


@parametrize("kind", [[kind] for kind in KINDS], by_default=[["experts"]])
def test_activations_of_bfloat16_give_nearly_the_same_loss(kind):
    model, params = made(kind, "bfloat16")
    batch = batch_of(kind)
    assert jax.eval_shape(model.apply, params, batch).hidden.dtype == jnp.bfloat16
    value = jax.jit(partial(loss, model))(params, batch)
    np.testing.assert_allclose(value, expected(kind, "gradient")["loss"], rtol=2e-2)


@parametrize("kind", [[kind] for kind in KINDS], by_default=[["latent"], ["experts"]])
def test_with_x64_results_have_the_same_types(kind):
    model, params = made(kind)
    batch = batch_of(kind)

    def call(params, batch):
        if not model.config.causal:
            return model.apply(params, batch)
        lengths = {"encoder_length": T} if model.config.encoder else {}
        cache = model.init_cache(4, T, **lengths)
        return model.apply(params, batch), model.apply(params, batch, cache, begin=True)

    def types():
        return jax.tree.map(lambda a: a.dtype, jax.eval_shape(call, params, batch))

    usual = types()
    with jax.enable_x64(True):
        assert types() == usual


@parametrize(
    "kind, computation",
    dict.fromkeys(case[:2] for case in CASES),
    by_default=[("latent", "gradient"), ("grouped", "decoding")],
)
def test_with_x64_numbers_are_the_same(kind, computation):
    with jax.enable_x64(True):
        compute = jax.jit(COMPUTATIONS[computation](made(kind)[0]))
        actual = compute(made(kind)[1], batch_of(kind))
    assert_close(actual, expected(kind, computation))


def test_a_model_within_a_module_of_nnx():
    from flax import nnx

    model, params = made("dense")

    class Around(nnx.Module):
        def __init__(self, params):
            self.params = nnx.data(jax.tree.map(nnx.Param, params))
            self.model = nnx.static(model)

        def __call__(self, batch):
            values = jax.tree.map(lambda p: p[...], self.params, is_leaf=is_parameter)
            return loss(self.model, values, batch)

    def is_parameter(x):
        return isinstance(x, nnx.Param)

    value, slopes = nnx.jit(nnx.value_and_grad(lambda around, batch: around(batch)))(
        Around(params), batch_of("dense")
    )
    wanted = expected("dense", "gradient")
    assert_close(value, wanted["loss"])
    assert_close(nnx.to_pure_dict(slopes)["params"], wanted["gradient"])


def test_a_model_within_a_module_of_equinox():
    equinox = pytest.importorskip("equinox")
    model, params = made("dense")

    class Around(equinox.Module):
        params: dict
        model: object = equinox.field(static=True)

        def __call__(self, batch):
            return loss(self.model, self.params, batch)

    around = Around(params, model)
    value, slopes = equinox.filter_jit(
        equinox.filter_value_and_grad(lambda around, batch: around(batch))
    )(around, batch_of("dense"))
    wanted = expected("dense", "gradient")
    assert_close(value, wanted["loss"])
    assert_close(slopes.params, wanted["gradient"])


def test_a_model_is_a_static_argument():
    model, params = made("dense")
    value = jax.jit(loss, static_argnums=0)(model, params, batch_of("dense"))
    assert_close(value, expected("dense", "gradient")["loss"])
    other = build(override(BASE, KINDS["biases"]), ExecutionConfig(**EXECUTION["biases"]))
    assert model != other
