"""The examples run, and show what they say."""

import math
import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_reuse_ops_learns_to_repeat():
    losses = runpy.run_path(str(EXAMPLES / "reuse_ops.py"))["main"](steps=150)
    # It cannot do better than ln 16 without attending to the first half.
    assert losses[0] > 0.9 * math.log(16)
    assert losses[-1] < 0.05


def test_reuse_ops_stays_short():
    lines = [line for line in (EXAMPLES / "reuse_ops.py").read_text().splitlines() if line.strip()]
    assert len(lines) < 60
