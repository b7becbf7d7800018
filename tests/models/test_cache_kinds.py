"""Every kind of cache with every family of model: the numbers of the dense cache, whatever rows,
chunks and drafts do.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_chunks
from pairwise import cover, parametrize
from test_chunks import MODELS, ROLLBACK, ROOM, ROWS, WIDTH, encoder_fields

from llm_jax.config import CacheConfig
from llm_jax.decode.chunks import prefill_in_chunks
from llm_jax.decode.pages import plan_samples
from llm_jax.decode.programs import decode_step, extend, prefill
from llm_jax.ops.cache import KeyValueCache, LatentCache, PagedKeyValueCache
from llm_jax.types import ConfigError

# A page that divides the room has the order of the dense cache; the other one ends after it.
PAGED = {"pages": CacheConfig("paged", page=4), "long pages": CacheConfig("paged", page=7)}
INT8 = {
    "int8": CacheConfig(dtype="int8"),
    "int8 pages": CacheConfig("paged", "int8", page=4),
}
KINDS = {**PAGED, **INT8}
DRIVERS = ("chunks", "samples", "beams", "drafts")
CASES = list(itertools.product(KINDS, MODELS, DRIVERS))
# Of the models, one of each way to keep and read tokens.
EVERY_RUN = ("grouped queries", "sinks, windows and experts", "latents and windows")
BY_DEFAULT = cover(
    [case for case in CASES if case[1] in EVERY_RUN],
    lambda case: zip(("kind", "model", "driver"), case),
    [("kind", "driver"), ("kind", "model")],
)


class Caches(test_chunks.Reader):
    """Reads rows into a cache of any kind."""

    def empty(self, kind=CacheConfig(), rows=3):  # noqa: B008 (frozen)
        more = {"encoder_length": 7} if encoder_fields(self.name) else {}
        cache = self.model.init_cache(rows, ROOM, rollback=ROLLBACK, kind=kind, **more)
        # What is in the memory of free slots is anything.
        return poisoned(cache) if kind.layout == "paged" else cache

    def begun(self, kind, counts=(5, 3, 4)):
        counts = [1, 1, 1] if encoder_fields(self.name) else counts
        return self.read(self.empty(kind), counts, begin=True)[1]

    def go_on(self, cache, counts, rows):
        """The numbers of the tokens of one call, 0 where a row gets none; and the cache."""
        got, cache = self.read(cache, counts, rows)
        real = np.arange(WIDTH) < np.asarray(counts)[:, None]
        return np.where(real[..., None], np.asarray(got), 0), cache


def poisoned(cache):
    """``cache`` with NaN in every page."""

    def poison(layer):
        own = jax.tree.map(
            lambda a: a if a.dtype == jnp.int8 else jnp.full_like(a, jnp.nan), layer.own
        )
        return layer._replace(own=own)

    return cache._replace(layers=tuple(poison(layer) for layer in cache.layers))


@functools.cache
def caches(name) -> Caches:
    return Caches(name)


def by_chunks(run, kind):
    cache = run.begun(kind)
    out = []
    for counts in ([2, 0, 5], [1, 5, 3], [0, 1, 0]):
        got, cache = run.go_on(cache, counts, ROWS)
        out.append(got)
    return out


def by_samples(run, kind):
    """Several rows of each prompt, which go on in different ways."""
    cache = run.begun(kind)
    cache = cache.gather(jnp.array([1, 0, 1]))
    rows = [ROWS[0][::-1], ROWS[1], ROWS[2]]
    first, cache = run.go_on(cache, [3, 2, 5], rows)
    second, _ = run.go_on(cache, [4, 5, 1], rows)
    return [first, second]


def by_beams(run, kind):
    """Rows are gathered after every token, among them one that ends and one that swaps places."""
    cache = run.begun(kind)
    gather = jax.jit(lambda cache, rows: cache.gather(rows))
    out = []
    orders = ([0, 0, 2], [2, 1, 0], [1, 1, 1], [0, 2, 1], [2, 2, 0], [0, 1, 2])
    for token, order in enumerate(orders, 1):
        tokens = (np.arange(3) + 3 * token) % 32
        logits, cache = run.step(run.params, tokens.astype(np.int32), cache)
        cache = gather(cache, jnp.array(order))
        out.append(np.asarray(jax.nn.log_softmax(logits)))
    return out


def by_drafts(run, kind):
    """Drafts of which some tokens are taken back, of rows that were gathered before."""
    cache = run.begun(kind).gather(jnp.array([2, 0, 0]))
    out = []
    for seed in range(3):
        start = np.asarray(cache.length)
        rng = np.random.default_rng(seed)
        rows = [rng.integers(1, 32, ROOM) for _ in range(3)]
        got, cache = run.go_on(cache, [4, 4, 4], rows)
        cache = cache.truncate(jnp.asarray(start + np.array([0, 3, 1])), most=ROLLBACK)
        out.append(got)
    return out


DRIVE = {"chunks": by_chunks, "samples": by_samples, "beams": by_beams, "drafts": by_drafts}


@functools.cache
def dense(name, driver, int8=False):
    return DRIVE[driver](caches(name), CacheConfig(dtype="int8" if int8 else "compute"))


@parametrize("kind, name, driver", CASES, by_default=BY_DEFAULT)
def test_a_kind_of_cache_gives_the_numbers_of_the_dense_one(kind, name, driver):
    got = DRIVE[driver](caches(name), KINDS[kind])
    # In int8 a dense cache is one of the kinds, whose own numbers ``tests/ops`` bounds.
    wanted = dense(name, driver, int8=kind in INT8)
    for a, b in zip(got, wanted, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("driver", ["chunks", "beams"])
def test_pages_that_divide_the_room_give_the_bits_of_the_dense_cache(driver):
    name = "grouped queries"
    for a, b in zip(DRIVE[driver](caches(name), PAGED["pages"]), dense(name, driver), strict=True):
        np.testing.assert_array_equal(a, b)


@parametrize("name", [[name] for name in MODELS], by_default=[["sinks, windows and experts"]])
def test_an_int8_cache_does_not_depend_on_how_a_prompt_is_cut(name):
    """A token sees what is left of the keys before it, also those that came with it."""
    run = caches(name)
    if encoder_fields(name):
        pytest.skip("rows of an encoder's decoder begin with one token")
    kind = INT8["int8"]
    at_once, _ = run.read(run.empty(kind), [5, 5, 5], begin=True)
    cache = run.read(run.empty(kind), [2, 1, 3], begin=True)[1]
    got, _ = run.read(cache, [3, 4, 2])
    for row, n in enumerate((2, 1, 3)):
        np.testing.assert_allclose(got[row, : 5 - n], at_once[row, n:], atol=1e-5)


@parametrize(
    "kind, name",
    [(kind, name) for kind in ("dense", *KINDS) for name in MODELS if not encoder_fields(name)],
    by_default=[("pages", "soft-caps and windows"), ("dense", "grouped queries")],
)
def test_a_prompt_read_in_chunks_is_the_prompt_read_at_once(kind, name):
    """Within rounding; and to the bit whatever the other rows are, and wherever a row begins."""
    run = caches(name)
    kind = KINDS.get(kind, CacheConfig())
    read = jax.jit(
        lambda params, tokens, lengths, cache: prefill_in_chunks(
            run.model, params, tokens, lengths, cache, 4
        )
    )
    lengths = np.array([11, 3, 9], np.int32)
    tokens = test_chunks.padded([row[:n] for row, n in zip(ROWS, lengths)], 11)
    logits, cache = read(run.params, tokens, lengths, run.empty(kind))
    at_once, whole = jax.jit(functools.partial(prefill, run.model))(
        run.params, tokens, lengths, run.empty(kind)
    )
    np.testing.assert_allclose(logits, at_once, atol=1e-5)
    np.testing.assert_array_equal(cache.length, whole.length)
    others = np.where(np.arange(3)[:, None] == 2, tokens, 31 - tokens)
    among, _ = read(run.params, others, np.array([1, 11, 9], np.int32), run.empty(kind))
    np.testing.assert_array_equal(among[2], logits[2])
    # A prefix that is in the cache: the same calls from there on.
    prefix = np.array([4, 8, 4], np.int32)
    _, begun = read(run.params, others, prefix, run.empty(kind))
    going_on, _ = read(run.params, others, np.array([6, 11, 9], np.int32), begun)
    np.testing.assert_array_equal(going_on[2], logits[2])
    np.testing.assert_array_equal(going_on[1], among[1])


def test_prompts_that_cannot_be_read_in_chunks():
    def read(name, length, size):
        run = caches(name)
        tokens = jnp.ones((3, length), jnp.int32)
        prefill_in_chunks(run.model, run.params, tokens, jnp.full(3, length), run.empty(), size)

    with pytest.raises(ConfigError, match="chunks of 0 tokens; give at least 1"):
        read("grouped queries", 4, 0)
    with pytest.raises(ConfigError, match="model.encoder is 'on': an encoder reads a prompt in"):
        read("an encoder and windows", 4, 2)
    with pytest.raises(ConfigError, match="prompts of 21 tokens pass the 20 at which"):
        read("two lists of rope factors", 21, 4)


def test_samples_of_a_prompt_share_its_pages():
    """In the fewest pages, planned on the host: the numbers of rows of their own."""
    run = caches("grouped queries")
    lengths, samples, size = [5, 3, 4], 3, 4
    plan = plan_samples(lengths, samples, ROOM, size)
    assert plan.pages == 3 * samples * 6 - 2 * (1 + 0 + 1)
    kind = CacheConfig("paged", page=size, pages=plan.pages)
    cache = run.empty(kind)
    cache = cache._replace(table=jnp.asarray(plan.prompts))
    _, cache = run.read(cache, lengths, begin=True)
    shared = cache.planned(*(jnp.asarray(a) for a in (plan.rows, plan.table, *plan.copies)))
    apart = run.begun(CacheConfig()).gather(jnp.asarray(plan.rows))
    rows = [np.roll(np.arange(40) % 32, shift) for shift in range(9)]
    for counts in ([5, 1, 2] * 3, [3, 5, 5] * 3):
        got, shared = run.go_on(shared, counts, rows)
        wanted, apart = run.go_on(apart, counts, rows)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_token_without_a_page_is_never_silently_lost():
    run = caches("grouped queries")
    cache = run.begun(PAGED["pages"])
    lost = cache._replace(table=cache.table.at[1, 0].set(-1))
    token = np.array([1, 2, 3], np.int32)
    logits, _ = run.step(run.params, token, lost)
    assert np.isnan(logits[1]).all() and np.isfinite(np.asarray(logits)[[0, 2]]).all()


def test_what_a_model_keeps():
    def owns(name, kind):
        cache = caches(name).model.init_cache(2, 16, kind=kind)
        return cache, {type(layer.own) for layer in cache.layers}

    paged, kinds = owns("soft-caps and windows", CacheConfig("paged", page=4))
    # A layer with a window keeps every token too, so that any prefix can be shared.
    assert kinds == {PagedKeyValueCache} and {a.own.pages.shape[0] for a in paged.layers} == {8}
    assert paged.table.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    few, _ = owns("grouped queries", CacheConfig("paged", page=4, pages=7))
    assert few.table.tolist() == [[-1] * 4] * 2
    rings, kinds = owns("soft-caps and windows", CacheConfig(dtype="int8"))
    assert kinds == {KeyValueCache} and rings.layers[0].own.keys.numbers.shape[2] == 3
    latents, kinds = owns("latents and windows", CacheConfig("paged", "int8", page=4))
    assert kinds == {LatentCache} and latents.layers[0].own.latents.numbers.shape == (8, 4, 16)
    assert latents.layers[0].own.rotated.dtype == jnp.float32


def test_what_pages_refuse():
    run = caches("grouped queries")
    cache = run.begun(PAGED["pages"])
    with pytest.raises(ValueError, match="up to 5 tokens .* last 4 tokens; .*rollback=5"):
        cache.truncate(cache.length, most=5)
    with pytest.raises(ValueError, match="4 rows of 6 pages .* cache of 18 pages .*pages=24"):
        cache.gather(jnp.array([0, 1, 2, 2]))
    with pytest.raises(ValueError, match="the cache has no pages: make it with layout 'paged'"):
        rows = jnp.arange(3)
        run.empty(CacheConfig()).planned(rows, rows[:, None], rows, rows)


@pytest.mark.mesh
@parametrize(
    "kind, name",
    itertools.product(KINDS, ["grouped queries", "latents and windows", "an encoder and windows"]),
    by_default=[("pages", "grouped queries")],
)
def test_eight_devices_give_the_same_numbers(kind, name):
    """Rows over fsdp, heads over tensor; gathered from device to device."""
    from llm_jax.config import MeshConfig
    from llm_jax.decode.placement import place_cache
    from llm_jax.sharding import make_mesh

    model, params = test_chunks.made(MODELS[name])
    rows = [ROWS[n % 3] for n in range(4)]
    tokens = test_chunks.padded([row[:5] for row in rows], 5)

    def begin(params, counts):
        more = {"encoder_length": 7} if encoder_fields(name) else {}
        cache = place_cache(model.init_cache(4, ROOM, rollback=4, kind=KINDS[kind], **more))
        batch = test_chunks.rows_of(jnp.asarray(tokens), counts)
        if more:
            given = encoder_fields(name)["encoder"]
            again = jnp.array([0, 1, 2, 0])
            batch = batch._replace(encoder=jax.tree.map(lambda a: jnp.asarray(a)[again], given))
        return place_cache(model.apply(params, batch, cache, begin=True).cache)

    def run(params):
        cache = begin(params, jnp.array([5, 3, 4, 2]))
        out = []
        for order in ([3, 0, 2, 2], [1, 1, 0, 3]):
            cache = place_cache(cache.gather(jnp.array(order)))
            _, cache = extend(model, params, jnp.asarray(tokens), jnp.array([5, 0, 3, 1]), cache)
            logits, cache = decode_step(model, params, jnp.array([1, 2, 3, 4]), cache)
            out.append(jax.nn.log_softmax(logits))
        return jnp.stack(out)

    alone = jax.jit(run)(params)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        split = jax.jit(run)(params)
    np.testing.assert_allclose(split, alone, atol=1e-5)
    np.testing.assert_array_equal(jnp.argmax(split, -1), jnp.argmax(alone, -1))


def test_rows_or_pages_that_do_not_divide_are_refused():
    from llm_jax.config import MeshConfig
    from llm_jax.sharding import make_mesh

    model = caches("grouped queries").model
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=8, data=1))):
        with pytest.raises(ConfigError, match="rows of a paged cache: 4 do not divide over the 8"):
            jax.eval_shape(lambda: model.init_cache(4, 8, kind=CacheConfig("paged")))
        with pytest.raises(ConfigError, match="cache.pages of a paged cache: 9 do not divide"):
            jax.eval_shape(lambda: model.init_cache(8, 8, kind=CacheConfig("paged", pages=9)))
