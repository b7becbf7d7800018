"""Calls of a generator: what it is asked for, checked against its model and made into arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config import DecodeConfig
from llm_jax.decode.drafts import Pair, check_draft_rows
from llm_jax.decode.fixed_shape import DecodeShape
from llm_jax.decode.inputs import checked_ids, padded_rows
from llm_jax.decode.programs import padded
from llm_jax.decode.requests import (
    Call,
    Configs,
    Ids,
    Wanted,
    check_wanted,
    checked_configs,
    contrast_of,
    negative_of,
)
from llm_jax.decode.room import begins, fit
from llm_jax.decode.settings import Rows, row_seeds, settings_of
from llm_jax.decode.state import Choosing, Prompts, Room, Stops, TextStart
from llm_jax.decode.text_start import TokenStarts, joined
from llm_jax.models import Model
from llm_jax.ops.sampling.stops import TokenBytes, stop_table
from llm_jax.types import Batch, ConfigError


class Tokens(NamedTuple):
    """What a generator knows of the tokens of its model.

    Attributes:
        count: V.
        stop_ids: int32 [m], that end a row in every call without stop ids of its own.
        bytes: of each token.
        has_text: whether these are known; else they are all empty.
        starts: the tokens where a text begins; None where they are the same.
    """

    count: int  # type: ignore[assignment]  # hides tuple.count
    stop_ids: np.ndarray
    bytes: TokenBytes
    has_text: bool
    starts: TokenStarts | None = None


class Calls:
    """Makes the calls of one generator.

    Args:
        model: the model.
        pair: the model and its draft; None without one.
        tokens: of the model.
        shape: of every call; None has that of each batch.
    """

    def __init__(
        self, model: Model, pair: Pair | None, tokens: Tokens, shape: DecodeShape | None
    ) -> None:
        self._model = model
        self._pair = pair
        self._tokens = tokens
        self._shape = shape
        self._encodes = model.config.encoder is not None
        # An encoder reads a prompt at once.
        self._chunk = shape.chunk if shape and not self._encodes else 0

    def ends_of(
        self, configs: Sequence[DecodeConfig], stop_ids: Ids | None = None
    ) -> list[list[int]]:
        """The tokens that end each row."""
        ends = self._tokens.stop_ids
        if stop_ids is not None:
            ends = checked_ids(stop_ids, "stop_ids", self._tokens.count)
        return [
            [*([] if c.stops.ignore_eos else ends.tolist()), *c.stops.stop_ids] for c in configs
        ]

    def make(
        self,
        prompts: Sequence[Ids],
        config: Configs,
        wanted: Wanted,
        *,
        stop_ids: Ids | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Call:
        """Checks everything that a call is given, and makes arrays of it. Args: as of
        ``Generator.complete``.
        """
        configs = checked_configs(config, len(prompts))
        check_wanted(wanted, self._tokens.count)
        size = self._tokens.count
        ids = [checked_ids(prompt, f"prompt {i}", size) for i, prompt in enumerate(prompts)]
        if not ids or not all(map(len, ids)):
            raise ConfigError("a prompt is empty; begin it with the tokenizer's <s> at least")
        samples = wanted.samples
        of_rows = [c for c in configs for _ in range(samples)]
        rows = Rows(
            configs=of_rows,
            seeds=row_seeds(configs, seeds, samples),
            stop_ids=self.ends_of(of_rows, stop_ids),
        )
        guided = any(c.guidance_scale != 1 for c in configs)
        negative = [negative_of(c, row, size) for c, row in zip(configs, ids)] if guided else []
        longest = max(map(len, [*ids, *negative]))
        most_new = max(c.max_new_tokens for c in configs)
        width, length = self._sizes(longest, most_new)
        tokens, lengths = padded_rows(ids, width)
        arrays = Prompts(jnp.asarray(tokens), jnp.asarray(lengths))
        if guided:
            other, other_lengths = padded_rows(negative, width)
            arrays = arrays._replace(
                negative=jnp.asarray(other), negative_lengths=jnp.asarray(other_lengths)
            )
        top = -1 if wanted.logprobs is None else wanted.logprobs
        passes = self._passes(lengths, most_new, self._model.config.rope_switch)
        if self._pair is not None:
            # The last new token may be drafted, and read.
            passed = partial(self._passes, lengths, most_new + 1)
            check_draft_rows(self._pair, configs, passed)
        contrast = contrast_of(configs, wanted)
        if passes and (guided or contrast):
            setting = "guidance_scale" if guided else "contrastive_alpha"
            raise ConfigError(
                f"{setting} is set, and a row passes the length at which this model's rotations"
                f" change (model.rope_switch {self._model.config.rope_switch}); write fewer tokens"
            )
        return Call(
            prompts=arrays,
            settings=settings_of(rows, size),
            stops=self._stops(of_rows, [row for row in ids for _ in range(samples)]),
            room=Room(length, samples, self._chunk, self.rollback),
            choosing=Choosing(
                order=configs[0].order,
                own=wanted.processor,
                top=top,
                processed=wanted.kind == "processed",
                guided=guided,
            ),
            passes=passes,
            rows=rows,
            contrast=contrast,
        )

    def _stops(self, configs: Sequence[DecodeConfig], prompts: Sequence[np.ndarray]) -> Stops:
        texts = [c.stops.stop for c in configs]
        if any(texts) and not self._tokens.has_text:
            row = next(i for i, found in enumerate(texts) if found)
            raise ConfigError(
                f"stop of row {row} is {texts[row]!r}, and this generator has no tokenizer; give"
                " stop_ids"
            )
        table = stop_table(texts)
        starts = self._tokens.starts
        if starts is None:
            return Stops(table, self._tokens.bytes)
        begins = [self._encodes or not starts.begun[ids].any() for ids in prompts]
        start = TextStart(jnp.asarray(begins), jnp.asarray(starts.begun))
        return Stops(table, joined(self._tokens.bytes, starts.bytes), start)

    def _passes(self, lengths: np.ndarray, new: int, switch: int) -> bool:
        """Whether a row may pass ``switch`` tokens, where rotations change, while tokens are
        written; 0 is never.
        """
        # The last new token is not read.
        read = lengths + new - 1
        return bool(switch) and bool(np.any((lengths <= switch) & (read > switch)))

    @property
    def rollback(self) -> int:
        """Tokens of a row that caches may have to take back."""
        return 0 if self._pair is None else self._pair.drafter.tokens

    @property
    def _models(self) -> list[Model]:
        """The model, and that of a draft with a cache of its own."""
        if self._pair is None or not self._pair.drafter.has_cache:
            return [self._model]
        assert self._pair.drafter.model is not None
        return [self._model, self._pair.drafter.model]

    def _caches(self, rows: int, length: int, *, encoder_length: int = 0) -> list[Any]:
        found = []
        for model in self._models:
            found.append(
                model.init_cache(
                    rows, length, rollback=self.rollback, encoder_length=encoder_length
                )
            )
        return found

    def cache_bytes(self, call: Call) -> int:
        """What the caches of a call take."""
        rows = len(call.rows.seeds) * (2 if call.choosing.guided else 1)
        read = call.prompts.tokens.shape[1] if self._encodes else 0
        make = partial(self._caches, rows, call.room.length, encoder_length=read)
        return sum(
            math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(jax.eval_shape(make))
        )

    def _begun(self, length: int) -> list[Batch]:
        return [begins(model, length) for model in self._models]

    def _sizes(self, longest: int, new: int) -> tuple[int, int]:
        """Places of a prompt, and tokens of a row that the cache has room for.

        Args:
            longest: tokens of the longest prompt.
            new: most tokens to write.
        """
        if self._shape is not None:
            return self._fixed_sizes(longest, new)
        make_cache = partial(self._caches, 1)
        if self._encodes:
            begin = begins(self._model, longest).inputs.ids.shape[1]
            room = fit(begin, new, make_cache)
            return fit(longest, 0, self._begun), room
        room = fit(longest, new, make_cache)
        return padded(longest, room), room

    def _fixed_sizes(self, longest: int, new: int) -> tuple[int, int]:
        length = self._shape.length if self._shape else 0
        needed = max(longest, new + 1) if self._encodes else longest + new
        if needed > length:
            raise ConfigError(
                f"prompt of {longest} tokens and max_new_tokens {new} do not fit shape.length"
                f" {length}; shorten the prompt, lower max_new_tokens, or make a generator of a"
                " longer shape"
            )
        return length, length
