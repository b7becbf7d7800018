"""Every setting of a run and its default, once: frozen dataclasses, overrides, and checks.

A configuration file is a Python file with a function ``config()`` that returns a ``Config``:

    from llm_jax.config import Config, override


    def config() -> Config:
        return override(Config(), {"model.num_layers": 12})
"""

from llm_jax.config.decode import DecodeConfig
from llm_jax.config.model import ModelConfig, read_when
from llm_jax.config.overrides import load_config, override
from llm_jax.config.run import (
    REMAT_NAMES,
    Config,
    DataConfig,
    ExecutionConfig,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = [
    "REMAT_NAMES",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "ExecutionConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "load_config",
    "override",
    "read_when",
]
