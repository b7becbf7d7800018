"""llm_jax: a small, complete stack for language models in JAX.

The names below are imported when they are first used, so that ``import llm_jax`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_jax.api.language_model import LanguageModel
    from llm_jax.api.load import load
    from llm_jax.api.verbs import evaluate, generate, train
    from llm_jax.data.prepare.pipeline import prepare
    from llm_jax.data.prepare.train_tokenizer import train_tokenizer

__version__ = "0.1.0"
__all__ = [
    "LanguageModel",
    "__version__",
    "evaluate",
    "generate",
    "load",
    "prepare",
    "train",
    "train_tokenizer",
]

_MODULES = {
    "LanguageModel": "llm_jax.api.language_model",
    "evaluate": "llm_jax.api.verbs",
    "generate": "llm_jax.api.verbs",
    "load": "llm_jax.api.load",
    "prepare": "llm_jax.data.prepare.pipeline",
    "train": "llm_jax.api.verbs",
    "train_tokenizer": "llm_jax.data.prepare.train_tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'llm_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
