"""A call of every public function of ``llm_jax.ops``, for the walk of ``test_ops_walk.py``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax import ops
from llm_jax.ops.sampling import (
    History,
    StopTable,
    TokenBytes,
    filters_off,
    off,
    stop_table,
    token_bytes_table,
)

B, T, N, K, H, D, V, E = 4, 6, 4, 2, 4, 8, 12, 4


class Case(NamedTuple):
    """A call.

    Attributes:
        run: the call; its results have rows first, or are sums over rows and have no axis.
        rows: arguments whose first axis is rows; numbers in float64 are cast.
        shared: arguments of all rows.
        smooth: whether it has derivatives with respect to its arguments of numbers.
    """

    run: Callable[..., Any]
    rows: tuple
    shared: tuple = ()
    smooth: bool = True

    @property
    def arguments(self) -> tuple:
        return (*self.rows, *self.shared)


_RNG = np.random.default_rng(7)


def _normal(*shape: int) -> np.ndarray:
    # Few digits, which all dtypes hold: no choice hangs on rounding.
    return np.round(_RNG.normal(size=shape) * 64) / 64


X = _normal(B, T, D)
Q = _normal(B, T, N, H)
KEYS = _normal(B, T, K, H)
VALUES = _normal(B, T, K, H)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2]] * (B // 2), np.int32)
PLACES = np.array([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]] * (B // 2), np.int32)
TARGETS = _RNG.integers(0, V, (B, T)).astype(np.int32)
WEIGHTS = np.array([[1, 0, 0.5, 2, 0, 1], [0, 1, 1, -1, 0.25, 0]] * (B // 2))
LOGITS = _normal(B, T, V)
# Every logit of a row differs from all others, so that no derivative is taken at a corner.
DISTINCT = np.stack([_RNG.permutation(V) for _ in range(B)]) / 4.0
SEEDS = np.arange(B, dtype=np.int32) * 5
MARKED = np.array([[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 1, 1]] * (B // 2), bool)


def _keys(seeds: jax.Array) -> jax.Array:
    return ops.row_keys(seeds, jnp.zeros_like(seeds))


def _attention(q, k, v, segments, bias, sinks):
    mask = ops.Mask(window=4, q_segments=segments, k_segments=segments)
    return ops.attention(q, k, v, mask, bias=bias, sinks=sinks, softcap=3.0)


def _blockwise(q, k, v, segments, bias, sinks):
    mask = ops.Mask(window=4, q_segments=segments, k_segments=segments)
    return ops.blockwise_attention(q, k, v, mask, bias=bias, sinks=sinks, softcap=3.0, block=4)


def _attention_dropout(q, k, v, seeds):
    def row(q, k, v, key):
        dropped = ops.attention(q[None], k[None], v[None], dropout=0.4, dropout_key=key)
        return dropped[0]

    return jax.vmap(row)(q, k, v, _keys(seeds))


def _dropout(x, seeds):
    return jax.vmap(lambda row, key: ops.dropout(row, 0.4, key))(x, _keys(seeds))


def _chunked(hidden, targets, weights, kernel, bias):
    return ops.chunked_cross_entropy(
        hidden,
        kernel,
        targets,
        weights,
        chunk=5,
        bias=bias,
        softcap=4.0,
        z_loss=0.1,
        label_smoothing=0.1,
    )


def _cross_entropy(logits, targets, weights):
    return ops.cross_entropy(logits, targets, weights, z_loss=0.1, label_smoothing=0.1)


def _experts(x, gate, up, down):
    routing = ops.route(x[..., :E].reshape(-1, E), 2)
    flat = x.reshape(-1, D)
    experts = ops.Experts(gate, up, down)
    return ops.apply_experts(flat, routing, experts, activation="silu").reshape(x.shape)


def _route(logits):
    routing = ops.route(logits, 2)
    return routing.weights, routing.scores


def _balance(logits, counted):
    return ops.balance_loss(ops.route(logits, 2), counted)


def _dense(segments):
    return ops.dense(ops.Mask(window=3, q_segments=segments, k_segments=segments), T, T)


def _lstm(gates, hidden, cell, segments, recurrent):
    begins = ops.segment_begins(segments)
    state = ops.LstmState(hidden, cell)
    return ops.lstm(gates, recurrent, state, begins=begins, real=segments != 0)


_FOR_ATTENTION = ((Q, KEYS, VALUES, SEGMENTS, _normal(B, N, T, T)), (_normal(N),))
_KERNELS = (_normal(E, D, D), _normal(E, D, D), _normal(E, D, D))


def _angles(at):
    return ops.rope_angles(at, ops.rope_frequencies(H)[0])


def _axial(at):
    frequencies = ops.axial_frequencies((2, 2, 2))
    return ops.multi_axis_angles(jnp.stack([at, 2 * at, at * at], axis=-1), frequencies, (2, 2, 2))


_ALONE = {
    # What these return depends on numbers of Python alone.
    "alibi_slopes": lambda x: x * jnp.asarray(ops.alibi_slopes(D), x.dtype)[None, None, :],
    "grid_positions": lambda x: x + ops.grid_positions(2, 3)[None, :, :1].astype(x.dtype),
    "axial_frequencies": lambda x: (
        x * jnp.asarray(ops.axial_frequencies((2, 2, 4)), x.dtype)[None, None, :]
    ),
    "rope_frequencies": lambda x: (
        x * jnp.asarray(ops.rope_frequencies(2 * D)[0], x.dtype)[None, None, :]
    ),
}
# The texts of four rows with their lengths, of which each two differ.
TEXTS = np.array([[3, 4, 3, 4, 3, 0], [5, 5, 5, 0, 0, 0]] * (B // 2), np.int32)
LENGTHS = np.array([5, 3] * (B // 2), np.int32)
PAIRS = np.array([[[3, 4], [-1, 5]], [[5, 5], [-1, -1]]] * (B // 2), np.int32)
BIASES = np.array([[0.5, -0.25], [1.0, 0.75]] * (B // 2))
STOP_IDS = np.array([[2, -1], [7, 2]] * (B // 2), np.int32)
MASKS = np.array([[0b101101], [0b111111111111]] * (B // 2), np.uint32)


def _history(ids: jax.Array, lengths: jax.Array) -> History:
    return History(ids, jnp.minimum(lengths, 2), lengths, ids, lengths)


def _of_history(name: str, **settings: Any) -> Callable[..., Any]:
    def run(logits, ids, lengths, *rest):
        return getattr(ops, name)(logits, *rest, history=_history(ids, lengths), **settings)

    return run


def _warp(logits, temperature, k, p):
    filters = filters_off(logits.shape[:1])._replace(temperature=temperature, top_k=k, typical_p=p)
    return ops.warp_logits(logits, filters)


def _settings(logits, temperature, penalty):
    settings = off(*logits.shape)
    filters = settings.filters._replace(temperature=temperature)
    penalties = settings.penalties._replace(repetition=penalty)
    return settings._replace(filters=filters, penalties=penalties)


def _process(logits, ids, lengths, temperature, penalty):
    settings = _settings(logits, temperature, penalty)
    return ops.process(logits, settings, _history(ids, lengths))


_STOPS = stop_table([["ab"], ["c", "da"]] * (B // 2))
_BYTES = token_bytes_table([b"abcd"[i % 4 : i % 4 + i % 3] for i in range(V)])


def _advance(tokens, following, held, flat, offsets):
    state = jnp.zeros_like(tokens)
    return ops.advance_stops(state, tokens, StopTable(following, held), TokenBytes(flat, offsets))


_FILTERS = {
    name: Case(partial(lambda name, z: getattr(ops, name)(z, 0.7), name), (DISTINCT,), (), False)
    for name in ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
}
_OF_HISTORIES = {
    "encoder_no_repeat_ngram": _of_history("encoder_no_repeat_ngram", n=2),
    "no_repeat_ngram": _of_history("no_repeat_ngram", n=2),
    "watermark": _of_history("watermark", bias=1.5, ratio=0.5, key=np.uint32(3), width=np.int32(2)),
}
_RULES = {
    **{
        name: Case(run, (DISTINCT, TEXTS, LENGTHS), (), name == "watermark")
        for name, run in _OF_HISTORIES.items()
    },
    "advance_stops": Case(
        _advance, (TARGETS[:, 0], *map(np.asarray, _STOPS)), tuple(map(np.asarray, _BYTES)), False
    ),
    "all_banned": Case(ops.all_banned, (DISTINCT,), (), False),
    "allow_tokens": Case(ops.allow_tokens, (DISTINCT, MASKS), (), False),
    "contrastive_scores": Case(
        lambda p, h, c, m: ops.contrastive_scores(p, h, c, m, 0.4),
        (LOGITS[:, 0, :3], X[:, :3], X[:, 2:], MARKED[:, 2:]),
    ),
    "force_token": Case(
        lambda z, now: ops.force_token(z, 4, now), (DISTINCT, MARKED[:, 0]), (), False
    ),
    "guide": Case(lambda a, b: ops.guide(a, b, 1.5), (DISTINCT, DISTINCT[::-1])),
    "length_decay": Case(
        lambda z, stops, n: ops.length_decay(z, stops, n, 1, 1.25), (DISTINCT, STOP_IDS, LENGTHS)
    ),
    "logit_bias": Case(ops.logit_bias, (DISTINCT, LOGITS[:, 0])),
    "min_new_tokens": Case(
        lambda z, stops, n: ops.min_new_tokens(z, stops, n, 4),
        (DISTINCT, STOP_IDS, LENGTHS),
        (),
        False,
    ),
    "process": Case(
        _process,
        (DISTINCT, TEXTS, LENGTHS, np.array([0.5, 1, 2, 0]), np.array([1, 1.5, 1, 2])),
        (),
        False,
    ),
    "remove_invalid": Case(ops.remove_invalid, (DISTINCT,)),
    "renormalize": Case(ops.renormalize, (DISTINCT,)),
    "sequence_bias": Case(
        lambda z, ids, n, pairs, bias: ops.sequence_bias(z, pairs, bias, _history(ids, n)),
        (DISTINCT, TEXTS, LENGTHS, PAIRS, BIASES),
    ),
    "token_logprobs": Case(
        lambda z, t: tuple(ops.token_logprobs(z, t, 3)), (DISTINCT, TARGETS[:, 0])
    ),
    "unpack_mask": Case(lambda words: ops.unpack_mask(words, V), (MASKS,), (), False),
    "warp_logits": Case(
        _warp,
        (DISTINCT, np.array([0.5, 1, 2, 0]), np.array([0, 3, 5, 2]), np.array([1, 0.7, 0.9, 1])),
        (),
        False,
    ),
}
_COUNTS = _RNG.integers(0, 3, (B, V)).astype(np.int32)
_PENALTIES = {
    name: Case(partial(getattr(ops, name), penalty=1.5), (DISTINCT, _COUNTS))
    for name in (
        "encoder_repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
    )
}
# Caches are made, written and read by models; tests/ops/test_cache.py has their calls.
OF_CACHES = {"chunk_of", "key_value_cache", "latent_cache", "recurrent_cache"}

CASES: dict[str, Case] = {
    **{name: Case(run, (X,)) for name, run in _ALONE.items()},
    **_PENALTIES,
    **_FILTERS,
    **_RULES,
    "alibi_bias": Case(lambda at, slopes: ops.alibi_bias(slopes, at, at), (PLACES,), (_normal(N),)),
    "gated": Case(lambda a, b: ops.gated(a, b, activation="gelu", clamp=5.0), (X, X[::-1])),
    "lstm": Case(
        _lstm,
        (_normal(B, T, 4, H), _normal(B, H), _normal(B, H), SEGMENTS),
        (_normal(H, 4, H),),
    ),
    "lstm_cell": Case(ops.lstm_cell, (_normal(B, T, 4, H), VALUES[:, :, 0])),
    "segment_begins": Case(ops.segment_begins, (SEGMENTS,), (), False),
    "linear": Case(ops.linear, (X,), (_normal(D, 3), _normal(3))),
    "multi_axis_angles": Case(_axial, (PLACES,), (), False),
    "rope_angles": Case(_angles, (PLACES,), (), False),
    "rope_interleaved": Case(ops.rope_interleaved, (Q, PLACES)),
    "rotate": Case(lambda x, at: ops.rotate(x, *_angles(at)), (Q, PLACES)),
    "rotate_interleaved": Case(lambda x, at: ops.rotate_interleaved(x, *_angles(at)), (Q, PLACES)),
    "scale_temperature": Case(ops.scale_temperature, (DISTINCT, np.array([0.5, 1, 2, 3.0]))),
    "sinusoidal_2d": Case(
        lambda at: ops.sinusoidal_2d(jnp.stack([at, 2 * at], axis=-1), D), (PLACES,), (), False
    ),
    "token_counts": Case(lambda t, m: ops.token_counts(t, m, V), (TARGETS, MARKED), (), False),
    "write_cache": Case(ops.write_cache, (KEYS, VALUES[:, :2], np.array([0, 1, 4, 2], np.int32))),
    "apply_experts": Case(_experts, (X,), _KERNELS),
    "attention": Case(_attention, *_FOR_ATTENTION),
    "attention, dropout": Case(_attention_dropout, (Q, KEYS, VALUES, SEEDS)),
    "attention, dot_product": Case(
        lambda q, k, v: ops.attention(q, k, v, backend="dot_product"), (Q, KEYS, VALUES)
    ),
    "balance_loss": Case(_balance, (X[..., :E], MARKED.astype(np.float64))),
    "blockwise_attention": Case(_blockwise, *_FOR_ATTENTION),
    "categorical": Case(lambda s, z: ops.categorical(_keys(s), z), (SEEDS, DISTINCT), (), False),
    "chunked_cross_entropy": Case(_chunked, (X, TARGETS, WEIGHTS), (_normal(V, D), _normal(V))),
    "cross_entropy": Case(_cross_entropy, (LOGITS, TARGETS, WEIGHTS)),
    "dense": Case(_dense, (SEGMENTS,), (), False),
    "dropout": Case(_dropout, (X, SEEDS)),
    "filter_logits": Case(
        lambda z, t, k, p: ops.filter_logits(z, t, k, p, 0.01),
        (DISTINCT, np.array([0.5, 1, 2, 0]), np.array([0, 3, 5, 2]), np.array([1, 0.7, 0.9, 1])),
        (),
        False,
    ),
    "first_token": Case(ops.first_token, (X, MARKED)),
    "last_token": Case(ops.last_token, (X, MARKED)),
    "gated_mlp": Case(ops.gated_mlp, (X,), (_normal(D, 3), _normal(D, 3), _normal(3, D))),
    "greedy": Case(ops.greedy, (DISTINCT,), (), False),
    "layer_norm": Case(ops.layer_norm, (X,), (_normal(D), _normal(D))),
    "mean_pool": Case(ops.mean_pool, (X, MARKED)),
    "min_p": Case(lambda z: ops.min_p(z, 0.2), (DISTINCT,), (), False),
    "relative_bias": Case(
        lambda at, table: ops.relative_bias(table, at, at, causal=False, max_distance=5),
        (PLACES,),
        (_normal(8, N),),
    ),
    "rms_norm": Case(ops.rms_norm, (X,), (_normal(D),)),
    "rope": Case(lambda x, at: ops.rope(x, at, scaling="linear", factor=2.0), (Q, PLACES)),
    "route": Case(_route, (X[..., :E],)),
    "row_keys": Case(
        lambda s, at: jax.random.key_data(ops.row_keys(s, at)), (SEEDS, SEEDS), (), False
    ),
    "segment_lengths": Case(ops.segment_lengths, (SEGMENTS, PLACES), (), False),
    "sinusoidal": Case(lambda at: ops.sinusoidal(at, D), (PLACES,), (), False),
    "smoothed_nll": Case(lambda z, t: ops.smoothed_nll(z, t, 0.1), (LOGITS, TARGETS)),
    "soft_cap": Case(lambda x: ops.soft_cap(x, 2.0), (X,)),
    "top_k": Case(lambda z: ops.top_k(z, 3), (DISTINCT,), (), False),
    "top_p": Case(lambda z: ops.top_p(z, 0.8), (DISTINCT,), (), False),
    "within_segments": Case(ops.within_segments, (SEGMENTS,), (), False),
    "z_loss": Case(ops.z_loss, (LOGITS,)),
}
