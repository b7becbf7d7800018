"""Every setting of a run and its default, once: frozen dataclasses, overrides, and checks.

A configuration file is a Python file with a function ``config()`` that returns a ``Config``:

    from llm_jax.config import Config, override


    def config() -> Config:
        return override(Config(), {"model.num_layers": 12, "model.positions": "learned"})

The modules: ``run`` (Config, execution, mesh, train), ``model`` with ``attention``, ``mlp``,
``positions`` and ``parametrization``, ``data``, ``optimizer``, ``decode``, ``cache``; ``sections``
says what a section with alternatives is, ``overrides`` sets settings by dotted keys, ``saved``
reads and writes files, ``explain`` describes a setting, ``validate`` checks what needs no device,
and ``old_keys`` reads settings of earlier versions.
"""

from llm_jax.config.attention import AttentionConfig, LatentAttentionConfig
from llm_jax.config.cache import CacheConfig
from llm_jax.config.data import DataConfig
from llm_jax.config.decode import DecodeConfig
from llm_jax.config.mlp import ExpertsConfig, GatedMlpConfig, PlainMlpConfig
from llm_jax.config.model import ModelConfig
from llm_jax.config.optimizer import OptimizerConfig
from llm_jax.config.overrides import override
from llm_jax.config.run import REMAT_NAMES, Config, ExecutionConfig, MeshConfig, TrainConfig
from llm_jax.config.saved import load_config
from llm_jax.config.sections import read_when

__all__ = [
    "REMAT_NAMES",
    "AttentionConfig",
    "CacheConfig",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "ExecutionConfig",
    "ExpertsConfig",
    "GatedMlpConfig",
    "LatentAttentionConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PlainMlpConfig",
    "TrainConfig",
    "load_config",
    "override",
    "read_when",
]
