"""Rows that grow in a cache by chunks of any sizes, whatever the rows around them do: the numbers
of the full forward pass, of every kind of cache.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize
from small_models import assert_same, forward, made, variants

from llm_jax.config import ModelConfig, override
from llm_jax.decode.programs import decode_step, extend, step_over_switch
from llm_jax.models import rows_of
from llm_jax.ops.cache import Cache, InOrder, LayerCache, Ring, Slots, key_value_cache
from llm_jax.types import ConfigError

BASE = override(
    ModelConfig(),
    {
        "vocab_size": 32,
        "num_layers": 2,
        "embed_dim": 16,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 64,
        "init_std": 0.3,
    },
)
MODELS = variants(
    BASE,
    {
        "grouped queries": {},
        "soft-caps and windows": {
            "norm.position": "sandwich",
            "attention.softcap": 5.0,
            "head.softcap": 3.0,
            "attention.window_pattern": (3, 0),
            "num_layers": 3,
        },
        "sinks, windows and experts": {
            "attention.sinks": True,
            "attention.window_pattern": (3, 2),
            "num_layers": 3,
            "experts.count": 4,
            "experts.per_token": 2,
        },
        # So narrow that a step takes the latents as they are, and a chunk makes keys of them.
        "latents and windows": {
            "attention.head_dim": 4,
            "attention.value_dim": 2,
            "attention": "latent",
            "attention.kv_latent": 16,
            "attention.rope_dim": 2,
            "num_layers": 3,
            "first_layers.count": 1,
            "first_layers.mlp_dim": 20,
            "attention.window_pattern": (0, 3),
        },
        "learned positions": {"positions": "learned", "norm": "layer", "mlp": "plain"},
        "relative positions and windows": {
            "positions": "relative",
            "positions.buckets": 8,
            "positions.max_distance": 6,
            "attention.window_pattern": (3, 0),
        },
        "two lists of rope factors": {
            "positions.scaling": "longrope",
            "positions.scaling.factor": 4.0,
            "positions.scaling.original_length": 20,
            "positions.scaling.factors": (1.0, 4.0),
            "positions.scaling.short_factors": (1.0, 1.1),
        },
        "an encoder and relative positions": {
            "encoder.num_layers": 1,
            "positions": "relative",
            "positions.buckets": 8,
            "positions.max_distance": 6,
        },
        "an encoder and windows": {"encoder.num_layers": 1, "attention.window_pattern": (3, 0)},
    },
)
# Every kind of cache, scanned and not.
DEFAULT = [
    ("grouped queries", "scan"),
    ("soft-caps and windows", "scan"),
    ("sinks, windows and experts", "unroll"),
    ("latents and windows", "unroll"),
    ("relative positions and windows", "unroll"),
    ("an encoder and windows", "scan"),
]
ALL = [(name, layers) for name in MODELS for layers in ("unroll", "scan")]
B, WIDTH, ROOM, ROLLBACK = 3, 5, 24, 4
TOTAL = (17, 9, 14)
ROWS = [np.random.default_rng(row).integers(1, 32, n) for row, n in enumerate(TOTAL)]
READ = [np.random.default_rng(9 + row).integers(1, 32, n) for row, n in enumerate((4, 7, 2))]


def padded(rows, width):
    tokens = np.zeros((len(rows), width), np.int32)
    for out, row in zip(tokens, rows):
        out[: len(row)] = row
    return tokens


def encoder_fields(name):
    """What the encoder reads, where the model has one."""
    if not MODELS[name].encoder:
        return {}
    rows = rows_of(padded(READ, 7), np.array([len(row) for row in READ]))
    return {"encoder": rows.inputs}


@functools.cache
def expected(name) -> np.ndarray:
    """Log-probabilities [B, T, V] of the full forward pass over whole rows."""
    rows = rows_of(padded(ROWS, max(TOTAL)), np.array(TOTAL))._replace(**encoder_fields(name))
    return np.asarray(forward(MODELS[name])(made(MODELS[name])[1], rows))


class Reader:
    """Reads ``ROWS`` into a cache, call after call; three compiled programs of one model."""

    def __init__(self, name, layers="unroll"):
        self.name = name
        self.model, self.params = made(MODELS[name], layers)
        self.chunk = jax.jit(functools.partial(self._chunk, begin=False))
        self.first = jax.jit(functools.partial(self._chunk, begin=True))
        self.step = jax.jit(functools.partial(decode_step, self.model))

    def _chunk(self, params, tokens, counts, cache, more, *, begin):
        if not begin:
            hidden, cache = extend(self.model, params, tokens, counts, cache)
        else:
            batch = rows_of(tokens, counts)._replace(**more)
            hidden, cache = self.model.apply(params, batch, cache, begin=True)[:2]
        return jax.nn.log_softmax(self.model.logits(params, hidden)), cache

    def empty(self, rows=B):
        more = {"encoder_length": 7} if encoder_fields(self.name) else {}
        return self.model.init_cache(rows, ROOM, rollback=ROLLBACK, **more)

    def read(self, cache, counts, rows=ROWS, *, begin=False):
        """One call: ``counts`` tokens more of each row. The numbers [B, T, V] and the cache."""
        done = np.zeros(len(rows), int) if begin else np.asarray(cache.length)
        tokens = padded(
            [row[d : d + n] for row, d, n in zip(rows, done, counts, strict=True)], WIDTH
        )
        more = encoder_fields(self.name) if begin else {}
        run = self.first if begin else self.chunk
        return run(self.params, tokens, np.asarray(counts, np.int32), cache, more)

    def begun(self, counts):
        """A cache that has the first tokens of each row."""
        return self.read(self.empty(), counts, begin=True)[1]


@functools.cache
def reader(name, layers="unroll") -> Reader:
    return Reader(name, layers)


def check(name, got, start, counts):
    """``got`` [B, T, V] are the numbers after tokens ``start`` … of each row."""
    for row, (first, n) in enumerate(zip(start, counts)):
        wanted = expected(name)[row, first : first + n]
        np.testing.assert_allclose(np.asarray(got)[row, :n], wanted, atol=1e-5)


@parametrize("name, layers", ALL, by_default=DEFAULT)
def test_chunks_of_any_sizes_are_the_full_forward_pass(name, layers):
    """Ragged, with calls that bring a row nothing, beyond every window; steps between chunks, and
    rejected tokens that are taken back.
    """
    run, rng = reader(name, layers), np.random.default_rng(1)
    cache = run.empty()
    if encoder_fields(name):
        got, cache = run.read(cache, [1, 1, 1], begin=True)
        check(name, got, [0, 0, 0], [1, 1, 1])
    for call in range(12):
        start = np.asarray(cache.length)
        left = np.array(TOTAL) - start
        if call in (4, 7) and left.min() > 0:
            tokens = np.array([row[n] for row, n in zip(ROWS, start)], np.int32)
            logits, cache = run.step(run.params, tokens, cache)
            check(name, jax.nn.log_softmax(logits)[:, None], start, [1, 1, 1])
            continue
        counts = np.minimum(rng.integers(0, WIDTH + 1, B), left)
        if call % 3 == 1:
            # A draft of other tokens, of which none holds.
            drafted = [np.concatenate([row[:n], [1, 2, 3, 4]]) for row, n in zip(ROWS, start)]
            _, cache = run.read(cache, [4, 2, 0], drafted)
            cache = cache.truncate(start, most=4)
        got, cache = run.read(cache, counts)
        check(name, got, start, counts)
    np.testing.assert_array_equal(cache.length, TOTAL)


@parametrize("name, layers", ALL, by_default=DEFAULT[1:4])
def test_a_row_has_the_same_bits_whatever_is_around_it(name, layers):
    """The same chunks of row 1, beside other chunks of other rows, and with calls between them that
    bring it nothing.
    """
    run = reader(name, layers)

    def of_row(calls):
        cache = run.empty()
        if encoder_fields(name):
            cache = run.begun([1, 1, 1])
        out = []
        for counts in calls:
            got, cache = run.read(cache, counts)
            out.append(np.asarray(got)[1, : counts[1]])
        return np.concatenate(out)

    alone = of_row([[0, 4, 0], [0, 1, 0], [0, 3, 0]])
    among = of_row([[5, 4, 2], [5, 0, 5], [3, 1, 1], [1, 0, 5], [2, 0, 0], [0, 3, 1]])
    np.testing.assert_array_equal(alone, among)


@parametrize("name, layers", ALL, by_default=DEFAULT[2:4])
def test_rows_taken_back_have_the_bits_of_rows_that_never_grew(name, layers):
    run = reader(name, layers)
    cache = run.begun([5, 3, 4])
    _, cache = run.read(cache, [3, 1, 2])
    start = np.asarray(cache.length)
    kept = [2, 0, 1]
    wrong = [np.concatenate([row[: n + k], [9] * 5]) for row, n, k in zip(ROWS, start, kept)]
    _, drafted = run.read(cache, [5, 3, 5], wrong)
    # The kept tokens of the draft were read in a call of the same width.
    _, cache = run.read(cache, kept, wrong)
    drafted = drafted.truncate(jnp.asarray(start + kept), most=4)
    for counts in ([1, 2, 3], [4, 0, 2]):
        (a, drafted), (b, cache) = run.read(drafted, counts), run.read(cache, counts)
        for row, n in enumerate(counts):
            np.testing.assert_array_equal(np.asarray(a)[row, :n], np.asarray(b)[row, :n])


@parametrize("name, layers", ALL, by_default=[DEFAULT[3], DEFAULT[5]])
def test_gathered_rows_go_on_as_the_rows_that_they_are(name, layers):
    run = reader(name, layers)
    cache = run.begun([5, 3, 4])
    order = np.array([2, 0, 0])
    after, written = run.read(cache, [2, 4, 3])
    rows = [ROWS[row] for row in order]
    gathered, same = run.read(cache.gather(order), [3, 2, 2], rows)
    for row, n in enumerate((3, 2, 2)):
        wanted = np.asarray(after)[order[row], :n]
        np.testing.assert_allclose(np.asarray(gathered)[row, :n], wanted, atol=1e-6)
    assert_same(same, written.gather(order), 1e-6)


def test_one_program_serves_caches_of_any_fill():
    """Empty, begun, long, cut and gathered."""
    run = Reader("soft-caps and windows")
    token = np.array([1, 2, 3], np.int32)
    caches = [run.empty(), run.begun([5, 1, 3])]
    caches.append(run.read(caches[-1], [5, 5, 5])[1])
    caches.append(caches[-1].truncate(jnp.array([7, 6, 8]), most=3))
    caches.append(caches[-1].gather(jnp.array([2, 1, 0])))
    for cache in caches:
        _, cache = run.step(run.params, token, cache)
        run.read(cache, [2, 0, 1], [np.arange(40) % 32] * 3)
    assert run.step._cache_size() == run.chunk._cache_size() == run.first._cache_size() == 1


@parametrize("seed", [[0], [1], [2]], by_default=[[0]])
def test_a_ring_gives_what_all_slots_give(seed):
    """Random chunks, far past the windows."""
    run, rng = reader("soft-caps and windows"), np.random.default_rng(seed)
    model, c = run.model, MODELS["soft-caps and windows"]
    slots = Slots(B, 64)
    all_slots = Cache(
        tuple(
            LayerCache(key_value_cache(slots, c.attention.kv_heads, (c.head_dim,) * 2, jnp.float32))
            for _ in range(c.num_layers)
        ),
        jnp.zeros((B,), jnp.int32),
    )
    rings = model.init_cache(B, 64)
    assert [layer.own.layout for layer in rings.layers] == [Ring(3), InOrder(), Ring(3)]
    rows = rng.integers(0, 32, (B, 64))
    for _ in range(8):
        counts = rng.integers(0, WIDTH + 1, B)
        wanted, all_slots = run.read(all_slots, counts, rows)
        got, rings = run.read(rings, counts, rows)
        for row, n in enumerate(counts):
            np.testing.assert_allclose(got[row, :n], wanted[row, :n], atol=1e-5)


def test_what_a_call_with_a_cache_refuses():
    run = reader("an encoder and windows")
    tokens, counts = np.ones((B, 1), np.int32), np.ones(B, np.int32)
    batch = rows_of(tokens, counts)
    cache = run.begun([1, 1, 1])
    both = batch._replace(**encoder_fields(run.name))
    with pytest.raises(ConfigError, match="batch.encoder is given for rows that go on"):
        run.model.apply(run.params, both, cache)
    with pytest.raises(ConfigError, match="batch.encoder is None"):
        run.model.apply(run.params, batch, cache, begin=True)
    plain = reader("grouped queries")
    with pytest.raises(ConfigError, match="begin is True, and there is no cache"):
        plain.model.apply(plain.params, batch, begin=True)
    with pytest.raises(ConfigError, match="encoder_length is 3, and model.encoder is none"):
        plain.model.init_cache(B, 8, encoder_length=3)


def test_a_row_that_passes_the_switch_is_read_anew_among_chunks():
    """``step_over_switch`` gives the long list's numbers to the row that passes, and goes on with
    the others.
    """
    config = override(MODELS["two lists of rope factors"], {"positions.scaling.original_length": 6})
    model, params = made(config)
    rows = [row[:8] for row in ROWS]
    cache = model.init_cache(B, ROOM)
    counts = np.array([6, 4, 5], np.int32)
    tokens = padded([row[:n] for row, n in zip(rows, counts)], 6)
    _, cache = jax.jit(functools.partial(extend, model))(params, tokens, counts, cache)
    following = np.array([row[n] for row, n in zip(rows, counts)], np.int32)
    over_switch = jax.jit(functools.partial(step_over_switch, model))
    logits, cache = over_switch(params, following, cache, padded(rows, 8))
    for row, n in enumerate(counts + 1):
        whole = rows_of(padded([rows[row][:n]], 8), np.array([n]))
        wanted = forward(config)(params, whole)[0, n - 1]
        np.testing.assert_allclose(jax.nn.log_softmax(logits)[row], wanted, atol=1e-5)
    np.testing.assert_array_equal(cache.length, counts + 1)
