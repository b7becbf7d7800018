"""Text in, text out: prompts and messages to token ids, and what a model writes after them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llm_jax.checkpoints.open_run import Run, stop_ids
from llm_jax.config import CacheConfig, DecodeConfig
from llm_jax.config.decode import StopConfig
from llm_jax.config.search import BeamConfig
from llm_jax.config.validate_decode import validate_decode
from llm_jax.decode.constrain import Constraint, GrammarVocabulary, Matchers, compile_constraint
from llm_jax.decode.drafts import Draft
from llm_jax.decode.fixed_shape import DecodeShape
from llm_jax.decode.generate import Generator
from llm_jax.decode.phrases import StopStream, both_forms, first_stop, with_ids
from llm_jax.decode.requests import Configs, Wanted
from llm_jax.decode.results import Completion, TokenScore
from llm_jax.decode.text_start import token_starts
from llm_jax.ops.sampling.stops import TokenBytes, token_bytes_table
from llm_jax.tokenizers.chat import render_chat
from llm_jax.tokenizers.tokenizer import StreamDecoder, Tokenizer, encoder_ids
from llm_jax.types import ConfigError, DataError


def open_generator(
    run: Run,
    tokenizer: Tokenizer | None = None,
    *,
    draft: Draft | None = None,
    cache: CacheConfig = CacheConfig(),  # noqa: B008 (frozen)
    shape: DecodeShape | None = None,
) -> Generator:
    """What generates with a run, on its mesh, up to each token that ends its texts.

    Args:
        run: the run.
        tokenizer: of the run, for texts that end a row; None where only token ids are at hand.
        draft: as in ``Generator``.
        cache: as in ``Generator``.
        shape: as in ``Generator``.
    """
    mesh = run.mesh if run.mesh.size > 1 else None
    layers = run.config.execution.layers
    size = run.config.model.vocab_size
    known = None if tokenizer is None else bytes_of_tokens(tokenizer, size)
    starts = None if tokenizer is None else token_starts(tokenizer, size)
    return Generator(
        run.model,
        run.params,
        mesh,
        stop_ids=stop_ids(run),
        layers=layers,
        token_bytes=known,
        token_starts=starts,
        draft=draft,
        cache=cache,
        shape=shape,
    )


def bytes_of_tokens(tokenizer: Tokenizer, vocab_size: int) -> TokenBytes:
    """The bytes of each token after other text; an id beyond the tokenizer's has none."""
    known = min(tokenizer.vocab_size, vocab_size)
    found = [tokenizer.decode_bytes([id]) for id in range(known)]
    return token_bytes_table([*found, *[b""] * (vocab_size - known)])


Constraints = Constraint | Sequence[Constraint | None] | None
"""What texts must be: all of them, or each."""


class Event(NamedTuple):
    """A piece of a stream.

    Attributes:
        text: text that is certain now; empty while a character or a stop text may go on.
        scores: of the tokens since the last event.
        seconds: since the stream was asked for.
        completion: the whole, in the last event; None before.
    """

    text: str
    scores: tuple[TokenScore, ...]
    seconds: float
    completion: Completion | None = None


class TextGenerator:
    """Writes text with a run and its tokenizer.

    Where the model has an encoder, the encoder reads the prompt, and what is written is a text of
    its own; otherwise it goes on from the prompt.
    """

    def __init__(self, generator: Generator, tokenizer: Tokenizer, has_encoder: bool) -> None:
        self._generator = generator
        self._tokenizer = tokenizer
        self._has_encoder = has_encoder
        self._vocabularies: dict[tuple[int, ...], GrammarVocabulary] = {}

    def generate(self, prompts: Sequence[str], config: Configs) -> list[str]:
        """What the model writes after each prompt, as one batch."""
        return self.generate_after([self.prompt_ids(prompt) for prompt in prompts], config)

    def generate_after(self, ids: Sequence[Sequence[int]], config: Configs) -> list[str]:
        """What the model writes after each prompt of token ids, as one batch."""
        return [found.text for (found,) in self.complete_after(ids, config)]

    def complete_after(
        self,
        ids: Sequence[Sequence[int]],
        config: Configs,
        wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
        *,
        seeds: Sequence[int] | None = None,
        constraints: Constraints = None,
    ) -> list[list[Completion]]:
        """``Generator.complete`` of prompts of token ids, with texts.

        A completion that a stop text ends has the tokens that begin before the text's end.

        Args:
            ids: of each prompt.
            config: as in ``Generator.complete``.
            wanted: as in ``Generator.complete``.
            seeds: as in ``Generator.complete``.
            constraints: what texts must be: of all, or of each prompt (None is free).
        """
        configs = self._configs(config, len(ids))
        if constraints is None:
            found = self._generator.complete(ids, configs, wanted, seeds=seeds)
        else:
            matchers = self._matchers(ids, constraints, configs, wanted.samples)
            found = self._generator.complete_constrained(
                ids, configs, matchers, wanted, seeds=seeds
            )
        return [
            [self._with_text(completion, prompt, one.stops) for completion in completions]
            for prompt, one, completions in zip(ids, configs, found)
        ]

    def search_after(
        self,
        ids: Sequence[Sequence[int]],
        config: Configs,
        beams: BeamConfig,
        required: Sequence[str | Sequence[str]] = (),
        *,
        seeds: Sequence[int] | None = None,
        constraints: Constraints = None,
    ) -> list[list[Completion]]:
        """``Generator.search`` of prompts of token ids, with texts.

        Args:
            ids: of each prompt.
            config: as in ``Generator.search``.
            beams: the search.
            required: texts that every text must have, beside ``beams.required``; several in the
                place of one are alternatives. Each may come with a blank before it or without.
            seeds: as in ``Generator.search``.
            constraints: as in ``complete_after``.
        """
        configs = self._configs(config, len(ids))
        phrases = [
            tuple(
                form for text in _alternatives(each) for form in both_forms(text, self._tokenizer)
            )
            for each in required
        ]
        beams = replace(beams, required=(*beams.required, *phrases))
        matchers = None
        if constraints is not None:
            matchers = self._matchers(ids, constraints, configs, 1)
        found = self._generator.search(ids, configs, beams, seeds=seeds, matchers=matchers)
        return [
            [self._with_text(completion, prompt, one.stops) for completion in completions]
            for prompt, one, completions in zip(ids, configs, found)
        ]

    def stream_after(self, ids: Sequence[int], config: DecodeConfig) -> Iterator[str]:
        """The text that ``generate_after`` gives for these ids alone, in pieces of whole
        characters. Raises what generation refuses before the first piece is asked for.
        """
        events = self.events_after(ids, config)
        return (event.text for event in events)

    def events_after(
        self,
        ids: Sequence[int],
        config: DecodeConfig,
        wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
        *,
        constraint: Constraint | None = None,
    ) -> Iterator[Event]:
        """What ``complete_after`` gives for these ids alone, piece by piece. Raises what generation
        refuses before the first piece is asked for. With a constraint it has no log-probabilities.
        """
        (config,) = self._configs(config, 1)
        whole: list[Completion] = []
        if constraint is None:
            scores = self._generator.stream_scored(ids, config, wanted, ended=whole.append)
        elif wanted != Wanted():
            raise ConfigError(
                "a stream with a constraint has no log-probabilities, samples or processor of one's"
                " own; ask for the whole text instead, or leave them out"
            )
        else:
            matchers = self._matchers([ids], constraint, [config], 1)
            scores = self._generator.stream_constrained(ids, config, matchers, ended=whole.append)
        return self._events(ids, config, scores, whole)

    def _events(
        self,
        ids: Sequence[int],
        config: DecodeConfig,
        scores: Iterator[TokenScore],
        whole: list[Completion],
    ) -> Iterator[Event]:
        began = time.perf_counter()
        decoder = StreamDecoder(self._tokenizer, self._before(ids))
        stops = StopStream(config.stops.stop, include=config.stops.include_stop)
        for score in scores:
            text = stops.push(decoder.push(score.id))
            yield Event(text, (score,), time.perf_counter() - began)
        rest = stops.push(decoder.flush()) + stops.flush()
        (completion,) = whole
        completion = self._with_text(completion, ids, config.stops)
        yield Event(rest, (), time.perf_counter() - began, completion)

    def _matchers(
        self,
        ids: Sequence[Sequence[int]],
        constraints: Constraints,
        configs: Sequence[DecodeConfig],
        samples: int,
    ) -> Matchers:
        """What follows the constraint of each row."""
        each = constraints if isinstance(constraints, Sequence) else [constraints] * len(ids)
        if len(each) != len(ids):
            raise ConfigError(f"{len(each)} constraints for {len(ids)} prompts; give one each")
        ends = {tuple(row) for row in self._generator.ends_of(configs)}
        if len(ends) > 1:
            raise ConfigError(
                "stop_ids or ignore_eos differ between the rows of a batch with constraints; give"
                " all rows the same"
            )
        vocabulary = self._grammar_vocabulary(ends.pop())
        compiled = [None if one is None else compile_constraint(one, vocabulary) for one in each]
        begins = [vocabulary.begins_after(self._before(prompt)) for prompt in ids]
        return Matchers(
            vocabulary,
            [one for one in compiled for _ in range(samples)],
            [begin for begin in begins for _ in range(samples)],
        )

    def _grammar_vocabulary(self, ends: tuple[int, ...]) -> GrammarVocabulary:
        if ends not in self._vocabularies:
            size = self._generator.vocab_size
            self._vocabularies[ends] = GrammarVocabulary(self._tokenizer, size, ends)
        return self._vocabularies[ends]

    def _configs(self, config: Configs, prompts: int) -> list[DecodeConfig]:
        """The settings of each prompt, with ids in place of texts."""
        configs = [config] * prompts if isinstance(config, DecodeConfig) else list(config)
        for one in configs:
            validate_decode(one)
        return [self._with_ids(one) for one in configs]

    def _with_ids(self, config: DecodeConfig) -> DecodeConfig:
        config = with_ids(config, self._tokenizer)
        if isinstance(config.negative_prompt, str) and config.negative_prompt:
            ids = self.prompt_ids(config.negative_prompt)
            config = replace(config, negative_prompt=tuple(ids))
        return config

    def _with_text(
        self, completion: Completion, prompt: Sequence[int], stops: StopConfig
    ) -> Completion:
        """The completion with its text, up to a stop text."""
        decoder = StreamDecoder(self._tokenizer, self._before(prompt))
        pieces = [decoder.push(id) for id in completion.ids]
        text = "".join(pieces) + decoder.flush()
        found = first_stop(text, stops.stop)
        if found is None:
            if stops.include_stop and isinstance(completion.stop, int):
                text += self._tokenizer.decode_bytes([completion.stop]).decode(errors="replace")
            return completion._replace(text=text)
        end = found.end if stops.include_stop else found.begin
        kept = _tokens_before(pieces, end)
        return completion._replace(
            ids=completion.ids[:kept],
            scores=completion.scores[:kept],
            text=text[:end],
            stop=found.stop,
            finish_reason="stop",
        )

    def prompt_ids(self, prompt: str) -> list[int]:
        """``prompt_ids`` of this model."""
        return prompt_ids(self._tokenizer, prompt, self._has_encoder)

    def chat_ids(
        self, messages: str | Sequence[Mapping[str, Any]], system: str | None = None
    ) -> list[int]:
        """``chat_ids`` of this model. Raises ConfigError for a model with an encoder."""
        if self._has_encoder:
            raise ConfigError(
                "chat (--chat) is for decoders alone, and this model's prompts are what its encoder"
                " reads; give a prompt (--prompt)"
            )
        return chat_ids(self._tokenizer, messages, system)

    def _before(self, prompt: Sequence[int]) -> Sequence[int]:
        """The ids that what is written goes on from."""
        return () if self._has_encoder else prompt


def _alternatives(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _tokens_before(pieces: Sequence[str], end: int) -> int:
    """How many tokens begin before this character of the text that they are the pieces of."""
    length = 0
    for number, piece in enumerate(pieces):
        if length >= end:
            return number
        length += len(piece)
    return len(pieces)


def chat_ids(
    tokenizer: Tokenizer, messages: str | Sequence[Mapping[str, Any]], system: str | None = None
) -> list[int]:
    """Ids of a conversation, up to where the answer begins; ``<s>`` is there if the template
    writes it.

    Args:
        tokenizer: with a chat template.
        messages: ``{"role": "user", "content": "…"}`` and so on; a string is one message of the
            user.
        system: what the model is told before the messages.

    Raises:
        DataError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    told = [] if system is None else [{"role": "system", "content": system}]
    text = render_chat(tokenizer.path, [*told, *messages])
    if not (ids := tokenizer.encode_with_control(text)):
        raise DataError(
            f"tokenizer {str(tokenizer.path)!r}: its chat template writes {text!r}, nothing to go"
            " on from; use a prompt"
        )
    return ids


def prompt_ids(tokenizer: Tokenizer, prompt: str, encoder: bool = False) -> list[int]:
    """Ids of a prompt, after ``<s>`` where the tokenizer puts one; with ``encoder``, which reads
    it, also before ``</s>``. Raises ConfigError where nothing is left to go on from.
    """
    if encoder:
        ids = encoder_ids(tokenizer, [prompt])[0]
    else:
        ids = [*[tokenizer.bos_id] * tokenizer.add_bos, *tokenizer.encode(prompt)]
    if not ids:
        raise ConfigError(
            "prompt is empty, and this run's tokenizer puts no <s> before it; give --prompt some"
            " text"
        )
    return ids
