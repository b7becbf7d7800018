"""The watermark: which tokens it favours, and what its detector finds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from llm_jax.ops import categorical, row_keys, watermark
from llm_jax.ops.sampling import detect_watermark, history_of

V = 200
MARK = jax.jit(watermark)
SETTINGS = {"ratio": 0.25, "key": jnp.uint32(15485863), "width": jnp.int32(1), "bias": 4.0}


def green(ids, **settings):
    """bool [B, V]: the list after each row of ids."""
    ids = np.atleast_2d(ids)
    history = history_of(ids, np.full(len(ids), ids.shape[1]), ids.shape[1])
    return np.asarray(MARK(np.zeros((len(ids), V)), history, **(SETTINGS | settings))) > 0


def test_lists_are_of_the_ratio_and_of_the_last_tokens():
    ids = np.array([[5, i] for i in range(V)])
    lists = green(ids)
    share = lists.mean()
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / lists.size)
    np.testing.assert_array_equal(green([[9, 7]]), green([[1, 7]]))
    assert (green([[9, 7]], width=jnp.int32(2)) != green([[1, 7]], width=jnp.int32(2))).any()
    assert (green([[9, 7]], key=jnp.uint32(1)) != green([[9, 7]])).any()
    # A text that is too short for its width has no list.
    assert not green([[9, 7]], width=jnp.int32(3)).any()


def threefry(key, data):
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), of pairs of whole numbers."""
    mask = 2**32 - 1
    schedule = [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x, y = ((word + k) & mask for word, k in zip(data, key))
    for block in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x = (x + y) & mask
            y = ((y << turn | y >> (32 - turn)) & mask) ^ x
        x = (x + schedule[(block + 1) % 3]) & mask
        y = (y + schedule[(block + 2) % 3] + block + 1) & mask
    return x, y


def test_lists_are_those_of_threefry_for_ever():
    """A text of today is to be detected in years."""
    key = threefry(threefry((0, 15485863), (0, 7)), (0, 9))
    draws = [(threefry(key, (0, token))[0] >> 8) / 2**24 for token in range(V)]
    lists = green([[9, 7]], width=jnp.int32(2))
    np.testing.assert_array_equal(lists[0], np.array(draws) < 0.25)


def test_the_detector_looks_at_the_lists():
    ids = [3]
    for _ in range(30):
        ids.append(int(np.flatnonzero(green([ids[-1:]])[0])[len(ids) % 5]))
    found = detect_watermark(ids, ratio=0.25, key=15485863)
    pairs = set(itertools.pairwise(ids))
    assert found.scored == found.green == len(pairs)
    assert found.z == pytest.approx(np.sqrt(3 * len(pairs)))
    assert found.p == pytest.approx(stats.norm.sf(found.z))
    assert detect_watermark(ids, ratio=0.25, key=15485864).z < 4
    assert detect_watermark(ids, ratio=0.25, key=15485863, start=25).scored <= 6
    assert detect_watermark([3], ratio=0.25, key=1) == (0.0, 1.0, 0, 0)
    assert detect_watermark([4, 4] * 50, ratio=0.25, key=1).scored == 1


def test_text_without_the_watermark_has_a_normal_z():
    rng = np.random.default_rng(0)
    z = [
        detect_watermark(rng.integers(0, 50_000, 200), ratio=0.25, key=key, width=2).z
        for key in range(200)
    ]
    # Steps of z are 1 / sqrt(200 * 3 / 16) = 0.16, so that the test is a coarse one.
    assert abs(np.mean(z)) < 5 / np.sqrt(200)
    assert abs(np.std(z) - 1) < 5 / np.sqrt(400)
    assert stats.kstest(z, "norm").pvalue > 1e-4


@jax.jit
def written(ids, bias):
    """64 texts of 60 tokens after the prompts [64, 1], drawn from equal chances."""

    def step(history, place):
        logits = watermark(
            jnp.zeros((64, V)), history, **(SETTINGS | {"bias": bias, "width": jnp.int32(1)})
        )
        tokens = categorical(row_keys(jnp.arange(64), jnp.full(64, place)), logits)
        return history.append(tokens[:, None], jnp.ones(64, jnp.int32)), None

    history = history_of(ids, jnp.ones(64, jnp.int32), 61)
    return jax.lax.scan(step, history, jnp.arange(60))[0].ids


def test_text_with_the_watermark_is_found():
    ids = np.asarray(written(np.arange(64)[:, None], 2.0))
    found = [detect_watermark(row, ratio=0.25, key=15485863, start=1) for row in ids]
    # At equal chances a green token has exp(2) / 4 of exp(2) / 4 + 3 / 4.
    share = np.exp(2) / (np.exp(2) + 3)
    of_all = sum(d.green for d in found) / sum(d.scored for d in found)
    assert abs(of_all - share) < 5 * np.sqrt(share * (1 - share) / (64 * 60))
    assert all(d.p < 1e-4 for d in found)
    plain = np.asarray(written(np.arange(64)[:, None], 0.0))
    assert max(detect_watermark(row, ratio=0.25, key=15485863).z for row in plain) < 4.5


def test_errors_name_the_setting():
    with pytest.raises(ValueError, match="ratio 1.0 is not between 0 and 1"):
        detect_watermark([1, 2], ratio=1.0, key=1)
    with pytest.raises(ValueError, match="width 5 is not from 1 to 4"):
        detect_watermark([1, 2], ratio=0.5, key=1, width=5)
