"""Your own way to choose tokens: a pure function of the logits and of the text so far.

    python examples/own_sampler.py runs/quickstart

It is compiled into the step, after all other processors but temperature and filters, and before the
draw. This one wants no token twice within eight tokens.
"""

# %% The processor
import sys

import jax.numpy as jnp

import llm_jax
from llm_jax.decode.requests import Wanted

WINDOW = 8


def no_token_soon_again(logits, history):
    """logits: float32 [B, V]. history: the tokens of each row, with its prompt before them."""
    places = history.length[:, None] - 1 - jnp.arange(WINDOW)[None, :]
    is_token = places >= history.prompt[:, None]
    recent = jnp.take_along_axis(history.ids, jnp.maximum(places, 0), axis=1)
    ids = jnp.arange(logits.shape[1])[None, None, :]
    banned = jnp.any((recent[:, :, None] == ids) & is_token[:, :, None], axis=1)
    return jnp.where(banned, -jnp.inf, logits)


# %% Written with and without it, with the same seed; it goes with every other setting
lm = llm_jax.load(sys.argv[1])
settings = {"max_new_tokens": 24, "temperature": 0.7, "top_p": 0.95, "seed": 7}
(plain,) = lm.complete("The", **settings)
(own,) = lm.complete("The", wanted=Wanted(processor=no_token_soon_again), **settings)
print("without:", plain.text)
print("with:   ", own.text)

# %% Nothing came twice within the window
for place, token in enumerate(own.ids):
    assert token not in own.ids[max(place - WINDOW, 0) : place]
