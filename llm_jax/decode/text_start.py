"""Where a text begins: tokens that are written there without the blank that they have elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from llm_jax.ops.sampling.stops import TokenBytes, token_bytes_table
from llm_jax.tokenizers.tokenizer import Tokenizer


class TokenStarts(NamedTuple):
    """The tokens of a model where a text begins.

    Attributes:
        bytes: of each token as the first of a text.
        begun: bool [V], tokens after which the text has begun; the others have no text, or only a
            blank that is dropped.
    """

    bytes: TokenBytes
    begun: np.ndarray


def token_starts(tokenizer: Tokenizer, vocab_size: int) -> TokenStarts | None:
    """The tokens of a tokenizer where a text begins; None where they are as elsewhere.

    Args:
        tokenizer: of the model's texts.
        vocab_size: V; ids that the tokenizer does not have have no text.
    """
    known = min(tokenizer.vocab_size, vocab_size)
    later = [tokenizer.decode_bytes([id]) for id in range(known)]
    # A token without text does not begin one.
    first = [tokenizer.first_bytes(id) if data else b"" for id, data in enumerate(later)]
    if first == later:
        return None
    begun = np.zeros(vocab_size, bool)
    for id, (data, elsewhere) in enumerate(zip(first, later)):
        begun[id] = bool(data) or (bool(elsewhere) and not tokenizer.drops_all)
    return TokenStarts(token_bytes_table([*first, *[b""] * (vocab_size - known)]), begun)


def joined(later: TokenBytes, first: TokenBytes) -> TokenBytes:
    """Bytes of 2V tokens: those of V tokens, and of the same as the first of a text."""
    return TokenBytes(
        flat=jnp.concatenate([later.flat[: later.offsets[-1]], first.flat]),
        offsets=jnp.concatenate([later.offsets[:-1], later.offsets[-1] + first.offsets]),
    )
