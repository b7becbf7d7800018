"""Schedules and update rules out of plain numbers: literal values, and what they import."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.config import OptimizerConfig, override
from llm_jax.config.sections import settings
from llm_jax.training import schedules
from llm_jax.training.optimizer import make_schedule
from llm_jax.training.update_rules import adamw, clipped, decay_mask, lion
from llm_jax.types import ConfigError, ParamSpec

STEPS = jnp.arange(11)


def course(schedule):
    return np.asarray(jax.vmap(schedule)(STEPS))


def test_courses_written_out():
    """Eleven steps with a warm-up of two, so that progress goes from 0 at step 2 to 1 at step 10"""
    progress = np.clip((np.arange(11) - 2) / 8, 0, 1)
    warm = np.minimum((np.arange(11) + 1) / 2, 1)
    options = {"warmup": 2, "final_ratio": 0.2}
    expected = {
        "cosine": 0.2 + 0.8 * (1 + np.cos(np.pi * progress)) / 2,
        "linear": 1 - 0.8 * progress,
        "wsd": np.interp(progress, [0, 0.75, 1], [1, 1, 0.2]),
    }
    for name, values in expected.items():
        more = {"decay_fraction": 0.25} if name == "wsd" else {}
        found = course(getattr(schedules, name)(3.0, 11, **options, **more))
        np.testing.assert_allclose(found, 3 * warm * values, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(course(schedules.constant(3.0, warmup=2)), 3 * warm, rtol=1e-6)
    falling = np.minimum(warm, (2 / (np.arange(11) + 1)) ** 0.5)
    np.testing.assert_allclose(course(schedules.rsqrt(3.0, warmup=2)), 3 * falling, rtol=1e-6)


@pytest.mark.parametrize("name", settings(OptimizerConfig)["schedule"][0].alternatives)
def test_the_config_makes_the_same(name):
    config = override(OptimizerConfig(), {"schedule": name, "warmup_steps": 3})
    steps = () if name in ("constant", "rsqrt") else (11,)
    plain = getattr(schedules, name)(config.learning_rate, *steps, warmup=3)
    np.testing.assert_array_equal(course(plain), course(make_schedule(config, 11)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.cosine(1.0, 0), "steps is 0"),
        (lambda: schedules.linear(1.0, 5, warmup=-1), "warmup is -1"),
        (lambda: schedules.rsqrt(1.0, warmup=-1), "warmup is -1"),
        (lambda: schedules.wsd(1.0, 5, decay_fraction=0.0), "decay_fraction is 0.0"),
    ],
)
def test_what_is_no_schedule_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_rules_are_those_of_optax():
    """Updates and the structure of the state, by which saved states are found."""
    params = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array([3.0])}
    grads = {"a": jnp.array([[0.5, 2.0]]), "b": jnp.array([-1.0])}
    specs = {"a": ParamSpec((None, None), (0,), "matrix"), "b": ParamSpec((None,), (), "bias")}
    mask = {"a": True, "b": False}
    rate = schedules.cosine(0.1, 10)
    pairs = {
        "adamw": (
            adamw(rate, weight_decay=0.2, mask=decay_mask(specs)),
            optax.adamw(rate, 0.9, 0.95, 1e-8, weight_decay=0.2, mask=mask),
        ),
        "lion": (
            clipped(lion(rate, weight_decay=0.2, mask=decay_mask(specs)), 1.0),
            optax.chain(
                optax.clip_by_global_norm(1.0),
                optax.lion(rate, 0.9, 0.95, weight_decay=0.2, mask=mask),
            ),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        states = [rule.init(params) for rule in (ours, theirs)]
        assert jax.tree.structure(states[0]) == jax.tree.structure(states[1]), name
        found = [rule.update(grads, s, params)[0] for rule, s in zip((ours, theirs), states)]
        jax.tree.map(np.testing.assert_array_equal, *found)


def test_importing_them_loads_little():
    code = (
        "import json, sys\n"
        "import llm_jax.training.schedules\n"
        "first = sorted({m.split('.')[0] for m in sys.modules})\n"
        "import llm_jax.training.update_rules\n"
        "print(json.dumps([first, sorted({m.split('.')[0] for m in sys.modules})]))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    schedule_modules, rule_modules = map(set, json.loads(out.stdout))
    heavy = {"flax", "orbax", "grain", "tensorflow_datasets", "tyro", "torch", "transformers"}
    assert not (heavy | {"optax"}) & schedule_modules
    assert not heavy & rule_modules
