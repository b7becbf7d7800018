"""What docs/classic.md shows runs, and gives what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/classic.md"


def test_the_python_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 3
    for block in blocks:
        names: dict = {}
        shown = 0
        for line in block.splitlines():
            expression, _, comment = line.partition("#")
            exec(expression, names)
            value = comment.strip()
            if re.match(r"[\[(\d]", value):
                assert repr(eval(expression, names)).replace('"', "'") == value.replace('"', "'")
                shown += 1
        assert shown or "results" in names
    accuracy, macro_f1, majority = capsys.readouterr().out.split()
    assert (accuracy, macro_f1, majority) == ("1.0", "1.0", "0.5")
