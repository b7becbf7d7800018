"""Generation: a compiled loop that writes tokens, or a stream of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llm_jax.config import DecodeConfig
from llm_jax.config.validate import validate_decode
from llm_jax.decode.finite import cause
from llm_jax.decode.inputs import checked_ids, padded_rows, sampling
from llm_jax.decode.placement import compute_params, compute_shardings, layout_of
from llm_jax.decode.programs import BUCKET, NOT_FINITE, jit_steps, padded, write_tokens
from llm_jax.decode.prompts import prefill_batch
from llm_jax.host_memory import allocating
from llm_jax.models import Model
from llm_jax.models.execution import Layers
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params


class Generator:
    """Generates with one model and its parameters.

    Compiles once per (batch, padded prompt length, tokens to write), and once more where rows that
    are written pass the length at which the model's rotations change (``ModelConfig.rope_switch``).

    With a mesh, parameters and cache are split over it (see ``placement``), and the rows of a batch
    must divide over its batch axes.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        mesh: Mesh | None = None,
        *,
        stop_ids: Sequence[int] = (),
        layers: Layers = "auto",
    ) -> None:
        """
        Args:
            model: the model.
            params: its parameters, as they are stored.
            mesh: the devices; None for one device.
            stop_ids: tokens that end a row in every call without stop ids of its own. Without any,
                a row ends after ``max_new_tokens``.
            layers: how the generator keeps the parameters of layers. "unroll": each layer's apart,
                and the layers run one after another however the model was built. "scan": stacked,
                as they are stored. "auto": "unroll" on a CPU, "scan" on other platforms.

        Raises:
            ConfigError: a stop id that the model does not have.
        """
        self.model = model
        self._mesh = mesh
        layout = layout_of(layers, mesh)
        shardings = None if mesh is None else compute_shardings(model, params, mesh, layout)
        self._compute = partial(compute_params, model, layout=layout)
        self._stored = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
        self._vocabulary = jax.eval_shape(model.head, params).kernel.shape[0]
        self._stop_ids = checked_ids(stop_ids, "stop_ids", self._vocabulary)
        self.params = jax.jit(self._compute, out_shardings=shardings)(params)
        static = ("cache_length", "max_new_tokens", "order", "passes")
        self._run = jax.jit(partial(write_tokens, model), static_argnames=static)
        self._steps = jit_steps(model)
        self._encodes = model.config.encoder is not None

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: DecodeConfig,
        stop_ids: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Writes tokens after each prompt.

        Args:
            prompts: token ids of each row; rows may have different lengths.
            config: the settings.
            stop_ids: tokens that end a row; None takes those of the constructor.
            seeds: one for each row, from 0 to 2**64 - 1; None gives row i ``config.seed + i``. The
                same seed gives the same text whatever else is in the batch.

        Returns:
            The new tokens of each row, without the stop token.

        Raises:
            ConfigError: a prompt that is empty or too long for the context, an id that the model
                does not have, or a setting out of range.
            NonFiniteError: logits are NaN or infinite; the message names the row, the token and the
                parameter.
        """
        tokens, lengths, room = self._pad(prompts, config)
        settings = sampling(config, len(prompts), seeds)
        with self._on_mesh(), self._allocating(tokens, room):
            out = self._run(
                self.params,
                tokens,
                lengths,
                settings,
                stops=self._stops(stop_ids),
                cache_length=room,
                max_new_tokens=config.max_new_tokens,
                order=config.order,
                passes=self._passes(lengths, config.max_new_tokens),
            )
            written, count, failed = (np.asarray(a) for a in out)
        if failed.any():
            row = int(failed.argmax())
            self._raise_not_finite(row, int(count[row]) + 1)
        return [row[:n].tolist() for row, n in zip(written, count)]

    def stream(
        self, prompt: Sequence[int], config: DecodeConfig, stop_ids: Sequence[int] | None = None
    ) -> Iterator[int]:
        """Yields the tokens that ``generate`` returns for this prompt alone, as they are made.

        Raises:
            ConfigError: as ``generate``, before the first token is asked for.
            NonFiniteError: as ``generate``, when the token is asked for.
        """
        tokens, lengths, room = self._pad([prompt], config)
        settings = {"s": sampling(config, 1), "order": config.order}
        stops = set(self._stops(stop_ids).tolist())
        chosen = self._chosen(tokens, lengths, room, settings)
        return self._until_stop(chosen, stops, config.max_new_tokens)

    def _until_stop(self, chosen: Iterator[int], stops: set[int], most: int) -> Iterator[int]:
        for n, token in zip(range(most), chosen):
            if token == NOT_FINITE:
                self._raise_not_finite(0, n + 1)
            if token in stops:
                return
            yield token

    def _chosen(
        self, tokens: np.ndarray, lengths: np.ndarray, room: int, settings: dict[str, Any]
    ) -> Iterator[int]:
        """Endless new tokens of one row, each computed when it is asked for."""
        switch = self.model.config.rope_switch
        first = partial(self._steps.first, self.params, cache_length=room, **settings)
        with self._on_mesh(), self._allocating(tokens, room):
            token, cache = first(tokens, lengths)
            token.block_until_ready()
        row = tokens[0, : lengths[0]].tolist()
        while True:
            row.append(int(token[0]))
            yield row[-1]
            with self._on_mesh():
                if switch and len(row) == switch + 1:
                    whole = padded_rows([np.array(row)], padded(len(row), room))
                    token, cache = first(*whole)
                else:
                    token, cache = self._steps.next(self.params, token, cache=cache, **settings)

    def _raise_not_finite(self, row: int, new_token: int) -> NoReturn:
        with self._on_mesh():
            why = cause(self.params, self._compute, self._stored)
        raise NonFiniteError(
            f"row {row}: the logits of new token {new_token} are not finite (rows count from 0, "
            f"new tokens from 1); {why}"
        )

    def _stops(self, stop_ids: Sequence[int] | None) -> np.ndarray:
        if stop_ids is None:
            return self._stop_ids
        return checked_ids(stop_ids, "stop_ids", self._vocabulary)

    def _passes(self, lengths: np.ndarray, new: int) -> bool:
        """Whether a row may pass the length at which rotations change while tokens are written."""
        switch = self.model.config.rope_switch
        # The last new token is not read.
        read = lengths + new - 1
        return bool(switch) and bool(np.any((lengths <= switch) & (read > switch)))

    def _pad(
        self, prompts: Sequence[Sequence[int]], config: DecodeConfig
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Prompts as padded rows with their lengths, and the length of the cache."""
        validate_decode(config)
        size = self._vocabulary
        rows = [checked_ids(prompt, f"prompt {i}", size) for i, prompt in enumerate(prompts)]
        longest = max(map(len, rows), default=0)
        if longest == 0 or not all(map(len, rows)):
            raise ConfigError("a prompt is empty; begin it with the tokenizer's <s> at least")
        make_cache = partial(self.model.init_cache, 1)
        if self._encodes:
            begin = _begins(self.model, longest).inputs.ids.shape[1]
            room = self._fit(begin, config.max_new_tokens, make_cache)
            width = self._fit(longest, 0, partial(_begins, self.model))
        else:
            room = self._fit(longest, config.max_new_tokens, make_cache)
            width = padded(longest, room)
        return *padded_rows(rows, width), room

    def _fit(self, prompt: int, new: int, make: Callable[[int], Any]) -> int:
        """A length for the prompt and the new tokens, rounded up where the context allows it.

        Args:
            prompt: tokens of the prompt.
            new: tokens to write.
            make: makes what has this length; raises ConfigError where the context is shorter.
        """
        needed = prompt + new
        problem = None
        for length in (-(-needed // BUCKET) * BUCKET, needed):
            try:
                jax.eval_shape(partial(make, length))
                return length
            except ConfigError as error:
                problem = error
        raise ConfigError(
            f"prompt of {prompt} tokens and max_new_tokens {new} do not fit the context: "
            f"{problem}; shorten the prompt or lower max_new_tokens"
        ) from problem

    def _allocating(self, tokens: np.ndarray, room: int) -> contextlib.AbstractContextManager:
        """Turns a lack of memory into a ConfigError that names the rows and the cache's size."""
        rows, prompt = tokens.shape
        encoder = {"encoder_length": prompt} if self._encodes else {}
        cache = jax.eval_shape(partial(self.model.init_cache, rows, room, **encoder))
        size = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(cache))
        return allocating(
            f"{rows} rows of {room:,} tokens, whose cache takes {size / 2**30:,.2f} GiB",
            "give fewer or shorter prompts, or lower max_new_tokens",
        )

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def _begins(model: Model, length: int) -> Batch:
    """Shapes of the batch that decoding begins with, for prompts of ``length`` tokens."""
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(partial(prefill_batch, model.config), tokens, lengths)
