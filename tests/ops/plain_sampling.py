"""What each sampler and rule means, for one row, in plain numpy and float64: the definitions that
``llm_jax.ops.sampling`` is tested against.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

NONE = -np.inf


def softmax(z):
    if np.max(z) == NONE:
        return np.zeros(len(z))
    e = np.exp(z - np.max(z))
    return e / e.sum()


def entropy(p):
    return -sum(x * np.log(x) for x in p if x > 0)


def only(z, kept):
    out = np.full(len(z), NONE)
    kept = list(kept)
    out[kept] = z[kept]
    return out


def by_falling(x):
    return np.argsort(-x, kind="stable")


def at_least_the(z, keep):
    return z >= np.sort(z)[::-1][min(keep, len(z)) - 1]


def top_k(z, k, keep=1):
    if k <= 0:
        return z
    return np.where(at_least_the(z, max(k, keep)), z, NONE)


def top_p(z, p, keep=1):
    if p >= 1:
        return z
    mass = 0.0
    kept = []
    for token in by_falling(z):
        if mass >= p and len(kept) >= keep:
            break
        kept.append(token)
        mass += softmax(z)[token]
    return only(z, kept)


def min_p(z, p, keep=1):
    chances = softmax(z)
    kept = chances >= p * chances.max()
    kept[by_falling(z)[:keep]] = True
    return np.where(kept, z, NONE)


def typical_p(z, mass, keep=1):
    if mass >= 1:
        return z
    chances = softmax(z)
    with np.errstate(divide="ignore"):
        distance = np.abs(-np.log(chances) - entropy(chances))
    order = np.argsort(distance, kind="stable")
    reached = np.flatnonzero(np.cumsum(chances[order]) >= mass)
    last = order[reached[0]] if len(reached) else order[-1]
    kept = distance <= distance[last]
    kept[order[:keep]] = True
    return np.where(kept, z, NONE)


def epsilon(z, cutoff, keep=1):
    return np.where((softmax(z) >= cutoff) | at_least_the(z, keep), z, NONE)


def eta(z, cutoff, keep=1):
    chances = softmax(z)
    least = min(cutoff, np.sqrt(cutoff) * np.exp(-entropy(chances)))
    return np.where((chances >= least) | at_least_the(z, keep), z, NONE)


def top_h(z, h, keep=1):
    del keep
    if h >= 1:
        return z
    best = by_falling(z)[:100]
    chances = softmax(z[best])
    whole = entropy(chances)
    kept = [best[0]]
    for i in range(1, len(best)):
        if entropy(chances[: i + 1]) > h * whole:
            break
        kept.append(best[i])
    return only(z, kept)


FILTERS = {
    "top_k": top_k,
    "top_p": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "epsilon": epsilon,
    "eta": eta,
    "top_h": top_h,
}
OFF = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon": 0.0,
    "eta": 0.0,
    "top_h": 1.0,
}
# As published: transformers' ``_get_logits_processor`` and vLLM's ``Sampler``, whose own are the
# first three.
FILTER_ORDER = {
    "hf": ["top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon", "eta"],
    "vllm": ["min_p", "top_k", "top_p", "top_h", "typical_p", "epsilon", "eta"],
}


def filtered(z, settings, order="hf", keep=1):
    settings = OFF | settings
    if settings["temperature"] == 0:
        return z
    z = z / settings["temperature"]
    for name in FILTER_ORDER[order]:
        z = FILTERS[name](z, settings[name], keep)
    return z


@dataclass
class Text:
    """A row's history: ids of the prompt and of the new text, and the source."""

    prompt: list
    new: list
    source: list

    @property
    def ids(self):
        return self.prompt + self.new


@dataclass
class Row:
    """The settings of a row; all off."""

    filters: dict = field(default_factory=dict)
    repetition: float = 1.0
    encoder_repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    ngram: int = 0
    encoder_ngram: int = 0
    bias: dict = field(default_factory=dict)
    suppressed: list = field(default_factory=list)
    begin_suppressed: list = field(default_factory=list)
    sequences: list = field(default_factory=list)
    forced_first: int = -1
    forced_last: int = -1
    stop_ids: list = field(default_factory=list)
    min_new: int = 0
    max_new: int = 1000
    decay_start: int = 0
    decay_factor: float = 1.0
    renormalize: bool = False


def add_bias(z, row, text):
    for token, bias in row.bias.items():
        z[token] += bias
    return z


def add_sequence_bias(z, row, text):
    for ids, bias in row.sequences:
        before = list(ids[:-1])
        if text.ids[len(text.ids) - len(before) :] == before:
            z[ids[-1]] += bias
    return z


def repeat(z, tokens, penalty):
    for token in set(tokens):
        z[token] = z[token] * penalty if z[token] < 0 else z[token] / penalty
    return z


def repetition(z, row, text):
    return repeat(z, text.ids, row.repetition)


def encoder_repetition(z, row, text):
    return repeat(z, text.source, 1 / row.encoder_repetition)


def frequency_and_presence(z, row, text):
    for token in set(text.new):
        z[token] -= row.frequency * text.new.count(token) + row.presence
    return z


def ban_ngrams(z, ids, text, n):
    if n == 0 or len(text.ids) < n - 1:
        return z
    end = text.ids[len(text.ids) - (n - 1) :]
    for i in range(len(ids) - n + 1):
        if ids[i : i + n - 1] == end:
            z[ids[i + n - 1]] = NONE
    return z


def ngram(z, row, text):
    return ban_ngrams(z, text.ids, text, row.ngram)


def encoder_ngram(z, row, text):
    return ban_ngrams(z, text.source, text, row.encoder_ngram)


def min_new(z, row, text):
    if len(text.new) < row.min_new:
        z[row.stop_ids] = NONE
    return z


def force(z, token):
    z[:] = NONE
    z[token] = 0.0
    return z


def forced_first(z, row, text):
    return force(z, row.forced_first) if row.forced_first >= 0 and not text.new else z


def forced_last(z, row, text):
    at_last = len(text.new) == row.max_new - 1
    return force(z, row.forced_last) if row.forced_last >= 0 and at_last else z


def decay(z, row, text):
    past = len(text.new) - row.decay_start
    for token in set(row.stop_ids) if past > 0 else ():
        if np.isfinite(z[token]):
            z[token] += abs(z[token]) * (row.decay_factor**past - 1)
    return z


def allowed(z, row, text):
    z[row.suppressed] = NONE
    return z


def begin_allowed(z, row, text):
    if len(text.new) == (row.forced_first >= 0):
        z[row.begin_suppressed] = NONE
    return z


HF = [
    add_bias,
    add_sequence_bias,
    encoder_repetition,
    repetition,
    frequency_and_presence,
    ngram,
    encoder_ngram,
    min_new,
    forced_first,
    forced_last,
    decay,
    allowed,
    begin_allowed,
]
VLLM = [
    allowed,
    begin_allowed,
    add_sequence_bias,
    min_new,
    add_bias,
    repetition,
    frequency_and_presence,
    encoder_repetition,
    ngram,
    encoder_ngram,
    forced_first,
    forced_last,
    decay,
]


def processed(z, row, text, order="hf", keep=1):
    z = np.array(z, np.float64)
    for rule in {"hf": HF, "vllm": VLLM}[order]:
        z = rule(z, row, text)
    z = filtered(z, row.filters, order, keep)
    if row.filters.get("temperature") == 0:
        z = only(z, [int(np.argmax(z))])
    if row.renormalize and np.max(z) > NONE:
        z = z - np.max(z) - np.log(np.exp(z - np.max(z)).sum())
    return z
