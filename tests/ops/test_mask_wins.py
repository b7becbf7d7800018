"""No bias makes up for the mask, and masks as others write them."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import Mask, attention, blockwise_attention

B, T, N, K, H = 2, 6, 4, 2, 8
LOW = [-np.inf, float(np.finfo(np.float32).min)]
# Blocks of fewer tokens than the row, so that some pairs of blocks have no visible key.
BACKENDS = {
    "xla": attention,
    "blockwise": lambda *a, **s: attention(*a, backend="blockwise", **s),
    "blocks of 4": lambda *a, **s: blockwise_attention(*a, block=4, **s),
}


def tensors(queries: int = T):
    rng = np.random.default_rng(queries)
    shapes = (B, queries, N, H), (B, T, K, H), (B, T, K, H)
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)


def assert_near(out, expected):
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_whose_visible_keys_all_have_a_low_bias_sees_no_other(backend, low):
    q, k, v = tensors()
    bias = jnp.zeros((1, N, T, T)).at[:, :, :3, :3].set(low)

    def first_three(q, k, v, bias):
        return BACKENDS[backend](q, k, v, Mask(), bias=bias)[:, :3]

    @jax.jit
    def both(q, k, v, bias):
        out, pullback = jax.vjp(first_three, q, k, v, bias)
        return out, pullback(jnp.ones_like(out))

    out, gradients = both(q, k, v, bias)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    _, d_k, d_v, _ = gradients
    assert (d_k[:, 3:] == 0).all() and (d_v[:, 3:] == 0).all()
    if np.isinf(low):
        assert (out == 0).all()
        assert all((gradient == 0).all() for gradient in gradients)
        return
    # finfo.min rounds all scores to one: the visible keys share the weight.
    shared = jnp.cumsum(v, axis=1) / jnp.arange(1, T + 1, dtype=v.dtype)[None, :, None, None]
    assert_near(out, jnp.repeat(shared[:, :3], N // K, axis=2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sink_takes_all_weight_where_every_key_has_a_bias_of_minus_infinity(backend):
    q, k, v = tensors()
    bias = jnp.full((1, 1, T, T), -jnp.inf)

    def total(q, k, v, sinks):
        return jnp.sum(BACKENDS[backend](q, k, v, bias=bias, sinks=sinks))

    value, gradients = jax.value_and_grad(total, (0, 1, 2, 3))(q, k, v, jnp.ones(N))
    assert value == 0
    assert all((gradient == 0).all() for gradient in gradients)


SEEN = np.random.default_rng(3).random((B, T, T)) < 0.5
SEEN[0, 2] = False


@pytest.mark.parametrize("backend", [*BACKENDS, "dot_product"])
@pytest.mark.parametrize("shape", ["BTS", "B1TS", "TS", "1TS", "B1S"])
def test_an_array_is_the_mask(backend, shape):
    q, k, v = tensors()
    mask = {
        "BTS": SEEN,
        "B1TS": SEEN[:, None],
        "TS": SEEN[0],
        "1TS": SEEN[:1],
        "B1S": SEEN[:, 1:2],
    }[shape]
    whole = jnp.broadcast_to(mask[:, 0] if shape == "B1TS" else mask, (B, T, T))

    def scores(q, k):
        return jnp.einsum("btnh,bsnh->bnts", q, jnp.repeat(k, N // K, axis=2)) * H**-0.5

    weights = jnp.where(whole[:, None], jnp.exp(scores(q, k)), 0.0)
    weights = weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
    expected = jnp.einsum("bnts,bsnh->btnh", weights, jnp.repeat(v, N // K, axis=2))
    if backend == "dot_product":
        out = attention(q, k, v, jnp.asarray(mask), backend=backend)
    else:
        out = BACKENDS[backend](q, k, v, jnp.asarray(mask))
    assert_near(out, expected)
    if shape == "BTS":
        assert (out[0, 2] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_mask_is_every_key(backend):
    q, k, v = tensors()
    run = BACKENDS[backend]
    assert_near(run(q, k, v, None), run(q, k, v, jnp.ones((T, T), bool)))


@pytest.mark.parametrize("shape", [(), (T,), (T, T), (1, T, T), (N, 1, T), (B, 1, T, T), (T, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_broadcasts(backend, shape):
    q, k, v = tensors()
    bias = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    whole = jnp.broadcast_to(bias.reshape((1,) * (4 - len(shape)) + shape), (B, N, T, T))
    run = BACKENDS[backend]
    assert_near(run(q, k, v, bias=bias), run(q, k, v, bias=whole))


@pytest.mark.parametrize("backend", [*BACKENDS, "dot_product"])
def test_the_last_query_over_longer_keys_sees_them_all(backend):
    q, k, v = tensors()
    given = {}
    run = BACKENDS.get(backend, attention)
    if backend == "dot_product":
        given["backend"] = backend
    whole = run(q, k, v, **given)
    assert_near(run(q[:, -1:], k, v, **given), whole[:, -1:])
    assert_near(run(q[:, -3:], k, v, **given), whole[:, -3:])
    window = Mask(window=2)
    assert_near(run(q[:, -1:], k, v, window, **given), run(q, k, v, window, **given)[:, -1:])


def test_more_queries_than_keys_must_say_where_they_stand():
    q, k, v = tensors()
    with pytest.raises(ValueError, match="6 queries of 3 keys; give it q_index"):
        attention(q, k[:, :3], v[:, :3])
    assert attention(q, k[:, :3], v[:, :3], None).shape == q.shape


def test_a_mask_is_a_pytree():
    q, k, v = tensors()
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 2, 2, 3, 3]])
    mask = Mask(window=3, q_segments=segments, k_segments=segments)
    expected = attention(q, k, v, mask)
    assert_near(jax.jit(lambda m: attention(q, k, v, m))(mask), expected)
    two = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), mask)

    def row(carry, m):
        return carry, attention(q, k, v, m)

    by_scan = jax.lax.scan(row, None, two)[1]
    assert_near(by_scan[0], expected)
    assert_near(by_scan, jax.vmap(lambda m: attention(q, k, v, m))(two))
    assert (two.causal, two.window) == (True, 3)
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    assert [jax.tree_util.keystr(path) for path, _ in leaves] == [".q_segments", ".k_segments"]


def test_both_functions_have_the_same_names_and_defaults():
    a, b = (inspect.signature(f).parameters for f in (attention, blockwise_attention))
    shared = [name for name in a if name in b]
    assert shared == ["q", "k", "v", "mask", "scale", "softcap", "sinks", "bias"]
    for name in shared:
        assert (a[name].kind, a[name].default) == (b[name].kind, b[name].default)


BAD = {
    "a mask of numbers": ({"mask": jnp.zeros((T, T))}, "mask is float32; .* go in bias"),
    "a mask by head": (
        {"mask": jnp.ones((B, N, T, T), bool)},
        r"mask \(2, 4, 6, 6\) is not \[T, S\], \[B, T, S\] or \[B, 1, T, S\]",
    ),
    "a mask of other keys": ({"mask": jnp.ones((B, T, T + 1), bool)}, r"mask \(2, 6, 7\) is not"),
    "a bias of other keys": ({"bias": jnp.zeros((B, N, T, 5))}, "does not broadcast"),
    "sinks by key head": ({"sinks": jnp.zeros(K)}, "one for each of the 4 query heads"),
    "segments of other rows": (
        {"mask": Mask(q_segments=jnp.ones((3, T), int), k_segments=jnp.ones((3, T), int))},
        r"q_segments has shape \(3, 6\)",
    ),
}


@pytest.mark.parametrize("function", [attention, blockwise_attention])
@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_named(function, what):
    given, said = BAD[what]
    with pytest.raises(ValueError, match=said):
        function(*tensors(), **given)


@pytest.mark.parametrize("function", [attention, blockwise_attention])
def test_heads_before_positions_are_named(function):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in tensors())
    with pytest.raises(ValueError, match="swap axes: q, k and v have the heads after the pos"):
        function(q, k, v)
    with pytest.raises(ValueError, match="with the heads after the positions"):
        function(tensors()[0], k, v)
    with pytest.raises(ValueError, match=r"attention q has shape \(6, 4, 8\); it must be"):
        function(tensors()[0][0], k, v)


def test_dropout_of_weights_keeps_their_mean():
    q, k, v = tensors()
    v = jnp.ones_like(v)
    keys = jax.random.split(jax.random.key(0), 200)

    def run(key):
        return attention(q, k, v, dropout=0.25, dropout_key=key)

    outs = jax.jit(jax.vmap(run))(keys)
    np.testing.assert_allclose(outs.mean(axis=0), 1.0, atol=0.25)
    # Of the first query, which sees one key, a weight is 0 or 1 / (1 - rate).
    first = np.asarray(outs[:, :, 0]).ravel()
    np.testing.assert_allclose(np.unique(first), [0, 1 / 0.75], rtol=1e-5)
    np.testing.assert_allclose((first == 0).mean(), 0.25, atol=0.05)
    np.testing.assert_array_equal(attention(q, k, v, dropout=0.25), attention(q, k, v))
    for backend in ("blockwise", "dot_product"):
        with pytest.raises(ValueError, match=r"cannot drop weights \(dropout\); use backend 'xla'"):
            attention(q, k, v, dropout=0.25, dropout_key=keys[0], backend=backend)
    with pytest.raises(ValueError, match="attention dropout is 1.0"):
        attention(q, k, v, dropout=1.0, dropout_key=keys[0])


def test_heads_over_an_explicit_axis():
    q, k, v = tensors()
    kinds = (jax.sharding.AxisType.Explicit,) * 2
    mesh = jax.make_mesh((2, 2), ("rows", "heads"), axis_types=kinds)
    place = jax.sharding.NamedSharding(mesh, jax.P("rows", None, "heads", None))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, place) for x in (q, k, v)]
        for backend in ("xla", "blockwise", "dot_product"):
            run = jax.jit(lambda *a, backend=backend: attention(*a, backend=backend))
            out = run(*placed)
            assert jax.typeof(out).sharding.spec == jax.P("rows", None, "heads", None)
            assert_near(np.asarray(out), np.asarray(attention(q, k, v)))
