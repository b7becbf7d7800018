"""A random model with a tokenizer, saved as a user's is."""

from __future__ import annotations

from pathlib import Path

import jax

import llm_jax
from llm_jax import models, sharding
from llm_jax.checkpoints.open_run import Run
from llm_jax.config import Config, MeshConfig, override

ROOT = Path(__file__).parents[1]
SIZES = {
    "num_layers": 1,
    "embed_dim": 16,
    "attention.num_heads": 2,
    "mlp.hidden_dim": 16,
    "max_length": 256,
}


def save_small_model(folder: Path, control_symbols: tuple[str, ...] = (), **sizes: object) -> Path:
    """Writes it into ``folder``, and returns where the model is."""
    text = (str(ROOT / "CONTRIBUTING.md"),)
    tokenizer = llm_jax.train_tokenizer(
        text, folder / "tokenizer", vocab_size=400, control_symbols=control_symbols
    )
    values = {f"model.{name}": size for name, size in {**SIZES, **sizes}.items()}
    config = override(Config(), values | {"model.vocab_size": tokenizer.vocab_size})
    model = models.build(config.model)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.jit(model.init)(jax.random.key(0))
    llm_jax.LanguageModel(Run(folder, 0, config, mesh, model, params)).save(folder / "model")
    return folder / "model"
