"""Text in, text out: prompts and messages to token ids, and what a model writes after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_jax.checkpoints.open_run import Run, stop_ids
from llm_jax.config import DecodeConfig
from llm_jax.decode.generate import Generator
from llm_jax.tokenizers.chat import render_chat
from llm_jax.tokenizers.tokenizer import StreamDecoder, Tokenizer, continuation, encoder_ids
from llm_jax.types import ConfigError, DataError


def open_generator(run: Run) -> Generator:
    """What generates with a run, on its mesh, up to each token that ends its texts."""
    mesh = run.mesh if run.mesh.size > 1 else None
    layers = run.config.execution.layers
    return Generator(run.model, run.params, mesh, stop_ids=stop_ids(run), layers=layers)


class TextGenerator:
    """Writes text with a run and its tokenizer.

    Where the model has an encoder, the encoder reads the prompt, and what is written is a text of
    its own; otherwise it goes on from the prompt.
    """

    def __init__(self, generator: Generator, tokenizer: Tokenizer, has_encoder: bool) -> None:
        self._generator = generator
        self._tokenizer = tokenizer
        self._has_encoder = has_encoder

    def generate(self, prompts: Sequence[str], config: DecodeConfig) -> list[str]:
        """What the model writes after each prompt, as one batch."""
        return self.generate_after([self.prompt_ids(prompt) for prompt in prompts], config)

    def generate_after(self, ids: Sequence[Sequence[int]], config: DecodeConfig) -> list[str]:
        """What the model writes after each prompt of token ids, as one batch."""
        written = self._generator.generate(ids, config)
        return [
            continuation(self._tokenizer, self._before(prompt), new)
            for prompt, new in zip(ids, written)
        ]

    def stream_after(self, ids: Sequence[int], config: DecodeConfig) -> Iterator[str]:
        """The text that ``generate_after`` gives for these ids alone, in pieces of whole
        characters. Raises what generation refuses before the first piece is asked for.
        """
        tokens = self._generator.stream(ids, config)
        return self._decoded(tokens, StreamDecoder(self._tokenizer, self._before(ids)))

    def _decoded(self, tokens: Iterator[int], decoder: StreamDecoder) -> Iterator[str]:
        for token in tokens:
            yield decoder.push(token)
        yield decoder.flush()

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
