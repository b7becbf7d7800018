"""The examples run, and show what they say."""

import json
import math
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_reuse_ops_learns_to_repeat():
    losses = runpy.run_path(str(EXAMPLES / "reuse_ops.py"))["main"](steps=150)
    # It cannot do better than ln 16 without attending to the first half.
    assert losses[0] > 0.9 * math.log(16)
    assert losses[-1] < 0.05


def test_reuse_ops_stays_short():
    lines = [line for line in (EXAMPLES / "reuse_ops.py").read_text().splitlines() if line.strip()]
    assert len(lines) < 70


def page(**texts: str) -> str:
    return (
        "<html><nav>menu</nav>"
        + "".join(f'<p id="{id}" class="x">{text}</p>' for id, text in texts.items())
        + "</html>"
    )


def test_pairs_of_the_help_are_split_by_page_and_nothing_held_out_is_trained_on(
    tmp_path, monkeypatch, capsys
):
    names = [f"guide/{i}.html" for i in range(200)]
    for i, name in enumerate(names):
        english = page(
            a=f"Open<br><b>page</b>\n {i}",
            same=f"Writer {i}",
            b="Close it",
            hid=f"Press <span hidden>never</span>key {i}",
            long="word " * 51,
            lonely=f"Only here {i}",
        )
        portuguese = page(
            a=f"Abra a p&aacute;gina {i}",
            same=f"Writer {i}",
            b="Feche",
            hid=f"Pressione a tecla {i}",
            long="palavra " * 51,
        )
        for language, text in (("en-US", english), ("pt-BR", portuguese)):
            file = tmp_path / "help" / language / "text" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    script = runpy.run_path(str(EXAMPLES / "libreoffice_pairs.py"))
    monkeypatch.setattr(sys, "argv", ["pairs", str(tmp_path / "help"), str(tmp_path / "out")])
    script["main"]()
    lines = {
        s: (tmp_path / f"out/{s}.jsonl").read_text().splitlines()
        for s in ("train", "validation", "test")
    }
    read = {split: [json.loads(line) for line in of] for split, of in lines.items()}
    splits = [script["split_of"](name) for name in names]
    for split, pairs in read.items():
        pages = [i for i, s in enumerate(splits) if s == split]
        expected = {(f"Open page {i}", f"Abra a página {i}") for i in pages} | {
            (f"Press key {i}", f"Pressione a tecla {i}") for i in pages
        }
        expected |= {("Close it", "Feche")} if split != "train" else set()
        assert {(p["en"], p["pt"]) for p in pairs} == expected and len(pairs) == len(expected)
    assert 0 < splits.count("validation") < splits.count("test") < 30
    assert "left out of train, since the English is held out: 1" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["pairs", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="is not there; name the folder help/"):
        script["main"]()
