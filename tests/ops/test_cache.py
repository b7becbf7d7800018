"""The cache of each kind by itself, against a plain list of each row's tokens."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops.cache import (
    EMPTY,
    Cache,
    Chunk,
    InOrder,
    LayerCache,
    Ring,
    Slots,
    chunk_of,
    cross_cache,
    key_value_cache,
    latent_cache,
)
from llm_jax.ops.cache.dense import write_slice

B, K, H, W = 3, 2, 4, 3
LENGTH = 12
# Of each row, in call after call: how many tokens; with it the width of the call.
CALLS = [(4, [4, 2, 0]), (1, [1, 1, 1]), (3, [0, 3, 2]), (1, [1, 1, 1]), (5, [2, 5, 1])]
KINDS = ["key_value", "latent"]


def empty(kind: str, window: int = 0, rollback: int = 0, length: int = LENGTH, rows: int = B):
    slots = Slots(rows, length, rollback)
    if kind == "latent":
        return latent_cache(slots, H, W, jnp.float32, window=window)
    return key_value_cache(slots, K, (H, W), jnp.float32, window=window)


def tokens(kind: str, width: int, seed: int, rows: int = B):
    """What a layer makes of a call's tokens."""
    rng = np.random.default_rng(seed)
    heads = () if kind == "latent" else (K,)
    return [rng.normal(size=(rows, width, *heads, size)).astype(np.float32) for size in (H, W)]


WRITE = jax.jit(lambda cache, chunk, k, v: (*cache.write(chunk, k, v), cache.positions(chunk)))


def seen(positions, read, row: int, query: int, window: int) -> dict[int, np.ndarray]:
    """The keys that a query of a row sees, by position."""
    size = read.shape[1]
    at = np.arange(size) if positions is None else np.asarray(positions)[row]
    visible = [s for s in range(size) if at[s] <= query and (not window or query - at[s] < window)]
    assert len({at[s] for s in visible}) == len(visible), "a token is there twice"
    return {int(at[s]): np.asarray(read)[row, s] for s in visible}


def check_calls(kind: str, cache, window: int, calls) -> None:
    """Every query of every call sees exactly the tokens that it may see."""
    rows = [[] for _ in range(B)]
    length = np.zeros(B, np.int32)
    for n, (width, counts) in enumerate(calls):
        k, v = tokens(kind, width, n)
        chunk = Chunk(jnp.asarray(length), jnp.asarray(counts, jnp.int32), width)
        cache, k_read, v_read, positions = WRITE(cache, chunk, k, v)
        for row, count in enumerate(counts):
            rows[row] += [(k[row, t], v[row, t]) for t in range(count)]
            for query in range(length[row], length[row] + count):
                first = max(0, query - window + 1) if window else 0
                for part, read in enumerate((k_read, v_read)):
                    found = seen(positions, read, row, query, window)
                    assert sorted(found) == list(range(first, query + 1))
                    for position, value in found.items():
                        np.testing.assert_array_equal(value, rows[row][position][part])
        length = length + np.asarray(counts, np.int32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [0, 2, 3, 5])
def test_queries_see_the_tokens_of_their_row(kind, window):
    check_calls(kind, empty(kind, window), window, CALLS)


@pytest.mark.parametrize("window", [1, 3, 4])
def test_a_ring_goes_round_many_times(window):
    """Calls of any widths, also wider than the ring, whatever is padding."""
    rng = np.random.default_rng(window)
    widths = rng.permutation([1, 1, 1, 2, 3, 4, 6, 9])
    calls = [(w, rng.integers(0, w + 1, B) if w > 1 else [1] * B) for w in widths.tolist()]
    cache = empty("key_value", window, length=64)
    assert cache.layout == Ring(window) and cache.keys.shape == (B, K, window, H)
    check_calls("key_value", cache, window, calls)


@pytest.mark.parametrize("kind, window", list(itertools.product(KINDS, [0, 3])))
def test_a_call_that_begins_rows_reads_its_own_tokens(kind, window):
    """And leaves what calls after it see, as if it had gone on from nothing."""
    k, v = tokens(kind, 7, 0)
    counts = jnp.asarray([7, 2, 5], jnp.int32)
    cache, used = empty(kind, window), empty(kind, window)
    used = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), used)
    begun, k_read, v_read = used.write(
        chunk_of(jnp.arange(7)[None] < counts[:, None], counts, begin=True), k, v
    )
    assert k_read is k and v_read is v
    assert all(jnp.isfinite(a).all() for a in jax.tree.leaves(begun))
    going_on, *_ = cache.write(Chunk(jnp.zeros(B, jnp.int32), counts, 7), k, v)
    step = Chunk(counts, jnp.ones(B, jnp.int32), 1)
    one = tokens(kind, 1, 9)
    for a, b in zip(begun.write(step, *one)[1:], going_on.write(step, *one)[1:]):
        for row, query in enumerate(counts.tolist()):
            x, y = (seen(begun.positions(step), read, row, query, window) for read in (a, b))
            assert x.keys() == y.keys()
            jax.tree.map(np.testing.assert_array_equal, x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_row_keeps_its_tokens_while_others_go_on(kind):
    """The padding of a wide call would end after the last slot."""
    cache = empty(kind)
    cache, k, v = cache.write(
        Chunk(jnp.zeros(B, jnp.int32), jnp.asarray([12, 9, 0], jnp.int32), 12), *tokens(kind, 12, 0)
    )
    chunk = Chunk(jnp.asarray([12, 9, 0], jnp.int32), jnp.asarray([0, 3, 1], jnp.int32), 4)
    _, k_after, v_after = cache.write(chunk, *tokens(kind, 4, 1))
    for before, after in ((k, k_after), (v, v_after)):
        np.testing.assert_array_equal(after[0], before[0])
        np.testing.assert_array_equal(after[1, :9], before[1, :9])


@pytest.mark.parametrize("kind, window", list(itertools.product(KINDS, [0, 3])))
def test_rows_are_gathered(kind, window):
    cache, *_ = empty(kind, window).write(
        Chunk(jnp.zeros(B, jnp.int32), jnp.asarray([4, 2, 3], jnp.int32), 4), *tokens(kind, 4, 0)
    )
    rows = jnp.array([2, 0, 0, 1])
    gathered = cache.gather(rows)
    assert gathered.layout == cache.layout
    for a, b in zip(jax.tree.leaves(gathered), jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b)[[2, 0, 0, 1]])


@pytest.mark.parametrize("taken_back", [0, 1, 2, 3])
def test_a_ring_allows_as_many_tokens_to_be_taken_back_as_it_has_slots_beyond_its_window(
    taken_back,
):
    """A draft of four, of which some are rejected, and other tokens in their place."""
    window, start = 3, np.array([5, 9, 2], np.int32)
    draft = Chunk(jnp.asarray(start), jnp.full(B, 4, jnp.int32), 4)
    kept = np.asarray(start + 4 - taken_back, np.int32)
    before = empty("key_value", window, rollback=3, length=64)
    assert before.keys.shape[2] == window + 3
    before, *_ = before.write(
        Chunk(jnp.zeros(B, jnp.int32), jnp.asarray(start), 9), *tokens("key_value", 9, 0)
    )
    drafted = tokens("key_value", 4, 1)
    with_draft, *_ = before.write(draft, *drafted)
    with_draft = with_draft.truncate(3)
    count = jnp.asarray(kept - start)
    without, *_ = before.write(Chunk(jnp.asarray(start), count, 4), *drafted)
    for width in (1, 2):
        chunk = Chunk(jnp.asarray(kept), jnp.full(B, width, jnp.int32), width)
        new = tokens("key_value", width, 2)
        _, *a = with_draft.write(chunk, *new)
        _, *b = without.write(chunk, *new)
        for x, y in zip(a, b):
            for row in range(B):
                for query in range(kept[row], kept[row] + width):
                    positions = with_draft.positions(chunk)
                    left, right = (seen(positions, r, row, query, window) for r in (x, y))
                    assert sorted(left) == list(range(max(0, query - window + 1), query + 1))
                    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_taking_back_more_than_a_ring_keeps_is_refused():
    ring = empty("latent", window=3, rollback=1)
    assert ring.truncate(1) is ring
    with pytest.raises(ValueError, match="up to 2 tokens .* window of 3 keeps 1 .*rollback=2"):
        ring.truncate(2)
    assert empty("latent").truncate(10**6).layout == InOrder()


@pytest.mark.parametrize(
    "window, rollback, length, layout, slots",
    [
        (0, 0, 8, InOrder(), 8),
        (5, 0, 8, Ring(5), 5),
        (5, 2, 8, Ring(5, 2), 7),
        (5, 3, 8, InOrder(), 8),
        (9, 0, 8, InOrder(), 8),
    ],
)
def test_a_ring_is_made_where_it_is_smaller_than_the_row(window, rollback, length, layout, slots):
    cache = empty("key_value", window, rollback, length)
    assert cache.layout == layout and cache.slots == slots
    assert (cache.keys.shape, cache.values.shape) == ((B, K, slots, H), (B, K, slots, W))


def test_a_call_wider_than_the_cache_is_refused():
    chunk = Chunk(jnp.zeros(B, jnp.int32), jnp.full(B, 9, jnp.int32), 9)
    with pytest.raises(
        ValueError, match="a call of 9 tokens a row does not fit a cache of 8 slots"
    ):
        empty("latent", length=8).write(chunk, *tokens("latent", 9, 0))


def test_slots_of_a_ring_by_hand():
    """A row of 6 tokens and one of 2 in four slots."""
    chunk = Chunk(jnp.array([6, 2], jnp.int32), jnp.array([2, 1], jnp.int32), 2)
    expected = [[4, 5, 2, 3, 6, 7], [0, 1, EMPTY, EMPTY, 2, EMPTY]]
    assert Ring(4).positions(chunk, 4).tolist() == expected
    step = Chunk(jnp.array([6, 2], jnp.int32), jnp.ones(2, jnp.int32), 1)
    assert Ring(4).positions(step, 4).tolist() == [[4, 5, 6, 3], [0, 1, 2, EMPTY]]


def whole(rows: int = B, encoder: bool = True) -> Cache:
    cross = cross_cache(rows, 5, K, H, jnp.float32) if encoder else None
    layers = tuple(LayerCache(empty("key_value", window, rows=rows), cross) for window in (0, 3))
    segments = jnp.zeros((rows, 5), jnp.int32) if encoder else None
    return Cache(layers, jnp.zeros((rows,), jnp.int32), segments)


def test_the_whole_cache_is_gathered_cut_and_placed_as_its_parts():
    cache = whole()
    k, v = (jnp.asarray(a) for a in tokens("key_value", 4, 0))
    layers = tuple(
        LayerCache(layer.own, layer.cross.write(k, jnp.concatenate([v, v[..., :1]], -1)))
        for layer in cache.layers
    )
    cache = Cache(layers, jnp.array([4, 6, 2]), jnp.eye(3, 5, dtype=jnp.int32))
    for a, b in zip(jax.tree.leaves(cache.gather(jnp.array([1, 1]))), jax.tree.leaves(cache)):
        np.testing.assert_array_equal(a, np.asarray(b)[[1, 1]])
    cut = cache.truncate(jnp.array([3, 9, 2]), most=0)
    assert cut.length.tolist() == [3, 6, 2] and cut.layers == cache.layers
    with pytest.raises(ValueError, match="up to 1 tokens"):
        cache.truncate(jnp.array([3, 5, 1]), most=1)
    axes = jax.tree.map(lambda a, names: (a.ndim, names), cache, cache.axes)
    pairs = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int))
    heads = (4, ("batch", "act_kv_heads", None, None))
    assert pairs == [heads] * 8 + [(1, ("batch",)), (2, ("batch", None))]
    latents = empty("latent").axes
    assert latents.latents == latents.rotated == ("batch", None, None)


def test_an_empty_cache_has_the_structure_of_a_filled_one():
    cache = whole(encoder=False)
    chunk = Chunk(cache.length, jnp.ones(B, jnp.int32), 1)
    layers = tuple(
        LayerCache(layer.own.write(chunk, *tokens("key_value", 1, 0))[0]) for layer in cache.layers
    )
    filled = cache._replace(layers=layers, length=chunk.end)
    assert jax.tree.structure(filled) == jax.tree.structure(cache)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(filled)] == [
        (a.shape, a.dtype) for a in jax.tree.leaves(cache)
    ]


def test_an_encoders_keys_go_into_the_first_slots_and_back():
    k, v = (jnp.asarray(tokens("key_value", 3, seed)[0]) for seed in (0, 1))
    cache = cross_cache(B, 5, K, H, jnp.float32).write(k, v)
    for read, new in zip(cache.read(), (k, v)):
        assert read.shape == (B, 5, K, H)
        np.testing.assert_array_equal(read[:, :3], new)
        assert not read[:, 3:].any()
    with pytest.raises(ValueError, match="rows of 6 tokens, and the cache has 5 slots"):
        cache.write(jnp.zeros((B, 6, K, H)), jnp.zeros((B, 6, K, H)))


@pytest.mark.parametrize("starts", [[0, 0], [0, 3], [2, 1], [3, 3]])
@pytest.mark.parametrize("rows", [1, 2])
def test_each_row_is_written_at_its_own_start(starts, rows):
    rng = np.random.default_rng(0)
    slots, new = rng.normal(size=(rows, 2, 5, 3)), rng.normal(size=(rows, 2, 2, 3))
    expected = slots.copy()
    for b in range(rows):
        expected[b, :, starts[b] : starts[b] + 2] = new[b]

    def array(a):
        return jnp.asarray(a, jnp.float32)

    def last(a):
        return a.swapaxes(2, 3)

    starts, expected = jnp.asarray(starts[:rows]), expected.astype(np.float32)
    np.testing.assert_array_equal(write_slice(array(slots), array(new), starts, 2), expected)
    np.testing.assert_array_equal(
        write_slice(last(array(slots)), last(array(new)), starts, 3), last(expected)
    )
    of_all_heads = write_slice(array(slots[:, 0]), array(new[:, 0]), starts, 1)
    np.testing.assert_array_equal(of_all_heads, expected[:, 0])


@pytest.mark.parametrize("rows", [1, 2])
def test_past_the_end_a_slice_is_shifted_back(rows):
    slots, new = jnp.zeros((rows, 1, 4, 1)), jnp.ones((rows, 1, 2, 1))
    written = write_slice(slots, new, jnp.full(rows, 3), 2)
    np.testing.assert_array_equal(written[:, 0, :, 0], [[0, 0, 1, 1]] * rows)


@pytest.mark.parametrize("kind, begin", list(itertools.product(KINDS, [False, True])))
def test_the_cache_keeps_its_dtype(kind, begin):
    cache = jax.tree.map(lambda a: a.astype(jnp.bfloat16), empty(kind, window=3))
    chunk = Chunk(jnp.zeros(B, jnp.int32), jnp.ones(B, jnp.int32), 2, begin)
    written, k, _ = cache.write(chunk, *(jnp.asarray(a) for a in tokens(kind, 2, 0)))
    assert {a.dtype for a in jax.tree.leaves(written)} == {jnp.dtype("bfloat16")}
    assert k.dtype == jnp.float32
