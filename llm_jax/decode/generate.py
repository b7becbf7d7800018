"""Generation: a compiled loop that writes tokens, or a stream of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import jax
from jax.sharding import Mesh

from llm_jax.config import CacheConfig, DecodeConfig
from llm_jax.config.search import BeamConfig, check_beam_settings
from llm_jax.decode import loop, speculative
from llm_jax.decode.beams import beam_search
from llm_jax.decode.calls import Calls, Tokens
from llm_jax.decode.completions import Seen, completion_of, seen_of, stream_scores, without_caches
from llm_jax.decode.constrain.matchers import Matchers
from llm_jax.decode.constrained import Call as ConstrainedCall
from llm_jax.decode.constrained import ConstrainedLoop, ConstrainedRows, jit_constrained_steps
from llm_jax.decode.constrained_drafts import DraftedLoop, jit_drafted_steps
from llm_jax.decode.contrastive import write_contrastive
from llm_jax.decode.drafts import Draft, Pair, Weights, check_draft_shape, make_pair
from llm_jax.decode.finite import cause
from llm_jax.decode.fixed_shape import DecodeShape, Group, check_shape, complete_in_groups
from llm_jax.decode.inputs import checked_ids
from llm_jax.decode.loop import CHOOSE
from llm_jax.decode.placement import compute_params, compute_shardings, layout_of
from llm_jax.decode.programs import await_allocation
from llm_jax.decode.requests import (
    Call,
    Configs,
    Ids,
    Wanted,
    check_wanted,
    checked_configs,
)
from llm_jax.decode.results import Completion, TokenScore
from llm_jax.decode.settings import Rows, row_seeds, settings_of
from llm_jax.decode.state import BANNED, DRAFT_NOT_FINITE, NOT_FINITE, RUNNING, Processor, State
from llm_jax.decode.text_start import TokenStarts
from llm_jax.host_memory import allocating
from llm_jax.models import Model
from llm_jax.models.execution import Layers
from llm_jax.ops.sampling.stops import TokenBytes, token_bytes_table
from llm_jax.types import ConfigError, NonFiniteError, Params


class Generator:
    """Generates with one model and its parameters.

    Compiles once per (batch, padded prompt length, padded length of the longest row), and once more
    where rows that are written pass the length at which the model's rotations change
    (``ModelConfig.rope_switch``). Settings compile nothing.

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
        token_bytes: TokenBytes | None = None,
        token_starts: TokenStarts | None = None,
        shape: DecodeShape | None = None,
        cache: CacheConfig = CacheConfig(),  # noqa: B008 (frozen)
        draft: Draft | None = None,
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
            token_bytes: the bytes of each token, for texts that end a row.
            token_starts: the tokens where a text begins, if they are written differently there.
            shape: one shape for every call, so that the tokens and log-probabilities of a row are
                the same to the bit in every batch; None has the shape of each batch, and numbers
                are then the same within rounding.
            cache: how keys and values are kept.
            draft: what proposes tokens that the model verifies several at a time
                (``speculative``). The distribution of texts is the same with it and without.

        Raises:
            ConfigError: a stop id that the model does not have, or a draft that does not fit it.
        """
        if cache != CacheConfig():
            model = model._replace(init_cache=partial(model.init_cache, kind=cache))
        if shape is not None:
            check_shape(shape, model.config.max_length)
        self.model = model
        self._shape = shape
        self._mesh = mesh
        layout = layout_of(layers, mesh)
        shardings = None if mesh is None else compute_shardings(model, params, mesh, layout)
        self._compute = partial(compute_params, model, layout=layout)
        self._stored = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
        self.vocab_size = jax.eval_shape(model.head, params).kernel.shape[0]
        tokens = Tokens(
            count=self.vocab_size,
            stop_ids=checked_ids(stop_ids, "stop_ids", self.vocab_size),
            bytes=token_bytes or token_bytes_table([b""] * self.vocab_size),
            has_text=token_bytes is not None,
            starts=token_starts,
        )
        self.params = jax.jit(self._compute, out_shardings=shardings)(params)
        self._pair: Pair | None = None
        self._draft_params: Params | None = None
        if draft is None:
            self._steps: loop.Steps | speculative.Steps = loop.jit_steps(model)
            self._constrained_steps: Any = jit_constrained_steps(model)
        else:
            self._pair, weights = make_pair(
                model, self.params, draft, layout=layout, mesh=mesh, cache=cache
            )
            if shape is not None:
                check_draft_shape(self._pair, shape)
            self._draft_params = weights.draft
            self._steps = speculative.jit_steps(self._pair)
            self._constrained_steps = jit_drafted_steps(self._pair)
        self._contrast = jax.jit(
            partial(write_contrastive, model),
            static_argnames=("room", "choosing", "candidates"),
        )
        self._encodes = model.config.encoder is not None
        self._calls = Calls(model, self._pair, tokens, shape)

    def generate(
        self,
        prompts: Sequence[Ids],
        config: Configs,
        stop_ids: Ids | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Writes tokens after each prompt.

        Args:
            prompts: token ids of each row; rows may have different lengths.
            config: the settings, of all rows or of each.
            stop_ids: tokens that end a row; None takes those of the constructor.
            seeds: one for each row, from 0 to 2**64 - 1; None gives row i ``seed + i``. The same
                seed gives the same text whatever else is in the batch.

        Returns:
            The new tokens of each row, without the stop token.

        Raises:
            ConfigError: a prompt that is empty or too long for the context, an id that the model
                does not have, a setting out of range, or settings that ban every token of a row.
            NonFiniteError: logits are NaN or infinite; the message names the row, the token and the
                parameter.
        """
        found = self.complete(prompts, config, stop_ids=stop_ids, seeds=seeds)
        return [completion.ids for (completion,) in found]

    def complete(
        self,
        prompts: Sequence[Ids],
        config: Configs,
        wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
        *,
        stop_ids: Ids | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """``generate`` with all that is known of each text.

        Args:
            prompts: as in ``generate``.
            config: as in ``generate``.
            wanted: how many texts of each prompt, and which log-probabilities.
            stop_ids: as in ``generate``.
            seeds: of the first text of each prompt; the next texts have the next seeds. None gives
                prompt i ``seed + i * samples``.

        Returns:
            The texts of each prompt.
        """
        if self._shape is None:
            return self._completed(prompts, config, wanted, stop_ids, seeds)
        configs = checked_configs(config, len(prompts))
        check_wanted(wanted, self.vocab_size)
        n = wanted.samples
        each = [i for i in range(len(prompts)) for _ in range(n)]

        def complete(group: Group) -> list[list[Completion]]:
            alone = wanted._replace(samples=1)
            return self._completed(group.prompts, group.configs, alone, stop_ids, group.seeds)

        written = complete_in_groups(
            complete,
            self._shape.rows,
            [prompts[i] for i in each],
            [configs[i] for i in each],
            row_seeds(configs, seeds, n),
        )
        return [written[start : start + n] for start in range(0, len(written), n)]

    def _completed(
        self,
        prompts: Sequence[Ids],
        config: Configs,
        wanted: Wanted,
        stop_ids: Ids | None,
        seeds: Sequence[int] | None,
    ) -> list[list[Completion]]:
        """``complete`` as one batch."""
        call = self._calls.make(prompts, config, wanted, stop_ids=stop_ids, seeds=seeds)
        state = self._written(call)
        written = [completion_of(state, call, row) for row in range(len(call.rows.seeds))]
        n = wanted.samples
        return [written[start : start + n] for start in range(0, len(written), n)]

    def complete_constrained(
        self,
        prompts: Sequence[Ids],
        config: Configs,
        matchers: Matchers,
        wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
        *,
        stop_ids: Ids | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """``complete`` of rows that have a constraint each, or none.

        Args:
            prompts: as in ``generate``.
            config: as in ``generate``.
            matchers: of each row, the samples of a prompt next to each other. They go along.
            wanted: as in ``complete``.
            stop_ids: as in ``generate``.
            seeds: as in ``complete``.

        Raises:
            ConfigError: as ``complete``; settings that contradict a constraint; a constraint that
                no token can satisfy.
        """
        call, steps = self._constrained(prompts, config, matchers, wanted, stop_ids, seeds)
        with self._on_mesh(), self._allocating(call):
            for _ in steps:
                pass
        return self._constrained_results(call, steps)

    def stream_constrained(
        self,
        prompt: Ids,
        config: DecodeConfig,
        matchers: Matchers,
        *,
        stop_ids: Ids | None = None,
        ended: Callable[[Completion], None] | None = None,
    ) -> Iterator[TokenScore]:
        """``stream_scored`` of a row with a constraint, without log-probabilities."""
        call, steps = self._constrained([prompt], config, matchers, Wanted(), stop_ids, None)
        return self._streamed_constrained(call, steps, ended)

    def _streamed_constrained(
        self, call: Call, steps: ConstrainedRows, ended: Callable[[Completion], None] | None
    ) -> Iterator[TokenScore]:
        rounds = iter(steps)
        while True:
            with self._on_mesh(), self._allocating(call):
                new = next(rounds, None)
            if new is None:
                break
            yield from (TokenScore(id, math.nan) for id in new[0])
        ((completion,),) = self._constrained_results(call, steps)
        if ended is not None:
            ended(completion)

    def _constrained(
        self,
        prompts: Sequence[Ids],
        config: Configs,
        matchers: Matchers,
        wanted: Wanted,
        stop_ids: Ids | None,
        seeds: Sequence[int] | None,
    ) -> tuple[Call, ConstrainedRows]:
        if self._shape is not None:
            raise ConfigError(
                "a constraint is given, and this generator has one shape for every call, which"
                " constrained rows do not use; make a generator without it"
            )
        call = self._calls.make(prompts, config, wanted, stop_ids=stop_ids, seeds=seeds)
        if call.contrast is not None:
            raise ConfigError(
                "contrastive_alpha is set, and contrastive search takes no constraint; leave one of"
                " them out"
            )
        arrays = ConstrainedCall(call.prompts, call.settings, call.stops, call.room, call.choosing)
        steps = self._constrained_steps
        if self._pair is not None:
            return call, DraftedLoop(steps, self._weights, arrays, matchers)
        return call, ConstrainedLoop(steps, self.model, self.params, arrays, matchers)

    def _constrained_results(self, call: Call, steps: ConstrainedRows) -> list[list[Completion]]:
        for row, problem in steps.problems.items():
            raise ConfigError(f"row {row}: no token may come next: {problem}")
        state = steps.state
        assert state is not None, "the loop has ended"
        self._check(seen_of(state))
        found = [completion_of(state, call, row) for row in range(len(call.rows.seeds))]
        n = call.room.samples
        return [found[start : start + n] for start in range(0, len(found), n)]

    def search(
        self,
        prompts: Sequence[Ids],
        config: Configs,
        beams: BeamConfig,
        *,
        stop_ids: Ids | None = None,
        seeds: Sequence[int] | None = None,
        processor: Processor | None = None,
        matchers: Matchers | None = None,
    ) -> list[list[Completion]]:
        """The best texts after each prompt that beam search finds, the best first.

        Args:
            prompts: as in ``generate``.
            config: as in ``generate``. Without ``beams.sample``, temperature, filters and seeds are
                not read, and must be left as they are.
            beams: the search.
            stop_ids: as in ``generate``.
            seeds: as in ``generate``.
            processor: as in ``Wanted``.
            matchers: the constraint of each prompt, or none; None is none at all.

        Raises:
            ConfigError: as ``generate``; settings that beam search does not have; no text is
                possible.
            NonFiniteError: as ``generate``.
        """
        if self._pair is not None:
            raise ConfigError(
                "a draft is given, and beam search drafts nothing; make the generator without the"
                " draft, or leave beams out"
            )
        configs = checked_configs(config, len(prompts))
        for row, one in enumerate(configs):
            check_beam_settings(one, beams, row)
        seeds = row_seeds(configs, seeds)
        ends = self.ends_of(configs, stop_ids)
        settings = settings_of(Rows(configs, seeds, ends), self.vocab_size)
        with self._on_mesh():
            found = beam_search(
                self.model,
                self.params,
                prompts,
                beams,
                max_new_tokens=max(c.max_new_tokens for c in configs),
                settings=settings,
                order=configs[0].order,
                own=processor,
                matchers=matchers,
            )
        return [
            [
                Completion(
                    ids=text.ids,
                    finish_reason=text.finish_reason,
                    stop=None,
                    seed=seed,
                    order=one.order,
                    score=text.score,
                )
                for text in texts
            ]
            for texts, seed, one in zip(found, seeds, configs)
        ]

    def ends_of(
        self, configs: Sequence[DecodeConfig], stop_ids: Ids | None = None
    ) -> list[list[int]]:
        """The tokens that end each row."""
        return self._calls.ends_of(configs, stop_ids)

    @property
    def _weights(self) -> Any:
        """What the programs read: the parameters, and with a draft those of both."""
        if self._pair is None:
            return self.params
        return Weights(self.params, self._draft_params)

    def _written(self, call: Call) -> State:
        """The last state of a call, on the host."""
        inputs = (call.settings, call.stops)
        static: dict[str, Any] = {"room": call.room, "choosing": call.choosing}
        with self._on_mesh(), self._allocating(call):
            if call.contrast is not None:
                k = int(call.contrast.k.max())
                state = self._contrast(
                    self._weights, call.prompts, *inputs, call.contrast, **static, candidates=k
                )
            else:
                state = self._steps.begin(self._weights, call.prompts, **static)
                await_allocation(state)
                if self._pair is None:
                    static["passes"] = call.passes
                state = self._steps.write(self._weights, state, *inputs, **static)
            state = jax.device_get(without_caches(state))
        self._check(seen_of(state))
        return state

    def stream(
        self, prompt: Ids, config: DecodeConfig, stop_ids: Ids | None = None
    ) -> Iterator[int]:
        """Yields the tokens that ``generate`` returns for this prompt alone, as they are made;
        those of contrastive search when all are.

        Raises:
            ConfigError: as ``generate``, before the first token is asked for.
            NonFiniteError: as ``generate``, when the token is asked for.
        """
        scored = self.stream_scored(prompt, config, stop_ids=stop_ids)
        return (score.id for score in scored)

    def stream_scored(
        self,
        prompt: Ids,
        config: DecodeConfig,
        wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
        *,
        stop_ids: Ids | None = None,
        ended: Callable[[Completion], None] | None = None,
    ) -> Iterator[TokenScore]:
        """``stream`` with the log-probabilities that are wanted; NaN where none are.

        Args:
            prompt: token ids.
            config: the settings.
            wanted: as in ``complete``, of one text.
            stop_ids: as in ``generate``.
            ended: called with the whole when it has ended.
        """
        if wanted.samples != 1:
            raise ConfigError(f"a stream is of one text; samples is {wanted.samples}, set it to 1")
        rows = 1 if self._shape is None else self._shape.rows
        seeds = [config.seed] * rows
        call = self._calls.make([prompt] * rows, config, wanted, stop_ids=stop_ids, seeds=seeds)
        return self._streamed(call, ended)

    def _streamed(
        self, call: Call, ended: Callable[[Completion], None] | None
    ) -> Iterator[TokenScore]:
        if call.contrast is not None:
            yield from self._streamed_whole(call, ended)
            return
        steps = self._steps
        inputs = (call.settings, call.stops)
        choosing = call.choosing
        with self._on_mesh(), self._allocating(call):
            state = steps.begin(self._weights, call.prompts, room=call.room, choosing=choosing)
            await_allocation(state)
            state = CHOOSE(state, *inputs, choosing=choosing)
            state.token.block_until_ready()
        switch = self.model.config.rope_switch
        length = int(call.prompts.lengths[0]) if not self._encodes else 1
        while True:
            seen = jax.device_get(seen_of(state))
            self._check(seen)
            new = int(seen.length[0])
            yield from stream_scores(state, length, new - length, self._calls.rollback + 1)
            length = new
            if seen.reason[0] != RUNNING:
                break
            with self._on_mesh():
                if call.passes and length == switch + 1:
                    assert isinstance(steps, loop.Steps), "rows of a draft pass no switch"
                    state = steps.over_switch(self._weights, state=state, room=call.room)
                    state = CHOOSE(state, *inputs, choosing=choosing)
                else:
                    state = steps.advance(self._weights, state, *inputs, choosing=choosing)
        if ended is not None:
            ended(completion_of(jax.device_get(without_caches(state)), call, 0))

    def _streamed_whole(
        self, call: Call, ended: Callable[[Completion], None] | None
    ) -> Iterator[TokenScore]:
        """The tokens of a text that is written as a whole first, as contrastive search does."""
        completion = completion_of(self._written(call), call, 0)
        yield from completion.scores or (TokenScore(id, math.nan) for id in completion.ids)
        if ended is not None:
            ended(completion)

    def _check(self, seen: Seen) -> None:
        """Raises an error for the first row that has failed."""
        for row, reason in enumerate(seen.reason):
            new_token = int(seen.length[row] - seen.prompt[row]) + 1
            if reason == NOT_FINITE:
                self._raise_not_finite(row, new_token)
            if reason == DRAFT_NOT_FINITE:
                raise NonFiniteError(
                    f"row {row}: the draft's logits are not finite in the step after new token"
                    f" {new_token - 1} (rows count from 0, new tokens from 1); check the draft's"
                    " weights, or leave the draft out"
                )
            if reason == BANNED:
                raise ConfigError(
                    f"row {row}: the settings ban every token at new token {new_token} (rows count"
                    " from 0, new tokens from 1); allow more (allowed_ids, bad_words,"
                    " no_repeat_ngram_size, min_new_tokens)"
                )

    def _raise_not_finite(self, row: int, new_token: int) -> NoReturn:
        with self._on_mesh():
            why = cause(self.params, self._compute, self._stored)
        raise NonFiniteError(
            f"row {row}: the logits of new token {new_token} are not finite (rows count from 0, "
            f"new tokens from 1); {why}"
        )

    def _allocating(self, call: Call) -> contextlib.AbstractContextManager:
        """Turns a lack of memory into a ConfigError that names the rows and the cache's size."""
        rows = len(call.rows.seeds) * (2 if call.choosing.guided else 1)
        room = call.room.length
        size = self._calls.cache_bytes(call)
        return allocating(
            f"{rows} rows of {room:,} tokens, whose cache takes {size / 2**30:,.2f} GiB",
            "give fewer or shorter prompts, or lower max_new_tokens",
        )

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)
