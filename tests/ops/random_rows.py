"""Random settings and texts of rows, as ``plain_sampling`` has them and as arrays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from plain_sampling import OFF, Row, Text

from llm_jax.ops.sampling import Filters, History, Penalties, Rules, Settings, off, pack_mask

ROOM = 16
WIDTH = 3
NUMBER = 4


def random_text(rng, vocab_size):
    # Few ids, so that n-grams come again.
    few = rng.integers(0, vocab_size, 4)

    def tokens(least, most):
        return [int(few[i]) for i in rng.integers(0, 4, rng.integers(least, most))]

    return Text(prompt=tokens(1, 6), new=tokens(0, 9), source=tokens(1, 8))


def random_filters(rng):
    filters = {
        "temperature": float(rng.choice([0, 0.5, 0.9, 1, 1.7])),
        "top_k": int(rng.choice([1, 3, 20, 200])),
        "top_p": float(rng.uniform(0.2, 1)),
        "min_p": float(10 ** -rng.uniform(0.5, 3)),
        "typical_p": float(rng.uniform(0.2, 1)),
        "epsilon": float(10 ** -rng.uniform(1, 4)),
        "eta": float(10 ** -rng.uniform(1, 4)),
        "top_h": float(rng.uniform(0.2, 1)),
    }
    return {name: value for name, value in filters.items() if rng.random() < 0.3}


def random_row(rng, text, vocab_size):
    """A row that uses some of all settings."""

    def tokens(number):
        # Some of the text, some of the vocabulary.
        of_all = rng.integers(0, vocab_size, number)
        return [int(rng.choice(text.ids)) if rng.random() < 0.5 else int(t) for t in of_all]

    def sequence():
        length = int(rng.integers(1, WIDTH + 1))
        end = text.ids[-(length - 1) :] if length > 1 and rng.random() < 0.7 else []
        return tokens(length - 1 - len(end)) + end + tokens(1)

    everything = {
        "repetition": float(rng.uniform(0.7, 1.6)),
        "encoder_repetition": float(rng.uniform(0.7, 1.6)),
        "presence": float(rng.uniform(-2, 2)),
        "frequency": float(rng.uniform(-2, 2)),
        "ngram": int(rng.integers(1, 5)),
        "encoder_ngram": int(rng.integers(1, 5)),
        "bias": {t: float(rng.normal()) for t in tokens(3)},
        "suppressed": tokens(3),
        "begin_suppressed": tokens(3),
        "sequences": [(sequence(), float(rng.choice([-np.inf, 1.5, -2.0]))) for _ in range(NUMBER)],
        "forced_first": tokens(1)[0],
        "forced_last": tokens(1)[0],
        "min_new": int(rng.integers(0, 9)),
        "max_new": int(rng.integers(1, 10)),
        "decay_start": int(rng.integers(0, 5)),
        "decay_factor": float(rng.uniform(0.9, 1.4)),
        "renormalize": True,
    }
    used = {name: value for name, value in everything.items() if rng.random() < 0.3}
    return Row(filters=random_filters(rng), stop_ids=tokens(2), **used)


def history_of_texts(texts):
    def padded(rows):
        out = np.full((len(rows), ROOM), 10**6, np.int32)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return out

    def lengths(rows):
        return np.array([len(row) for row in rows], np.int32)

    return History(
        ids=padded([t.ids for t in texts]),
        prompt=lengths([t.prompt for t in texts]),
        length=lengths([t.ids for t in texts]),
        source_ids=padded([t.source for t in texts]),
        source_length=lengths([t.source for t in texts]),
    )


def settings_of_rows(rows, vocab_size):
    settings = jax.tree.map(np.array, off(len(rows), vocab_size, sequences=(NUMBER, WIDTH)))
    filters = {
        name: np.array([(OFF | row.filters)[name] for row in rows]) for name in Filters._fields
    }
    penalties = {name: np.array([getattr(row, name) for row in rows]) for name in Penalties._fields}
    rules = settings.rules
    scalars = ["forced_first", "forced_last", "min_new", "max_new", "decay_start", "decay_factor"]
    of_rows = {name: np.array([getattr(row, name) for row in rows]) for name in scalars}
    for i, row in enumerate(rows):
        for token, bias in row.bias.items():
            rules.bias[i, token] = bias
        for j, (ids, bias) in enumerate(row.sequences):
            rules.sequence_ids[i, j, WIDTH - len(ids) :] = ids
            rules.sequence_bias[i, j] = bias
        rules.stop_ids[i, : len(row.stop_ids)] = row.stop_ids
    masks = {
        "allowed": _mask([row.suppressed for row in rows], vocab_size),
        "begin_allowed": _mask([row.begin_suppressed for row in rows], vocab_size),
    }
    made = settings._replace(
        filters=Filters(**filters),
        penalties=Penalties(**penalties),
        rules=Rules(**(rules._asdict() | of_rows | masks)),
        renormalize=np.array([row.renormalize for row in rows]),
    )
    dtypes = jax.tree.map(lambda a: a.dtype, settings)
    cast: Settings = jax.tree.map(lambda a, dtype: jnp.asarray(a, dtype), made, dtypes)
    return cast


def _mask(suppressed, vocab_size):
    allowed = np.ones((len(suppressed), vocab_size), bool)
    for i, tokens in enumerate(suppressed):
        allowed[i, tokens] = False
    return pack_mask(allowed)
