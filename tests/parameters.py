"""Random parameters for tests, drawn without compiling an initialization."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.models import Model
from llm_jax.types import Params


def random_parameters(model: Model, seed: int = 1, std: float = 0.2) -> Params:
    """Normal parameters of ``std``, around 1 for scales and 0 for all others.

    They are off their initial values, so that a scale of 1 or a bias of 0 hides nothing.
    """
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        around = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(around + std * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(one, jax.eval_shape(model.init, jax.random.key(0)))
