"""What the backward pass recomputes (``ExecutionConfig.remat``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from llm_jax.config.validate import remat_names
from llm_jax.sharding import HOST_MEMORY


def remat(f: Callable[..., Any], policy: str, *, in_scan: bool) -> Callable[..., Any]:
    """``f`` with its intermediate results recomputed in the backward pass.

    Args:
        f: a function of arrays.
        policy: value of ``ExecutionConfig.remat``.
        in_scan: whether ``f`` is called in the body of a scan, which by itself keeps XLA from
            undoing the recomputation.
    """
    if policy == "none":
        return f
    return jax.checkpoint(f, policy=_saved(policy), prevent_cse=not in_scan)


def _saved(policy: str) -> Callable[..., Any]:
    """What is kept of the forward pass."""
    policies = jax.checkpoint_policies
    if policy == "full":
        return policies.nothing_saveable
    if policy == "dots":
        return policies.save_only_these_names("dot", "attention_out")
    names = remat_names(policy)
    if not policy.startswith("offload:"):
        return policies.save_only_these_names(*names)
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst=HOST_MEMORY,
    )
