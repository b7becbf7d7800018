"""The whole of processing against its plain definition, per row, in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import plain_sampling as plain
import pytest
from random_rows import NUMBER, WIDTH, history_of_texts, random_row, random_text, settings_of_rows
from scipy import stats

from llm_jax.ops import categorical, greedy, guide, row_keys
from llm_jax.ops.sampling import (
    ALL_BANNED,
    ORDERS,
    PROCESSORS,
    all_banned,
    history_of,
    off,
    process,
)

V = 300
# All batches have these numbers of rows, for few programs to compile.
ROWS = 24
SMALL = 6
PROCESS = jax.jit(process, static_argnames=("order", "own", "warp", "keep"))


def random_batch(seed, rows=ROWS, vocab_size=V):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(rows, vocab_size)) * 3).astype(np.float32)
    texts = [random_text(rng, vocab_size) for _ in range(rows)]
    return logits, texts, [random_row(rng, text, vocab_size) for text in texts]


def arrays(texts, rows, vocab_size=V):
    return settings_of_rows(rows, vocab_size), history_of_texts(texts)


def take(tree, rows):
    return jax.tree.map(lambda a: a[np.array(rows)], tree)


def test_what_is_off_changes_no_bit():
    logits, texts, _ = random_batch(0)
    logits[0, 5] = -np.inf
    logits[1, 7] = np.inf
    logits[2] = np.nan
    settings = off(ROWS, V, sequences=(NUMBER, WIDTH))
    out = PROCESS(logits, settings, history_of_texts(texts))
    np.testing.assert_array_equal(out, logits)


@pytest.mark.parametrize("order", PROCESSORS)
def test_processing_is_what_its_definition_says(order):
    for seed in range(8):
        logits, texts, rows = random_batch(seed)
        out = np.asarray(PROCESS(logits, *arrays(texts, rows), order=order))
        for i, row in enumerate(rows):
            expected = plain.processed(logits[i], row, texts[i], order)
            np.testing.assert_allclose(out[i], expected, 2e-5, 2e-5, err_msg=f"{row} {texts[i]}")


def test_orders_differ():
    assert set(ORDERS) == set(PROCESSORS)
    assert set(PROCESSORS["hf"]) == set(PROCESSORS["vllm"])
    # A bias that makes a token positive changes what the penalty does, whatever the order.
    for order in PROCESSORS:
        names = PROCESSORS[order]
        assert names.index("bias") < names.index("repetition")
    with pytest.raises(ValueError, match="unknown filter order 'sglang'"):
        process(
            jnp.zeros((1, V)),
            off(1, V),
            history_of_texts([plain.Text([1], [], [1])]),
            order="sglang",
        )


def test_each_row_is_as_it_is_alone_to_the_bit():
    logits, texts, rows = random_batch(2)
    settings, history = arrays(texts, rows)
    whole = np.asarray(PROCESS(logits, settings, history))
    for i in range(ROWS):
        one = [i]
        alone = PROCESS(logits[one], take(settings, one), take(history, one))
        np.testing.assert_array_equal(alone[0], whole[i])
    others = np.random.default_rng(0).integers(0, ROWS, ROWS)
    turned = PROCESS(logits[others], take(settings, others), take(history, others))
    np.testing.assert_array_equal(turned, whole[others])


def test_another_setting_compiles_nothing():
    traces = 0

    @jax.jit
    def run(logits, settings, history):
        nonlocal traces
        traces += 1
        return process(logits, settings, history)

    for seed in range(50):
        logits, texts, rows = random_batch(seed, SMALL, 8)
        run(logits, *arrays(texts, rows, 8))
    assert traces == 1
    assert run._cache_size() == 1


def test_draws_follow_the_exact_distribution():
    """χ² of 60,000 draws of each row, at the one-in-a-million level."""
    draws = 60_000
    logits, texts, rows = random_batch(3, SMALL, 8)
    for row in rows:
        row.filters = {"temperature": 1.2, "typical_p": 0.9, "top_h": 0.95} | row.filters
        row.filters["temperature"] = 1.2
    out = PROCESS(logits, *arrays(texts, rows, 8))
    keys = row_keys(jnp.arange(draws), jnp.arange(draws) % 17)
    for i, row in enumerate(rows):
        expected = plain.softmax(plain.processed(logits[i], row, texts[i]))
        ids = jax.jit(categorical)(keys, jnp.broadcast_to(out[i], (draws, 8)))
        counts = np.bincount(np.asarray(ids), minlength=8)
        used = expected > 0
        assert not counts[~used].any()
        chi2 = ((counts[used] - draws * expected[used]) ** 2 / (draws * expected[used])).sum()
        assert chi2 < stats.chi2.ppf(1 - 1e-6, max(used.sum() - 1, 1))


def one_row(**settings):
    """A row with a text of the tokens 3, 4 and 3, of which the last is new; several times."""
    text = plain.Text([3, 4], [3], [3, 4])
    return arrays([text] * SMALL, [plain.Row(**settings)] * SMALL, 8)


LOGITS = np.tile(np.float32([2, 1.9, 0, -1, 3, 0.5, 0.25, -2]), (SMALL, 1))


def test_temperature_0_keeps_the_most_likely_of_what_is_processed():
    settings, history = one_row(suppressed=[4], filters={"temperature": 0.0, "typical_p": 0.1})
    out = PROCESS(LOGITS, settings, history)
    assert np.flatnonzero(np.isfinite(out[0])).tolist() == [0]
    assert int(greedy(out)[0]) == 0


def test_a_watermark_moves_even_what_is_most_likely():
    settings, history = one_row(filters={"temperature": 0.0})
    marks = settings.watermark._replace(
        bias=jnp.full(SMALL, 100.0), key=jnp.arange(SMALL, dtype=jnp.uint32)
    )
    out = PROCESS(LOGITS, settings._replace(watermark=marks), history)
    assert len(set(greedy(out).tolist())) > 1


def test_a_row_without_tokens_is_found_and_never_drawn_from():
    settings, history = one_row(suppressed=[0, 1, 2, 3, 4], ngram=1, stop_ids=[5, 6, 7], min_new=4)
    for more in ({}, {"renormalize": jnp.ones(SMALL, bool)}):
        out = PROCESS(LOGITS, settings._replace(**more), history)
        assert (np.asarray(out) == -np.inf).all()
        assert all_banned(out).all()
        keys = row_keys(jnp.arange(SMALL), jnp.arange(SMALL))
        assert categorical(keys, out).tolist() == [ALL_BANNED] * SMALL
    for filters in ({"temperature": 0.0}, {"top_p": 0.5, "typical_p": 0.5, "top_h": 0.5}):
        row = plain.Row(suppressed=list(range(8)), filters=filters)
        out = PROCESS(LOGITS, settings_of_rows([row] * SMALL, 8), history)
        assert (np.asarray(out) == -np.inf).all()


def test_ones_own_processor_comes_before_the_temperature():
    settings, history = one_row(filters={"temperature": 0.5}, bias={0: 1.0})

    def own(logits, history):
        last = jnp.take_along_axis(history.ids, history.length[:, None] - 1, axis=1)
        return logits + jnp.where(jnp.expand_dims(jnp.arange(8), 0) == last, 10.0, 0.0)

    out = PROCESS(LOGITS, settings, history, own=own)
    np.testing.assert_allclose(out, (LOGITS + [[1, 0, 0, 10, 0, 0, 0, 0]]) / 0.5)
    with pytest.raises(ValueError, match="returned float32 \\(6, 4\\); it must return"):
        process(LOGITS, settings, history, own=lambda z, _: z[:, :4])


def test_beams_that_do_not_sample_leave_out_temperature_and_filters():
    settings, history = one_row(filters={"temperature": 0.0, "top_k": 1}, repetition=2.0)
    scores = np.asarray(jax.nn.log_softmax(LOGITS))
    out = PROCESS(scores, settings, history, warp=False)
    np.testing.assert_allclose(out, scores * [[1, 1, 1, 2, 2, 1, 1, 1]], rtol=1e-6)


def test_guidance_comes_first_and_in_rows_that_use_it():
    settings, history = one_row(bias={2: 1.0}, filters={"top_k": 1})
    settings = settings._replace(guidance=jnp.array([1.0] * 5 + [2.5]))
    other = LOGITS[:, ::-1]
    out = PROCESS(LOGITS, settings, history, unconditional=other, keep=8)
    bias = np.float32([0, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(out[0], LOGITS[0] + bias)
    np.testing.assert_allclose(out[5], guide(LOGITS, other, 2.5)[5] + bias, rtol=1e-6)


def test_it_has_derivatives():
    settings, history = one_row(filters={"temperature": 0.5, "top_k": 3}, bias={0: 1.0})

    @jax.jit
    @jax.grad
    def gradient(logits):
        out = process(logits, settings, history)
        return jnp.sum(jnp.where(jnp.isfinite(out), out, 0.0))

    np.testing.assert_allclose(gradient(LOGITS)[0], [2, 2, 0, 0, 2, 0, 0, 0])


def test_errors_name_the_setting():
    settings, history = one_row()
    short = settings._replace(guidance=jnp.ones(2))
    with pytest.raises(ValueError, match="guidance has shape \\(2,\\)"):
        process(LOGITS, short, history)
    wide = settings._replace(rules=settings.rules._replace(bias=jnp.zeros((6, 9))))
    with pytest.raises(ValueError, match="rules.bias has shape \\(6, 9\\); expected \\(6, 8\\)"):
        process(LOGITS, wide, history)
    with pytest.raises(ValueError, match="logits have shape \\(8,\\)"):
        process(LOGITS[0], settings, history)


def test_history_takes_back_and_gathers():
    prompts = np.array([[5, 6, 7], [8, 0, 0]])
    history = history_of(prompts, np.array([3, 1]), 6)
    longer = history.append(np.array([[1, 2, 3], [4, 9, 9]]), np.array([3, 1]))
    assert longer.length.tolist() == [6, 2]
    assert longer.generated.tolist() == [3, 1]
    assert longer.ids[0].tolist() == [5, 6, 7, 1, 2, 3]
    assert longer.ids[1, :2].tolist() == [8, 4]
    assert longer.is_new.tolist() == [[False] * 3 + [True] * 3, [False, True] + [False] * 4]
    cut = longer.truncate(np.array([4, 9]))
    assert cut.length.tolist() == [4, 2]
    again = cut.append(np.array([[11], [12]]), np.array([1, 1]))
    assert again.ids[0, :5].tolist() == [5, 6, 7, 1, 11]
    turned = again.gather(np.array([1, 0, 1]))
    assert turned.length.tolist() == [3, 5, 3]
    assert turned.ids[0, :3].tolist() == [8, 4, 12]
    assert turned.source_length.tolist() == [1, 3, 1]


def test_drafts_of_several_lengths_are_the_texts_that_they_are():
    """The same tokens with another length count as the shorter text."""
    logits, texts, rows = random_batch(4)
    settings, history = arrays(texts, rows)
    longer = history.append(np.full((ROWS, 2), 7), np.full(ROWS, 2))
    back = longer.truncate(history.length)
    np.testing.assert_array_equal(
        PROCESS(logits, settings, back), PROCESS(logits, settings, history)
    )
