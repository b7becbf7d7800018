"""Settings of the cache of decoding; the text under a field is its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm_jax.ranges import Count, Natural


@dataclass(frozen=True)
class CacheConfig:
    """How decoding keeps the keys and values of a row's tokens."""

    layout: Literal["dense", "paged"] = "dense"
    """dense: each row has room of its own, a ring in layers with a window. paged: rows have pages
    of one pool, which they can share."""
    dtype: Literal["compute", "int8"] = "compute"
    """compute: as the model computes. int8: one scale for each token and head."""
    page: Count = 64
    """Tokens of a page."""
    pages: Natural = 0
    """Pages of the pool; 0 is enough for every token of every row."""
    reads: Literal["auto", "gather"] = "auto"
    """auto: on TPU, the kernel reads the pages of models that it takes; elsewhere, and with gather,
    rows are gathered from their pages."""
