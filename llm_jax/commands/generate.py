"""``llm-jax generate``: text from a run, streamed as it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from llm_jax.api.language_model import DecodeSettings
from llm_jax.api.load import load
from llm_jax.api.verbs import check_request
from llm_jax.config import DecodeConfig
from llm_jax.ranges import Count, Natural, NotNegative, PositiveShare, Seed, Share, checked

_D = DecodeConfig()


@checked
def generate(
    run: Path,
    prompt: tuple[str, ...] = (),
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
    """Write text after a prompt, or a chat's answer, or what a model with an encoder makes of its
    prompt, up to </s> or max_new_tokens. One prompt is streamed, several are one batch.

    Args:
        run: folder of the run.
        prompt: text to go on from; several prompts are generated together. None begins a new text.
        ids: token ids to go on from in place of text, for a model without a tokenizer; ids are
            written then.
        chat: message to answer; the chat template of the run's tokenizer says how the model is
            asked.
        system: what the model is told before the message.
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
        return
    has_encoder = opened.config.model.encoder is not None
    if len(prompt) > 1:
        for text, after in zip(prompt, opened.generate(prompt, **settings)):
            print(text, after, sep="\n" if has_encoder else "", end=f"\n{'-' * 40}\n")
        return
    text = (*prompt, "")[0]
    if chat is None:
        pieces = opened.stream(text, **settings)
    else:
        pieces = opened.stream_chat(chat, system, **settings)
    print("" if has_encoder else text, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
