"""Prefill, one decode step, and generation: a compiled while-loop over both, or a stream of tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from llm_jax.config import DecodeConfig
from llm_jax.decode.placement import compute_params, compute_shardings, place_cache
from llm_jax.models import Model
from llm_jax.ops.nn import platform
from llm_jax.ops.sampling import categorical, filter_logits, greedy, row_keys
from llm_jax.types import Batch, ConfigError, Params
from llm_jax.validate import validate_decode

# Prompts are padded to a multiple of this, so that few lengths are ever compiled.
_BUCKET = 64


class Sampling(NamedTuple):
    """Settings of each row, as arrays [B]: changing one compiles nothing anew."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array
    seed: Array


def prefill(model: Model, params: Params, tokens: Array, lengths: Array, cache: Any) -> tuple[Array, Any]:
    """Reads prompts into an empty cache. tokens: int [B, T] padded on the right, lengths: int [B], at least 1.

    Returns the logits [B, V] after each row's last token and the cache; each row continues at its own length. An encoder reads prompts
    where there is one, and the row's last token is its start token.
    """
    return read(model, params, model.prompt(tokens, lengths), cache)


def read(model: Model, params: Params, batch: Batch, cache: Any) -> tuple[Array, Any]:
    """``prefill`` of rows [B, T] padded on the right, at least one token each."""
    out = model.apply(params, batch, cache)
    last = jnp.sum(batch.segment_ids != 0, axis=1) - 1
    return model.logits(params, jnp.take_along_axis(out.hidden, last[:, None, None], axis=1))[:, 0], out.cache


def decode_step(model: Model, params: Params, tokens: Array, cache: Any) -> tuple[Array, Any]:
    """One token further. tokens: int [B]. Returns the logits [B, V] that follow, and the cache with them in it.

    The caller keeps each row's length below the cache's: past its end the oldest slots are overwritten.
    """
    one = jnp.ones_like(tokens)[:, None]
    positions = jnp.zeros_like(one) if cache.length is None else cache.length[:, None]
    batch = Batch(tokens[:, None], tokens[:, None], one.astype(bool), one, positions)
    out = model.apply(params, batch, cache)
    return model.logits(params, out.hidden)[:, 0], out.cache


def choose(logits: Array, positions: Array, s: Sampling, order: str) -> Array:
    """The sampler: one token per row, drawn with the row's own seed and position, or the most likely where temperature is 0."""

    def draw(logits: Array) -> Array:
        filtered = filter_logits(logits, s.temperature, s.top_k, s.top_p, s.min_p, order=order)
        return categorical(row_keys(s.seed, positions), filtered)

    return jax.lax.cond(jnp.all(s.temperature == 0), greedy, draw, logits)


def first_token(
    model: Model, params: Params, tokens: Array, lengths: Array, s: Sampling, *, cache_length: int, order: str
) -> tuple[Array, Any]:
    """Prefill into a new cache of ``cache_length`` and the token [B] chosen after it."""
    cache = place_cache(model.init_cache(tokens.shape[0], cache_length))
    logits, cache = prefill(model, params, tokens, lengths, cache)
    return choose(logits, cache.length, s, order), place_cache(cache)


def next_token(model: Model, params: Params, token: Array, cache: Any, s: Sampling, *, order: str) -> tuple[Array, Any]:
    """One decode step and the token [B] chosen after it."""
    logits, cache = decode_step(model, params, token, cache)
    return choose(logits, cache.length, s, order), place_cache(cache)


class Steps(NamedTuple):
    """``first_token`` and ``next_token`` of one model, compiled for the current mesh; the second takes its cache over."""

    first: Callable
    next: Callable


def jit_steps(model: Model) -> Steps:
    """The two programs that decoding runs."""
    return Steps(
        jax.jit(partial(first_token, model), static_argnames=("cache_length", "order")),
        jax.jit(partial(next_token, model), static_argnames=("order",), donate_argnames=("cache",)),
    )


class Generator:
    """Generates with one model and its parameters. Compiles once per (batch, padded prompt length, tokens to write).

    With a mesh, parameters and cache are split over it (see ``placement``), and the rows of a batch must divide over its batch axes.
    """

    def __init__(self, model: Model, params: Params, mesh: Mesh | None = None) -> None:
        self.model, self._mesh = model, mesh
        where = None if mesh is None else compute_shardings(model, params, mesh)
        out_first = mesh is None and platform() == "cpu"
        self.params = jax.jit(partial(compute_params, model, out_first=out_first), out_shardings=where)(params)
        self._run = jax.jit(self._generate, static_argnames=("cache_length", "max_new_tokens", "order"))
        self._steps = jit_steps(model)
        self._encodes = _begins(model, 1).encoder_tokens is not None

    def generate(
        self, prompts: Sequence[Sequence[int]], config: DecodeConfig, stop_ids: Sequence[int] = (), seeds: Sequence[int] | None = None
    ) -> list[list[int]]:
        """New tokens of each prompt, without the stop token. Prompts may have different lengths.

        seeds: one per row (default ``config.seed + row``): the same seed gives the same text whatever else is in the batch.
        Raises ConfigError for an empty prompt, or a prompt too long for the model's context.
        """
        tokens, lengths, room = self._pad(prompts, config)
        with self._on_mesh():
            out, count = self._run(
                self.params, tokens, lengths, sampling(config, len(prompts), seeds), _stops(stop_ids),
                cache_length=room, max_new_tokens=config.max_new_tokens, order=config.order,
            )
        return [row[:n].tolist() for row, n in zip(np.asarray(out), np.asarray(count))]

    def stream(self, prompt: Sequence[int], config: DecodeConfig, stop_ids: Sequence[int] = ()) -> Iterator[int]:
        """The tokens that ``generate`` gives for this prompt alone, one by one as they are made."""
        tokens, lengths, room = self._pad([prompt], config)
        settings = sampling(config, 1, None)
        with self._on_mesh():
            token, cache = self._steps.first(self.params, tokens, lengths, settings, cache_length=room, order=config.order)
        for n in range(config.max_new_tokens):
            if int(token[0]) in stop_ids:
                return
            yield int(token[0])
            if n + 1 < config.max_new_tokens:
                with self._on_mesh():
                    token, cache = self._steps.next(self.params, token, cache=cache, s=settings, order=config.order)

    def _pad(self, prompts: Sequence[Sequence[int]], config: DecodeConfig) -> tuple[np.ndarray, np.ndarray, int]:
        validate_decode(config)
        lengths = np.array([len(p) for p in prompts], np.int32)
        if len(prompts) == 0 or lengths.min() == 0:
            raise ConfigError("a prompt is empty; begin it with the tokenizer's <s> at least")
        longest = int(lengths.max())
        if self._encodes:
            room = self._fit(_begins(self.model, longest).tokens.shape[1], config.max_new_tokens, partial(self.model.init_cache, 1))
            padded = self._fit(longest, 0, partial(_begins, self.model))
        else:
            room = self._fit(longest, config.max_new_tokens, partial(self.model.init_cache, 1))
            padded = min(-(-longest // _BUCKET) * _BUCKET, room)
        tokens = np.zeros((len(prompts), padded), np.int32)
        for row, prompt in zip(tokens, prompts):
            row[: len(prompt)] = prompt
        return tokens, lengths, room

    def _fit(self, prompt: int, new: int, make: Callable[[int], Any]) -> int:
        """Length of what ``make`` makes for prompt and new tokens: their number, rounded up where the model's context allows it."""
        needed, problem = prompt + new, None
        for length in (-(-needed // _BUCKET) * _BUCKET, needed):
            try:
                jax.eval_shape(partial(make, length))
                return length
            except ConfigError as error:
                problem = error
        raise ConfigError(
            f"prompt of {prompt} tokens and max_new_tokens {new} do not fit the context: {problem}; shorten the prompt or lower "
            f"max_new_tokens"
        ) from problem

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _generate(
        self, params: Params, tokens: Array, lengths: Array, s: Sampling, stops: Array, *, cache_length: int, max_new_tokens: int,
        order: str,
    ) -> tuple[Array, Array]:
        B = tokens.shape[0]
        token, cache = first_token(self.model, params, tokens, lengths, s, cache_length=cache_length, order=order)
        is_stop = lambda t: jnp.any(t[:, None] == stops[None, :], axis=1)  # noqa: E731
        out = jnp.zeros((B, max_new_tokens), jnp.int32).at[:, 0].set(token)
        done = is_stop(token)

        def unfinished(state: tuple) -> Array:
            n, _, _, done, _, _ = state
            return (n < max_new_tokens) & ~jnp.all(done)

        def advance(state: tuple) -> tuple:
            n, token, cache, done, out, count = state
            token, cache = next_token(self.model, params, token, cache, s, order=order)
            done = done | is_stop(token)
            out = jax.lax.dynamic_update_slice(out, token[:, None], (0, n))
            return n + 1, token, cache, done, out, count + ~done

        state = (jnp.int32(1), token, cache, done, out, (~done).astype(jnp.int32))
        _, _, _, _, out, count = jax.lax.while_loop(unfinished, advance, state)
        return out, count


def _begins(model: Model, length: int) -> Batch:
    """Shapes of the batch that decoding begins with, for prompts of ``length`` tokens."""
    prompt = jax.ShapeDtypeStruct((1, length), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(model.prompt, *prompt)


def sampling(config: DecodeConfig, rows: int, seeds: Sequence[int] | None = None) -> Sampling:
    """The settings of ``rows`` rows; row i draws with the seed ``config.seed + i`` if none are given."""
    seeds = [config.seed + i for i in range(rows)] if seeds is None else seeds
    if len(seeds) != rows:
        raise ConfigError(f"{len(seeds)} seeds for {rows} prompts; give one each")
    fill = lambda value, dtype: np.full((rows,), value, dtype)  # noqa: E731
    return Sampling(
        fill(config.temperature, np.float32), fill(config.top_k, np.int32), fill(config.top_p, np.float32),
        fill(config.min_p, np.float32), np.array([s % 2**32 for s in seeds], np.uint32),
    )


def _stops(ids: Sequence[int]) -> np.ndarray:
    # -1 is no token, so an empty list stops nowhere.
    return np.array([*ids, -1], np.int32)
