"""Small models and drafts that the tests of speculative decoding share."""

from __future__ import annotations

import functools

import jax
import numpy as np
from parameters import random_parameters

from llm_jax.config import ExecutionConfig, ModelConfig, override
from llm_jax.config.draft import DraftConfig
from llm_jax.decode.drafts import Draft
from llm_jax.models import build
from llm_jax.types import Batch, Tokens

# So few tokens that a random draft is often right.
V = 12
BASE = override(
    ModelConfig(),
    {
        "vocab_size": V,
        "num_layers": 3,
        "embed_dim": 16,
        "attention.num_heads": 4,
        "attention.num_kv_heads": 2,
        "mlp.hidden_dim": 24,
        "max_length": 64,
        "init_std": 0.3,
    },
)
LATENT = {
    "attention": "latent",
    "attention.head_dim": 4,
    "attention.value_dim": 2,
    "attention.kv_latent": 16,
    "attention.rope_dim": 2,
}
ENCODER = {"encoder.num_layers": 1, "encoder.start_token": 5}
CONFIGS = {
    "dense": {},
    "windows": {"attention.window_pattern": (4, 0)},
    "windows in each layer": {"attention.window_pattern": (4, 3)},
    "latents": LATENT | {"attention.window_pattern": (0, 3), "first_layers.count": 1},
    "sinks and experts": {
        "attention.sinks": True,
        "attention.window_pattern": (3, 2),
        "experts.count": 4,
        "experts.per_token": 2,
    },
    "an encoder": ENCODER,
    "an encoder and windows": ENCODER | {"attention.window_pattern": (3, 0)},
}
KINDS = ("lookup", "model", "early_exit")


@functools.cache
def model_of(name: str, layers: str = "unroll"):
    """A model and its parameters."""
    model = build(override(BASE, CONFIGS[name]), ExecutionConfig(layers=layers))
    return model, random_parameters(model)


def draft_of(kind: str, name: str, tokens: int = 4, layers: str = "unroll") -> Draft:
    """A draft for the model ``name``. That of the kind "model" is of another family and size."""
    if kind == "lookup":
        return Draft(DraftConfig(tokens=tokens))
    execution = ExecutionConfig(layers=layers)
    if kind == "early_exit":
        return Draft(DraftConfig("early_exit", tokens=tokens, layers=2), execution=execution)
    more = {"num_layers": 1, "embed_dim": 24, "attention.window_pattern": (5,)}
    encoder = {"encoder.num_layers": 1, "encoder.start_token": 3}
    if "encoder" in name:
        more |= encoder
    model = build(override(BASE, more), execution)
    return Draft(DraftConfig("model", tokens=tokens), model, random_parameters(model, seed=7))


@functools.cache
def _forward(model):
    def logits(params, batch):
        return model.logits(params, model.apply(params, batch).hidden)

    return jax.jit(logits)


def next_logits(model, params, prompt: list[int], written: list[int]) -> np.ndarray:
    """[n, V] for the n written tokens: the logits that each was chosen from, by the full forward
    pass.
    """
    encodes = model.config.encoder is not None
    row = [model.config.start_token] if encodes else prompt
    text = [*row, *written]
    encoder = _tokens(prompt) if encodes else None
    tokens = _tokens(text)
    batch = Batch(tokens, tokens.ids, tokens.segment_ids != 0, encoder=encoder)
    found = np.asarray(_forward(model)(params, batch))[0]
    return found[len(row) - 1 : len(text) - 1]


def _tokens(ids: list[int], width: int = 48) -> Tokens:
    padded = np.zeros((1, width), np.int32)
    padded[0, : len(ids)] = ids
    real = (np.arange(width) < len(ids))[None]
    return Tokens(padded, real.astype(np.int32), np.arange(width, dtype=np.int32)[None])
