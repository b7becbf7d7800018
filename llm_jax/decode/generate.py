"""Generation: a compiled loop over both contracts, or a stream of tokens."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm_jax.config import DecodeConfig
from llm_jax.decode.finite import cause
from llm_jax.decode.placement import compute_params, compute_shardings
from llm_jax.decode.programs import NOT_FINITE, Sampling, jit_steps, write_tokens
from llm_jax.models import Model
from llm_jax.ops.nn import platform
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params
from llm_jax.validate import SEEDS, validate_decode

# Prompts are padded to a multiple of this, so that few lengths are ever compiled.
_BUCKET = 64


class Generator:
    """Generates with one model and its parameters. Compiles once per (batch, padded prompt length, tokens to write).

    With a mesh, parameters and cache are split over it (see ``placement``), and the rows of a batch must divide over its batch axes.

    stop_ids: tokens that end a row in every call that gives none of its own; without any, rows end at ``max_new_tokens``.
    Raises ConfigError for a stop id that the model does not have.
    """

    def __init__(
        self, model: Model, params: Params, mesh: Mesh | None = None, *, stop_ids: Sequence[int] = ()
    ) -> None:
        self.model, self._mesh = model, mesh
        where = None if mesh is None else compute_shardings(model, params, mesh)
        out_first = mesh is None and platform() == "cpu"
        self._compute = partial(compute_params, model, out_first=out_first)
        self._stored = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
        self._vocabulary = self._stored["embed"]["embedding"].shape[0]
        self._stop_ids = self._checked(stop_ids, "stop_ids")
        self.params = jax.jit(self._compute, out_shardings=where)(params)
        self._run = jax.jit(partial(write_tokens, model), static_argnames=("cache_length", "max_new_tokens", "order"))
        self._steps = jit_steps(model)
        self._encodes = _begins(model, 1).encoder_tokens is not None

    def generate(
        self, prompts: Sequence[Sequence[int]], config: DecodeConfig, stop_ids: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """New tokens of each prompt, without the stop token. Prompts may have different lengths.

        stop_ids: tokens that end a row, in place of those of the constructor; None takes those.
        seeds: one per row, from 0 to 2**64 - 1 (default ``config.seed + row``): the same seed gives the same text whatever else is in
        the batch.

        Raises ConfigError for an empty prompt, one with an id that the model does not have, or one too long for its context;
        NonFiniteError, naming the row, the token and the parameter, where logits are NaN or infinite.
        """
        tokens, lengths, room = self._pad(prompts, config)
        settings, stops = sampling(config, len(prompts), seeds), self._stops(stop_ids)
        with self._on_mesh():
            out = self._run(
                self.params, tokens, lengths, settings, stops, cache_length=room, max_new_tokens=config.max_new_tokens,
                order=config.order,
            )
        written, count, failed = (np.asarray(a) for a in out)
        if failed.any():
            row = int(failed.argmax())
            self._raise_not_finite(row, int(count[row]) + 1)
        return [row[:n].tolist() for row, n in zip(written, count)]

    def stream(
        self, prompt: Sequence[int], config: DecodeConfig, stop_ids: Sequence[int] | None = None
    ) -> Iterator[int]:
        """The tokens that ``generate`` gives for this prompt alone, one by one as they are made. Raises as ``generate`` does, and where
        it is called, not at the first token.
        """
        tokens, lengths, room = self._pad([prompt], config)
        settings, stops = sampling(config, 1, None), set(self._stops(stop_ids).tolist())
        return self._stream(tokens, lengths, settings, stops, room=room, config=config)

    def _stream(
        self, tokens: np.ndarray, lengths: np.ndarray, settings: Sampling, stops: set[int], *, room: int, config: DecodeConfig
    ) -> Iterator[int]:
        with self._on_mesh():
            token, cache = self._steps.first(self.params, tokens, lengths, settings, cache_length=room, order=config.order)
        for n in range(config.max_new_tokens):
            chosen = int(token[0])
            if chosen == NOT_FINITE:
                self._raise_not_finite(0, n + 1)
            if chosen in stops:
                return
            yield chosen
            if n + 1 < config.max_new_tokens:
                with self._on_mesh():
                    token, cache = self._steps.next(self.params, token, cache=cache, s=settings, order=config.order)

    def _raise_not_finite(self, row: int, new_token: int) -> None:
        with self._on_mesh():
            why = cause(self.params, self._compute, self._stored)
        raise NonFiniteError(
            f"row {row}: the logits of new token {new_token} are not finite (rows count from 0, new tokens from 1); {why}"
        )

    def _stops(self, stop_ids: Sequence[int] | None) -> np.ndarray:
        return self._stop_ids if stop_ids is None else self._checked(stop_ids, "stop_ids")

    def _checked(self, ids: Sequence[int], name: str) -> np.ndarray:
        """``ids`` as int32. ConfigError, with ``name`` and the place, for what is no id of the model."""
        try:
            given = np.asarray(ids)
        except ValueError:
            # Of sequences in it that differ in length.
            given = np.zeros((0, 0))
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ConfigError(f"{name} is {str(ids)[:80]}; it must be a sequence of whole numbers")
        outside = np.flatnonzero((given < 0) | (given >= self._vocabulary))
        if outside.size:
            at = int(outside[0])
            raise ConfigError(f"{name} has {given[at]} at place {at}; this model has the ids 0 to {self._vocabulary - 1}")
        return given.astype(np.int32)

    def _pad(self, prompts: Sequence[Sequence[int]], config: DecodeConfig) -> tuple[np.ndarray, np.ndarray, int]:
        validate_decode(config)
        ids = [self._checked(prompt, f"prompt {row}") for row, prompt in enumerate(prompts)]
        lengths = np.array([len(prompt) for prompt in ids], np.int32)
        if len(ids) == 0 or lengths.min() == 0:
            raise ConfigError("a prompt is empty; begin it with the tokenizer's <s> at least")
        longest = int(lengths.max())
        if self._encodes:
            room = self._fit(_begins(self.model, longest).tokens.shape[1], config.max_new_tokens, partial(self.model.init_cache, 1))
            padded = self._fit(longest, 0, partial(_begins, self.model))
        else:
            room = self._fit(longest, config.max_new_tokens, partial(self.model.init_cache, 1))
            padded = min(-(-longest // _BUCKET) * _BUCKET, room)
        tokens = np.zeros((len(ids), padded), np.int32)
        for row, prompt in zip(tokens, ids):
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
        fill(config.min_p, np.float32), np.array([_halves(row, seed) for row, seed in enumerate(seeds)], np.uint32),
    )


def _halves(row: int, seed: int) -> tuple[int, int]:
    try:
        whole = operator.index(seed)
    except TypeError:
        whole = -1
    if not 0 <= whole < SEEDS:
        raise ConfigError(f"the seed of row {row} is {seed!r}; it must be a whole number from 0 to 2**64 - 1")
    return divmod(whole, 2**32)
