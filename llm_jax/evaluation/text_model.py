"""A model as evaluation asks it: texts in, log-likelihoods and texts out.

How a prompt and its continuation become token ids is what lm-evaluation-harness defines: blanks at
the end of the prompt belong to the continuation; both are encoded as one text, and the continuation
has the tokens after as many as the prompt alone has. So a prompt without a blank at its end goes
with a continuation that begins with one. An encoder's prompt and the text after it are encoded
apart. An empty prompt is the token that begins a text (or ends one, where there is none).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from llm_jax.checkpoints.open_run import Run
from llm_jax.config import DecodeConfig
from llm_jax.decode.continuation_batches import Pair
from llm_jax.decode.continuations import Continuations, Score
from llm_jax.decode.inputs import filled_rows
from llm_jax.decode.text import TextGenerator, open_generator, prompt_ids
from llm_jax.evaluation.perplexity import windows
from llm_jax.tokenizers.tokenizer import Tokenizer, encoder_ids
from llm_jax.types import ConfigError, DataError, Params


class TextModel:
    """Scores and continues texts with one model.

    Args:
        run: the model.
        tokenizer: of the model.
        batch_size: rows computed at once, over all devices.

    Raises:
        ConfigError: the model predicts masked tokens.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, batch_size: int = 16) -> None:
        self._run = run
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self._has_encoder = run.config.model.encoder is not None
        generator = open_generator(run, tokenizer)
        self._text = TextGenerator(generator, tokenizer, self._has_encoder)
        self._continuations = Continuations(
            generator.model,
            generator.params,
            run.mesh if run.mesh.size > 1 else None,
            vocab_size=generator.vocab_size,
            batch_size=batch_size,
        )

    @property
    def max_length(self) -> int:
        """Tokens of the context."""
        return self._run.config.model.max_length

    @property
    def step(self) -> int:
        """Of the checkpoint."""
        return self._run.step

    @property
    def prefix(self) -> int:
        """The token that an empty prompt is.

        Raises:
            ConfigError: the tokenizer has none.
        """
        known = [id for id in (self.tokenizer.bos_id, self.tokenizer.eos_id) if id >= 0]
        if not known:
            raise ConfigError(
                "the tokenizer has no token that begins or ends a text, so that nothing predicts"
                " the first token of a text without a prompt"
            )
        return known[0]

    def fingerprint(self) -> str:
        """Of the parameters, the same on every mesh."""
        return "".join(f"{int(x):08x}" for x in jax.device_get(_digest(self._run.params)))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt that is to be continued."""
        return prompt_ids(self.tokenizer, prompt, self._has_encoder)

    def pair(self, prompt: str, continuation: str) -> Pair:
        """Token ids of a prompt and its continuation.

        Raises:
            DataError: the continuation has no token of its own.
        """
        context, rest = self._split(prompt, continuation)
        if not rest:
            raise DataError(
                f"the continuation {continuation!r} adds no token to its prompt, which ends with"
                f" {prompt[-20:]!r}; give a continuation with a token of its own"
            )
        return Pair(tuple(context), tuple(rest))

    def _split(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        if self._has_encoder:
            read = encoder_ids(self.tokenizer, [prompt])[0] or [self.prefix]
            return read, self.tokenizer.encode(continuation)
        context = prompt.rstrip()
        rest = prompt[len(context) :] + continuation
        if not context:
            ids = self.tokenizer.encode(rest)
            if ids[:1] == [self.prefix]:
                return ids[:1], ids[1:]
            return [self.prefix], ids
        before = self.prompt_ids(context)
        return before, self.prompt_ids(context + rest)[len(before) :]

    def excess(self, pair: Pair) -> int:
        """Tokens by which a prompt with its continuation is longer than the context."""
        sizes = (len(pair.context), len(pair.continuation))
        over = max(sizes) if self._has_encoder else sum(sizes) - 1
        return max(over - self.max_length, 0)

    def excess_to_write(self, prompt: int, new: int) -> int:
        """The same of a prompt of so many tokens after which ``new`` ones are to be written."""
        over = max(prompt, new) if self._has_encoder else prompt + new
        return max(over - self.max_length, 0)

    def without_begin(self, ids: tuple[int, ...], tokens: int) -> tuple[int, ...]:
        """A prompt without its first tokens; ``<s>``, where it begins with one, stays."""
        start = int(self.tokenizer.is_control(ids[0]))
        return (*ids[:start], *ids[start + tokens :])

    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """The scores of continuations (``Continuations.score``)."""
        return self._continuations.score(pairs)

    def log_likelihoods(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """Log-likelihood (nats) of each text after its prompt, as the bias metrics ask for it."""
        pairs = [self.pair(a, b) for a, b in zip(prompts, continuations, strict=True)]
        return [score.total for score in self.score(pairs)]

    def rolling(self, text: str) -> list[Pair]:
        """A whole text as pairs that score each of its tokens once.

        The first window begins with ``prefix``; each later one has the full context and scores the
        tokens that are new.

        Raises:
            ConfigError: the model has an encoder.
        """
        if self._has_encoder:
            raise ConfigError(
                "model.encoder is 'on': a text without another one before it has no likelihood;"
                " evaluate a decoder"
            )
        ids = np.asarray([self.prefix, *self.tokenizer.encode(text)])
        found = []
        for window in windows(ids, self.max_length, self.max_length):
            tokens = window.tokens.tolist()
            before = len(tokens) - window.scored
            found.append(Pair(tuple(tokens[:before]), tuple(tokens[before:])))
        return found

    def write(self, prompts: Sequence[Sequence[int]], config: DecodeConfig) -> list[str]:
        """What the model writes after each prompt of token ids."""
        ordered = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        texts: dict[int, str] = {}
        for start in range(0, len(ordered), self.batch_size):
            numbers = ordered[start : start + self.batch_size]
            rows = filled_rows([prompts[i] for i in numbers], self._run.mesh)
            if start:
                # The shape of the batch before is compiled already.
                rows += [rows[-1]] * (self.batch_size - len(rows))
            found = self._text.complete_after(rows, config)
            texts |= {i: only.text for i, (only,) in zip(numbers, found)}
        return [texts[i] for i in range(len(prompts))]


@jax.jit
def _digest(params: Params) -> Array:
    """uint32 [leaves]: sums that wrap around, which no order of summation changes."""

    def of_leaf(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[leaf.dtype.itemsize]
            leaf = jax.lax.bitcast_convert_type(leaf, kind)
        return jnp.sum(leaf.astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([of_leaf(leaf) for leaf in jax.tree.leaves(params)])
