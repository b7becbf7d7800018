"""``llm-jax generate``: text from a run, streamed as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

from llm_jax.api.decode_settings import DecodeSettings
from llm_jax.api.language_model import LanguageModel
from llm_jax.api.load import load
from llm_jax.api.verbs import check_request
from llm_jax.commands import generate_file
from llm_jax.commands.decode_flags import with_decode_flags
from llm_jax.commands.logprobs_page import page
from llm_jax.commands.show_logprobs import show
from llm_jax.commands.written import Spelling, Written, as_record, json_line
from llm_jax.decode.generate import Wanted
from llm_jax.decode.text import chat_ids, prompt_ids
from llm_jax.files import write_atomic
from llm_jax.ranges import Count, Natural, checked
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
@with_decode_flags
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
    """
    request = _Request(prompt, ids, chat, system)
    wanted = Wanted(samples=n, logprobs=logprobs, kind=logprobs_of)
    if prompts is not None or out is not None:
        _check_file_request(request, prompts, out, json, html)
        assert prompts is not None and out is not None
        plan = generate_file.Plan(prompts, out, settings, wanted, batch_size)
        generate_file.generate_file(lambda: load(run, step), plan)
        return
    check_request(prompt, ids, chat, system)
    opened = load(run, step)
    if html is not None and logprobs is None:
        wanted = wanted._replace(logprobs=_PAGE_LOGPROBS)
    if wanted.samples > 1 or wanted.logprobs is not None or json:
        written = _complete(opened, request, wanted, settings)
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
        _print_plainly(opened, request, settings)


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


def _complete(
    opened: LanguageModel, request: _Request, wanted: Wanted, settings: DecodeSettings
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
    found = opened.complete(rows, wanted=wanted, **settings)
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


def _print_plainly(opened: LanguageModel, request: _Request, settings: DecodeSettings) -> None:
    prompt = request.prompt
    if request.ids:
        print(*opened.generate(request.ids, **settings))
    elif len(prompt) > 1:
        _print_batch(opened, prompt, settings)
    elif request.chat is not None:
        _print_stream("", opened.stream_chat(request.chat, request.system, **settings))
    else:
        text = prompt[0] if prompt else ""
        shown = "" if _has_encoder(opened) else text
        _print_stream(shown, opened.stream(text, **settings))


def _has_encoder(opened: LanguageModel) -> bool:
    return opened.config.model.encoder is not None


def _print_batch(opened: LanguageModel, prompts: tuple[str, ...], settings: DecodeSettings) -> None:
    """Prints each prompt with what is written after it; an encoder's output is on its own line."""
    separator = "\n" if _has_encoder(opened) else ""
    for text, after in zip(prompts, opened.generate(prompts, **settings)):
        print(text, after, sep=separator, end=f"\n{_LINE}\n")


def _print_stream(prompt: str, pieces: Iterator[str]) -> None:
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
