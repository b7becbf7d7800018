"""The default corpus: found without importing anything, deterministic, English, about 2 MB."""

from __future__ import annotations

import json

from llm_jax.data.corpus import python_docs
from llm_jax.data.corpus.python_docs import library, write_corpus
from llm_jax.progress import note, progress

SOURCE = '''
"""A module docstring that is long enough to be taken up."""

raise SystemExit("never imported")

class Thing(Base):
    """   Short."""

    async def go(self, to, *, fast: bool = True) -> int:
        """Go to a place, and say so.

            Indented more.
        Back again.
        """

try:
    import x
except ImportError:
    def replacement(a, /, b=1, **kw):
        """What is used where there is no x at all, it seems."""
'''


def test_docstrings_with_signatures_from_source_only(tmp_path, capsys):
    (tmp_path / "package" / "test").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text(SOURCE)
    (tmp_path / "package" / "test" / "a.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def (")
    assert list(library(tmp_path)) == [
        ("package", "package\n\nA module docstring that is long enough to be taken up.\n"),
        (
            "package.Thing.go",
            (
                "package.Thing.go(self, to, *, fast: bool=True)\n\nGo to a place, and say so.\n\n  "
                "  Indented more.\nBack again.\n"
            ),
        ),
        (
            "package.replacement",
            (
                "package.replacement(a, /, b=1, **kw)\n\nWhat is used where there is no x at all,"
                " it seems.\n"
            ),
        ),
    ]
    assert f"{tmp_path}: 1 files could not be read or are no Python" in capsys.readouterr().err


def test_the_corpus_of_this_python(tmp_path):
    paths = write_corpus(tmp_path)
    assert [p.name for p in paths] == ["topics.jsonl", "library.jsonl"]
    records = [
        json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()
    ]
    size = sum(len(r["text"].encode()) for r in records)
    assert 1_500_000 < size < 4_000_000 and len(records) > 4000
    by_name = {r["name"]: r["text"] for r in records}
    assert by_name["textwrap.dedent"].startswith(
        "textwrap.dedent(text)\n\nRemove any common leading whitespace"
    )
    assert min(len(r["text"]) for r in records) >= python_docs.MIN_CHARACTERS


def test_progress_in_plain_lines(capsys, monkeypatch):
    monkeypatch.setattr("llm_jax.progress.PLAIN_SECONDS", 0.0)
    with progress("training", 4, "steps") as bar:
        bar.advance(1, loss=2.5, tokens_s=123456.0)
        note("a note")
        bar.advance(3)
    note("after")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training: 25%  1 steps of 4 steps  ") and lines[0].endswith(
        "left  loss 2.5  tokens/s 123,456"
    )
    assert lines[1] == "a note" and lines[-1] == "after"
    assert lines[-2].startswith("training: done in 0:00  4 steps")


def test_progress_draws_a_bar_on_a_terminal(capsys, monkeypatch):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("reading", None, "B") as bar:
        bar.advance(2_500_000, loss=1.0)
        note("[above]")
    shown = capsys.readouterr().err
    assert "reading" in shown and "2.5 MB" in shown and "loss 1" in shown and "[above]" in shown
