"""Recurrent layers: what takes the place of attention and MLP in a model that reads its tokens one
after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llm_jax.ranges import Finite, Natural


@dataclass(frozen=True)
class LstmConfig:
    """Long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate (Gers et al.
    2000).
    """

    kind: ClassVar[str] = "lstm"

    hidden_dim: Natural = 0
    """Width F of a layer's state; 0 means embed_dim. A state of another width is projected to
    embed_dim.
    """
    forget_bias: Finite = 1.0
    """Initial bias of the forget gate: above 0, a new model keeps what it has read."""
    residual: bool = True
    """Each layer is added to the residual stream, with norms where model.norm.position says; off, a
    layer reads the output of the one before it, without either.
    """
