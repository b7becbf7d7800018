"""Attention maps: the weights of each head, by their definition."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parameters import random_parameters

from llm_jax import models
from llm_jax.config import Config
from llm_jax.config.overrides import override
from llm_jax.models.attention_maps import (
    attention_maps,
    head_entropy,
    map_names,
    plain_execution,
)

SMALL = {
    "model.vocab_size": 32,
    "model.num_layers": 2,
    "model.embed_dim": 16,
    "model.max_length": 32,
    "model.attention.num_heads": 4,
    "model.attention.num_kv_heads": 2,
    "model.mlp.hidden_dim": 24,
}


def maps_of(changes, tokens, encoder=None):
    config = override(Config(), SMALL | changes).model
    model = models.build(config, plain_execution())
    params = random_parameters(model)
    lengths = np.array([len(row) for row in tokens])
    rows = np.zeros((len(tokens), lengths.max()), np.int32)
    for into, row in zip(rows, tokens):
        into[: len(row)] = row
    batch = models.rows_of(jnp.asarray(rows), jnp.asarray(lengths))
    if encoder is not None:
        read = models.rows_of(jnp.asarray(encoder), jnp.full(len(encoder), len(encoder[0])))
        batch = batch._replace(encoder=read.inputs)

    def run(params, batch):
        return [(m.weights, m.norms) for m in attention_maps(model, params, batch)]

    return params, map_names(config), jax.jit(run)(params, batch)


@pytest.mark.parametrize(
    "changes",
    [{}, {"model.attention.window_pattern": (0, 3)}, {"model.causal": False}],
    ids=["causal", "windows", "both ways"],
)
def test_each_query_spreads_1_over_the_keys_that_it_sees(changes):
    tokens = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    _, names, found = maps_of(changes, tokens)
    assert names == [("decoder", 0), ("decoder", 1)]
    for layer, (weights, norms) in enumerate(found):
        assert weights.shape == (2, 4, 6, 6) and norms.shape == (2, 4, 6)
        for row, length in enumerate([6, 3]):
            own = np.asarray(weights[row, :, :length])
            np.testing.assert_allclose(own.sum(-1), 1, atol=1e-6)
            for query in range(length):
                first = 0
                last = query + 1
                if changes.get("model.causal") is False:
                    last = length
                if layer == 1 and "model.attention.window_pattern" in changes:
                    first = max(0, query - 2)
                seen = own[:, query] > 0
                assert seen[:, first:last].all() and seen.sum(-1).tolist() == [last - first] * 4


def test_the_weights_are_the_softmax_of_queries_and_keys():
    """A model without positions, norms of the input apart: by hand from its matrices."""
    changes = {"model.positions": "none", "model.num_layers": 1, "model.norm.attention": False}
    tokens = [[3, 1, 4, 1, 5]]
    params, _, ((weights, norms),) = maps_of(changes, tokens)
    layers = params["layers"]
    x = np.asarray(params["embed"]["embedding"], np.float64)[tokens[0]]
    kernels = {
        name: np.asarray(layers["attention"][name]["kernel"][0], np.float64)
        for name in ("query", "key", "value")
    }
    q = np.einsum("td,dnh->tnh", x, kernels["query"])
    k = np.einsum("sd,dkh->skh", x, kernels["key"]).repeat(2, axis=1)
    v = np.einsum("sd,dkh->skh", x, kernels["value"]).repeat(2, axis=1)
    scores = np.einsum("tnh,snh->nts", q, k) / math.sqrt(4)
    scores = np.where(np.tri(5, dtype=bool), scores, -np.inf)
    wanted = np.exp(scores - scores.max(-1, keepdims=True))
    wanted /= wanted.sum(-1, keepdims=True)
    np.testing.assert_allclose(weights[0], wanted, atol=1e-5)
    out = np.einsum("nts,snh->nth", wanted, v)
    np.testing.assert_allclose(norms[0], np.linalg.norm(out, axis=-1), rtol=1e-4)


def test_an_encoder_and_a_decoder_have_three_kinds():
    changes = {"model.encoder": "on", "model.encoder.num_layers": 3}
    encoder = [[5, 6, 7, 8], [9, 10, 11, 12]]
    _, names, found = maps_of(changes, [[1, 2, 3], [4, 5, 6]], encoder)
    assert names == [
        *[("encoder", i) for i in range(3)],
        *[("decoder", i) for i in range(2)],
        *[("cross", i) for i in range(2)],
    ]
    shapes = [weights.shape[2:] for weights, _ in found]
    assert shapes == [(4, 4)] * 3 + [(3, 3)] * 2 + [(3, 4)] * 2
    # A token of the decoder sees all of the encoder's.
    assert (np.asarray(found[-1][0]) > 0).all()


def test_entropy_written_out():
    weights = jnp.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.1, 0.1, 0, 0], [0, 0, 0, 0]])
    wanted = [0, math.log(4), math.log(2), 0]
    np.testing.assert_allclose(head_entropy(weights), wanted, atol=1e-6)
