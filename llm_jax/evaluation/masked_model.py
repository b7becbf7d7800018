"""A masked language model as evaluation asks it: the log-probability of a token that is hidden."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.checkpoints.open_run import Run
from llm_jax.decode.finite import cause
from llm_jax.decode.inputs import filled_rows, padded_rows
from llm_jax.models import rows_of
from llm_jax.objectives.masked import MASKS
from llm_jax.objectives.special_tokens import control_tokens
from llm_jax.tokenizers.tokenizer import Tokenizer
from llm_jax.types import Batch, ConfigError, NonFiniteError, Params

# Rows are padded to a multiple of this, so that few lengths are ever compiled.
_BUCKET = 32


class MaskedModel:
    """Log-probabilities of tokens, each hidden by itself (``bias.scorers.MaskedScorer``).

    A number is the same within rounding at any batch size.

    Args:
        run: the model.
        tokenizer: of the model.
        batch_size: rows computed at once, over all devices.

    Raises:
        ConfigError: the model predicts the next token, or the tokenizer has no mask.
    """

    def __init__(self, run: Run, tokenizer: Tokenizer, batch_size: int = 16) -> None:
        if run.config.model.causal:
            raise ConfigError(
                "model.causal is True: this model predicts the next token and fills no gaps;"
                " give a model of masked tokens"
            )
        reader = tokenizer.reader or tokenizer
        control = control_tokens(reader)
        masks = [control[name] for name in MASKS if name in control]
        if not masks:
            raise ConfigError(
                f"the model's tokenizer has no {' or '.join(MASKS)}, so that no token can be"
                " hidden; give a model that was trained with one"
            )
        self.batch_size = batch_size
        self._run = run
        self._reader = reader
        self._mask = masks[0]
        self._before = [reader.bos_id] if reader.add_bos else []
        self._after = [reader.eos_id] if reader.add_eos else []
        self._compiled = jax.jit(self._logprobs)

    @property
    def max_length(self) -> int:
        """Tokens of a row."""
        return self._run.config.model.max_length

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without those that begin and end a row."""
        return self._reader.encode(text)

    def fits(self, tokens: int) -> bool:
        """Whether a text of so many tokens fits the context."""
        return len(self._before) + tokens + len(self._after) <= self.max_length

    def log_probs(self, tokens: Sequence[int], positions: Sequence[int]) -> list[float]:
        """Log-probability (nats) of the token at each position, masked alone in the full row.

        Raises:
            ConfigError: the row is longer than the context.
            NonFiniteError: a log-probability is NaN or infinite.
        """
        if not self.fits(len(tokens)):
            raise ConfigError(
                f"a text of {len(tokens)} tokens does not fit model.max_length {self.max_length};"
                " leave it out"
            )
        whole = [*self._before, *tokens, *self._after]
        found: list[float] = []
        for start in range(0, len(positions), self.batch_size):
            places = [at + len(self._before) for at in positions[start : start + self.batch_size]]
            found += self._of_batch(whole, places)
        return found

    def _of_batch(self, whole: list[int], places: list[int]) -> list[float]:
        # A whole batch is computed each time, so that one shape is compiled for each width.
        filled = [*places, *[places[-1]] * (self.batch_size - len(places))]
        rows = [[*whole[:at], self._mask, *whole[at + 1 :]] for at in filled]
        rows = [list(row) for row in filled_rows(rows, self._run.mesh)]
        at = [*filled, *[filled[-1]] * (len(rows) - len(filled))]
        width = min(-(-len(whole) // _BUCKET) * _BUCKET, self.max_length)
        ids, lengths = padded_rows([np.asarray(row) for row in rows], width)
        batch = rows_of(jnp.asarray(ids), jnp.asarray(lengths))
        targets = np.array([whole[place] for place in at], np.int32)
        with jax.set_mesh(self._run.mesh):
            out = np.asarray(
                self._compiled(self._run.params, batch, np.array(at, np.int32), targets)
            )
        if not np.isfinite(out).all():
            raise NonFiniteError(
                f"the log-probability of a token of {whole} is not finite;"
                f" {cause(self._run.params)}"
            )
        return out[: len(places)].tolist()

    def _logprobs(
        self, params: Params, batch: Batch, places: jax.Array, targets: jax.Array
    ) -> jax.Array:
        """float32 [B], of the targets [B] at places [B]."""
        model = self._run.model
        hidden = model.apply(params, batch).hidden
        of_places = jnp.take_along_axis(hidden, places[:, None, None], axis=1)
        logits = model.logits(params, of_places)[:, 0].astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)
