"""Runs in one process that share what is traced and compiled for them, or are on one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import pytest

from llm_jax.config import Config
from llm_jax.config.run import SkipSpikesConfig
from llm_jax.training import build, evaluate, run, state


def keep_programs(patch: pytest.MonkeyPatch) -> None:
    """Builds each config once: runs of it differ in their folders, data and faults only.

    jax keeps the programs of a function for as long as it is the same object.
    """
    make_parts = run.build
    built = {}

    def build_once(config: Config, devices: Any = None) -> build.Parts:
        key = repr((_for_programs(config), devices))
        if key not in built:
            built[key] = make_parts(config, devices)
        return built[key]._replace(config=config)

    patch.setattr(run, "build", build_once)
    patch.setattr(state, "make_init", _made_once(state.make_init))
    patch.setattr(build, "make_train_step", _made_once(build.make_train_step))
    patch.setattr(evaluate, "make_eval_step", _made_once(evaluate.make_eval_step))


def _for_programs(config: Config) -> Config:
    """The config without the settings that no program depends on."""
    apart = {"out": "", "allow_changed": (), "profile_steps": (), "checkpoint_every": 1}
    apart |= {"eval_every": 0, "keep": 1}
    if config.optimizer.schedule.kind == "constant":
        apart["steps"] = 0
    spike = config.train.spike
    if spike is not None:
        apart["spike"] = SkipSpikesConfig(spike.deviations, spike.window)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **apart))


def _made_once(make: Callable[..., Any]) -> Callable[..., Any]:
    """``make``, called once for each object that is its first argument."""
    made = {}

    def kept(first: Any, *more: Any) -> Any:
        if id(first) not in made:
            made[id(first)] = first, make(first, *more)
        return made[id(first)][1]

    return kept


def on_one_device(patch: pytest.MonkeyPatch) -> None:
    """Runs take the first device, of eight."""
    build = run.build
    patch.setattr(run, "build", lambda c, on=None: build(c, on or jax.devices()[:1]))
