"""``llm-jax generate --prompts FILE --out FILE``: a file of prompts, in batches by length."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from llm_jax.api.decode_settings import DecodeSettings, decode_config
from llm_jax.api.language_model import LanguageModel
from llm_jax.commands.answer_file import AnswerFile, Records
from llm_jax.commands.decode_flags import Search, beam_name
from llm_jax.commands.prompt_file import PromptLine, read_prompts
from llm_jax.commands.written import Spelling, as_record
from llm_jax.config import DecodeConfig
from llm_jax.config.decode import decode_settings
from llm_jax.config.validate_decode import validate_decode
from llm_jax.decode.constrain import Constraint
from llm_jax.decode.requests import Wanted
from llm_jax.decode.results import Completion
from llm_jax.decode.text import chat_ids, prompt_ids
from llm_jax.files import make_folder
from llm_jax.progress import note, progress
from llm_jax.storage.paths import is_bucket, local_file
from llm_jax.types import ConfigError, DataError


class Plan(NamedTuple):
    """What a file of prompts is asked for.

    Attributes:
        prompts: file of prompts.
        out: file of answers.
        settings: of lines that say nothing else.
        wanted: beside the tokens.
        batch_size: prompts of a batch.
        search: a beam search, in place of draws.
        constraint: what every text must be.
        draft: as on the command line.
        cache: layout and type, as on the command line.
    """

    prompts: Path
    out: Path
    settings: DecodeSettings
    wanted: Wanted
    batch_size: int
    search: Search | None = None
    constraint: Constraint | None = None
    draft: str | None = None
    cache: tuple[str, str] = ("dense", "compute")

    @property
    def texts(self) -> int:
        """Texts of each prompt."""
        return self.wanted.samples if self.search is None else self.search.beams.returned


class _Row(NamedTuple):
    """A prompt as token ids, with its settings."""

    line: PromptLine
    ids: list[int]
    seed: int


def generate_file(load: Callable[[], LanguageModel], plan: Plan) -> None:
    """Answers every prompt of a file that is not answered yet.

    Args:
        load: opens the model; called when the files are checked.
        plan: what is asked for.

    Raises:
        ConfigError: a setting that cannot be; answers to other settings are there.
        DataError: a line that cannot be used; the message names it.
    """
    base = decode_config(plan.settings)
    validate_decode(base)
    if is_bucket(plan.out):
        raise ConfigError(
            f"out is {plan.out}, and a file of a bucket cannot be added to; give a local file"
            " (--out) and copy it afterwards"
        )
    content = _read(plan.prompts)
    lines = read_prompts(plan.prompts, content, base)
    opened = load()
    answers = AnswerFile(plan.out, len(lines), plan.texts)
    make_folder(plan.out.absolute().parent)
    answers.check_settings(_asked(opened, plan, content, base))
    with answers.locked():
        if answers.is_whole:
            # Left where a command was killed between the two.
            answers.partial.unlink(missing_ok=True)
            note(f"{plan.out} has all {len(lines):,} answers already")
            return
        _answer(opened, plan, lines, answers)


def _answer(
    opened: LanguageModel, plan: Plan, lines: Sequence[PromptLine], answers: AnswerFile
) -> None:
    done = answers.done()
    if done:
        note(f"going on: {len(done):,} of {len(lines):,} prompts are answered")
    rows = [_row(opened, line, plan) for line in lines]
    left = [row for row in rows if row.line.number not in done]
    writer = _Writer(opened)
    with progress("generating", total=len(lines), unit="prompts") as bar:
        bar.advance(len(done))
        for batch in _batches(left, plan.batch_size):
            began = time.perf_counter()
            records = writer.records(batch, plan)
            answers.append(records)
            tokens = sum(len(record["ids"]) for record in records)
            bar.advance(len(batch), tokens_s=round(tokens / (time.perf_counter() - began)))
    answers.finish()


def _batches(rows: Sequence[_Row], size: int) -> Iterator[Sequence[_Row]]:
    """Batches of prompts of similar lengths, the longest first: whoever lacks memory is told early.

    Rows of one batch have the same order of processors.
    """
    for order in dict.fromkeys(row.line.config.order for row in rows):
        same = [row for row in rows if row.line.config.order == order]
        same.sort(key=lambda row: -len(row.ids))
        for start in range(0, len(same), size):
            yield same[start : start + size]


def _row(opened: LanguageModel, line: PromptLine, plan: Plan) -> _Row:
    try:
        ids = _ids(opened, line)
    except (ConfigError, DataError) as error:
        raise DataError(f"{plan.prompts}, line {line.line}: {error}") from error
    # As in a batch, prompt i draws with seed + i, unless its line has a seed.
    further = 0 if line.has_seed else line.number * plan.wanted.samples
    return _Row(line, ids, line.config.seed + further)


def _ids(opened: LanguageModel, line: PromptLine) -> list[int]:
    if line.source == "ids":
        return line.value
    if line.source == "prompt":
        return prompt_ids(opened.tokenizer, line.value, _has_encoder(opened))
    if _has_encoder(opened):
        raise ConfigError(
            "messages are for decoders alone, and this model's prompts are what its encoder reads;"
            " give a prompt"
        )
    return chat_ids(opened.tokenizer, line.value)


class _Writer:
    """Answers batches of prompts, whose rows have settings and seeds of their own."""

    def __init__(self, opened: LanguageModel) -> None:
        self._opened = opened
        has_tokenizer = (opened.folder / "tokenizer").is_dir()
        tokenizer = opened.tokenizer if has_tokenizer else None
        self._spelling = Spelling(tokenizer, _has_encoder(opened))

    def records(self, batch: Sequence[_Row], plan: Plan) -> Records:
        """The answers of a batch, as JSON objects."""
        try:
            found = self._completed(batch, plan)
        except ConfigError as error:
            lines = ", ".join(str(row.line.line) for row in batch)
            raise ConfigError(f"rows are lines {lines} of the prompts: {error}") from error
        return [
            {**_name(row.line), "sample": sample, **as_record(completion, self._spelling)}
            for row, completions in zip(batch, found)
            for sample, completion in enumerate(completions)
        ]

    def _completed(self, batch: Sequence[_Row], plan: Plan) -> list[list[Completion]]:
        ids = [row.ids for row in batch]
        configs = [row.line.config for row in batch]
        seeds = [row.seed for row in batch]
        search = plan.search
        if search is None:
            return self._opened.complete_ids(
                ids, configs, plan.wanted, seeds=seeds, constraint=plan.constraint
            )
        return self._opened.search_ids(
            ids,
            configs,
            search.beams,
            required=search.required,
            seeds=seeds,
            constraint=plan.constraint,
        )


def _name(line: PromptLine) -> dict[str, Any]:
    own = {} if line.id is None else {"id": line.id}
    return {"prompt": line.number, **own}


def _asked(opened: LanguageModel, plan: Plan, content: bytes, base: DecodeConfig) -> dict[str, Any]:
    """What the answers depend on."""
    settings = {
        name: getattr(getattr(base, setting.section) if setting.section else base, name)
        for name, setting in decode_settings().items()
    }
    return {
        "run": str(opened.folder.absolute()),
        "step": opened.step,
        "prompts": hashlib.sha256(content).hexdigest(),
        "n": plan.wanted.samples,
        "logprobs": plan.wanted.logprobs,
        "logprobs_of": plan.wanted.kind,
        **_searched(plan.search),
        "constraint": None if plan.constraint is None else repr(plan.constraint),
        "draft": plan.draft,
        "cache": list(plan.cache),
        **settings,
    }


def _searched(search: Search | None) -> dict[str, Any]:
    """The settings of a beam search, by the names of their options."""
    if search is None:
        return {"beams": None}
    own = {beam_name(name): value for name, value in asdict(search.beams).items()}
    return {**own, beam_name("required"): search.required}


def _read(path: Path) -> bytes:
    try:
        return local_file(path).read_bytes()
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror}); check prompts (--prompts)"
        raise DataError(problem) from error


def _has_encoder(opened: LanguageModel) -> bool:
    return opened.config.model.encoder is not None
