"""Settings by their own names reach the processors: each is compared with its formula."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.api.decode_settings import decode_config
from llm_jax.decode.settings import Rows, settings_of
from llm_jax.ops.sampling import detect_watermark, history_of, process

V = 12
END = 11
PROMPT = (0, 2)
NEW = (4, 6, 0)
LOGITS = np.array([2.6, 2.2, -2.0, 1.7, 1.4, -1.1, 0.9, 0.7, 0.4, 0.1, -0.3, -0.8], np.float32)
_processed = jax.jit(partial(process, order="hf"))


def processed(new: tuple[int, ...] = NEW, **given) -> np.ndarray:
    """The logits of a text with these new tokens."""
    settings = settings_of(Rows([decode_config(given)], [0], [[END]]), V)
    ids = jnp.array([[*PROMPT, *NEW]])
    history = history_of(ids[:, :2], jnp.array([2]), 8).append(ids[:, 2:], jnp.array([len(new)]))
    return np.asarray(_processed(jnp.asarray(LOGITS)[None], settings, history))[0]


def removed(found: np.ndarray) -> list[int]:
    return np.flatnonzero(found == -np.inf).tolist()


def test_the_source_of_a_decoder_is_its_prompt():
    found = processed(encoder_repetition_penalty=1.5)
    expected = LOGITS.copy()
    # Token 0 is likelier than not, token 2 is not; both are favoured.
    expected[0] *= 1.5
    expected[2] /= 1.5
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("size, banned", [(1, [0, 2]), (2, [2]), (3, []), (0, [])])
def test_an_ngram_of_the_source_does_not_come(size, banned):
    """The text ends with 0, and the source has 0 2."""
    assert removed(processed(encoder_no_repeat_ngram_size=size)) == banned


def test_tokens_that_do_not_come_first_come_later():
    given = {"begin_suppress_ids": (0, 3)}
    assert removed(processed((), **given)) == [0, 3]
    assert removed(processed((4,), **given)) == []
    # After one that is forced, the next is the first that is chosen.
    given["forced_first_id"] = 5
    assert removed(processed((), **given)) == [id for id in range(V) if id != 5]
    assert removed(processed((4,), **given)) == [0, 3]


@pytest.mark.parametrize("start, power", [(0, 3), (1, 2), (3, 0), (9, 0)])
def test_the_end_gets_likelier_from_the_start_on(start, power):
    found = processed(length_decay_start=start, length_decay_factor=1.5)
    expected = LOGITS.copy()
    expected[END] += 0.8 * (1.5**power - 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 2])
def test_the_watermark_of_a_key_and_a_ratio_is_what_its_detector_finds(width):
    """The tokens with the bias are those that the detector counts as green after this text."""
    lists = {}
    for key in (3, 4):
        for ratio in (0.25, 0.75):
            given = {"watermark_ratio": ratio, "watermark_key": key, "watermark_width": width}
            found = processed(watermark_bias=2.0, **given)
            added = found - LOGITS
            green = np.flatnonzero(added > 1).tolist()
            np.testing.assert_allclose(added, np.where(added > 1, 2.0, 0.0), atol=1e-6)
            text = [*PROMPT, *NEW]
            last = len(text) - width
            for id in range(V):
                seen = detect_watermark([*text[last:], id], ratio=ratio, key=key, width=width)
                assert (seen.scored, seen.green) == (1, id in green)
            lists[key, ratio] = green
    assert lists[3, 0.75] != lists[4, 0.75]
    # A larger share of the same key's draws.
    assert set(lists[3, 0.25]) < set(lists[3, 0.75])
