"""docs/tasks/reuse.md: its five programs are those of examples/, and they run."""

from __future__ import annotations

import math
import re
import runpy
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/tasks/reuse.md").read_text()
# The first two run in tests/test_examples.py.
PROGRAMS = (
    "reuse_ops.py",
    "optax_loop.py",
    "our_loader.py",
    "inside_modules.py",
    "attention_on_devices.py",
)


def run(name: str) -> dict:
    return runpy.run_path(str(ROOT / "examples" / name))


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_page_shows_the_program_as_it_is(name):
    shown = re.search(rf"(?ms)^`examples/{name}`:\n\n```python\n(.*?)^```$", PAGE)
    assert shown and shown[1] == (ROOT / "examples" / name).read_text()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_has_less_than_sixty_lines_of_code(name):
    lines = (ROOT / "examples" / name).read_text().split('"""', 2)[2].splitlines()
    assert sum(bool(line.strip()) for line in lines) < 62


def test_our_loader_feeds_a_model_of_somebody_else(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["our_loader.py", str(tmp_path)])
    losses = run("our_loader.py")["main"](tmp_path)
    assert losses[0] == pytest.approx(math.log(512), abs=1e-3)
    assert losses[-1] < 5


def test_our_model_inside_other_modules():
    pytest.importorskip("equinox")
    sizes = run("inside_modules.py")["main"]()
    # Those of our model, and the kernel and bias of the head.
    assert len(sizes["NNX"]) == len(sizes["equinox"]) > 10
    assert min(sizes["NNX"] + sizes["equinox"]) > 0


def test_our_attention_on_eight_devices():
    found = run("attention_on_devices.py")["main"]()
    for one, eight in zip(*found.values()):
        assert len(eight.sharding.device_set) == 8
        np.testing.assert_allclose(jnp.asarray(eight), one, atol=1e-5)
