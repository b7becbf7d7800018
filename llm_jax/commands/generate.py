"""``llm-jax generate``: text from a run, streamed as it is made."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llm_jax.checkpoints.open_run import Run, open_run, stop_ids
from llm_jax.config import DecodeConfig
from llm_jax.decode import Generator
from llm_jax.ranges import Count, Natural, NotNegative, PositiveShare, Seed, Share, checked
from llm_jax.tokenizers.chat import render_chat
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.tokenizers.tokenizer import StreamDecoder, Tokenizer, continuation, encoder_ids
from llm_jax.types import ConfigError, DataError

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
    config = DecodeConfig(max_new_tokens, temperature, top_k, top_p, min_p, order, seed)
    if prompt if chat is not None else system is not None:
        raise ConfigError(
            "--chat takes no --prompt beside it, and --system only goes with --chat; give either"
            " --prompt or --chat"
        )
    if ids and (prompt or chat is not None):
        raise ConfigError("--ids takes no --prompt and no --chat beside it; give one of them")
    opened = open_run(run, step)
    if ids:
        print(*open_generator(opened).generate([ids], config)[0])
        return
    tokenizer, reads = open_tokenizer(run / "tokenizer"), opened.config.model.encoder_layers > 0
    if reads and chat is not None:
        raise ConfigError(
            "--chat is of decoders alone, and this model's prompts are what its encoder reads; give"
            " --prompt"
        )
    if len(prompt) > 1:
        for text, after in zip(prompt, write(opened, tokenizer, prompt, config)):
            print(text, after, sep="\n" if reads else "", end=f"\n{'-' * 40}\n")
        return
    text = (*prompt, "")[0]
    ids = prompt_ids(tokenizer, text, reads) if chat is None else chat_ids(tokenizer, chat, system)
    tokens = open_generator(opened).stream(ids, config)
    decoder = StreamDecoder(tokenizer, written_before(ids, reads))
    print("" if reads else text, end="", flush=True)
    for token in tokens:
        print(decoder.push(token), end="", flush=True)
    print(decoder.flush(), file=sys.stdout)


def write(
    run: Run, tokenizer: Tokenizer, prompts: Sequence[str], config: DecodeConfig
) -> list[str]:
    """What the run writes after each prompt, as one batch."""
    reads = run.config.model.encoder_layers > 0
    ids = [prompt_ids(tokenizer, p, reads) for p in prompts]
    written = open_generator(run).generate(ids, config)
    return [
        continuation(tokenizer, written_before(prompt, reads), new)
        for prompt, new in zip(ids, written)
    ]


def open_generator(run: Run) -> Generator:
    """What generates with a run, up to each token that ends its texts."""
    return Generator(run.model, run.params, stop_ids=stop_ids(run))


def written_before(prompt: Sequence[int], reads: bool) -> Sequence[int]:
    """The ids that what is written goes on from: none where an encoder reads the prompt."""
    return () if reads else prompt


def chat_ids(tokenizer: Tokenizer, message: str, system: str | None = None) -> list[int]:
    """Ids of a conversation of one message, up to where the answer begins; ``<s>`` is there if the
    template writes it.

    Raises DataError for a tokenizer without a chat template, and for a template that refuses the
    messages.
    """
    told = [] if system is None else [{"role": "system", "content": system}]
    text = render_chat(tokenizer.path, [*told, {"role": "user", "content": message}])
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
