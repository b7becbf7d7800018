"""``llm-jax attention``: the page, and what is refused."""

from __future__ import annotations

import base64
import re

import numpy as np
import pytest
from small_model import save_small_model

from llm_jax.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("attention"), num_layers=2)


def test_the_page_has_every_map_of_the_layers_asked_for(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert not main(["attention", str(run), "--text", "a </script> b", "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    page = out.read_text()
    assert page.count("<script>") == 1 == page.count("</script>")
    maps = re.findall(r'data-weights="([^"]*)"', page)
    sizes = {len(base64.b64decode(one)) for one in maps}
    (size,) = sizes
    tokens = round(size**0.5)
    first = np.frombuffer(base64.b64decode(maps[0]), np.uint8).reshape(tokens, tokens)
    assert first[0, 0] == 255 and not np.triu(first, 1).any()
    names = re.findall(r'data-name="([^"]*)"', page)
    main(["attention", str(run), "--text", "ab", "--layer", "1", "--out", str(out)])
    some = re.findall(r'data-name="([^"]*)"', out.read_text())
    assert some == [name for name in names if "layer 1," in name] != []


@pytest.mark.parametrize(
    "options, problem",
    [
        ([], "text is empty"),
        (["--text", "a", "--layer", "99"], "layer is 99, and the model has the layers 0 to"),
        (["--text", "a", "--encoder", "b"], "this model has no encoder"),
    ],
)
def test_what_is_refused(run, tmp_path, capsys, options, problem):
    out = tmp_path / "page.html"
    assert main(["attention", str(run), "--out", str(out), *options])
    assert problem in capsys.readouterr().err
    assert not out.exists()
