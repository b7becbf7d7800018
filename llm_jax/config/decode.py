"""Settings of decoding; the text under a field is its help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm_jax.ranges import Count, Natural, NotNegative, PositiveShare, Seed, Share


@dataclass(frozen=True)
class DecodeConfig:
    """How tokens are chosen. `order` names whose sequence of filters is followed."""

    max_new_tokens: Count = 128
    """Most tokens written."""
    temperature: NotNegative = 1.0
    """Divides the logits; 0 is greedy."""
    top_k: Natural = 0
    """Keep the k most likely tokens (ties at the k-th are kept); 0 is off."""
    top_p: PositiveShare = 1.0
    """Keep the smallest set of most likely tokens whose mass reaches p; 1 is off."""
    min_p: Share = 0.0
    """Drop tokens less likely than min_p times the most likely one; 0 is off."""
    order: Literal["hf", "vllm"] = "hf"
    """hf: temperature, top-k, top-p, min-p. vllm: temperature, min-p, top-k, top-p."""
    seed: Seed = 0
    """The same seed and prompt give the same text, whatever else is in the batch."""
