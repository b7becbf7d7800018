"""The pieces of "From words to transformers" run, and show what the page says."""

from __future__ import annotations

import re

import numpy as np
import pytest
from small_model import ROOT, save_small_model

PAGES = {
    "en": "docs/from-words-to-transformers.md",
    "pt": "docs/pt/das-palavras-aos-transformers.md",
}


def blocks(page: str) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / page).read_text())


def run(block: str) -> dict:
    names: dict = {}
    exec(compile(block, "page", "exec"), names)
    return names


def test_both_languages_show_the_same_code():
    plain = [
        [re.sub(r"#.*|\"[^\"]*\"|\s", "", block) for block in blocks(page)]
        for page in PAGES.values()
    ]
    assert plain[0] == plain[1] and len(plain[0]) == 6
    assert all(len(block.splitlines()) < 20 for block in blocks(PAGES["en"]))


@pytest.mark.parametrize("page", PAGES.values())
def test_a_bag_of_words_has_no_order(page):
    counts = run(blocks(page)[0])["counts"].toarray()
    assert np.array_equal(counts[0], counts[1])


@pytest.mark.parametrize("page", PAGES.values())
def test_words_with_the_same_neighbours_are_near(page, capsys):
    run(blocks(page)[1])
    assert capsys.readouterr().out == "True\n"


def test_an_lstm_has_one_and_attention_sees_no_later_position(capsys):
    names = run(blocks(PAGES["en"])[2])
    assert abs(names["hidden"][0, -1] - names["turned"][0, -1]).max() > 0.1
    names = run(blocks(PAGES["en"])[3])
    change = abs(names["out"] - names["changed"]).max(axis=(0, 2, 3))
    assert (change[:-1] == 0).all() and change[-1] > 0


def test_a_decoder_sees_all_that_the_encoder_read(capsys):
    names = run(blocks(PAGES["en"])[4])
    assert (abs(names["out"] - names["changed"]).max(axis=(0, 2, 3)) > 0).all()


def test_the_chain_rule_is_the_score_of_the_text(tmp_path, capsys):
    model = save_small_model(tmp_path, max_length=64)
    run(blocks(PAGES["en"])[5].replace("runs/path/tiny_cpu", str(model)))
    by_hand, score = map(float, capsys.readouterr().out.split())
    assert by_hand < -10 and by_hand == pytest.approx(score, abs=1e-3)
