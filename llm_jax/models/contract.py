"""The interface of every model: pure functions over trees of plain arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import Array

from llm_jax.config import CacheConfig, ModelConfig
from llm_jax.ops.cache import Cache
from llm_jax.types import Batch, Params, Tokens


class Output(NamedTuple):
    """What ``Model.apply`` returns.

    Attributes:
        hidden: [B, T, D], of which ``Model.logits`` makes logits.
        cache: the cache with this call's tokens; None without one.
        aux: float32 scalars to add to the loss, each a sum over the tokens that count in it.
        load: float32 [L, E], how many of these tokens chose each expert, over the layers that have
            experts; None without experts.
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
    """The output projection, for a loss that makes the logits of a part of the vocabulary at once.

    Attributes:
        kernel: [V, D].
        softcap: of the logits; 0 is none.
        bias: [V] or None.
        transform: computes what the kernel multiplies, [..., D], of hidden states [..., D]; a
            pytree of its parameters. None if it is the hidden states.
    """

    kernel: Array
    softcap: float
    bias: Array | None = None
    transform: Callable[[Array], Array] | None = None

    def transformed(self, hidden: Array) -> Array:
        """What the kernel multiplies, [..., D]."""
        return hidden if self.transform is None else self.transform(hidden)


class MakeHead(Protocol):
    def __call__(self, params: Params) -> Head: ...


class Init(Protocol):
    def __call__(self, key: Array) -> Params: ...


class InitCache(Protocol):
    def __call__(
        self,
        batch_size: int,
        length: int,
        *,
        rollback: int = 0,
        encoder_length: int = 0,
        kind: CacheConfig = ...,
    ) -> Cache: ...


def rows_of(tokens: Array, lengths: Array) -> Batch:
    """A batch with one document a row.

    Args:
        tokens: int [B, T], padded on the right.
        lengths: int [B], tokens of each row.
    """
    at = jnp.arange(tokens.shape[1])[None, :]
    real = at < lengths[:, None]
    return Batch(
        inputs=Tokens(tokens, real.astype(jnp.int32), jnp.broadcast_to(at, tokens.shape)),
        targets=tokens,
        loss_mask=real,
    )


class Model(NamedTuple):
    """A model: a bundle of pure functions.

    ``apply`` with ``cache=None`` is the full forward pass, and with ``dropout_key=None`` it is
    deterministic. There are no other modes. With a cache, a call appends 1 to T tokens to each row:
    part of a prompt, a step, or a draft. Padding has segment 0 and is on the right; positions go on
    from the row's length. ``begin`` is static: the call begins its rows, so that attention goes
    over its own tokens and not over all slots. The numbers are the same within rounding, and it is
    faster. A model with an encoder needs it there. Without ``begin``, a row that goes on beyond
    ``ModelConfig.rope_switch`` tokens gets NaN, unless the switch is 0.

    A leaf of ``params`` may be an array or one of the types of ``ops.weights``.

    Attributes:
        init: ``init(key)`` returns initial parameters.
        apply: ``apply(params, batch, cache=None, *, dropout_key=None, begin=False)`` returns an
            ``Output``.
        logits: ``logits(params, hidden)``, hidden [..., D], returns float32 [..., V].
        head: ``head(params)`` returns the ``Head`` of which these logits are made.
        init_cache: ``init_cache(batch_size, length, *, rollback=0, encoder_length=0,
            kind=CacheConfig())`` returns an empty cache. ``rollback``: how many tokens
            ``Cache.truncate`` may take back in layers with a window, and of paged rows.
            ``encoder_length``: tokens of an encoder that there is room for; 0 is
            ``ModelConfig.max_length``. ``kind``: dense or paged, in the compute type or in int8.
        specs: a tree as ``params``, with a ``ParamSpec`` for each parameter.
        config: the architecture.
    """

    init: Init
    apply: Apply
    logits: Logits
    head: MakeHead
    init_cache: InitCache
    specs: Params
    config: ModelConfig

    def __hash__(self) -> int:
        """So that a model can be a static argument, or a static field of a module."""
        return hash((self.apply, self.config))
