"""Filters of logits [..., V]: top-k, top-p, min-p, typical, epsilon, eta and top-h.

Each removes tokens: their logits become -inf, and the others stay as they are. Edge cases follow
Hugging Face: ties at the k-th logit are all kept; top-p keeps the smallest set of most likely
tokens whose mass reaches p, at least one; ties are ordered by token id; a filter that is off
changes nothing. ``keep`` is the number of tokens that a filter leaves at least: 1, or more for
beams.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from llm_jax.ops.meshes import explicit_spec, place_automatically, vary_together
from llm_jax.ops.precision import accumulator, widened
from llm_jax.ops.sampling.arguments import Setting, per_row, token_ids, whole_per_row
from llm_jax.ops.sampling.draws import greedy
from llm_jax.ops.sampling.sums import in_parts, log_softmax, row_sum, softmax
from llm_jax.ops.sampling.thresholds import first_of, largest, ordered_keys, threshold

# top-h looks at no more tokens than these, as in the paper's code and in transformers.
TOP_H_TOKENS = 100


def top_k(logits: Array, k: Setting, *, keep: int = 1) -> Array:
    """-inf below each row's k-th largest logit.

    Args:
        logits: [..., V].
        k: int, or int [...] for each row; 0 or at least V is off.
        keep: see above; a smaller k counts as this.

    Raises:
        ValueError: k is not an integer, or of another shape.
    """

    def run(logits: Array, k: Array) -> Array:
        logits, k = vary_together((logits, k))
        keys = ordered_keys(logits)
        at_most = jnp.maximum(k, keep).astype(jnp.int32)
        kth = threshold(keys, jnp.ones_like(keys, jnp.int32), at_most)
        return jnp.where((keys >= kth) | (k <= 0), logits, -jnp.inf)

    return place_automatically(run, explicit_spec(logits), logits, whole_per_row("k", k, logits))


def top_p(logits: Array, p: Setting, *, keep: int = 1) -> Array:
    """-inf outside the smallest set of likely tokens with mass >= p.

    Args:
        logits: [..., V].
        p: a number, or [...] for each row; 1 is off.
        keep: see above.
    """

    def run(logits: Array, p: Array) -> Array:
        logits, p = vary_together((logits, p))
        mass = in_parts(softmax(jax.lax.stop_gradient(logits)))
        target = in_parts(p.astype(accumulator(logits)))
        keys = ordered_keys(logits)
        last = threshold(keys, mass, target)
        tied = keys == last
        above = jnp.sum(jnp.where(keys > last, mass, 0), axis=-1, keepdims=True, dtype=mass.dtype)
        each = jnp.max(jnp.where(tied, mass, 0), axis=-1, keepdims=True)
        # Of the tokens at the threshold, those before which the mass is below p.
        room = -((above - target) // jnp.maximum(each, 1))
        room = jnp.clip(room, 1, logits.shape[-1]).astype(jnp.int32)
        number = jnp.sum(tied, axis=-1, keepdims=True, dtype=jnp.int32)
        tied = jax.lax.cond(jnp.any(number > room), first_of, lambda tied, _: tied, tied, room)
        kept = (keys > last) | tied | (p >= 1)
        return jnp.where(_with_most_likely(kept, logits, keep), logits, -jnp.inf)

    return place_automatically(run, explicit_spec(logits), logits, per_row("p", p, logits))


def min_p(logits: Array, p: Setting, *, keep: int = 1) -> Array:
    """-inf for tokens less likely than p times the most likely one.

    Args:
        logits: [..., V].
        p: a number, or [...] for each row; 0 is off.
        keep: see above.
    """

    def run(logits: Array, p: Array) -> Array:
        scores = widened(logits)
        # What a token's probability is of the largest one.
        share = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        kept = (share >= p) | (p <= 0)
        return jnp.where(_with_most_likely(kept, logits, keep), logits, -jnp.inf)

    return place_automatically(run, explicit_spec(logits), logits, per_row("p", p, logits))


def typical_p(logits: Array, mass: Setting, *, keep: int = 1) -> Array:
    """-inf outside the smallest set of typical tokens with this mass (Meister et al. 2022).

    A token is the more typical, the nearer its -log p is to the entropy of the distribution. The
    most likely token may be removed.

    Args:
        logits: [..., V].
        mass: a number, or [...] for each row; 1 is off.
        keep: see above.
    """

    def run(logits: Array, mass: Array) -> Array:
        logits, mass = vary_together((logits, mass))
        scores, probabilities, entropy = _surprise(logits)
        distance = jnp.abs(scores + entropy)
        keys = ordered_keys(-distance)
        parts = in_parts(jax.lax.stop_gradient(probabilities))
        last = threshold(keys, parts, in_parts(mass.astype(probabilities.dtype)))
        kept = (keys >= last) | (mass >= 1)
        return jnp.where(_with_most_likely(kept, -distance, keep), logits, -jnp.inf)

    return place_automatically(run, explicit_spec(logits), logits, per_row("mass", mass, logits))


def epsilon_cutoff(logits: Array, epsilon: Setting, *, keep: int = 1) -> Array:
    """-inf for tokens with a probability below epsilon; the most likely token stays.

    Args:
        logits: [..., V].
        epsilon: a number, or [...] for each row; 0 is off.
        keep: see above; ties are all kept.
    """

    def run(logits: Array, epsilon: Array) -> Array:
        kept = (softmax(logits) >= epsilon) | (epsilon <= 0)
        return jnp.where(kept | _at_least_the(logits, keep), logits, -jnp.inf)

    setting = per_row("epsilon", epsilon, logits)
    return place_automatically(run, explicit_spec(logits), logits, setting)


def eta_cutoff(logits: Array, epsilon: Setting, *, keep: int = 1) -> Array:
    """-inf for tokens with a probability below min(epsilon, sqrt(epsilon) exp(-entropy)); the most
    likely token stays (Hewitt et al. 2022).

    Args:
        logits: [..., V].
        epsilon: a number, or [...] for each row; 0 is off.
        keep: see above; ties are all kept.
    """

    def run(logits: Array, epsilon: Array) -> Array:
        _, probabilities, entropy = _surprise(logits)
        least = jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy))
        kept = (probabilities >= least) | (epsilon <= 0)
        return jnp.where(kept | _at_least_the(logits, keep), logits, -jnp.inf)

    setting = per_row("epsilon", epsilon, logits)
    return place_automatically(run, explicit_spec(logits), logits, setting)


def top_h(logits: Array, h: Setting) -> Array:
    """-inf outside the most likely tokens whose part of the entropy is at most h.

    The entropy is that of the 100 most likely tokens; of the terms -p log p, from the most likely
    token on, as many are taken as sum to h times the entropy at most. The first token stays
    (as in transformers).

    Args:
        logits: [..., V].
        h: a number, or [...] for each row; 1 is off.
    """

    def run(logits: Array, h: Array) -> Array:
        best, ids = largest(logits, TOP_H_TOKENS)
        scores, probabilities, entropy = _surprise(best)
        terms = jnp.where(probabilities > 0, -probabilities * scores, 0.0)
        taken = jnp.cumsum(terms, axis=-1) <= h * entropy
        taken = taken.at[..., 0].set(True)
        none = jnp.zeros(logits.shape, bool)
        kept = jnp.put_along_axis(none, ids, taken, axis=-1, inplace=False)
        return jnp.where(kept | (h >= 1), logits, -jnp.inf)

    return place_automatically(run, explicit_spec(logits), logits, per_row("h", h, logits))


def _with_most_likely(kept: Array, scores: Array, keep: int) -> Array:
    """``kept``, which has the best token, and the ``keep`` best by the scores [..., V]."""
    return kept if keep == 1 else kept | most_likely(scores, keep)


def most_likely(logits: Array, keep: int) -> Array:
    """bool [..., V]: the ``keep`` largest of each row, the lowest id among equals."""
    if keep == 1:
        return token_ids(logits) == greedy(logits)[..., None]
    _, ids = largest(logits, keep)
    none = jnp.zeros(logits.shape, bool)
    every = jnp.ones(ids.shape, bool)
    return jnp.put_along_axis(none, ids, every, axis=-1, inplace=False)


def _at_least_the(logits: Array, keep: int) -> Array:
    """bool [..., V]: the logits of at least the ``keep``-th largest, with all its ties."""
    if keep == 1:
        return logits >= jnp.max(logits, axis=-1, keepdims=True)
    best, _ = largest(logits, keep)
    return logits >= best[..., -1:]


def _surprise(logits: Array) -> tuple[Array, Array, Array]:
    """Log-probabilities and probabilities [..., V], and the entropy [..., 1] in nats."""
    scores = log_softmax(logits)
    probabilities = jnp.exp(scores)
    # 0 log 0 is 0.
    terms = jnp.where(probabilities > 0, probabilities * scores, 0.0)
    return scores, probabilities, -row_sum(terms)
