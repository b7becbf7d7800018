"""Attention against plain numpy, and the leak matrix: every cell is exact or raises, there is no
third outcome.

Cells: backend x mask x query heads per key/value head x dtype, all on packed rows with padding.
"""

import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import cover, parametrize
from rounding import Rounded, assert_close, cos, einsum, joined, softmax, tanh

from llm_jax.ops import Mask, attention
from llm_jax.ops.masks import dense
from llm_jax.plan.trace import matmul_flops

T, N, H = 10, 4, 8
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 0], [1, 2, 2, 2, 3, 3, 3, 3, 3, 3]])
# Groups that see each other both ways; the first has two in its second segment.
GROUPS = np.array([[1, 1, 0, 0, 2, 2, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 3, 0, 3]])
MASKS = {  # causal, window, groups
    "causal": (True, 0, False),
    "causal window": (True, 3, False),
    "causal groups": (True, 0, True),
    "causal window groups": (True, 2, True),
    "two-sided": (False, 0, False),
    "two-sided window": (False, 2, False),
}
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


def visible(kind: str, segments: np.ndarray) -> np.ndarray:
    """[B, T, T], from the words of the definition."""
    causal, window, groups = MASKS[kind]
    seen = np.zeros((*segments.shape, segments.shape[1]), bool)
    for b, t, s in np.ndindex(seen.shape):
        mutual = groups and GROUPS[b, t] and GROUPS[b, t] == GROUPS[b, s]
        ordered = not causal or s <= t or mutual
        near = not window or abs(t - s) < window
        seen[b, t, s] = ordered and near and segments[b, t] == segments[b, s]
    return seen


def reference(q, k, v, seen, scale, softcap):
    """One query and one head at a time, float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(q.shape[:3]):
        head = n // (q.shape[2] // k.shape[2])
        keys = np.flatnonzero(seen[b, t])
        scores = k[b, keys, head] @ q[b, t, n] * scale
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights / weights.sum() @ v[b, keys, head]
    return out


def mask_of(kind: str) -> Mask:
    causal, window, groups = MASKS[kind]
    marks = {"q_mutual": jnp.asarray(GROUPS), "k_mutual": jnp.asarray(GROUPS)} if groups else {}
    return Mask(causal, window, jnp.asarray(SEGMENTS), jnp.asarray(SEGMENTS), **marks)


def tensors(kv_heads: int, dtype: str):
    rng = np.random.default_rng(kv_heads)
    shapes = (2, T, N, H), (2, T, kv_heads, H), (2, T, kv_heads, H)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes)


def with_gradients(f):
    """(*inputs, g) -> output and gradients of f, compiled as one program."""

    @jax.jit
    def both(*inputs_and_g):
        *inputs, g = inputs_and_g
        out, pullback = jax.vjp(f, *inputs)
        return out, *pullback(g)

    return both


def must_raise(backend: str, kind: str, dtype: str, softcap: float) -> str:
    """What the error names where a backend cannot honour the request, from outside knowledge; empty
    where it can.
    """
    if backend == "dot_product" and softcap:
        return "softcap"
    if backend == "cudnn" and softcap:
        return "softcap"
    if backend == "cudnn" and dtype == "float32":
        return "float32"
    if backend == "cudnn" and jax.default_backend() != "gpu":
        return "runs on gpu, not"
    if backend == "splash" and "groups" in kind:
        return "mutual"
    if backend == "splash" and "two-sided" in kind:
        return "causal"
    if backend == "splash":  # its maths: test_blockwise.py
        return "runs on tpu, not"
    return ""


BACKENDS = ("xla", "dot_product", "blockwise", "cudnn", "splash")
CELLS = list(itertools.product(BACKENDS, MASKS, (4, 2, 1), ("float32", "bfloat16"), (0.0, 1.5)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["causal", "causal window"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_of_one_document(backend, kind, dtype):
    """Without segments, as decoding reads prompts: cuDNN then has flags in place of a mask."""
    q, k, v = tensors(2, dtype)

    @jax.jit
    def run():
        return attention(q, k, v, Mask(*MASKS[kind][:2]), scale=0.3, backend=backend)

    if refusal := must_raise(backend, kind, dtype, 0.0):
        with pytest.raises(ValueError, match=refusal):
            run()
        return
    expected = reference(q, k, v, visible(kind, np.ones_like(SEGMENTS)), 0.3, 0.0)
    np.testing.assert_allclose(
        np.asarray(run(), np.float64), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


# Refusals cost nothing; of what is computed every run has all pairs of values.
REFUSED = [c for c in CELLS if must_raise(c[0], c[1], c[3], c[4])]
COMPUTED = [c for c in CELLS if c not in REFUSED]
ALL_PAIRS = list(itertools.combinations(range(5), 2))


@parametrize(
    "backend, kind, kv_heads, dtype, softcap",
    CELLS,
    by_default=REFUSED + cover(COMPUTED, enumerate, ALL_PAIRS),
)
def test_every_cell_is_exact_or_raises(backend, kind, kv_heads, dtype, softcap):
    q, k, v = tensors(kv_heads, dtype)

    def run(q, k, v):
        return attention(q, k, v, mask_of(kind), scale=0.3, softcap=softcap, backend=backend)

    refusal = must_raise(backend, kind, dtype, softcap)
    if refusal:
        with pytest.raises(ValueError, match=rf"backend '{backend}'.*{refusal}.*use backend 'xla'"):
            run(q, k, v)
        return

    # One pullback per query: the gradient is non-zero at exactly the keys and values that the query
    # sees.
    @jax.jit
    def with_one_gradient_a_query(q, k, v):
        out, pullback = jax.vjp(run, q, k, v)
        eye = jnp.eye(T, dtype=q.dtype)[:, None, :, None, None]
        return out, jax.vmap(pullback)(jnp.broadcast_to(eye, (T, *out.shape)))

    out, (d_q, d_k, d_v) = with_one_gradient_a_query(q, k, v)
    assert out.dtype == q.dtype
    seen = visible(kind, SEGMENTS)
    expected = reference(q, k, v, seen, 0.3, softcap)
    np.testing.assert_allclose(
        np.asarray(out, np.float64), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )

    def reached(d):
        return np.moveaxis(np.abs(np.asarray(d, np.float64)).sum((-1, -2)) > 0, 0, 1)

    np.testing.assert_array_equal(reached(d_v), seen)
    assert not (reached(d_k) & ~seen).any()
    assert not (reached(d_q) & ~np.eye(T, dtype=bool)).any()


def test_query_heads_share_keys_in_order():
    # Two key/value heads, constant values 0 and 1: query heads 0, 1 read head 0 and query heads 2,
    # 3 read head 1.
    q, k, _ = tensors(2, "float32")
    v = jnp.broadcast_to(jnp.arange(2.0)[None, None, :, None], k.shape)
    out = attention(q, k, v)
    np.testing.assert_allclose(out[0, 5, :, 0], [0, 0, 1, 1], atol=1e-6)


def written_out(q, k, v, seen, scale, softcap=0.0, sinks=None, bias=None):
    """The output, and a function from its gradient to those of q, k, v, sinks and bias, by the
    definition.

    seen: [B, T, S]. Every result says how far float32 arithmetic may be from it: its sums have as
    many terms as there are widths, keys that are seen, or queries that see a key.
    """
    B, T, N, width = q.shape
    S, K = k.shape[1:3]
    q = Rounded(q).reshape(B, T, K, N // K, width)
    k, v = Rounded(k), Rounded(v)
    seen = np.broadcast_to(np.asarray(seen)[:, None, None], (B, K, N // K, T, S))
    scores = einsum("btkgh,bskh->bkgts", q, k) * scale
    capped = tanh(scores / softcap) if softcap else None
    logits = capped * softcap if softcap else scores
    if bias is not None:
        logits = logits + np.asarray(bias, np.float64).reshape(1, K, N // K, T, S)
    if sinks is not None:
        # One more key, that every query sees, with a value of 0.
        logits = joined(logits, Rounded(sinks).reshape(1, K, N // K, 1, 1), axis=4)
        seen = np.concatenate([seen, np.ones((B, K, N // K, T, 1), bool)], axis=4)
        v = joined(v, Rounded(np.zeros((1, 1, 1, 1))), axis=1)
    weights = softmax(logits, seen)
    out = einsum("bkgts,bskh->btkgh", weights, v)

    def pullback(d_out):
        d_out = d_out.reshape(*out.value.shape)
        taken = (d_out * out).sum(-1).transpose(0, 2, 3, 1)[..., None]
        d_logits = weights * (einsum("btkgh,bskh->bkgts", d_out, v) - taken)
        d_sinks, d_logits = d_logits[..., S:], d_logits[..., :S]
        d_scores = (d_logits * (Rounded(1.0) - capped * capped) if softcap else d_logits) * scale
        d_q = einsum("bkgts,bskh->btkgh", d_scores, k).reshape(B, T, N, width)
        d_k = einsum("bkgts,btkgh->bskh", d_scores, q)
        d_v = einsum("bkgts,btkgh->bskh", weights, d_out)[:, :S]
        d_bias = d_logits.sum(0).reshape(1, N, T, S)
        optional = [] if sinks is None else [d_sinks.sum(3).sum(0).reshape(N)]
        return [d_q, d_k, d_v, *optional, *([] if bias is None else [d_bias])]

    return out.reshape(B, T, N, v.value.shape[-1]), pullback


QUERIES = list(itertools.product([1, 2, 3, 7, 8], [20, 24], [32, 44, 600], ["float32", "bfloat16"]))


@parametrize(
    "heads, width, slots, dtype",
    QUERIES,
    by_default=cover(QUERIES, enumerate, list(itertools.combinations(range(4), 2))),
)
def test_a_query_over_a_cache(heads, width, slots, dtype):
    """One query of each of ``heads`` heads of queries to one of keys, and what it learns: forms of
    their own on a CPU.
    """
    B, K, at = 3, 2, np.array([0, slots // 2, slots - 1])
    rng, shapes = (
        np.random.default_rng(heads),
        ((B, 1, K * heads, width), (B, slots, K, width), (B, slots, K, width)),
    )
    # As long at either width, so that rounding is as large.
    q, k, v = (jnp.asarray(rng.normal(0, (8 / width) ** 0.5, s), dtype) for s in shapes)

    def run(q, k, v):
        return attention(q, k, v, Mask(q_index=jnp.asarray(at)[:, None]), scale=0.3)

    # The gradient of half the sum of the output's squares.
    @jax.jit
    def with_gradient(q, k, v):
        out, pullback = jax.vjp(run, q, k, v)
        return out, pullback(out)

    seen = (np.arange(slots) <= at[:, None])[:, None]
    out, gradient = with_gradient(q, k, v)
    assert out.dtype == q.dtype
    if dtype == "bfloat16":
        expected = reference(q, k, v, seen, 0.3, 0.0)
        np.testing.assert_allclose(
            np.asarray(out, np.float64), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )
        return
    expected, gradients = written_out(q, k, v, seen, 0.3)
    np.testing.assert_allclose(expected.value, reference(q, k, v, seen, 0.3, 0.0), rtol=1e-9)
    assert_close(out, expected)
    for d, e in zip(gradient, gradients(expected), strict=True):
        assert_close(d, e)


@pytest.mark.parametrize(
    "wrong", ["a scale 1 % off", "a key that is not seen", "a key too many", "values in bfloat16"]
)
def test_what_is_wrong_is_beyond_the_rounding_of_the_longest_sums(wrong):
    q, k, v = (
        jnp.asarray(np.random.default_rng(i).normal(size=(1, 600, 1, 24)), jnp.float32)
        for i in range(3)
    )
    last = jnp.array([[598]])
    expected, _ = written_out(q[:, :1], k, v, np.arange(600)[None, None] <= 598, 0.3)
    scale = 0.303 if "scale" in wrong else 0.3
    at = last + {"a key that is not seen": -1, "a key too many": 1}.get(wrong, 0)
    values = v.astype(jnp.bfloat16).astype(jnp.float32) if "bfloat16" in wrong else v
    assert_close(attention(q[:, :1], k, v, Mask(q_index=last), scale=0.3), expected)
    with pytest.raises(AssertionError, match="is allowed"):
        assert_close(attention(q[:, :1], k, values, Mask(q_index=at), scale=scale), expected)


def test_default_scale_is_the_root_of_the_head_width():
    q, k, v = tensors(4, "float32")
    np.testing.assert_allclose(
        attention(q, k, v), attention(q, k, v, scale=1 / math.sqrt(H)), atol=1e-7
    )


def test_weights_written_out():
    # Scores 0 and ln 3: weights 1/4 and 3/4.
    q = jnp.ones((1, 2, 1, 1))
    k = jnp.array([0.0, math.log(3)])[None, :, None, None]
    v = jnp.array([0.0, 1.0])[None, :, None, None]
    np.testing.assert_allclose(attention(q, k, v, scale=1.0)[0, :, 0, 0], [0.0, 0.75], atol=1e-6)
    np.testing.assert_allclose(
        attention(q, k, v, Mask(causal=False), scale=1.0)[0, :, 0, 0], [0.75, 0.75], atol=1e-6
    )


# Of blocks of at least 16 queries, at most 4 a row.
LONG = {  # length, window, kv_heads, softcap, sinks, bias, segments
    "as one block": (16, 0, 2, 0.0, False, False, True),
    "a short last block": (37, 0, 2, 1.5, False, False, True),
    "blocks beyond the least": (113, 0, 1, 0.0, True, True, False),
    "a window in a block": (37, 3, 4, 0.0, True, False, True),
    "a window over blocks": (75, 25, 1, 0.0, False, True, True),
}


@pytest.mark.parametrize("kind", LONG)
def test_blocks_of_queries_are_as_one(kind, monkeypatch):
    """Values and all gradients are those of the definition, as with the same mask given by places,
    which is not cut up.
    """
    monkeypatch.setattr(sys.modules["llm_jax.ops.attention"], "_QUERIES", 16)
    length, window, kv_heads, softcap, has_sinks, has_bias, segmented = LONG[kind]
    rng = np.random.default_rng(length)
    q, k, v = (
        jnp.asarray(rng.normal(size=(2, length, heads, H)), jnp.float32)
        for heads in (N, kv_heads, kv_heads)
    )
    sinks = jnp.asarray(rng.normal(size=N), jnp.float32) if has_sinks else None
    bias = jnp.asarray(rng.normal(size=(1, N, length, length)), jnp.float32) if has_bias else None
    segments = jnp.asarray(np.sort(rng.integers(1, 4, (2, length)), axis=1)) if segmented else None
    places = jnp.broadcast_to(jnp.arange(length), (2, length))
    cut = Mask(True, window, segments, segments)
    whole = Mask(True, window, segments, segments, q_index=places, k_index=places)
    assert cut.in_order() and not whole.in_order()

    def both(mask):
        def run(*a):
            return attention(*a[:3], mask, softcap=softcap, sinks=a[3], bias=a[4])

        @jax.jit
        def with_gradients_of_the_sine(*inputs):
            out, pullback = jax.vjp(run, *inputs)
            return out, pullback(jnp.cos(out))

        return with_gradients_of_the_sine(q, k, v, sinks, bias)

    seen = np.broadcast_to(dense(whole, length, length), (2, length, length))
    out, gradients = written_out(q, k, v, seen, H**-0.5, softcap, sinks, bias)
    expected = [out, *gradients(cos(out))]
    for found in (both(cut), both(whole)):
        for a, e in zip(jax.tree.leaves(found), expected, strict=True):
            assert_close(a, e)


def test_keys_that_nobody_sees_are_not_multiplied():
    """With four blocks (1 + 2 + 3 + 4) / 16 of the products; with a window of a block at most 2 / 4
    of them.
    """
    q = jax.ShapeDtypeStruct((1, 512, 4, 8), jnp.float32)

    def count(mask):
        return matmul_flops(jax.make_jaxpr(lambda q, k, v: attention(q, k, v, mask))(q, q, q))

    everything = count(Mask(causal=False))
    assert everything == 2 * 2 * 4 * 512 * 512 * 8
    assert count(Mask()) == everything * 10 / 16
    assert count(Mask(window=128)) < everything / 2
    assert count(Mask(causal=False, window=128)) == everything


@pytest.mark.parametrize("backend", ["xla", "dot_product", "blockwise"])
def test_a_query_that_sees_nothing_learns_nothing(backend):
    # Cross attention: no key belongs to segment 2. A uniform average over foreign keys would be a
    # leak.
    q, k, v = tensors(2, "float32")
    mask = Mask(
        causal=False, q_segments=jnp.full((2, T), 2), k_segments=jnp.ones((2, T), jnp.int32)
    )
    run = with_gradients(lambda q, k, v: attention(q, k, v, mask, backend=backend))
    for a in run(q, k, v, jnp.ones_like(q)):
        np.testing.assert_array_equal(a, np.zeros(a.shape))


@pytest.mark.parametrize("backend", ["xla", "dot_product", "blockwise"])
def test_scores_of_ten_thousands(backend):
    """Their exponentials exist only after the largest is taken off: one key then has all the
    weight.
    """
    q, k, v = tensors(4, "float32")

    run = with_gradients(lambda q, k, v: attention(q, k, v, scale=3e4, backend=backend))
    out, *gradients = run(q, k, v, jnp.ones_like(q))
    seen = np.broadcast_to(np.tri(T, dtype=bool), (2, T, T))
    np.testing.assert_allclose(out, reference(q, k, v, seen, 3e4, 0.0), atol=2e-6)
    assert all(np.isfinite(np.asarray(a)).all() for a in gradients)


@pytest.mark.parametrize("backend", ["xla", "dot_product", "blockwise"])
def test_values_in_float16_are_summed_in_float32(backend):
    """Ten values of 20,000 with equal weights: their sum is more than float16 holds."""
    q, k, v = tensors(4, "float16")
    # Not compiled as one: XLA has no product of dot_product's precision for the CPU.
    out = attention(jnp.zeros_like(q), k, jnp.full_like(v, 20_000), backend=backend)
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(out, np.float32), 20_000, rtol=1e-3)


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_values_in_bfloat16_are_summed_in_float32(heads):
    """Sixteen values of sum 257, which bfloat16 does not have, and sixteen of sum -256, with equal
    weights.
    """
    v = jnp.asarray([16] * 15 + [17] + [-16] * 16, jnp.bfloat16)[None, :, None, None]
    run = jax.jit(lambda q, k, v: attention(q, k, v, Mask(q_index=jnp.array([[31]]))))
    out = run(jnp.zeros((1, 1, heads, 1), v.dtype), jnp.zeros_like(v), v)
    np.testing.assert_array_equal(np.asarray(out, np.float32), np.full((1, 1, heads, 1), 1 / 32))


@pytest.mark.parametrize(
    "shapes",
    [((1, 4, 3, 8), (1, 4, 2, 8)), ((1, 4, 2, 8), (1, 4, 2, 4)), ((2, 4, 2, 8), (1, 4, 2, 8))],
)
def test_shapes_that_disagree_are_named(shapes):
    q, k = (jnp.zeros(s) for s in shapes)
    with pytest.raises(ValueError, match="shapes disagree"):
        attention(q, k, k)


def test_unknown_backend_lists_those_there_are():
    q = jnp.zeros((1, 2, 1, 4))
    with pytest.raises(
        ValueError,
        match=(
            "unknown attention backend 'flash'; there are blockwise, cudnn, dot_product,"
            " splash, xla"
        ),
    ):
        attention(q, q, q, backend="flash")


@pytest.mark.parametrize("backend", ["xla", "blockwise"])
def test_float64_is_computed_in_float64(backend):
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(a, jnp.float64) for a in tensors(2, "float32"))
        out = jax.jit(lambda: attention(q, k, v, mask_of("causal"), scale=0.3, backend=backend))()
        assert out.dtype == jnp.float64
        expected = reference(q, k, v, visible("causal", SEGMENTS), 0.3, 0.0)
        np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_a_dtype_that_a_backend_lacks_is_named():
    with jax.enable_x64(True):
        q = jnp.zeros((1, 2, 1, 4), jnp.float64)
        said = "'dot_product' takes .*, not float64; use backend 'xla'"
        with pytest.raises(ValueError, match=said):
            attention(q, q, q, backend="dot_product")
    q = jnp.zeros((1, 2, 1, 4), jnp.int32)
    with pytest.raises(ValueError, match="not int32; cast q, k and v to one of float32"):
        attention(q, q, q)
