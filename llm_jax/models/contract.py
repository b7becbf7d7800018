"""The one interface of every model: a bundle of pure functions over plain dicts."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

from llm_jax.types import Batch, Params


class Output(NamedTuple):
    """hidden: [B, T, D] · cache: the written cache, or None · aux: float32 scalars to add to the
    loss, each a sum over the tokens that count in it · load: float32 [L, E], how many of these
    tokens chose each expert of the layers with experts, or None without.
    """

    hidden: Array
    cache: Any
    aux: dict[str, Array]
    load: Array | None = None


class Apply(Protocol):
    def __call__(
        self, params: Params, batch: Batch, cache: Any = None, *, dropout_key: Array | None = None
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
    def __call__(self, batch_size: int, length: int) -> Any: ...


class Arrange(Protocol):
    def __call__(self, batch: Batch) -> Batch: ...


class Prompt(Protocol):
    def __call__(self, tokens: Array, lengths: Array) -> Batch: ...


def rows_of(tokens: Array, lengths: Array) -> Batch:
    """Rows of one document each, padded on the right. tokens: int [B, T], lengths: int [B], at
    least 1.
    """
    at = jnp.arange(tokens.shape[1])[None, :]
    real = at < lengths[:, None]
    return Batch(tokens, tokens, real, real.astype(jnp.int32), jnp.broadcast_to(at, tokens.shape))


class Model(NamedTuple):
    """init(key) -> params · apply(params, batch, cache=None, *, dropout_key=None) -> Output ·
    logits(params, hidden) [..., D] -> float32 [..., V] · head(params) -> Head, of which these
    logits are made · init_cache(batch_size, length), empty, of another structure than one that
    ``apply`` has written (``KVCache.length``) · specs: the tree of params with a ``ParamSpec`` for
    each.

    A leaf of ``params`` may be an array or one of ``ops.weights``'s types. ``unrolled``: ``apply``
    runs the layers one after another, so that it also takes each layer's parameters apart
    (``params.layout``); otherwise they are scanned over.

    ``zigzag_order(batch)`` is the batch with its positions in the order in which devices that split
    them have equal work; a loss, which is a sum over positions, takes it so. ``apply`` is right
    with either.

    ``head_transform(params, hidden)`` [..., D] -> [..., D] is what the output projection reads;
    ``logits`` does it by itself.

    ``prompt(tokens, lengths)`` is the batch that decoding begins with, given prompts [B, T] padded
    on the right: themselves, or, where an encoder reads them, a start token.

    ``recompute_after``: a row of a cache that grows beyond this many tokens must be read into an
    empty cache anew, since what is before it changes too; 0: never. ``apply`` that goes on from
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
    zigzag_order: Arrange = lambda batch: batch
    head_transform: Logits = lambda params, hidden: hidden
    prompt: Prompt = rows_of
    recompute_after: int = 0
