"""The pool of pages against a plain list of each row's tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.decode.pages import Copies, OutOfPages, PagePool, plan_samples
from llm_jax.ops.cache import Cache, Chunk, LayerCache, Pages, Slots, paged_cache
from llm_jax.types import ConfigError

PAGES, SIZE, ENTRIES = 24, 4, 8
ACTS = ("add", "share", "grow", "grow", "grow", "truncate", "release")


class Model:
    """Rows as lists of tokens, and a pool whose free pages have NaN in every slot."""

    def __init__(self, rng):
        self.rng = rng
        self.pool = PagePool(PAGES, SIZE)
        self.memory = np.full((PAGES, SIZE), np.nan)
        self.rows: dict[int, list[float]] = {}

    def write(self, row, copies, first):
        """The tokens of a row from ``first`` on, after the copies."""
        self.memory[copies.target] = self.memory[copies.source]
        table = self.pool.table([row], ENTRIES)[0]
        for position in range(first, len(self.rows[row])):
            page = table[position // SIZE]
            self.memory[page, position % SIZE] = self.rows[row][position]

    def add(self):
        length = int(self.rng.integers(0, 3 * SIZE))
        row = self.pool.add(length)
        self.rows[row] = self.rng.random(length).tolist()
        self.write(row, Copies(*np.zeros((2, 0), int)), 0)

    def share(self, row):
        length = int(self.rng.integers(0, len(self.rows[row]) + 1))
        new = self.pool.share(row, length)
        self.rows[new] = self.rows[row][:length]

    def grow(self, row):
        first = len(self.rows[row])
        length = min(first + int(self.rng.integers(0, 2 * SIZE)), ENTRIES * SIZE)
        copies = self.pool.grow(row, length)
        self.rows[row] += self.rng.random(length - first).tolist()
        self.write(row, copies, first)

    def truncate(self, row):
        length = int(self.rng.integers(0, len(self.rows[row]) + 2))
        self.memory[self.pool.truncate(row, length)] = np.nan
        del self.rows[row][length:]

    def release(self, row):
        self.memory[self.pool.release(row)] = np.nan
        del self.rows[row]

    def act(self):
        rows = list(self.rows)
        what = ACTS[self.rng.integers(len(ACTS))]
        if len(rows) == 9:
            what = "release"
        if what == "add" or not rows:
            self.add()
        else:
            getattr(self, what)(rows[self.rng.integers(len(rows))])

    def check(self):
        """No row lost or changed a token, and no page is lost or counted twice."""
        rows = list(self.rows)
        table = self.pool.table(rows, ENTRIES)
        for row, pages in zip(rows, table, strict=True):
            assert self.pool.length(row) == len(self.rows[row])
            held = pages[pages >= 0]
            assert len(held) == self.pool.pages_of(len(self.rows[row]))
            slots = self.memory[held].reshape(-1)[: len(self.rows[row])]
            assert slots.tolist() == self.rows[row]
        used = set(table[table >= 0].tolist())
        assert len(used) + self.pool.free == PAGES
        free = [page for page in range(PAGES) if page not in used]
        assert np.isnan(self.memory[free]).all()


@pytest.mark.parametrize("seed, acts", [(0, 10_000)])
def test_nothing_leaks_and_nothing_is_shared_wrongly(seed, acts):
    model = Model(np.random.default_rng(seed))
    refused = 0
    for _ in range(acts):
        before = dict(model.rows)
        try:
            model.act()
        except OutOfPages:
            refused += 1
            assert model.rows == before
        model.check()
    assert 0 < refused < acts / 2
    for row in list(model.rows):
        model.release(row)
    assert model.pool.free == PAGES


def test_a_page_of_two_rows_is_copied_before_one_writes_to_it():
    pool = PagePool(6, 4)
    first = pool.add(6)
    second = pool.share(first)
    assert pool.table([first, second], 3).tolist() == [[0, 1, -1], [0, 1, -1]]
    copies = pool.grow(second, 7)
    assert [a.tolist() for a in copies] == [[1], [2]]
    assert pool.table([first, second], 3).tolist() == [[0, 1, -1], [0, 2, -1]]
    # The other row is now alone with its page, and whole pages stay shared.
    assert [a.tolist() for a in pool.grow(first, 9)] == [[], []]
    assert pool.table([first], 3).tolist() == [[0, 1, 3]]
    assert pool.free == 2
    assert pool.release(first) == [1, 3]
    assert pool.truncate(second, 4) == [2] and pool.truncate(second, 9) == []
    assert pool.release(second) == [0] and pool.free == 6


def test_what_the_pool_refuses():
    pool = PagePool(3, 4)
    row = pool.add(5)
    with pytest.raises(OutOfPages, match="a new row needs 2 pages for 8 tokens, and 1 of 3 pages"):
        pool.add(8)
    with pytest.raises(OutOfPages, match=f"row {row} needs 2 pages for 13 tokens, and 1 of 3"):
        pool.grow(row, 13)
    with pytest.raises(ConfigError, match="row 0 has 5 tokens, more than 4; truncate it"):
        pool.grow(row, 4)
    with pytest.raises(ConfigError, match="row 0 has 5 tokens, of which 6 are to be shared"):
        pool.share(row, 6)
    with pytest.raises(ConfigError, match="row 0 cannot be cut to -1 tokens"):
        pool.truncate(row, -1)
    with pytest.raises(ConfigError, match="row 0 has 2 pages, and the table 1 entries"):
        pool.table([row], 1)
    with pytest.raises(ConfigError, match="row 7 is not in the pool: it was released, or never"):
        pool.length(7)
    with pytest.raises(ConfigError, match="a pool of 0 pages of 4 tokens: both must be at least 1"):
        PagePool(0, 4)
    with pytest.raises(ConfigError, match="3 copies do not fit 2 places"):
        Copies(np.arange(3), np.arange(3)).padded(2, 9)
    assert pool.free == 1 and pool.length(row) == 5


def test_samples_share_whole_pages_of_their_prompt():
    """Two samples of a prompt of six tokens in pages of four, each with room for twelve."""
    plan = plan_samples([6], 2, 12, 4)
    assert plan.pages == 5 and plan.rows.tolist() == [0, 0]
    assert plan.prompts.tolist() == [[0, 1, -1]]
    (a, b) = plan.table.tolist()
    assert a[0] == b[0] == 0 and len({*a, *b}) == 5
    # One of them keeps the page that the prompt ends in, the other one has a copy.
    assert plan.copies.source.tolist() == [1] and sorted([a[1], b[1]])[0] == 1
    assert plan.copies.padded(2, 5).target.tolist() == [*plan.copies.target.tolist(), 5]
    with pytest.raises(ConfigError, match="a prompt of 13 tokens does not fit rows of 12"):
        plan_samples([13], 2, 12, 4)


def test_plans_are_carried_out_on_the_device():
    """Random rows in one compiled program, with NaN in every free page."""
    rng = np.random.default_rng(1)
    pool = PagePool(PAGES, SIZE)
    own = paged_cache(Slots(2, ENTRIES * SIZE, pages=Pages(SIZE, PAGES)), 1, (3, 2), jnp.float32)
    own = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), own)
    cache = Cache((LayerCache(own),), jnp.zeros(2, jnp.int32), None, jnp.zeros((2, 8), jnp.int32))
    rows = [pool.add(0), pool.add(0)]
    kept = [np.zeros((0, 3), np.float32)] * 2

    @jax.jit
    def call(cache, order, table, copies, k, counts):
        cache = cache.planned(order, table, *copies)
        chunk = Chunk(cache.length, counts, 5, table=table)
        layer, keys, values = cache.layers[0].own.write(chunk, k, k[..., :2])
        return cache._replace(layers=(LayerCache(layer),), length=chunk.end), keys, values

    for _ in range(12):
        order = rng.integers(0, 2, 2)
        forked = [pool.share(rows[row]) for row in order]
        for row in rows:
            pool.release(row)
        rows = forked
        counts = rng.integers(0, 5, 2)
        lengths = [len(kept[row]) for row in order]
        if max(lengths) > 20:
            counts = counts * 0
        plans = [pool.grow(row, n + c) for row, n, c in zip(rows, lengths, counts)]
        copies = Copies(*map(np.concatenate, zip(*plans))).padded(2, PAGES)
        k = rng.normal(size=(2, 5, 1, 3)).astype(np.float32)
        table = pool.table(rows, ENTRIES)
        cache, keys, values = call(cache, order, table, copies, k, counts.astype(np.int32))
        kept = [
            np.concatenate([kept[row], k[b, :c, 0]])
            for b, (row, c) in enumerate(zip(order, counts))
        ]
        for b, tokens in enumerate(kept):
            np.testing.assert_array_equal(keys[b, : len(tokens), 0], tokens)
            np.testing.assert_array_equal(values[b, : len(tokens), 0], tokens[:, :2])
            assert not np.asarray(keys[b, len(tokens) :]).any()
    assert call._cache_size() == 1
