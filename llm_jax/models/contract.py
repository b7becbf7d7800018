"""The one interface of every model: a bundle of pure functions over plain dicts."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

from llm_jax.ops.cache import Cache
from llm_jax.types import Batch, Params, Tokens


class Output(NamedTuple):
    """hidden: [B, T, D] · cache: the written cache, or None · aux: float32 scalars to add to the
    loss, each a sum over the tokens that count in it · load: float32 [L, E], how many of these
    tokens chose each expert of the layers with experts, or None without.
    """

    hidden: Array
    cache: Cache | None
    aux: dict[str, Array]
    load: Array | None = None


class Apply(Protocol):
    def __call__(
        self,
        params: Params,
        batch: Batch,
        cache: Cache | None = None,
        *,
        dropout_key: Array | None = None,
        begin: bool = False,
    ) -> Output: ...


class Logits(Protocol):
    def __call__(self, params: Params, hidden: Array) -> Array: ...


class Head(NamedTuple):
    """The output projection for a loss that goes over the vocabulary in chunks. kernel: [V, D];
    softcap: as in the logits; bias: [V].
    """

    kernel: Array
    softcap: float
    bias: Array | None = None


class MakeHead(Protocol):
    def __call__(self, params: Params) -> Head: ...


class Init(Protocol):
    def __call__(self, key: Array) -> Params: ...


class InitCache(Protocol):
    def __call__(
        self, batch_size: int, length: int, *, rollback: int = 0, encoder_length: int = 0
    ) -> Cache: ...


class ZigzagOrder(Protocol):
    def __call__(self, batch: Batch) -> Batch: ...


class PrefillBatch(Protocol):
    def __call__(self, tokens: Array, lengths: Array) -> Batch: ...


def rows_of(tokens: Array, lengths: Array) -> Batch:
    """Rows of one document each, padded on the right. tokens: int [B, T], lengths: int [B], at
    least 1.
    """
    at = jnp.arange(tokens.shape[1])[None, :]
    real = at < lengths[:, None]
    return Batch(
        inputs=Tokens(tokens, real.astype(jnp.int32), jnp.broadcast_to(at, tokens.shape)),
        targets=tokens,
        loss_mask=real,
    )


class Model(NamedTuple):
    """init(key) -> params · apply(params, batch, cache=None, *, dropout_key=None, begin=False) ->
    Output · logits(params, hidden) [..., D] -> float32 [..., V] · head(params) -> Head, of which
    these logits are made · init_cache(batch_size, length, *, rollback=0, encoder_length=0), empty ·
    specs: the tree of params with a ``ParamSpec`` for each.

    With a cache, a call appends 1 to T tokens to each row: part of a prompt, a step, or a draft.
    Padding has segment 0 and is on the right; positions go on from the row's length. ``begin``
    (static) says that the call begins its rows, so that attention goes over its own tokens and not
    over all slots: the same numbers within rounding, and faster. A model with an encoder needs it
    there. ``init_cache``: ``rollback`` is how many tokens ``Cache.truncate`` may take back where
    there are windows; ``encoder_length`` is for how many tokens of an encoder there is room, 0 for
    ``ModelConfig.max_length``.

    A leaf of ``params`` may be an array or one of ``ops.weights``'s types. ``unrolled``: ``apply``
    runs the layers one after another, so that it also takes each layer's parameters apart
    (``params.layout``); otherwise they are scanned over.

    ``zigzag_order(batch)`` is the batch with its positions in the order in which devices that split
    them have equal work; a loss, which is a sum over positions, takes it so. ``apply`` is right
    with either.

    ``head_transform(params, hidden)`` [..., D] -> [..., D] is what the output projection reads;
    ``logits`` does it by itself.

    ``prefill_batch(tokens, lengths)`` is the batch that decoding begins with, given prompts [B, T]
    padded on the right: themselves, or, where an encoder reads them, a start token.

    ``recompute_after``: a row of a cache that grows beyond this many tokens must be read anew, from
    its beginning, since what is before it changes too; 0: never. ``apply`` that goes on from
    such a row gives it NaN, there and from there on.

    ``cache is None`` is the full forward pass; ``dropout_key is None`` is deterministic. There are
    no other modes.
    """

    init: Init
    apply: Apply
    logits: Logits
    head: MakeHead
    init_cache: InitCache
    specs: Params
    unrolled: bool = False
    zigzag_order: ZigzagOrder = lambda batch: batch
    head_transform: Logits = lambda params, hidden: hidden
    prefill_batch: PrefillBatch = rows_of
    recompute_after: int = 0
