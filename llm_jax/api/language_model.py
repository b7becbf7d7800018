"""A model with its parameters and its tokenizer, as one object."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack, overload

import jax
import numpy as np
from jax.sharding import Mesh

from llm_jax.api.decode_settings import DecodeSettings, decode_config
from llm_jax.api.score_text import TextScorer
from llm_jax.api.texts import Ids, TextRows, Texts, id_rows, is_ids, strings
from llm_jax.checkpoints.manifest import names
from llm_jax.checkpoints.open_run import Run, open_run
from llm_jax.config import CacheConfig, Config
from llm_jax.config.draft import DraftConfig, parse_draft
from llm_jax.config.search import BeamConfig
from llm_jax.convert.in_memory import save_model
from llm_jax.decode import Generator
from llm_jax.decode.constrain import Constraint
from llm_jax.decode.drafts import Draft
from llm_jax.decode.embed import Pooling, vectors
from llm_jax.decode.fixed_shape import DecodeShape
from llm_jax.decode.requests import Configs, Wanted
from llm_jax.decode.results import Completion
from llm_jax.decode.score import Scorer
from llm_jax.decode.text import Constraints, Event, TextGenerator, open_generator
from llm_jax.evaluation.tasks.known import load_tasks
from llm_jax.evaluation.tasks.questions import Asked, Long
from llm_jax.evaluation.tasks.run import evaluate
from llm_jax.evaluation.tasks.task import Invalid
from llm_jax.evaluation.text_model import TextModel
from llm_jax.models import Model
from llm_jax.ranges import Count, Natural, check_fields, checked
from llm_jax.storage.paths import path_of
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import ConfigError, Params


class LanguageModel:
    """A model that is ready to use: what ``llm_jax.load`` gives.

    Where a method takes texts, a single text gives a single result and a list gives a list; token
    ids may take the place of a text. Programs are compiled at their first use and kept.

    Attributes:
        folder: where it came from; of a model of another program, where its tokenizer lies.
        config: its ``Config``; the architecture is ``config.model``.
        model: its pure functions (``llm_jax.models.Model``).
        params: its parameters, a plain tree of arrays.
        mesh: the devices that the parameters are on.
        step: of the checkpoint; 0 for a model that was not trained here.
    """

    def __init__(
        self, run: Run, types: Mapping[str, np.dtype] | None = None, owner: Any = None
    ) -> None:
        """
        Args:
            run: an open run or model.
            types: of its parameters on disk, by path, for ``save``; default: as in memory.
            owner: whatever keeps the run's folder alive.
        """
        self._run = run
        self._types = dict(types or {})
        self._owner = owner
        self._generator_options: dict[str, Any] = {}

    def __repr__(self) -> str:
        size = sum(a.size for a in jax.tree.leaves(self.params))
        return f"LanguageModel({str(self.folder)!r}, step {self.step}, {size:,} parameters)"

    @property
    def folder(self) -> Path:
        return self._run.folder

    @property
    def config(self) -> Config:
        return self._run.config

    @property
    def model(self) -> Model:
        return self._run.model

    @property
    def params(self) -> Params:
        return self._run.params

    @property
    def mesh(self) -> Mesh:
        return self._run.mesh

    @property
    def step(self) -> int:
        return self._run.step

    @property
    def run(self) -> Run:
        """The same as the structure that the functions of ``decode`` and ``evaluation`` take."""
        return self._run

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ConfigError for a model without one."""
        if not self._has_tokenizer:
            raise ConfigError(
                f"{self.folder} has no tokenizer, so that it takes token ids in place of texts"
            )
        return open_tokenizer(self.folder / "tokenizer")

    def with_params(self, params: Params) -> LanguageModel:
        """The same model with other parameters, such as those that a training loop ends with.

        Raises ConfigError where their names or shapes differ.
        """
        found = {name: np.shape(a) for name, a in names(params).items()}
        wanted = {name: a.shape for name, a in names(self.params).items()}
        wrong = [n for n in {**wanted, **found} if found.get(n) != wanted.get(n)]
        if wrong:
            name = wrong[0]
            raise ConfigError(
                f"params: {name} has the shape {found.get(name, 'absent')}, and the model needs"
                f" {wanted.get(name, 'no such array')}; give the tree of model.init"
            )
        return LanguageModel(self._run._replace(params=params), owner=self._owner)

    def with_draft(
        self, draft: str | DraftConfig | LanguageModel, tokens: Count | None = None
    ) -> LanguageModel:
        """The same model with speculative decoding: its texts have the same distribution, and its
        greedy texts are the same.

        Args:
            draft: ``"lookup"`` copies what followed the latest tokens before, ``"early_exit:4"``
                drafts with the first 4 layers, a ``DraftConfig`` says these in full; or another
                model of the same vocabulary, open or as the path of its run.
            tokens: drafted before the model verifies them; None is 4, or what a ``DraftConfig``
                has.

        Raises:
            ConfigError: a draft that does not fit the model.
        """
        return self._with(draft=self._opened_draft(draft, tokens))

    def with_cache(self, cache: CacheConfig) -> LanguageModel:
        """The same model, whose ``generate`` keeps keys and values so: in pages, or as int8.

        Raises ConfigError, at the first use, for a cache that the model cannot have.
        """
        check_fields(cache)
        return self._with(cache=cache)

    def with_shape(self, shape: DecodeShape) -> LanguageModel:
        """The same model, whose every ``generate`` runs in one shape, so that a row's tokens and
        log-probabilities are the same to the bit in every batch.
        """
        return self._with(shape=shape)

    def _with(self, **options: Any) -> LanguageModel:
        """The same model with further options of its ``Generator``."""
        found = LanguageModel(self._run, self._types, self._owner)
        found._generator_options = {**self._generator_options, **options}
        return found

    def _opened_draft(self, draft: str | DraftConfig | LanguageModel, tokens: int | None) -> Draft:
        given = {} if tokens is None else {"tokens": tokens}
        if isinstance(draft, LanguageModel):
            config = DraftConfig(kind="model", **given)
            self._check_same_tokens(draft)
            return Draft(config, draft.model, draft.params)
        if isinstance(draft, DraftConfig):
            config = draft if tokens is None else replace(draft, tokens=tokens)
            return Draft(config, execution=self.config.execution)
        config, path = parse_draft(draft, tokens)
        if not path:
            return Draft(config, execution=self.config.execution)
        opened = LanguageModel(open_run(path_of(path)))
        self._check_same_tokens(opened)
        return Draft(config, opened.model, opened.params)

    def _check_same_tokens(self, draft: LanguageModel) -> None:
        """Raises ConfigError where a draft's tokenizer is another, as far as both have one."""
        if not (self._has_tokenizer and draft._has_tokenizer):
            return
        ours = self.tokenizer.fingerprint
        theirs = draft.tokenizer.fingerprint
        if ours != theirs:
            raise ConfigError(
                f"draft {draft.folder} has the tokenizer {theirs[:16]}…, and this model"
                f" {ours[:16]}…; a draft's tokens must be those of the model, so choose one of the"
                " same tokenizer"
            )

    def generate(
        self,
        prompt: Texts = "",
        *,
        constraint: Constraints = None,
        **settings: Unpack[DecodeSettings],
    ) -> Any:
        """What the model writes after a prompt, or, where it has an encoder, makes of it.

        Args:
            prompt: a text, or several, which are one batch; or token ids, or several rows of them.
            constraint: as in ``complete``.
            settings: fields of ``DecodeConfig`` and of its sections, by their names alone; row i of
                a batch draws with ``seed + i``.

        Returns:
            str for a text and list[str] for several, without the prompt; for token ids the new ids,
            list[int] or list[list[int]].

        Raises:
            ConfigError: a setting outside its range, a prompt that is empty or too long.
            NonFiniteError: NaN or infinite logits.
        """
        rows, single = self._prompts(prompt)
        found = self.complete(rows, constraint=constraint, **settings)
        written = [only.ids if is_ids(prompt) else only.text for (only,) in found]
        return written[0] if single else written

    def complete(
        self,
        prompt: Texts = "",
        *,
        wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
        each: Sequence[DecodeSettings] | None = None,
        seeds: Sequence[int] | None = None,
        constraint: Constraints = None,
        **settings: Unpack[DecodeSettings],
    ) -> Any:
        """``generate`` with all that is known of each text: log-probabilities, why it ends.

        Args:
            prompt: as in ``generate``.
            wanted: how many texts of each prompt, which log-probabilities, and your own processor.
            each: settings of each prompt, over ``settings``.
            seeds: of the first text of each prompt, in the place of ``seed + i``.
            constraint: what texts must be (``llm_jax.decode.constrain``): of all, or of each.
            settings: as in ``generate``.

        Returns:
            list[Completion] for a prompt, its ``wanted.samples`` texts; a list of such lists for
            several prompts.
        """
        rows, single = self._prompts(prompt)
        config: Configs = decode_config(settings)
        if each is not None:
            config = [decode_config(own, decode_config(settings)) for own in each]
        found = self.complete_ids(rows, config, wanted, seeds=seeds, constraint=constraint)
        return found[0] if single else found

    def complete_ids(
        self,
        rows: Sequence[Ids],
        config: Configs,
        wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
        *,
        seeds: Sequence[int] | None = None,
        constraint: Constraints = None,
    ) -> list[list[Completion]]:
        """``complete`` of rows of token ids, with a ``DecodeConfig`` for all or for each."""
        if self._has_tokenizer:
            return self._text.complete_after(
                rows, config, wanted, seeds=seeds, constraints=constraint
            )
        self._check_no_constraint(constraint)
        return self._generator.complete(rows, config, wanted, seeds=seeds)

    def _check_no_constraint(self, constraint: Constraints) -> None:
        """Raises ConfigError for a constraint on a model without a tokenizer."""
        if constraint is not None:
            raise ConfigError(
                f"constraint is {constraint!r}, and this model has no tokenizer, of whose tokens it"
                " could be made; leave it out"
            )

    def search(
        self,
        prompt: Texts = "",
        beams: BeamConfig = BeamConfig(),  # noqa: B008 (frozen)
        *,
        required: Sequence[str | Sequence[str]] = (),
        seeds: Sequence[int] | None = None,
        constraint: Constraints = None,
        **settings: Unpack[DecodeSettings],
    ) -> Any:
        """The best texts after a prompt that beam search finds.

        Args:
            prompt: as in ``generate``.
            beams: the search.
            required: texts that every text must have; several in the place of one are alternatives.
            seeds: of each prompt, where ``beams.sample`` draws.
            constraint: as in ``complete``.
            settings: as in ``generate``; beam search reads no temperature and no filters, unless
                ``beams.sample`` is set.

        Returns:
            list[Completion] for a prompt, ``beams.returned`` texts with their scores, the best
            first; a list of such lists for several prompts.
        """
        rows, single = self._prompts(prompt)
        config = decode_config(settings)
        found = self.search_ids(
            rows, config, beams, required=required, seeds=seeds, constraint=constraint
        )
        return found[0] if single else found

    def search_ids(
        self,
        rows: Sequence[Ids],
        config: Configs,
        beams: BeamConfig,
        *,
        required: Sequence[str | Sequence[str]] = (),
        seeds: Sequence[int] | None = None,
        constraint: Constraints = None,
    ) -> list[list[Completion]]:
        """``search`` of rows of token ids, with a ``DecodeConfig`` for all or for each."""
        if self._has_tokenizer:
            return self._text.search_after(
                rows, config, beams, required, seeds=seeds, constraints=constraint
            )
        self._check_no_constraint(constraint)
        if required:
            raise ConfigError(
                "required has texts, and this model has no tokenizer; set beams.required"
            )
        return self._generator.search(rows, config, beams, seeds=seeds)

    @overload
    def stream(self, prompt: str = "", **settings: Unpack[DecodeSettings]) -> Iterator[str]: ...

    @overload
    def stream(self, prompt: Ids, **settings: Unpack[DecodeSettings]) -> Iterator[int]: ...

    def stream(self, prompt: Any = "", **settings: Unpack[DecodeSettings]) -> Iterator[Any]:
        """What ``generate`` gives for one prompt, piece by piece as it is made.

        Args:
            prompt: a text, or token ids.
            settings: as in ``generate``.

        Returns:
            An iterator of pieces of text (whole characters), or of token ids.
        """
        config = decode_config(settings)
        if isinstance(prompt, str):
            return self._text.stream_after(self._text.prompt_ids(prompt), config)
        return self._generator.stream(prompt, config)

    def stream_events(
        self,
        prompt: str | Ids = "",
        *,
        wanted: Wanted = Wanted(),  # noqa: B008 (frozen)
        constraint: Constraint | None = None,
        **settings: Unpack[DecodeSettings],
    ) -> Iterator[Event]:
        """``stream`` with the scores and the time of each token, and the completion at the end.

        Args:
            prompt: a text, or token ids.
            wanted: as in ``complete``, of one text.
            constraint: what the text must be.
            settings: as in ``generate``.
        """
        ids = self._text.prompt_ids(prompt) if isinstance(prompt, str) else prompt
        config = decode_config(settings)
        return self._text.events_after(ids, config, wanted, constraint=constraint)

    def score(self, text: Texts, encoder: Texts | None = None, top: Natural = 0) -> Any:
        """How likely the model finds each token of a text, given those before it.

        Nothing predicts a text's first token, so that it has no score; with ``<s>`` before it, as
        ``token_ids`` has it where the tokenizer puts one, each token of the text has one.

        Args:
            text: a text or token ids, or several, of at least two tokens.
            encoder: what the encoder reads beside each, where the model has one.
            top: how many of the most likely tokens are given at each place.

        Returns:
            list[TokenScore] of the tokens after the first; a list of such lists for several.

        Raises:
            ConfigError: as ``loss``; a text longer than the context.
            NonFiniteError: a log-probability is NaN.
        """
        self._check_causal("score")
        rows, single = self._rows.token_rows(text)
        reads = self._rows.encoder_rows(encoder, len(rows))
        found = self._scorer.scores(rows, reads, top=top)
        return found[0] if single else found

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        system: str | None = None,
        **settings: Unpack[DecodeSettings],
    ) -> str:
        """The model's answer, asked in the chat template of its tokenizer.

        Args:
            messages: a message of the user, or a conversation: ``{"role": "user", "content": "…"}``
                and so on.
            system: what the model is told before the messages.
            settings: as in ``generate``.

        Raises:
            DataError: the tokenizer has no chat template, or the template refuses the messages.
            ConfigError: the model has an encoder.
        """
        config = decode_config(settings)
        return self._text.generate_after([self._text.chat_ids(messages, system)], config)[0]

    def stream_chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        system: str | None = None,
        **settings: Unpack[DecodeSettings],
    ) -> Iterator[str]:
        """What ``chat`` gives, piece by piece as it is made."""
        config = decode_config(settings)
        return self._text.stream_after(self._text.chat_ids(messages, system), config)

    def logits(self, text: Texts, encoder: Texts | None = None) -> Any:
        """Logits of the full forward pass: at each position of the token that follows it, or, of a
        masked language model, of the token there.

        Args:
            text: a text or token ids, or several. A text is read as ``token_ids`` has it.
            encoder: what the encoder reads beside each, where the model has one.

        Returns:
            float32 [T, V], or a list of them.

        Raises:
            ConfigError: a text that is empty or longer than the context; an encoder that is given
                or missing against what the model has.
        """
        rows, single = self._rows.token_rows(text)
        found = self._scorer.logits(rows, self._rows.encoder_rows(encoder, len(rows)))
        return found[0] if single else found

    @checked
    def loss(
        self, text: Texts, encoder: Texts | None = None, context: Natural = 0, stride: Natural = 0
    ) -> Any:
        """How well the model predicts a text. ``.loss`` of the result is in nats per token,
        ``.tokens`` their number, ``.summary()`` has perplexities and bits per byte.

        Every token but the first is scored once; without ``<s>`` nothing predicts a text's first
        token.

        Args:
            text: a text or token ids, or several. A text is read as ``token_ids`` has it.
            encoder: what the encoder reads beside each, where the model has one.
            context: tokens of a window over a text that is longer; 0 is the model's context.
            stride: tokens newly scored in each further window; 0 is half the context.

        Returns:
            A ``Perplexity``, or a list of them.

        Raises:
            ConfigError: a model of masked tokens; a text without a token to score; a context longer
                than the model's; an encoder as in ``logits``.
            NonFiniteError: the loss is NaN or infinite.
        """
        m = self.config.model
        self._check_causal("loss")
        context = context or m.max_length
        if context > m.max_length:
            raise ConfigError(
                f"context is {context}; the model's max_length is {m.max_length}, so it must be at"
                " most that"
            )
        stride = stride or max(context // 2, 1)
        rows, single = self._rows.token_rows(text)
        reads = self._rows.encoder_rows(encoder, len(rows))
        scorer = TextScorer(self._scorer, self.tokenizer if self._has_tokenizer else None)
        found = [scorer.score(row, reads[i : i + 1], context, stride) for i, row in enumerate(rows)]
        return found[0] if single else found

    @checked
    def embed(
        self,
        text: str | Sequence[str],
        normalize: bool = True,
        batch_size: Count = 32,
        pooling: Pooling = "mean",
    ) -> np.ndarray:
        """The vector of a text, or of several.

        Args:
            text: one or more texts.
            normalize: scale each vector to length 1, so that the product of two is the cosine of
                their angle.
            batch_size: texts computed together.
            pooling: ``mean`` over a text's tokens, or ``model``: the model's own pooler.

        Returns:
            float32 [D], or [number of texts, D].

        Raises:
            ConfigError: a text that is empty or longer than the context, a model of two stacks, or
                pooling ``model`` of a model without a pooler.
        """
        texts = [text] if isinstance(text, str) else strings(text)
        found = vectors(
            self._run,
            self.tokenizer,
            texts,
            normalize=normalize,
            batch_size=batch_size,
            pooling=pooling,
        )
        return found[0] if isinstance(text, str) else found

    @checked
    def evaluate_tasks(
        self,
        tasks: Sequence[str],
        *,
        files: str | Path | None = None,
        shots: Sequence[Natural] = (0,),
        limit: Natural = 0,
        seed: Natural = 0,
        batch_size: Count = 16,
        long: Long = "refuse",
        invalid: Invalid = "refuse",
        out: str | Path | None = None,
        name: str = "",
    ) -> dict[str, Any]:
        """The model's answers to the questions of tasks, as ``llm-jax eval RUN --tasks`` counts
        them.

        Args:
            tasks: names, ``NAME=FILE``, or files of your own.
            files: folder that has the data sets of the named tasks, however deep.
            shots: numbers of examples before each question.
            limit: questions of each task, drawn with ``seed``; 0 is all.
            seed: of the questions that are drawn and of their examples.
            batch_size: choices or texts computed at once, over all devices.
            long: what becomes of prompts that are longer than the context.
            invalid: what becomes of records that cannot be read.
            out: folder of answers, with which a later call goes on; None keeps none.
            name: of the model in the results; default: its folder.

        Returns:
            ``{"model", "step", "context", "results": [{"task", "shots", "items", "figures": {…},
            "baselines": {…}, …}]}``; a figure is ``{"value", "low", "high"}``.

        Raises:
            ConfigError: a task that is not known, or a setting that does not fit it; answers in
                ``out`` to something else.
            DataError: a record that cannot be read, or prompts that are longer than the context.
        """
        loaded = load_tasks(tasks, None if files is None else path_of(files), invalid)
        ways = [Asked(number, limit, seed, long) for number in shots]
        model = TextModel(self._run, self.tokenizer, batch_size)
        with contextlib.ExitStack() as stack:
            if out is None:
                out = stack.enter_context(tempfile.TemporaryDirectory(prefix="llm_jax-"))
            return evaluate(model, name or str(self.folder), loaded, ways, path_of(out))

    def token_ids(self, text: str) -> list[int]:
        """The ids that the model reads of a text.

        They come after ``<s>`` where the tokenizer puts one, or after ``model.start_token`` where
        an encoder reads another text; a model of masked tokens has its text before ``</s>`` too.
        """
        return self._rows.token_ids(text)

    def save(self, path: str | Path) -> None:
        """Writes the model as a folder that ``load`` and every command take: what ``llm-jax
        convert`` would have written.

        Parameters that were loaded are written in the type that they came in, those of
        ``with_params`` in the type that they have.

        Args:
            path: the folder, new or empty.

        Raises:
            DataError: the folder holds something else, or cannot be written.
        """
        save_model(path_of(path), self._run, self._types)

    def _check_causal(self, what: str) -> None:
        if not self.config.model.causal:
            raise ConfigError(
                f"model.causal is False: this model predicts masked tokens, and has no {what} of a"
                " text; use logits"
            )

    def _prompts(self, prompt: Texts) -> tuple[list[Ids], bool]:
        """Token ids of each prompt, and whether a single one was given."""
        if is_ids(prompt):
            return id_rows(prompt)
        if isinstance(prompt, str):
            return [self._text.prompt_ids(prompt)], True
        return [self._text.prompt_ids(text) for text in strings(prompt)], False

    @property
    def _has_tokenizer(self) -> bool:
        return (self.folder / "tokenizer").is_dir()

    @cached_property
    def _rows(self) -> TextRows:
        return TextRows(self.config.model, lambda: self.tokenizer)

    @cached_property
    def _generator(self) -> Generator:
        tokenizer = self.tokenizer if self._has_tokenizer else None
        return open_generator(self._run, tokenizer, **self._generator_options)

    @cached_property
    def _text(self) -> TextGenerator:
        return TextGenerator(self._generator, self.tokenizer, self.config.model.encoder is not None)

    @cached_property
    def _scorer(self) -> Scorer:
        m = self.config.model
        return Scorer(
            self.model,
            self.params,
            self.mesh,
            vocab_size=m.vocab_size,
            max_length=m.max_length,
        )
