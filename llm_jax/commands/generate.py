"""``llm-jax generate``: text from a run, streamed as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from llm_jax.api.decode_settings import DecodeSettings
from llm_jax.api.language_model import LanguageModel
from llm_jax.api.load import load
from llm_jax.api.verbs import check_request
from llm_jax.config import DecodeConfig
from llm_jax.ranges import Count, Natural, NotNegative, PositiveShare, Seed, Share, checked

_D = DecodeConfig()


@checked
def generate(
    run: Path,
    prompt: tuple[str, ...] = (),
    *,
    ids: tuple[Natural, ...] = (),
    chat: str | None = None,
    system: str | None = None,
    max_new_tokens: Count = _D.max_new_tokens,
    temperature: NotNegative = _D.temperature,
    top_k: Natural = _D.top_k,
    top_p: PositiveShare = _D.top_p,
    min_p: Share = _D.min_p,
    order: Literal["hf", "vllm"] = _D.order,
    seed: Seed = _D.seed,
    step: Natural | None = None,
) -> None:
    """Write text after a prompt, the answer to a chat message, or, with an encoder-decoder model,
    the output for a prompt, up to </s> or max_new_tokens. One prompt is streamed, several are one
    batch.

    Args:
        run: folder of the run.
        prompt: text to continue; several prompts are generated together. Without one, a new text
            begins.
        ids: token ids to continue in place of text, for a model without a tokenizer; token ids are
            written then.
        chat: message to answer, in the chat template of the run's tokenizer.
        system: system message before the chat message.
        max_new_tokens: most tokens written.
        temperature: divides the logits; 0 always takes the most likely token.
        top_k: keep the k most likely tokens; 0 is off.
        top_p: keep the smallest set of most likely tokens with this mass; 1 is off.
        min_p: drop tokens less likely than this share of the most likely one; 0 is off.
        order: hf filters in the order top-k, top-p, min-p; vllm min-p, top-k, top-p.
        seed: the same seed and prompt give the same text; prompt number i uses seed + i.
        step: which checkpoint; the newest if not given.
    """
    settings: DecodeSettings = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "order": order,
        "seed": seed,
    }
    check_request(prompt, ids, chat, system)
    opened = load(run, step)
    if ids:
        print(*opened.generate(ids, **settings))
    elif len(prompt) > 1:
        _print_batch(opened, prompt, settings)
    elif chat is not None:
        _print_stream("", opened.stream_chat(chat, system, **settings))
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
        print(text, after, sep=separator, end=f"\n{'-' * 40}\n")


def _print_stream(prompt: str, pieces: Iterator[str]) -> None:
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
