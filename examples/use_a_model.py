"""Reuse: a model in three lines, and as pure functions in JAX code of your own.

    python examples/use_a_model.py runs/quickstart

Any folder of a run, of a converted model or of transformers will do, and a GGUF file.
"""

# %% Open it, write with it, score with it
import sys

import jax
import jax.numpy as jnp

import llm_jax
from llm_jax.models import rows_of

lm = llm_jax.load(sys.argv[1])
print(lm)
print(lm.generate("The", max_new_tokens=20, temperature=0.8, seed=7))
score = lm.loss("The quick brown fox jumps over the lazy dog.")
print(f"{score.loss:.3f} nats a token over {score.tokens} tokens")
print("next:", lm.tokenizer.piece(int(lm.logits("The quick brown")[-1].argmax())))

# %% The same model as pure functions over a plain tree: any transformation of JAX works on it
ids = jnp.array([lm.token_ids("The quick brown fox jumps over the lazy dog.")])
batch = rows_of(ids[:, :-1], jnp.array([ids.shape[1] - 1]))


@jax.jit
def surprise(params):
    logits = lm.model.logits(params, lm.model.apply(params, batch).hidden)
    said = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(said, ids[:, 1:, None], axis=-1).mean()


value, gradient = jax.value_and_grad(surprise)(lm.params)
print(f"{value:.3f} again, and its gradient has {len(jax.tree.leaves(gradient))} arrays")

# %% One step against the gradient is another model, which can be saved and loaded
stepped = jax.tree.map(lambda p, g: p - 1e-3 * g, lm.params, gradient)
print(f"{lm.with_params(stepped).loss('The quick brown fox jumps over the lazy dog.').loss:.3f}")
