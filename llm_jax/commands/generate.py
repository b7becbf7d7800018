"""``llm-jax generate``: text from a run, streamed as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

from llm_jax.api.decode_settings import DecodeSettings
from llm_jax.api.language_model import LanguageModel
from llm_jax.api.load import load
from llm_jax.api.verbs import check_request
from llm_jax.commands import generate_file
from llm_jax.commands.decode_flags import (
    Search,
    beam_flags,
    decode_flags,
    search_of,
    with_flags,
)
from llm_jax.commands.logprobs_page import page
from llm_jax.commands.show_logprobs import show
from llm_jax.commands.written import Spelling, Written, as_record, json_line
from llm_jax.config import CacheConfig
from llm_jax.decode.constrain import Choices, Constraint, JsonSchema, Lark, Regex
from llm_jax.decode.requests import Wanted
from llm_jax.decode.text import chat_ids, prompt_ids
from llm_jax.files import write_atomic
from llm_jax.ranges import Count, Natural, checked
from llm_jax.storage.paths import path_of
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import ConfigError

_LINE = "-" * 40
_PAGE_LOGPROBS = 5


class _Request(NamedTuple):
    """What is to be gone on from."""

    prompt: tuple[str, ...]
    ids: tuple[int, ...]
    chat: str | None
    system: str | None


@checked
@with_flags(*decode_flags(), *beam_flags())
def generate(
    run: Path,
    prompt: tuple[str, ...] = (),
    *,
    ids: tuple[Natural, ...] = (),
    chat: str | None = None,
    system: str | None = None,
    step: Natural | None = None,
    n: Count = 1,
    logprobs: Natural | None = None,
    logprobs_of: Literal["raw", "processed"] = "raw",
    html: Path | None = None,
    json: bool = False,
    prompts: Path | None = None,
    out: Path | None = None,
    batch_size: Count = 8,
    draft: str | None = None,
    draft_tokens: Count | None = None,
    json_schema: str | None = None,
    json_whitespace: Natural = 1,
    regex: str | None = None,
    choices: tuple[str, ...] = (),
    grammar: Path | None = None,
    cache: Literal["dense", "paged"] = "dense",
    cache_dtype: Literal["compute", "int8"] = "compute",
    **settings: Unpack[DecodeSettings],
) -> None:
    """Write text after a prompt, the answer to a chat message, or, with an encoder-decoder model,
    the output for a prompt, up to </s> or max_new_tokens. One prompt is streamed, several are one
    batch, and a file of prompts is worked through in batches.

    Args:
        run: folder of the run.
        prompt: text to continue; several prompts are generated together. Without one, a new text
            begins.
        ids: token ids to continue in place of text, for a model without a tokenizer; token ids are
            written then.
        chat: message to answer, in the chat template of the run's tokenizer.
        system: system message before the chat message.
        step: which checkpoint; the newest if not given.
        n: texts of each prompt; each further one draws with the next seed.
        logprobs: show tokens coloured by probability, or with numbers where the output is no
            terminal, beside this many of the most likely tokens.
        logprobs_of: raw probabilities of the model, or processed ones, which tokens were drawn
            from.
        html: write a page with the probabilities of all tokens to this file, and the alternatives
            where one points; 5 of them if logprobs does not say.
        json: print a JSON line for each text.
        prompts: file of JSON lines, each with a prompt, messages or ids, an id of your choice, and
            settings by their names, which win over the options here. Goes with out.
        out: file of JSON lines to write the answers to, in the order of the prompts. The same
            command goes on where it was stopped.
        batch_size: prompts of the file that are generated together.
        draft: write several tokens at a time, with the same distribution of texts: lookup copies
            what followed the latest tokens before, early_exit:4 drafts with the first 4 layers, and
            the folder of a run of the same vocabulary with its model.
        draft_tokens: tokens that are drafted before the model verifies them; 4 if not given.
        json_schema: the text is JSON that this schema allows: a file, or the schema itself.
        json_whitespace: most characters of white space at each place of json_schema that allows
            any; 0 is compact.
        regex: the text matches this pattern as a whole.
        choices: the text is one of these.
        grammar: the text follows the Lark grammar of this file.
        cache: dense gives each row room of its own, paged pages of a pool.
        cache_dtype: compute keeps keys and values as the model computes them, int8 in a byte each.
    """
    request = _Request(prompt, ids, chat, system)
    # Those of beam search are among the settings of the command line.
    given: Any = dict(settings)
    search = search_of(given)
    _check_search(search, n, logprobs, html)
    constraint = constraint_of(json_schema, regex, choices, grammar, whitespace=json_whitespace)
    _check_together(search, draft, draft_tokens)

    def opened_run() -> LanguageModel:
        found = load(run, step)
        kind = CacheConfig(layout=cache, dtype=cache_dtype)
        if kind != CacheConfig():
            found = found.with_cache(kind)
        return found if draft is None else found.with_draft(draft, draft_tokens)

    use_compile_cache()
    wanted = Wanted(samples=n, logprobs=logprobs, kind=logprobs_of)
    if prompts is not None or out is not None:
        _check_file_request(request, prompts, out, json, html)
        assert prompts is not None and out is not None
        plan = generate_file.Plan(
            prompts=prompts,
            out=out,
            settings=given,
            wanted=wanted,
            batch_size=batch_size,
            search=search,
            constraint=constraint,
            draft=draft,
            cache=(cache, cache_dtype),
        )
        generate_file.generate_file(opened_run, plan)
        return
    check_request(prompt, ids, chat, system)
    opened = opened_run()
    if html is not None and logprobs is None:
        wanted = wanted._replace(logprobs=_PAGE_LOGPROBS)
    if wanted.samples > 1 or wanted.logprobs is not None or json or search is not None:
        written = _complete(opened, request, wanted, given, search, constraint)
        spelling = spelling_of(opened)
        if html is not None:
            title = f"{opened.folder.name}, step {opened.step}"
            write_atomic(html, page(written, spelling, title).encode())
        if json:
            _print_json(written, spelling)
        elif logprobs is not None:
            show(written, spelling)
        else:
            _print_texts(opened, request, written)
    else:
        _print_plainly(opened, request, given, constraint)


def _check_file_request(
    request: _Request, prompts: Path | None, out: Path | None, as_json: bool, html: Path | None
) -> None:
    if prompts is None or out is None:
        raise ConfigError(
            f"prompts (--prompts) is {prompts} and out (--out) {out}; give both, a file of prompts"
            " and one for the answers"
        )
    given = [name for name, value in request._asdict().items() if value]
    given += ["json"] * as_json + ["html"] * (html is not None)
    if given:
        raise ConfigError(
            f"--{given[0]} does not go with --prompts, whose prompts and answers are in files;"
            " leave out one of them"
        )


def _check_search(search: Search | None, n: int, logprobs: int | None, html: Path | None) -> None:
    if search is None:
        return
    unread = {"n": n != 1, "logprobs": logprobs is not None, "html": html is not None}
    for name, is_given in unread.items():
        if is_given:
            raise ConfigError(
                f"--{name} does not go with --beams: beam search gives --beam-returned texts with a"
                " score each; leave one of them out"
            )


def constraint_of(
    json_schema: str | None,
    regex: str | None,
    choices: tuple[str, ...],
    grammar: Path | None,
    *,
    whitespace: int = 1,
) -> Constraint | None:
    """What a command line says that texts must be.

    Raises:
        ConfigError: more than one is given, or one cannot be read.
    """
    given = {
        "--json-schema": json_schema is not None,
        "--regex": regex is not None,
        "--choices": bool(choices),
        "--grammar": grammar is not None,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise ConfigError(f"{' and '.join(names)} are given; a text has one constraint, give one")
    if json_schema is None and whitespace != 1:
        raise ConfigError(
            f"--json-whitespace is {whitespace} and --json-schema is not set; set it, or leave"
            " --json-whitespace out"
        )
    if json_schema is not None:
        is_text = json_schema.lstrip().startswith("{")
        text = json_schema if is_text else _text_of(json_schema, "json-schema")
        return JsonSchema(text, whitespace=whitespace)
    if regex is not None:
        return Regex(regex)
    if grammar is not None:
        return Lark(_text_of(grammar, "grammar"))
    return Choices(choices) if choices else None


def _text_of(path: str | Path, option: str) -> str:
    try:
        return path_of(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); check --{option}") from error


def _check_together(search: Search | None, draft: str | None, draft_tokens: int | None) -> None:
    if draft is None and draft_tokens is not None:
        raise ConfigError("--draft-tokens is set and --draft is not; set --draft, or leave it out")
    if search is not None and draft is not None:
        raise ConfigError(
            "--beams and --draft are given, and beam search drafts nothing; leave one of them out"
        )


def _complete(
    opened: LanguageModel,
    request: _Request,
    wanted: Wanted,
    settings: DecodeSettings,
    search: Search | None,
    constraint: Constraint | None,
) -> list[Written]:
    """What is written after each prompt, with all that is known of it."""
    texts = request.prompt or ("",)
    if request.ids:
        texts = ("",)
        rows = [list(request.ids)]
    elif request.chat is not None:
        _check_chat(opened)
        texts = ("",)
        rows = [chat_ids(opened.tokenizer, request.chat, request.system)]
    else:
        rows = [prompt_ids(opened.tokenizer, text, _has_encoder(opened)) for text in texts]
    if search is None:
        found = opened.complete(rows, wanted=wanted, constraint=constraint, **settings)
    else:
        found = opened.search(
            rows, search.beams, required=search.required, constraint=constraint, **settings
        )
    return [Written(*one) for one in zip(texts, rows, found)]


def _check_chat(opened: LanguageModel) -> None:
    if _has_encoder(opened):
        raise ConfigError(
            "chat (--chat) is for decoders alone, and this model's prompts are what its encoder"
            " reads; give a prompt (--prompt)"
        )


def spelling_of(opened: LanguageModel) -> Spelling:
    """How the tokens of a model are shown."""
    has_tokenizer = (opened.folder / "tokenizer").is_dir()
    return Spelling(opened.tokenizer if has_tokenizer else None, _has_encoder(opened))


def _print_json(written: list[Written], spelling: Spelling) -> None:
    for number, one in enumerate(written):
        for sample, completion in enumerate(one.completions):
            record = {"prompt": number, "sample": sample, **as_record(completion, spelling)}
            print(json_line(record), end="")


def _print_texts(opened: LanguageModel, request: _Request, written: list[Written]) -> None:
    separator = "\n" if _has_encoder(opened) else ""
    for one in written:
        for completion in one.completions:
            after = " ".join(map(str, completion.ids)) if request.ids else completion.text
            print(one.prompt, after, sep=separator, end=f"\n{_LINE}\n")


def _print_plainly(
    opened: LanguageModel,
    request: _Request,
    settings: DecodeSettings,
    constraint: Constraint | None,
) -> None:
    prompt = request.prompt
    if request.ids:
        print(*opened.generate(request.ids, constraint=constraint, **settings))
    elif len(prompt) > 1:
        _print_batch(prompt, opened.generate(prompt, constraint=constraint, **settings), opened)
    else:
        text = prompt[0] if prompt else ""
        ids: str | list[int] = text
        if request.chat is not None:
            _check_chat(opened)
            ids = chat_ids(opened.tokenizer, request.chat, request.system)
        shown = "" if _has_encoder(opened) or request.chat is not None else text
        events = opened.stream_events(ids, constraint=constraint, **settings)
        _print_stream(shown, (event.text for event in events))


def _has_encoder(opened: LanguageModel) -> bool:
    return opened.config.model.encoder is not None


def _print_batch(prompts: tuple[str, ...], written: list[str], opened: LanguageModel) -> None:
    """Prints each prompt with what is written after it; an encoder's output is on its own line."""
    separator = "\n" if _has_encoder(opened) else ""
    for text, after in zip(prompts, written):
        print(text, after, sep=separator, end=f"\n{_LINE}\n")


def _print_stream(prompt: str, pieces: Iterator[str]) -> None:
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
