"""Rules of tokens, sequences and places, guidance, contrastive search and log-probabilities: what
``test_process.py`` does not see of them.
"""

import jax
import numpy as np
import pytest

from llm_jax.ops import (
    all_banned,
    allow_tokens,
    categorical,
    contrastive_scores,
    encoder_no_repeat_ngram,
    encoder_repetition_penalty,
    force_token,
    guide,
    length_decay,
    logit_bias,
    min_new_tokens,
    no_repeat_ngram,
    remove_invalid,
    renormalize,
    sequence_bias,
    token_counts,
    token_logprobs,
    unpack_mask,
)
from llm_jax.ops.sampling import ALL_BANNED, History, history_of, pack_mask

NONE = -np.inf
LOGITS = np.float32([[2, 1, 0, -1, -2]])


def text(*ids, source=(0,)):
    # All of one shape, for one program.
    padded = np.array([[*ids, *[4] * (9 - len(ids))]])
    read = np.array([[*source, *[4] * (6 - len(source))]])
    return history_of(
        padded, np.array([len(ids)]), 9, source_ids=read, source_length=np.array([len(source)])
    )


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 100])
def test_masks_are_bits_from_the_lowest(vocab_size):
    allowed = np.random.default_rng(vocab_size).random((3, vocab_size)) < 0.5
    words = pack_mask(allowed)
    assert words.shape == (3, -(-vocab_size // 32)) and words.dtype == np.uint32
    bits = [[int(row[v // 32]) >> v % 32 & 1 for v in range(vocab_size)] for row in words]
    np.testing.assert_array_equal(bits, allowed)
    np.testing.assert_array_equal(unpack_mask(words, vocab_size), allowed)
    np.testing.assert_array_equal(unpack_mask(words.view(np.int32), vocab_size), allowed)
    out = allow_tokens(np.ones((3, vocab_size), np.float32), words)
    np.testing.assert_array_equal(out, np.where(allowed, 1, NONE))


def test_ngrams_that_may_not_come_again():
    of_text = jax.jit(no_repeat_ngram)
    of_source = jax.jit(encoder_no_repeat_ngram)

    def banned(history, n, ban=of_text):
        out = ban(np.zeros((1, 9), np.float32), history, np.array([n]))
        return np.flatnonzero(np.isinf(out[0])).tolist()

    history = text(1, 2, 3, 1, 2, 4, 1, 2)
    assert banned(history, 0) == []
    assert banned(history, 1) == [1, 2, 3, 4]
    assert banned(history, 2) == [3, 4]
    assert banned(history, 3) == [3, 4]
    assert banned(history, 4) == [] == banned(history, 100)
    # An n-gram may overlap itself.
    assert banned(text(5, 5), 2) == [5]
    assert banned(text(5), 2) == []
    history = text(7, 1, source=(7, 1, 8, 1, 6))
    assert banned(history, 2, of_source) == [6, 8]
    assert banned(history, 3, of_source) == [8]
    assert banned(history, 4, of_source) == []
    assert banned(history, 1, of_source) == [1, 6, 7, 8]


def test_a_sequence_counts_where_its_beginning_ends_the_text():
    sequences = np.array([[[-1, -1, 4], [-1, 3, 1], [2, 3, 1], [9, 3, 0], [-1, -1, -1]]])
    bias = np.float32([[1, 2, 4, 8, 16]])
    out = sequence_bias(LOGITS, sequences, bias, text(2, 3))
    np.testing.assert_array_equal(out, LOGITS + [[0, 6, 0, 0, 1]])
    # A text shorter than the sequence does not match it, whatever stands before its first token.
    out = sequence_bias(LOGITS, sequences, bias, text(3))
    np.testing.assert_array_equal(out, LOGITS + [[0, 2, 0, 0, 1]])
    out = sequence_bias(LOGITS, sequences, np.full((1, 5), NONE, np.float32), text(2, 3))
    assert np.isinf(out).tolist() == [[False, True, False, False, True]]


def test_stop_tokens_wait_and_grow():
    stops = np.array([[0, 3, -1]])
    out = min_new_tokens(LOGITS, stops, np.array([2]), 3)
    np.testing.assert_array_equal(out, [[NONE, 1, 0, NONE, -2]])
    np.testing.assert_array_equal(min_new_tokens(LOGITS, stops, np.array([3]), 3), LOGITS)
    out = length_decay(LOGITS, np.array([[0, 3, 3]]), np.array([5]), 3, 1.5)
    np.testing.assert_allclose(out, [[2 + 2 * 1.25, 1, 0, -1 + 1.25, -2]])
    np.testing.assert_array_equal(length_decay(LOGITS, stops, np.array([3]), 3, 1.5), LOGITS)
    # Long after the start the logits are large, and finite.
    zeros = LOGITS * np.float32([[0, 1, 1, 1, 1]])
    out = length_decay(zeros, stops, np.array([10**6]), 3, 1.5)
    assert np.isfinite(out).all() and out[0, 0] == 0 and out[0, 3] > 1e37
    banned = np.float32([[NONE, 1, 0, -1, -2]])
    assert length_decay(banned, stops, np.array([9]), 3, 1.5)[0, 0] == NONE


def test_a_forced_token_is_certain():
    now = np.array([True, False, True])
    out = force_token(np.repeat(LOGITS, 3, 0), np.array([3, 3, -1]), now)
    np.testing.assert_array_equal(out[0], [NONE, NONE, NONE, 0, NONE])
    np.testing.assert_array_equal(out[1:], np.repeat(LOGITS, 2, 0))


def test_the_source_is_favoured():
    counts = token_counts(np.array([[0, 3, 3]]), np.ones((1, 3), bool), 5)
    out = encoder_repetition_penalty(LOGITS, counts, 2.0)
    np.testing.assert_array_equal(out, [[4, 1, 0, -0.5, -2]])


def test_repairs():
    bad = np.float32([[np.nan, np.inf, NONE, 1]])
    limit = np.finfo(np.float32).max
    np.testing.assert_array_equal(remove_invalid(bad), [[0, limit, -limit, 1]])
    rows = np.float32([[0, 0, NONE, NONE], [NONE] * 4])
    np.testing.assert_allclose(renormalize(rows), [[-np.log(2)] * 2 + [NONE] * 2, [NONE] * 4])
    assert all_banned(rows).tolist() == [False, True]
    keys = jax.random.split(jax.random.key(0), 2)
    assert categorical(keys, rows).tolist()[1] == ALL_BANNED
    assert int(categorical(keys[0], rows[1])) == ALL_BANNED


def test_guidance():
    with_prompt = np.log([[0.5, 0.3, 0.2]])
    without = np.log([[0.2, 0.3, 0.5]])
    out = guide(with_prompt + 5, without - 3, 2.0)
    np.testing.assert_allclose(out, np.log([[0.25 / 0.2, 0.3, 0.04 / 0.5]]), rtol=1e-5)
    np.testing.assert_allclose(guide(with_prompt, without, 1.0), with_prompt, rtol=1e-5)
    some = np.float32([[0, NONE, 0]])
    out = guide(some, np.float32([[0, 0, NONE]]), 2.0)
    assert np.isfinite(out).tolist() == [[True, False, True]]
    with pytest.raises(ValueError, match="must agree"):
        guide(LOGITS, LOGITS[:, :3], 1.0)


def test_contrastive_search():
    rng = np.random.default_rng(0)
    p = np.float32([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
    candidates = rng.normal(size=(2, 3, 5)).astype(np.float32)
    context = rng.normal(size=(2, 4, 5)).astype(np.float32)
    mask = np.array([[True, True, False, True], [False] * 4])
    out = np.asarray(contrastive_scores(p, candidates, context, mask, 0.6))

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    nearest = [max(cosine(c, context[0, i]) for i in (0, 1, 3)) for c in candidates[0]]
    np.testing.assert_allclose(out[0], 0.4 * p[0] - 0.6 * np.array(nearest), rtol=1e-5)
    np.testing.assert_allclose(out[1], 0.4 * p[1], rtol=1e-6)
    # At 0 it is greedy; a vector of zeros is like nothing.
    np.testing.assert_array_equal(contrastive_scores(p, candidates, context, mask, 0.0), p)
    zeros = contrastive_scores(p, candidates * 0, context, mask, 1.0)
    np.testing.assert_array_equal(zeros, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="contrastive_scores got"):
        contrastive_scores(p, candidates, context[:, :, :4], mask, 0.5)


def test_log_probabilities():
    logits = np.float32([[2, 1, 1, NONE], [0, 0, 5, 0], [NONE] * 4])
    run = jax.jit(token_logprobs, static_argnames="top")
    out = run(logits, np.array([2, 3, 1]), top=3)
    expected = logits[:2] - np.log(np.exp(logits[:2]).sum(1, keepdims=True))
    np.testing.assert_allclose(out.chosen[:2], expected[[0, 1], [2, 3]], rtol=1e-6)
    assert out.rank.tolist()[:2] == [3, 4]
    assert out.top_ids.tolist()[:2] == [[0, 1, 2], [2, 0, 1]]
    assert out.chosen[2] == NONE
    # The same token has the same number in both.
    assert out.top[0, 2] == out.chosen[0] == out.top[0, 1]
    none = run(logits[None], np.array([[2, 3, 1]]))
    assert none.top.shape == none.top_ids.shape == (1, 3, 0)
    np.testing.assert_array_equal(none.chosen[0], out.chosen)
    with pytest.raises(ValueError, match="top 5"):
        token_logprobs(logits, np.array([2, 3, 1]), top=5)


def test_log_probabilities_do_not_feel_the_batch():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(64, 777)).astype(np.float32)
    tokens = rng.integers(0, 777, 64)
    run = jax.jit(token_logprobs, static_argnames="top")
    whole = run(logits, tokens, top=5)
    for rows in (1, 2, 7):
        some = run(logits[:rows], tokens[:rows], top=5)
        for a, b in zip(some, whole):
            np.testing.assert_array_equal(a, b[:rows])


def test_errors_name_what_does_not_fit():
    history = text(1, 2)
    with pytest.raises(ValueError, match="mask of allowed tokens is float32"):
        allow_tokens(LOGITS, np.ones((1, 1), np.float32))
    with pytest.raises(ValueError, match="the bias of logits has shape \\(5,\\)"):
        logit_bias(LOGITS, np.ones(5))
    with pytest.raises(ValueError, match="sequences have shape \\(1, 2\\)"):
        sequence_bias(LOGITS, np.ones((1, 2), int), np.ones((1, 2)), history)
    with pytest.raises(ValueError, match="n is float32; it must be an integer"):
        no_repeat_ngram(LOGITS, history, 2.0)
    with pytest.raises(ValueError, match="the history \\(1, 9\\)"):
        no_repeat_ngram(np.zeros((2, 5)), history, 2)
    with pytest.raises(ValueError, match="now has shape"):
        force_token(LOGITS, 1, np.array([True, False]))
    with pytest.raises(ValueError, match="tokens \\(2, 1\\); expected"):
        min_new_tokens(LOGITS, np.ones((2, 1), int), np.array([1]), 2)
    assert isinstance(history, History)
