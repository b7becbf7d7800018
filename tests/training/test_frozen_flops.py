"""FLOPs of a step that trains a part of the parameters, written out product by product."""

from __future__ import annotations

import pytest

from llm_jax.config import Config, DataConfig, ModelConfig, TrainConfig, override
from llm_jax.training.flops import flops_of

# One layer: D 4, two heads of 2, F 5, V 10.
TIED = override(
    ModelConfig(),
    {
        "vocab_size": 10,
        "num_layers": 1,
        "embed_dim": 4,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 5,
        "mlp": "gated",
        "max_length": 8,
    },
)
UNTIED = override(
    ModelConfig(),
    {
        "vocab_size": 10,
        "num_layers": 1,
        "embed_dim": 4,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 5,
        "max_length": 8,
        "embedding.tied": False,
    },
)
ATTENTION = 4 * 4 * 4
MLP = 3 * 4 * 5
HEAD = 40
# Queries with keys and weights with values over 8 tokens, forward: 2·N·H each.
SCORES = 2 * 2 * 4 * 8


def full(model: ModelConfig, *trainable: str, **data) -> float:
    config = Config(
        model=model,
        data=override(DataConfig(), {"seq_length": 8, **data}),
        train=TrainConfig(trainable=trainable),
    )
    return flops_of(config).full


@pytest.mark.parametrize(
    ("trainable", "flops"),
    [
        (("*",), 6 * (ATTENTION + MLP + HEAD) + 3 * SCORES),
        # Only the gradient of the query; gradients of all inputs above the first are computed.
        (
            ("layers/attention/query/kernel",),
            4 * (ATTENTION + MLP + HEAD) + 2 * 16 + 3 * SCORES,
        ),
        # No matrix has a gradient, and all inputs have one.
        (("*norm/scale",), 4 * (ATTENTION + MLP + HEAD) + 3 * SCORES),
        # Only the head's input below the last norm has a gradient.
        (("final_norm/scale",), 2 * (ATTENTION + MLP) + 4 * HEAD + SCORES),
        # Nothing below the head has a gradient.
        (("head/kernel",), 2 * (ATTENTION + MLP) + 4 * HEAD + SCORES),
        # The look-up of an embedding is no product; all inputs have a gradient.
        (("embed/*",), 4 * (ATTENTION + MLP + HEAD) + 3 * SCORES),
    ],
)
def test_of_a_frozen_matrix_only_the_gradient_of_its_input_is_counted(trainable, flops):
    assert full(UNTIED, *trainable) == flops


def test_a_tied_embedding_has_the_gradient_of_the_head():
    assert full(TIED, "embed/*") == 4 * (ATTENTION + MLP) + 6 * HEAD + 3 * SCORES
    assert full(TIED, "layers/*") == 6 * (ATTENTION + MLP) + 4 * HEAD + 3 * SCORES


EXPERTS = override(
    ModelConfig(),
    {
        "vocab_size": 10,
        "num_layers": 3,
        "embed_dim": 4,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 5,
        "first_layers.count": 1,
        "first_layers.mlp_dim": 7,
        "experts.count": 4,
        "experts.per_token": 2,
        "experts.shared": 1,
        "head.transform": "on",
        "attention.window_pattern": (0, 2),
        "max_length": 8,
    },
)
LATENT = override(
    ModelConfig(),
    {
        "vocab_size": 10,
        "num_layers": 2,
        "embed_dim": 4,
        "attention.num_heads": 2,
        "attention.head_dim": 6,
        "attention.value_dim": 5,
        "attention": "latent",
        "attention.kv_latent": 7,
        "attention.q_latent": 8,
        "attention.rope_dim": 2,
        "mlp.hidden_dim": 3,
        "max_length": 8,
    },
)
TRANSLATION = override(
    ModelConfig(),
    {
        "vocab_size": 10,
        "num_layers": 2,
        "encoder.num_layers": 3,
        "embed_dim": 4,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 5,
        "encoder.mlp_dim": 6,
        "max_length": 8,
    },
)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (EXPERTS, {}),
        (LATENT, {}),
        (TRANSLATION, {"objective": "pairs", "objective.encoder_length": 6}),
    ],
)
def test_products_of_every_architecture_add_up(model, data):
    """Counted parameter by parameter, they are those of ``train_flops``; with the last norm alone,
    a third of these is left, and the gradients of the inputs of what follows the norm.
    """
    everything = full(model, "*", **data)
    assert full(model, "*", "role:norm", **data) == everything
    after = HEAD + (4 * 4 if model.head.transform else 0)
    expected = pytest.approx(everything / 3 + 2 * after, rel=1e-12)
    assert full(model, "final_norm/scale", **data) == expected


def test_an_encoder_that_is_frozen_and_reads_frozen_embeddings_has_no_backward_pass():
    data = {"objective": "pairs", "objective.encoder_length": 6}
    # Of a decoder's token: keys and values of 2 layers, of 6/8 tokens of the encoder.
    memory = 2 * (2 * 4 * 4) * 6 / 8
    encoder = 3 * (ATTENTION + 3 * 4 * 6) * 6 / 8
    scores = 3 * (2 * 2 * 4 * 6) * 6 / 8
    saved = 4 * encoder + 2 * scores + 2 * memory + 2 * HEAD
    everything = full(TRANSLATION, "*", **data)
    assert full(TRANSLATION, "layers/*", "*norm/scale", **data) == everything - 2 * encoder - 2 * 40
    assert full(TRANSLATION, "layers/*", **data) == everything - saved
