"""Processors against those of transformers: each on random logits and texts, and all in order."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax
import jax.numpy as jnp
from transformers.generation import logits_process as hf

from llm_jax import ops
from llm_jax.ops.sampling import History, filters_off, off, pack_mask, process

pytestmark = pytest.mark.parity

V = 150
LENGTH = 12
ROWS = 25
ROUNDS = [
    pytest.param(range(4), id="100 rows"),
    pytest.param(range(40), id="1,000 rows", marks=pytest.mark.slow),
]


class Case:
    """Random logits [ROWS, V], texts of a prompt and new tokens, and a source."""

    def __init__(self, seed):
        self.rng = rng = np.random.default_rng(seed)
        self.prompt = 1 if seed % 4 == 3 else int(rng.integers(2, LENGTH))
        few = rng.integers(0, V, (ROWS, 5))
        self.ids = np.take_along_axis(few, rng.integers(0, 5, (ROWS, LENGTH)), axis=1)
        self.source = np.take_along_axis(few, rng.integers(0, 5, (ROWS, 9)), axis=1)
        self.logits = (rng.normal(size=(ROWS, V)) * 3).astype(np.float32)
        self.new = LENGTH - self.prompt

    @property
    def history(self):
        def full(n):
            return jnp.full(ROWS, n, jnp.int32)

        # Room after the text, whose content means nothing.
        ids = np.concatenate([self.ids, np.full((ROWS, 4), 7)], axis=1).astype(np.int32)
        return History(
            jnp.asarray(ids), full(self.prompt), full(LENGTH), jnp.asarray(self.source), full(9)
        )

    def words(self, number):
        """Sequences, some of which the texts end before their last token."""
        ends = [self.ids[row, LENGTH - n :] for row, n in enumerate((1, 2, 1, 2)[:number])]
        # No word is a stop token, which transformers leaves out of bad words.
        more = self.rng.integers(80, V, (number, 3))
        return [[*map(int, end), int(m[0])] for end, m in zip(ends, more)] + [[int(more[0, 1])]]


def theirs(processor, case):
    out = processor(torch.tensor(case.ids), torch.tensor(case.logits))
    return out.numpy()


def assert_same(ours, expected):
    ours = np.asarray(ours)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(ours), finite)
    # Sums and differences are as near as the largest of their terms.
    size = np.abs(expected[finite]).max(initial=1, where=expected[finite] < 1e30)
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6 * size)


def sequences_of(words):
    out = np.full((len(words), 4), -1, np.int32)
    for row, word in zip(out, words):
        row[4 - len(word) :] = word
    return jnp.asarray(np.broadcast_to(out, (ROWS, *out.shape)))


def encoder_of(case):
    return torch.tensor(case.source)


def repetition(case):
    penalty = float(case.rng.uniform(0.5, 2))
    counts = ops.token_counts(case.history.ids, case.history.is_token, V)
    ours = ops.repetition_penalty(case.logits, counts, penalty)
    return ours, hf.RepetitionPenaltyLogitsProcessor(penalty)


def encoder_repetition(case):
    penalty = float(case.rng.uniform(0.5, 2))
    counts = ops.token_counts(case.history.source_ids, case.history.is_source, V)
    ours = ops.encoder_repetition_penalty(case.logits, counts, penalty)
    return ours, hf.EncoderRepetitionPenaltyLogitsProcessor(penalty, encoder_of(case))


def ngram(case):
    n = int(case.rng.integers(1, 5))
    return ops.no_repeat_ngram(case.logits, case.history, n), hf.NoRepeatNGramLogitsProcessor(n)


def encoder_ngram(case):
    n = int(case.rng.integers(1, 5))
    ours = ops.encoder_no_repeat_ngram(case.logits, case.history, n)
    return ours, hf.EncoderNoRepeatNGramLogitsProcessor(n, encoder_of(case))


def sequence_bias(case):
    words = case.words(4)
    bias = case.rng.normal(size=len(words))
    ours = ops.sequence_bias(
        case.logits,
        sequences_of(words),
        jnp.asarray(np.tile(bias, (ROWS, 1)), jnp.float32),
        case.history,
    )
    pairs = [[word, float(b)] for word, b in zip(words, bias)]
    return ours, hf.SequenceBiasLogitsProcessor(pairs)


def bad_words(case):
    words = case.words(4)
    bias = jnp.full((ROWS, len(words)), -jnp.inf)
    ours = ops.sequence_bias(case.logits, sequences_of(words), bias, case.history)
    return ours, hf.NoBadWordsLogitsProcessor(words, [])


def min_new(case):
    stops = np.tile([3, 70], (ROWS, 1))
    least = int(case.rng.integers(0, LENGTH))
    ours = ops.min_new_tokens(case.logits, stops, case.history.generated, least)
    return ours, hf.MinNewTokensLengthLogitsProcessor(case.prompt, least, [3, 70])


def forced_first(case):
    ours = ops.force_token(case.logits, 5, jnp.full(ROWS, case.new == 0))
    # It forces at a length of one, where a decoder begins.
    case.ids = case.ids[:, : 1 if case.new == 0 else LENGTH]
    return ours, hf.ForcedBOSTokenLogitsProcessor(5)


def forced_last(case):
    most = LENGTH + int(case.rng.integers(0, 3))
    ours = ops.force_token(case.logits, 9, jnp.full(ROWS, most - 1 == LENGTH))
    return ours, hf.ForcedEOSTokenLogitsProcessor(most, [9])


def invalid(case):
    odd = [np.nan, np.inf, -np.inf, 1, 2]
    case.logits = case.rng.choice(odd, size=(ROWS, V)).astype(np.float32)
    return ops.remove_invalid(case.logits), hf.InfNanRemoveLogitsProcessor()


def decay(case):
    start, factor = int(case.rng.integers(0, 6)), float(case.rng.uniform(0.9, 1.5))
    case.logits[:, 3] = np.where(case.rng.random(ROWS) < 0.3, -np.inf, case.logits[:, 3])
    stops = np.tile([3, 70], (ROWS, 1))
    ours = ops.length_decay(case.logits, stops, case.history.generated, start, factor)
    return ours, hf.ExponentialDecayLengthPenalty((start, factor), [3, 70], case.prompt)


def suppressed(case):
    tokens = [int(t) for t in case.rng.integers(0, V, 20)]
    allowed = np.ones((ROWS, V), bool)
    allowed[:, tokens] = False
    ours = ops.allow_tokens(case.logits, pack_mask(allowed))
    return ours, hf.SuppressTokensLogitsProcessor(tokens)


def renormalized(case):
    return ops.renormalize(case.logits), hf.LogitNormalization()


def guidance(case):
    scale = float(case.rng.uniform(1.1, 3))
    other = case.rng.normal(size=(ROWS, V)).astype(np.float32)

    def model(*_, **__):
        class Out(dict):
            logits = torch.tensor(other)[:, None]

        return Out()

    processor = hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model)
    return ops.guide(case.logits, other, scale), processor


def temperature(case):
    value = float(case.rng.uniform(0.2, 2))
    return ops.scale_temperature(case.logits, value), hf.TemperatureLogitsWarper(value)


def _filter(ours, make):
    def of(case):
        keep = int(case.rng.integers(1, 4))
        value = float(case.rng.uniform(0.02, 0.98))
        return ours(case.logits, np.float32(value), keep=keep), make(value, keep)

    return of


def top_k(case):
    k, keep = int(case.rng.integers(1, 2 * V)), int(case.rng.integers(1, 4))
    return ops.top_k(case.logits, k, keep=keep), hf.TopKLogitsWarper(k, min_tokens_to_keep=keep)


def top_h(case):
    h = float(case.rng.uniform(0.05, 0.95))
    return ops.top_h(case.logits, np.float32(h)), hf.TopHLogitsWarper(h)


PROCESSORS = {
    "repetition": repetition,
    "encoder_repetition": encoder_repetition,
    "ngram": ngram,
    "encoder_ngram": encoder_ngram,
    "sequence_bias": sequence_bias,
    "bad_words": bad_words,
    "min_new": min_new,
    "forced_first": forced_first,
    "forced_last": forced_last,
    "invalid": invalid,
    "decay": decay,
    "suppressed": suppressed,
    "renormalized": renormalized,
    "guidance": guidance,
    "temperature": temperature,
    "top_k": top_k,
    "top_h": top_h,
    "top_p": _filter(ops.top_p, lambda v, n: hf.TopPLogitsWarper(v, min_tokens_to_keep=n)),
    "min_p": _filter(ops.min_p, lambda v, n: hf.MinPLogitsWarper(v, min_tokens_to_keep=n)),
    "typical_p": _filter(
        ops.typical_p, lambda v, n: hf.TypicalLogitsWarper(v, min_tokens_to_keep=n)
    ),
    "epsilon": _filter(
        ops.epsilon_cutoff, lambda v, n: hf.EpsilonLogitsWarper(v, min_tokens_to_keep=n)
    ),
    "eta": _filter(ops.eta_cutoff, lambda v, n: hf.EtaLogitsWarper(v, min_tokens_to_keep=n)),
}


@pytest.mark.parametrize("seeds", ROUNDS)
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_theirs(name, seeds):
    for seed in seeds:
        case = Case(seed)
        ours, processor = PROCESSORS[name](case)
        assert_same(ours, theirs(processor, case))


def random_chain(case):
    """Settings of all rows, and transformers' processors of the same in its order."""
    rng = case.rng
    settings = off(ROWS, V)
    filters = {}
    penalties = {}
    rules = {}
    chain = []

    def used():
        return rng.random() < 0.4

    def full(value, dtype=jnp.float32):
        return jnp.full(ROWS, value, dtype)

    stops = settings.rules.stop_ids.at[:, 0].set(3).at[:, 1].set(70)
    rules["stop_ids"] = stops
    words = case.words(4)
    biases = [float(b) for b in rng.normal(size=len(words))] if used() else [0.0] * len(words)
    if any(biases):
        chain.append(hf.SequenceBiasLogitsProcessor([[w, b] for w, b in zip(words, biases)]))
    if used():
        value = float(rng.uniform(0.6, 1.6))
        penalties["encoder_repetition"] = full(value)
        chain.append(hf.EncoderRepetitionPenaltyLogitsProcessor(value, encoder_of(case)))
    if used():
        value = float(rng.uniform(0.6, 1.6))
        penalties["repetition"] = full(value)
        chain.append(hf.RepetitionPenaltyLogitsProcessor(value))
    if used():
        n = int(rng.integers(1, 4))
        penalties["ngram"] = full(n, jnp.int32)
        chain.append(hf.NoRepeatNGramLogitsProcessor(n))
    if used():
        n = int(rng.integers(1, 4))
        penalties["encoder_ngram"] = full(n, jnp.int32)
        chain.append(hf.EncoderNoRepeatNGramLogitsProcessor(n, encoder_of(case)))
    banned = case.words(3) if used() else []
    if banned:
        chain.append(hf.NoBadWordsLogitsProcessor(banned, [3, 70]))
    every = sequences_of([*words, *banned])
    rules["sequence_ids"] = every
    rules["sequence_bias"] = jnp.asarray(
        np.tile([*biases, *[-np.inf] * len(banned)], (ROWS, 1)), jnp.float32
    )
    if used():
        least = int(rng.integers(1, LENGTH))
        rules["min_new"] = full(least, jnp.int32)
        chain.append(hf.MinNewTokensLengthLogitsProcessor(case.prompt, least, [3, 70]))
    if rng.random() < 0.15:
        rules |= {"forced_last": full(9, jnp.int32), "max_new": full(case.new + 1, jnp.int32)}
        chain.append(hf.ForcedEOSTokenLogitsProcessor(LENGTH + 1, [9]))
    if used():
        start, factor = int(rng.integers(0, 6)), float(rng.uniform(0.9, 1.5))
        rules |= {"decay_start": full(start, jnp.int32), "decay_factor": full(factor)}
        chain.append(hf.ExponentialDecayLengthPenalty((start, factor), [3, 70], case.prompt))
    for name, make in (
        ("allowed", hf.SuppressTokensLogitsProcessor),
        ("begin_allowed", lambda t: hf.SuppressTokensAtBeginLogitsProcessor(t, case.prompt)),
    ):
        if used():
            tokens = [int(t) for t in rng.integers(10, V, 10)]
            allowed = np.ones((ROWS, V), bool)
            allowed[:, tokens] = False
            rules[name] = jnp.asarray(pack_mask(allowed))
            chain.append(make(tokens))
    choices = (
        ("temperature", 0.3, 1.7, hf.TemperatureLogitsWarper),
        ("top_h", 0.3, 0.95, hf.TopHLogitsWarper),
        ("top_k", 2, 60, hf.TopKLogitsWarper),
        ("top_p", 0.3, 0.98, hf.TopPLogitsWarper),
        ("min_p", 0.001, 0.1, hf.MinPLogitsWarper),
        ("typical_p", 0.3, 0.98, hf.TypicalLogitsWarper),
        ("epsilon", 0.0005, 0.05, hf.EpsilonLogitsWarper),
        ("eta", 0.0005, 0.05, hf.EtaLogitsWarper),
    )
    for name, least, most, make in choices:
        if used():
            value = float(np.float32(rng.uniform(least, most)))
            value = int(value) if name == "top_k" else value
            filters[name] = full(value, jnp.int32 if name == "top_k" else jnp.float32)
            chain.append(make(value))
    if used():
        settings = settings._replace(renormalize=full(True, bool))
        chain.append(hf.LogitNormalization())
    settings = settings._replace(
        filters=filters_off((ROWS,))._replace(**filters),
        penalties=settings.penalties._replace(**penalties),
        rules=settings.rules._replace(**rules),
    )
    return settings, hf.LogitsProcessorList(chain)


@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(200), marks=pytest.mark.slow)])
def test_all_processors_in_their_order(seeds):
    run = jax.jit(process)
    for seed in seeds:
        case = Case(seed)
        settings, chain = random_chain(case)
        pad = 10 - settings.rules.sequence_bias.shape[1]
        rules = settings.rules._replace(
            sequence_ids=jnp.pad(
                settings.rules.sequence_ids, ((0, 0), (0, pad), (0, 0)), constant_values=-1
            ),
            sequence_bias=jnp.pad(settings.rules.sequence_bias, ((0, 0), (0, pad))),
        )
        ours = np.array(run(case.logits, settings._replace(rules=rules), case.history))
        expected = theirs(chain, case)
        # A row of which nothing is left is NaN with them.
        none = ~np.isfinite(expected).any(axis=1)
        assert (ours[none] == -np.inf).all()
        assert_same(ours[~none], expected[~none])
