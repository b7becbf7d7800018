"""Long short-term memory against torch's."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
from parameters import random_parameters

from llm_jax.config import ExecutionConfig, ModelConfig, override
from llm_jax.models import build, rows_of

pytestmark = pytest.mark.parity

LAYERS, D, V, B, T = 2, 12, 20, 3, 9
CONFIG = override(
    ModelConfig(),
    {
        "vocab_size": V,
        "num_layers": LAYERS,
        "embed_dim": D,
        "max_length": 16,
        "recurrent": "lstm",
        "recurrent.residual": False,
        "norm.final": False,
    },
)


def torch_layers(params):
    """``torch.nn.LSTM`` with the parameters of a model without residuals and norms."""
    layers = torch.nn.LSTM(D, D, LAYERS, batch_first=True)
    of_model = jax.tree.map(np.asarray, params["layers"]["lstm"])
    with torch.no_grad():
        for layer in range(LAYERS):
            values = {
                f"weight_ih_l{layer}": of_model["input"]["kernel"][layer].reshape(D, 4 * D).T,
                f"weight_hh_l{layer}": of_model["recurrent"]["kernel"][layer].reshape(D, 4 * D).T,
                f"bias_ih_l{layer}": of_model["bias"][layer].reshape(-1),
                f"bias_hh_l{layer}": np.zeros(4 * D, np.float32),
            }
            for name, value in values.items():
                getattr(layers, name).copy_(torch.tensor(value))
    return layers


@pytest.mark.parametrize("layers", ["unroll", "scan"])
def test_outputs_and_gradients_are_those_of_torch(layers):
    model = build(CONFIG, ExecutionConfig(layers=layers, compute_dtype="float32"))
    params = random_parameters(model, std=0.4)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, T))
    weights = rng.normal(size=(B, T, D)).astype(np.float32)
    batch = rows_of(jnp.asarray(ids), jnp.full((B,), T))

    def total(params):
        hidden = model.apply(params, batch).hidden
        return jnp.sum(hidden * weights), hidden

    gradient, hidden = jax.jit(jax.grad(total, has_aux=True))(params)
    reference = torch_layers(params)
    table = torch.tensor(np.asarray(params["embed"]["embedding"]), requires_grad=True)
    expected, _ = reference(table[torch.tensor(ids)])
    (expected * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(hidden, expected.detach().numpy(), atol=1e-5)
    of_model = gradient["layers"]["lstm"]
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(gradient["embed"]["embedding"], table.grad.numpy(), **close)
    for layer in range(LAYERS):
        found = {
            "weight_ih": of_model["input"]["kernel"][layer].reshape(D, 4 * D).T,
            "weight_hh": of_model["recurrent"]["kernel"][layer].reshape(D, 4 * D).T,
            "bias_ih": of_model["bias"][layer].reshape(-1),
        }
        for name, value in found.items():
            wanted = getattr(reference, f"{name}_l{layer}").grad.numpy()
            np.testing.assert_allclose(value, wanted, **close, err_msg=f"{name} of layer {layer}")
