"""What docs/word2vec.md shows runs, and gives what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/word2vec.md"


@pytest.mark.unit
def test_the_python_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"))
    names: dict = {}
    exec(block, names)
    shown = re.findall(r"(?m)^(\S.*?)  # (.+)$", block)
    assert [repr(eval(expression, names)) for expression, _ in shown] == [
        value for _, value in shown
    ]
    assert len(shown) == 4
