"""A setting of decoding has a test, an option, a line in docs/decoding.md, and a picture."""

from __future__ import annotations

import inspect
import re
import runpy
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from llm_jax.commands.chat import chat
from llm_jax.commands.generate import generate
from llm_jax.config import DecodeConfig
from llm_jax.config.decode import decode_settings
from llm_jax.ops.sampling import ORDERS, PROCESSORS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/decoding.md").read_text()
# Names that are written out for other reasons: those here, and the options' values.
TESTS = {
    str(path): re.sub(r"(?s)\nVALUES = {.*?\n}\n", "", path.read_text())
    for path in (ROOT / "tests").rglob("test_*.py")
    if path.name != Path(__file__).name
}
PICTURES = runpy.run_path(str(ROOT / "scripts/decoding_pictures"))
SVGS = {path.stem: path.read_text() for path in (ROOT / "docs/images/decoding").glob("*.svg")}


@pytest.mark.parametrize("name", decode_settings())
def test_a_setting_has_a_test_an_option_and_a_line_on_the_page(name):
    assert any(re.search(rf"\b{name}\b", text) for text in TESTS.values()), "no test names it"
    for verb in (generate, chat):
        assert name in inspect.signature(verb).parameters
    assert f"`{name}`" in PAGE


def test_every_field_is_a_setting():
    sections = {setting.section for setting in decode_settings().values()} - {""}
    names = {field.name for field in fields(DecodeConfig)}
    assert names == sections | {n for n, s in decode_settings().items() if not s.section}
    for section in sections:
        for field in fields(getattr(DecodeConfig(), section)):
            assert decode_settings()[field.name].section == section


# What the processors and filters are called as settings.
NAMES = {
    "guidance": ("guidance_scale",),
    "bias": ("logit_bias",),
    "sequence_bias": ("bad_words", "sequence_bias"),
    "encoder_repetition": ("encoder_repetition_penalty",),
    "repetition": ("repetition_penalty",),
    "frequency_and_presence": ("frequency_penalty", "presence_penalty"),
    "ngram": ("no_repeat_ngram_size",),
    "encoder_ngram": ("encoder_no_repeat_ngram_size",),
    "min_new": ("min_new_tokens",),
    "forced_first": ("forced_first_id",),
    "forced_last": ("forced_last_id",),
    "remove_invalid": (),
    "decay": ("length_decay_factor",),
    "allowed": ("allowed_ids", "suppress_ids"),
    "begin_allowed": ("begin_suppress_ids",),
    "epsilon": ("epsilon_cutoff",),
    "eta": ("eta_cutoff",),
}


@pytest.mark.parametrize("column, order", [(1, "hf"), (2, "vllm")])
def test_the_page_has_the_order_of_each_preset(column, order):
    section = PAGE.partition("## Order")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")]
    shown = [name for row in rows[1:] for name in re.findall(r"`(\w+)`", row[column])]
    stages = [*PROCESSORS[order], "temperature", *ORDERS[order], "watermark_bias", "renormalize"]
    assert shown == [name for stage in stages for name in NAMES.get(stage, (stage,))]


def test_every_picture_is_on_the_page_and_every_setting_that_has_one():
    shown = re.findall(r"\(images/decoding/(\w+)\.svg\)", PAGE)
    assert sorted(shown) == sorted(SVGS) == sorted(PICTURES["SHOWN"])
    in_order = set(re.findall(r"`(\w+)`", PAGE.partition("## Order")[2].partition("\n## ")[0]))
    without = {"order", "hf", "vllm", "renormalize"}
    assert in_order - without <= set(shown)


def test_the_pictures_are_what_the_script_draws():
    for name, drawn in SVGS.items():
        # Bars are rounded to a point, and the last digit may differ between versions of jax.
        now = PICTURES["picture"](name)
        numbers = [np.array(re.findall(r"\d+", text), int) for text in (drawn, now)]
        assert re.sub(r"\d+", "", drawn) == re.sub(r"\d+", "", now)
        np.testing.assert_allclose(numbers[0], numbers[1], atol=1)


def test_the_pictures_show_what_the_formulas_say():
    """Each by hand, from the probabilities before."""
    of = PICTURES["distributions"]
    p, after = of("top_k")
    assert (after > 0).tolist() == (p >= np.sort(p)[-4]).tolist()
    p, after = of("temperature")
    np.testing.assert_allclose(after, p**2 / np.sum(p**2), rtol=1e-5)
    p, after = of("min_p")
    assert (after > 0).tolist() == (p >= 0.4 * p.max()).tolist()
    p, after = of("presence_penalty")
    weights = p * np.where(np.isin(np.arange(12), (0, 4, 6)), np.exp(-1), 1)
    np.testing.assert_allclose(after, weights / weights.sum(), rtol=1e-5)
