"""Progress where there is no terminal: plain lines, and one output that is written over in a
notebook.
"""

from __future__ import annotations

import sys
import types

import pytest

from llm_jax import progress as module
from llm_jax.progress import note, progress


class Handle:
    def __init__(self, first):
        self.shown = [first]

    def update(self, data, raw):
        assert raw
        self.shown.append(data)


@pytest.fixture
def notebook(monkeypatch):
    """A stand-in for IPython as a notebook's kernel has it; what has been displayed."""
    handles: list[Handle] = []

    def display(data, raw, display_id):
        assert raw and display_id
        handles.append(Handle(data))
        return handles[-1]

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    monkeypatch.setattr(module, "NOTEBOOK_SECONDS", 0.0)
    return handles


def test_a_notebook_has_one_output_that_is_written_over(notebook, capsys):
    with progress("read <all>", total=4, unit="row") as bar:
        bar.advance(1, loss=2.5)
        note("a remark")
        bar.advance(3)
    (handle,) = notebook
    assert len(handle.shown) == 4
    assert handle.shown[0]["text/plain"].startswith("read <all>: 0%  0 row of 4 row")
    half = handle.shown[1]
    assert "25%  1 row of 4 row" in half["text/plain"] and "loss 2.5" in half["text/plain"]
    assert '<progress value="0.2500">' in half["text/html"]
    assert "read &lt;all&gt;" in half["text/html"]
    assert "done in 0:00  4 row" in handle.shown[-1]["text/plain"]
    assert capsys.readouterr().out == "a remark\n"


def test_an_error_in_a_notebook_leaves_the_bar_where_it_was(notebook):
    with pytest.raises(ValueError), progress("read", total=None, unit="row") as bar:
        bar.advance(2)
        raise ValueError
    last = notebook[0].shown[-1]
    assert "stopped in" in last["text/plain"] and "<progress" not in last["text/html"]


def test_ipython_on_a_terminal_is_no_notebook(notebook, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: types.SimpleNamespace())
    with progress("read", total=2) as bar:
        bar.advance(2)
    assert not notebook
    assert capsys.readouterr().err.startswith("read: done in 0:00  2")


def test_plain_lines_say_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    with progress("read", total=2000, unit="B") as bar:
        bar.advance(500, tokens_s=1200.0)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("read: 25%  500 B of 2 kB") and "tokens/s 1,200" in first
    assert last.startswith("read: done in 0:00  500 B")


def test_a_process_that_is_silent_shows_nothing(notebook, monkeypatch, capsys):
    monkeypatch.setattr(module, "_silent", True)
    with progress("read", total=2) as bar:
        bar.advance(2)
        note("a remark")
    assert not notebook and capsys.readouterr() == ("", "")
