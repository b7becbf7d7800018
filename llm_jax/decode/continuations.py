"""Log-likelihoods of given continuations of prompts; a prompt with several is read once.

``score_shared`` reads prompts into a cache, gives each continuation a row of it (``Cache.gather``)
and extends the rows. ``score_whole`` is the full forward pass over a prompt with its continuation:
for prompts with a single one, and the reference of the former.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from llm_jax.decode.continuation_batches import (
    Alone,
    Pair,
    Shared,
    pair_batches,
    prompt_batches,
    with_several,
)
from llm_jax.decode.finite import cause
from llm_jax.decode.inputs import checked_ids, padded_rows
from llm_jax.decode.placement import place_cache
from llm_jax.decode.programs import extend, prefill
from llm_jax.decode.prompts import prefill_batch
from llm_jax.host_memory import allocating
from llm_jax.models import Model, rows_of
from llm_jax.sharding import batch_ways
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params

# Places whose logits are in memory at once.
_CHUNK = 32


class TokenLogprobs(NamedTuple):
    """Of tokens at their places.

    Attributes:
        logprobs: float32 [B, C], nats.
        greedy: bool [B, C], whether no token is more likely there.
    """

    logprobs: Array
    greedy: Array


class Score(NamedTuple):
    """Of one continuation.

    Attributes:
        logprobs: float32 [n], nats of each token.
        greedy: whether greedy decoding would write it.
    """

    logprobs: np.ndarray
    greedy: bool

    @property
    def total(self) -> float:
        """The log-likelihood of the continuation, nats."""
        return float(self.logprobs.sum(dtype=np.float64))


def score_shared(
    model: Model,
    params: Params,
    prompts: Array,
    lengths: Array,
    *,
    rows: Array,
    tokens: Array,
    counts: Array,
    room: int,
) -> TokenLogprobs:
    """Scores continuations of prompts that are read once.

    In a model with an encoder, the encoder reads the prompts.

    Args:
        model: the model.
        params: its parameters.
        prompts: int [B, P], padded on the right.
        lengths: int [B], at least 1.
        rows: int [R], the prompt of each continuation.
        tokens: int [R, C], continuations, padded on the right.
        counts: int [R], tokens of each continuation, at least 1.
        room: static, tokens of a row of the cache: at least those of a prompt with its continuation
            but for the last.

    Returns:
        Of each token [R, C]; those of padding mean nothing.
    """
    read = 0 if model.config.encoder is None else prompts.shape[1]
    cache = place_cache(model.init_cache(prompts.shape[0], room, encoder_length=read))
    logits, cache = prefill(model, params, prompts, lengths, cache)
    first = _of_tokens(jnp.take(logits, rows, axis=0)[:, None], tokens[:, :1])
    if tokens.shape[1] == 1:
        return first
    of_rows = place_cache(cache.gather(rows))
    hidden, _ = extend(model, params, tokens[:, :-1], counts - 1, of_rows)
    rest = _of_hidden(model, params, hidden, tokens[:, 1:])
    return TokenLogprobs(*(jnp.concatenate(both, axis=1) for both in zip(first, rest)))


def score_whole(
    model: Model,
    params: Params,
    prompts: Array,
    lengths: Array,
    *,
    tokens: Array,
    counts: Array,
    width: int,
) -> TokenLogprobs:
    """Scores one continuation of each prompt by a full forward pass.

    Args:
        model: the model.
        params: its parameters.
        prompts: int [B, P], padded on the right.
        lengths: int [B], at least 1.
        tokens: int [B, C], continuations, padded on the right.
        counts: int [B], tokens of each continuation, at least 1.
        width: static, places of the rows: at least those of a prompt with its continuation but for
            the last.

    Returns:
        Of each token [B, C]; those of padding mean nothing.
    """
    batch, begin = _whole_rows(model, prompts, lengths, tokens, counts, width)
    hidden = model.apply(params, batch).hidden
    places = begin[:, None] + jnp.arange(tokens.shape[1])[None, :]
    places = jnp.minimum(places, hidden.shape[1] - 1)
    of_tokens = jnp.take_along_axis(hidden, places[..., None], axis=1)
    return _of_hidden(model, params, of_tokens, tokens)


def _whole_rows(
    model: Model, prompts: Array, lengths: Array, tokens: Array, counts: Array, width: int
) -> tuple[Batch, Array]:
    """The rows that are read, and the place [B] that a continuation's first token follows."""
    before = lengths
    begin_with = prompts
    if model.config.encoder is not None:
        begin_with = jnp.full_like(prompts[:, :1], model.config.start_token)
        before = jnp.ones_like(lengths)
    place = jnp.arange(width)[None, :]
    of_prompt = jnp.take(begin_with, jnp.arange(width), axis=1, mode="clip")
    shifted = jnp.clip(place - before[:, None], 0, tokens.shape[1] - 1)
    of_continuation = jnp.take_along_axis(tokens, shifted, axis=1)
    ids = jnp.where(place < before[:, None], of_prompt, of_continuation)
    batch = rows_of(ids, before + counts - 1)
    if model.config.encoder is not None:
        batch = batch._replace(encoder=prefill_batch(model.config, prompts, lengths).encoder)
    return batch, before - 1


def _of_hidden(model: Model, params: Params, hidden: Array, tokens: Array) -> TokenLogprobs:
    """Of tokens [B, C] after hidden states [B, C, D], a chunk of places at a time."""
    B, C, D = hidden.shape
    if C <= _CHUNK:
        return _of_tokens(model.logits(params, hidden), tokens)
    missing = -C % _CHUNK
    hidden = jnp.pad(hidden, ((0, 0), (0, missing), (0, 0)))
    tokens = jnp.pad(tokens, ((0, 0), (0, missing)))
    chunks = hidden.reshape(B, -1, _CHUNK, D).swapaxes(0, 1)
    targets = tokens.reshape(B, -1, _CHUNK).swapaxes(0, 1)

    def of_chunk(chunk: tuple[Array, Array]) -> TokenLogprobs:
        return _of_tokens(model.logits(params, chunk[0]), chunk[1])

    found = jax.lax.map(of_chunk, (chunks, targets))
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(B, C + missing)[:, :C], found)


def _of_tokens(logits: Array, tokens: Array) -> TokenLogprobs:
    """Of tokens [B, C] by logits [B, C, V]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    total = jax.nn.logsumexp(logits, axis=-1)
    return TokenLogprobs(chosen - total, jnp.argmax(logits, axis=-1) == tokens)


class Continuations:
    """Scores continuations with one model, compiled once for each of a few padded shapes.

    A row's numbers are the same within rounding in every batch and on every mesh.

    Args:
        model: a model that predicts the next token.
        params: its parameters, as decoding reads them (``placement.compute_params``).
        mesh: the devices; None for one device.
        vocab_size: number of ids.
        batch_size: continuations scored at once; rounded up to what divides over the mesh.

    Raises:
        ConfigError: the model predicts masked tokens.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        mesh: Mesh | None = None,
        *,
        vocab_size: int,
        batch_size: int = 16,
    ) -> None:
        if not model.config.causal:
            raise ConfigError(
                "model.causal is False: this model predicts masked tokens, and a text has no"
                " likelihood; evaluate a model of the next token"
            )
        self._model = model
        self._params = params
        self._mesh = mesh
        self._vocab_size = vocab_size
        self._batch_size = batch_size
        self._ways = 1 if mesh is None else batch_ways(mesh)
        self._shared = jax.jit(partial(score_shared, model), static_argnames="room")
        self._whole = jax.jit(partial(score_whole, model), static_argnames="width")

    def fits(self, prompt: int, continuation: int) -> bool:
        """Whether a prompt and a continuation of so many tokens fit the context."""
        most = self._model.config.max_length
        if self._model.config.encoder is not None:
            return max(prompt, continuation) <= most
        return prompt + continuation - 1 <= most

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """The scores of continuations, in their order.

        Equal pairs are scored once, and so is a prompt of several continuations.

        Args:
            pairs: token ids of each prompt and of its continuation, at least one each.

        Raises:
            ConfigError: a pair that is empty or longer than the context, or has other ids.
            NonFiniteError: a log-likelihood is NaN or infinite.
        """
        unique = list(dict.fromkeys(Pair(tuple(a), tuple(b)) for a, b in pairs))
        for number, pair in enumerate(unique):
            self._check(number, pair)
        shared, alone = with_several(unique, self._batch_size, self._model.config.rope_switch)
        most = self._model.config.max_length
        found: dict[Pair, Score] = {}
        for shared_batch in prompt_batches(shared, self._batch_size, self._ways, most):
            found |= self._score_shared(shared_batch)
        for alone_batch in pair_batches(alone, self._batch_size, self._ways, most):
            found |= self._score_alone(alone_batch)
        return [found[Pair(tuple(a), tuple(b))] for a, b in pairs]

    def _score_shared(self, batch: Shared) -> dict[Pair, Score]:
        prompts, lengths = _padded(batch.prompts, batch.prompt_width, batch.prompt_rows)
        pairs = [pair for group in batch.groups for pair in group]
        of_pair = [number for number, group in enumerate(batch.groups) for _ in group]
        tokens, counts = _padded([p.continuation for p in pairs], batch.width, batch.rows)
        rows = np.zeros(batch.rows, np.int32)
        rows[: len(of_pair)] = of_pair
        room = self._room(batch)
        with self._running(batch.rows, max(batch.prompt_width, batch.width)):
            scored = self._shared(
                self._params,
                prompts,
                lengths,
                rows=rows,
                tokens=tokens,
                counts=counts,
                room=room,
            )
            return self._scores(pairs, jax.device_get(scored))

    def _score_alone(self, batch: Alone) -> dict[Pair, Score]:
        prompts, lengths = _padded([p.context for p in batch.pairs], batch.prompt_width, batch.rows)
        tokens, counts = _padded([p.continuation for p in batch.pairs], batch.width, batch.rows)
        encodes = self._model.config.encoder is not None
        width = batch.width if encodes else batch.whole_width
        with self._running(batch.rows, width):
            scored = self._whole(
                self._params, prompts, lengths, tokens=tokens, counts=counts, width=width
            )
            return self._scores(batch.pairs, jax.device_get(scored))

    def _room(self, batch: Shared) -> int:
        """Tokens of a row of the decoder's cache."""
        if self._model.config.encoder is not None:
            return batch.width
        return min(batch.prompt_width + batch.width, self._model.config.max_length)

    def _scores(self, pairs: Sequence[Pair], scored: TokenLogprobs) -> dict[Pair, Score]:
        found = {}
        for pair, logprobs, greedy in zip(pairs, *scored):
            size = len(pair.continuation)
            if not np.isfinite(logprobs[:size]).all():
                raise NonFiniteError(
                    f"the log-likelihood of {pair.continuation} after a prompt of"
                    f" {len(pair.context)} tokens is not finite; {cause(self._params)}"
                )
            found[pair] = Score(np.array(logprobs[:size]), bool(greedy[:size].all()))
        return found

    def _check(self, number: int, pair: Pair) -> None:
        for ids, name in zip(pair, ("prompt", "continuation")):
            checked = checked_ids(ids, f"{name} {number}", self._vocab_size)
            if not len(checked):
                raise ConfigError(f"{name} {number} is empty; give at least one token")
        if not self.fits(len(pair.context), len(pair.continuation)):
            raise ConfigError(
                f"prompt {number} has {len(pair.context)} tokens and its continuation"
                f" {len(pair.continuation)}, which do not fit model.max_length"
                f" {self._model.config.max_length}; shorten the prompt"
            )

    @contextmanager
    def _running(self, rows: int, width: int) -> Iterator[None]:
        placed = nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)
        what = f"scoring {rows} rows of {width:,} tokens"
        with placed, allocating(what, "lower batch_size (--batch-size)"):
            yield


def _padded(
    rows: Sequence[Sequence[int]], width: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 [number, width] and their lengths; the rows that are missing have one token."""
    arrays = [np.asarray(row, np.int32) for row in rows]
    filler = [np.zeros(1, np.int32)] * (number - len(arrays))
    return padded_rows([*arrays, *filler], width)
