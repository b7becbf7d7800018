"""Masks written out, one literal picture each; ``x`` sees, ``.`` does not. Rows are queries,
columns keys.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.ops import Mask, dense

SEGMENTS = jnp.array([[1, 1, 2, 2, 2, 0]])
PREFIX = jnp.array([[True, True, True, False, False, False]])
# Two groups, and tokens of none, which are causal among each other.
GROUPS = np.array([[0, 7, 7, 0, 2, 2]])

PICTURES = {
    "causal": (Mask(), "x..... xx.... xxx... xxxx.. xxxxx. xxxxxx"),
    "causal window 1": (Mask(window=1), "x..... .x.... ..x... ...x.. ....x. .....x"),
    "causal window 3": (Mask(window=3), "x..... xx.... xxx... .xxx.. ..xxx. ...xxx"),
    "two-sided window 2": (
        Mask(causal=False, window=2),
        "xx.... xxx... .xxx.. ..xxx. ...xxx ....xx",
    ),
    "segments": (
        Mask(causal=False, q_segments=SEGMENTS, k_segments=SEGMENTS),
        "xx.... xx.... ..xxx. ..xxx. ..xxx. .....x",
    ),
    "causal segments": (
        Mask(q_segments=SEGMENTS, k_segments=SEGMENTS),
        "x..... xx.... ..x... ..xx.. ..xxx. .....x",
    ),
    "causal segments window 2": (
        Mask(window=2, q_segments=SEGMENTS, k_segments=SEGMENTS),
        "x..... xx.... ..x... ..xx.. ...xx. .....x",
    ),
    "groups": (Mask(q_mutual=GROUPS, k_mutual=GROUPS), "x..... xxx... xxx... xxxx.. xxxxxx xxxxxx"),
    "prefix": (Mask(q_mutual=PREFIX, k_mutual=PREFIX), "xxx... xxx... xxx... xxxx.. xxxxx. xxxxxx"),
    "prefix segments": (
        Mask(q_mutual=PREFIX, k_mutual=PREFIX, q_segments=SEGMENTS, k_segments=SEGMENTS),
        "xx.... xx.... ..x... ..xx.. ..xxx. .....x",
    ),
    "prefix window 2": (
        Mask(window=2, q_mutual=PREFIX, k_mutual=PREFIX),
        "xx.... xxx... .xx... ..xx.. ...xx. ....xx",
    ),
}


def picture(text: str) -> np.ndarray:
    return np.array([[c == "x" for c in row] for row in text.split()])


@pytest.mark.parametrize("name", PICTURES)
def test_mask_is_the_picture(name):
    mask, text = PICTURES[name]
    np.testing.assert_array_equal(dense(mask, 6, 6), picture(text)[None])


def test_no_condition_is_no_mask():
    assert dense(Mask(causal=False), 6, 6) is None


def test_offset_places_each_row_of_queries_among_the_keys():
    # Row 0 asks from slots 0 and 1, row 1 from slots 3 and 4; the same with a window of two keys.
    index = jnp.array([[0, 1], [3, 4]])
    seen = dense(Mask(q_index=index), 2, 5)
    np.testing.assert_array_equal(seen, [picture("x.... xx..."), picture("xxxx. xxxxx")])
    seen = dense(Mask(q_index=index, window=2), 2, 5)
    np.testing.assert_array_equal(seen, [picture("x.... xx..."), picture("..xx. ...xx")])


def test_segments_of_another_length_than_the_queries():
    mask = Mask(causal=False, q_segments=jnp.array([[2, 1]]), k_segments=jnp.array([[1, 1, 2, 0]]))
    np.testing.assert_array_equal(dense(mask, 2, 4), [picture("..x. xx..")])


def test_features_name_every_condition_in_use():
    assert Mask(causal=False).features() == frozenset()
    assert Mask(window=2).features() == {"causal", "window"}
    everything = Mask(True, 2, SEGMENTS, SEGMENTS, PREFIX, PREFIX, SEGMENTS)
    assert everything.features() == {"causal", "window", "segments", "mutual", "offset"}


@pytest.mark.parametrize(
    "half",
    [
        {"q_segments": SEGMENTS},
        {"k_segments": SEGMENTS},
        {"q_mutual": PREFIX},
        {"k_mutual": PREFIX},
    ],
)
def test_half_a_condition_is_refused(half):
    # A mask that would be dropped silently is the leak this project promises not to have.
    with pytest.raises(ValueError, match=next(iter(half))[2:]):
        dense(Mask(**half), 6, 6)
