"""``llm-jax config explain``."""

from __future__ import annotations

from llm_jax.config.explain import explain
from llm_jax.config.saved import load_config


def explain_key(config: str, key: str) -> str:
    """Value, place where it was set, type, default and meaning of one setting.

    Args:
        config: a configs/*.py file or a saved config.json.
        key: dotted name of the setting, such as model.attention.num_kv_heads.
    """
    return explain(load_config(config), key)
