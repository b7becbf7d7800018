"""The table of what runs together: the page is made from it, and what runs agrees with it."""

from __future__ import annotations

import functools
import runpy
from functools import partial
from pathlib import Path

import jax
import pytest

from llm_jax import models
from llm_jax.config import CacheConfig, Config, ExecutionConfig, ModelConfig, override
from llm_jax.config.support import FEATURES, REFUSED, WAYS, page, refusal
from llm_jax.config.validate import validate
from llm_jax.ops.attention import BACKENDS
from llm_jax.plan.memory import unknown
from llm_jax.types import ConfigError

ROOT = Path(__file__).parents[1]
PLAIN = override(
    ModelConfig(),
    {
        "vocab_size": 16,
        "num_layers": 4,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 16,
        "experts.count": 2,
    },
)
# Models that have one feature of the table each, beside a plain one that has none.
WITH = {
    "encoder": {"experts": "none", "encoder.num_layers": 2},
    "both_ways": {"causal": False},
    "is_encoder": {"causal": False},
    "relative": {"positions": "relative"},
    "softcap": {"attention.softcap": 5.0},
    "sinks": {"attention.sinks": True},
    "value_dim": {"attention.value_dim": 4},
    "latent": {"attention": "latent", "attention.kv_latent": 8, "attention.rope_dim": 4},
    "first_layers": {"first_layers.count": 1},
    "clamp": {"mlp.clamp": 1.0},
    "no_experts": {"experts": "none"},
    "dropout": {"dropout": 0.1},
    "mup": {"parametrization": "mup"},
    "recurrent": {
        "experts": "none",
        "attention.num_heads": 12,
        "mlp.hidden_dim": 3072,
        "recurrent": "lstm",
    },
}
KINDS_OF_CACHE = {
    "decode": {},
    "paged": {"kind": CacheConfig(layout="paged", page=2)},
    "int8": {"kind": CacheConfig(dtype="int8")},
    "drafts": {"rollback": 2},
}
RULES = ("adamw", "adafactor", "lion", "muon", "sgd")
MESH = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1, "pipeline": 1}


def model(feature: str) -> ModelConfig:
    return override(PLAIN, WITH[feature])


def test_the_page_is_made_of_the_table():
    script = runpy.run_path(str(ROOT / "scripts/support_table"))
    text = (ROOT / "docs/support.md").read_text()
    assert script["BEGIN"] + page() + script["END"] in text


def test_the_table_names_what_there_is():
    assert set(WITH) == set(FEATURES)
    assert set(BACKENDS) <= set(WAYS)
    assert set(REFUSED) <= set(WAYS)
    assert {name for refused in REFUSED.values() for name in refused} <= set(FEATURES)
    for name, feature in FEATURES.items():
        assert feature.has(model(name)) and not feature.has(PLAIN), name


@functools.cache
def built(config: ModelConfig) -> models.Model:
    return models.build(config)


def refused(way: str, config: ModelConfig) -> str:
    """The error of running a model in a way; empty where it runs."""
    try:
        _run(way, config)
    except ConfigError as error:
        return str(error)
    return ""


def _run(way: str, config: ModelConfig) -> None:
    if way in BACKENDS:
        platform = BACKENDS[way].platforms[-1]
        dtype = BACKENDS[way].dtypes[0]
        execution = ExecutionConfig(attention=way, compute_dtype=dtype)
        models.resolve_execution(execution, config, platform)
    elif way == "context":
        models.resolve_execution(ExecutionConfig(), config, "cpu", context=2)
    elif way == "pipeline":
        models.schedule(config, ExecutionConfig(), MESH | {"pipeline": 2}, 4)
    elif way in KINDS_OF_CACHE:
        init_cache = partial(built(config).init_cache, 1, 4, **KINDS_OF_CACHE[way])
        jax.eval_shape(init_cache)
    elif way == "estimate":
        raise_reason(unknown(Config(model=config)))
    elif way in RULES and config.causal and not config.encoder:
        validate(override(Config(model=config), {"optimizer.update": way}))
    elif way == "expert":
        objective = "next_token" if config.causal else "masked"
        updates = {"mesh.expert": 2, "data.objective": objective}
        if config.encoder:
            updates |= {"data.objective": "pairs", "data.objective.encoder_length": 8}
        validate(override(Config(model=config), updates))
    else:
        raise_reason(refusal(config, way, way))


def raise_reason(reason: str) -> None:
    if reason:
        raise ConfigError(reason)


@pytest.mark.parametrize("way", WAYS)
def test_what_the_table_refuses_is_refused_and_what_it_does_not_runs(way):
    assert refused(way, PLAIN) == ""
    for name in FEATURES:
        config = model(name)
        reasons = [why for key, why in REFUSED.get(way, {}).items() if FEATURES[key].has(config)]
        error = refused(way, config)
        assert bool(error) == bool(reasons), (name, error)
        if reasons:
            assert reasons[0] in error and "; set model." in error, (name, error)


def test_a_refusal_names_the_setting_its_value_and_the_fix():
    assert refusal(model("relative"), "blockwise", "execution.attention 'blockwise'") == (
        "model.positions is 'relative', and execution.attention 'blockwise' cannot add a bias to"
        " the scores; set model.positions to rope, or use execution.attention xla"
    )
    assert refusal(model("encoder"), "splash", "execution.attention 'splash'").startswith(
        "model.encoder is 'on', and execution.attention 'splash' takes only masks that are causal;"
        " set model.encoder to none"
    )
