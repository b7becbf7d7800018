"""The report of a run: one well-formed page without resources, true to its files, whatever is in
them.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm_jax.bench import charts, page
from llm_jax.bench.report import write_report
from llm_jax.types import ConfigError

VOID = {"meta", "br"}
SETUP = {
    "kind": "setup",
    "step": 0,
    "parameters": 1_115_264,
    "global_tokens_per_step": 4096,
    "tokens_per_epoch": 40_960,
    "rows_per_epoch": 160,
    "peak_flops": 1.87e11,
    "peak_source": "matmul measured on cpu",
    "environment": {"python": "3.11.9", "jax": "0.10.1"},
}
SECONDS = {
    "setup": 10.0,
    "data": 1.0,
    "compile": 9.0,
    "step": 70.0,
    "evaluate": 5.0,
    "checkpoint": 3.0,
    "log": 1.0,
}
LEDGER = {"kind": "ledger", "step": 20, "wall": 100.0, "seconds": SECONDS}
RESULTS = {
    "step": 20,
    "model": {
        "loss": 4.0,
        "perplexity": 54.6,
        "bits_per_byte": 1.987,
        "byte_perplexity": 3.96,
        "word_perplexity": 4321.0,
        "tokens": 39_480,
        "bytes": 116_530,
        "words": 16_295,
        "context": 256,
        "stride": 128,
        "bos": True,
    },
    "unigram": {"perplexity": 612.3, "bits_per_byte": 3.161},
    "bigram": {"perplexity": 118.2, "bits_per_byte": 2.351},
    "samples": [
        {
            "prompt": "Return <b>",
            "text": " it & <script>alert('x')</script>\x00\ud800 \"q\"",
            "settings": "greedy",
        },
    ],
}
DATA = {
    "tokenizer": {"fingerprint": "a943", "vocab_size": 2048, "special_ids": {"pad": 0, "unk": 1}},
    "options": {"normalization": "nfc", "deduplicate": True},
    "block_size": 2048,
    "sources": [
        {"path": "text/<one>.jsonl", "bytes": 2_285_751, "documents": 6431},
        {"path": "two", "bytes": 10, "documents": 79},
    ],
    "splits": {
        "train": {
            "documents": 6191,
            "tokens": 776_258,
            "blocks": 380,
            "text_bytes": 2_232_749,
            "words": 9,
        }
    },
    "dropped": {"empty": 0, "duplicate": 11},
    "read": {"invalid_utf8_repaired": 3},
}


class Page(HTMLParser):
    """Fails on tags out of balance; keeps elements, text, and the text of each element by tag."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, *tags: str) -> str:
        """The text of the named elements, or of all but the style."""
        wanted = (t for tag, t in self.texts if (tag in tags if tags else tag != "style"))
        return "".join(wanted).replace("\xa0", " ")

    def all(self, tag: str, class_: str = "") -> list[dict]:
        """The attributes of every such element."""
        found = [a for t, a in self.elements if t == tag]
        return [a for a in found if class_ in (a.get("class") or "").split()] if class_ else found


def train_record(step: int, **values: float) -> dict:
    return {
        "kind": "train",
        "step": step,
        "loss": 8.0 - step / 10,
        "grad_norm": 1.0,
        "learning_rate": 1e-3,
        **values,
    }


def speeds(rate: float) -> dict[str, float]:
    each = {"tokens_per_second": rate, "tokens_per_second_per_device": rate / 2}
    return {**each, "mfu_causal": 0.25, "mfu_full": 0.3, "data_wait": 0.01}


def records(steps: int = 20) -> list[dict]:
    """The first step has no speed, as the first of every window."""
    train = [train_record(s, **(speeds(1000.0 * s) if s > 1 else {})) for s in range(1, steps + 1)]
    return [
        SETUP,
        *train,
        {"kind": "eval", "step": steps, "loss": 5.0, "perplexity": math.exp(5.0)},
        LEDGER,
    ]


@pytest.fixture
def report(tmp_path):
    """report(records, results=…, data=…, config=…) -> the page's source."""

    def make(lines, results=None, data=None, config=None) -> str:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
        default = {
            "name": "tiny",
            "model": {
                "num_layers": 4,
                "embed_dim": 128,
                "attention.num_heads": 4,
                "vocab_size": 2048,
            },
            "data": {"batch_size": 16},
            "train": {"steps": 20},
        }
        for name, content in (("config", config or default), ("results", results), ("data", data)):
            if content is not None:
                (tmp_path / f"{name}.json").write_text(json.dumps(content))
        path = write_report(tmp_path)
        assert path == tmp_path.resolve() / "report.html"
        return path.read_text(encoding="utf-8")

    return make


def test_well_formed_and_without_resources(report):
    source = report(records(), RESULTS, DATA)
    page = Page(source)
    assert source.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object"} & {t for t, _ in page.elements}
    names = {a for _, attributes in page.elements for a in attributes}
    assert not {"src", "href", "srcset", "style"} & names and not [
        a for a in names if a.startswith("on")
    ]
    assert not re.search(r"https?:|url\(|@import|//[a-z]", source)
    assert page.all("meta")[0] == {"charset": "utf-8"}
    assert (
        "width=device-width" in source
        and "prefers-color-scheme:dark" in source
        and "@media print" in source
    )


def test_the_numbers_appear(report):
    page = Page(report(records(), RESULTS, DATA))
    text, values = page.text(), page.text("dd")
    for number in (
        "54.60",
        "1.987",
        "1.12 M",
        "81.9 k",
        "2.00 epochs",
        "11,000",
        "2 devices",
        "25.0 %",
        "30.0 %",
    ):
        assert number in values, number
    for phrase in (
        "finished: 20 of 20 steps",
        "unigram 612.3 · bigram 118.2",
        "187 GFLOP/s per device (matmul measured on cpu)",
        "account for 99.0 % of 1 min 40 s",
        "2.16 times lower than the bigram’s and 11.2 times lower than the unigram’s",
        (
            "scored on 39,480 tokens, 16,295 words, 116,530 bytes; context 256; stride 128; with a"
            " start token"
        ),
        *("6,431", "776,258", "2.29 MB", "invalid utf8 repaired", "pad 0, unk 1", "0.10.1"),
    ):
        assert phrase in text, phrase
    # ln 612.3 and ln 118.2: the baselines' places in the loss chart.
    assert "unigram 6.42" in page.text("text") and "bigram 4.77" in page.text("text")


def test_a_baseline_that_wins_is_said_to_win(report):
    text = Page(
        report(records(), RESULTS | {"bigram": {"perplexity": 27.3, "bits_per_byte": 1.0}})
    ).text()
    assert "2.00 times higher than the bigram’s" in text


def test_the_five_gram_stands_beside_the_others(report):
    five_gram = {
        "perplexity": 109.2,
        "bits_per_byte": 2.2,
        "train_tokens": 8_000_000,
        "whole_train_split": False,
        "fallback_orders": [5],
    }
    page = Page(report(records(), RESULTS | {"kneser_ney": five_gram}))
    text = page.text()
    assert "unigram 612.3 · bigram 118.2 · 5-gram 109.2" in text
    assert (
        "is 2.00 times lower than the 5-gram’s, 2.16 times lower than the bigram’s and 11.2 times"
        " lower than the unigram’s."
    ) in text
    assert (
        "5-gram: modified Kneser–Ney smoothing, counted on the first 8,000,000 tokens, too few to"
        " estimate every discount."
    ) in text
    assert "5-gram 4.69" in page.text("text")


def test_everything_is_escaped(report):
    config = {
        "name": "</title><script>x",
        "model": {"evil": "<img src=x onerror=y>"},
        "<s>": {"a": ["</table>"]},
    }
    data = DATA | {"options": {"</div>": "&amp;"}}
    setup = SETUP | {"environment": {"<i>": "<u>"}, "peak_source": "<em>"}
    source = report([setup, *records()[1:]], RESULTS, data, config)
    page = Page(source)
    assert not {"script", "img", "i", "u", "em", "s"} & {
        t for t, a in page.elements if "class" not in a
    }
    text = page.text()
    for shown in (
        "</title><script>x",
        "<img src=x onerror=y>",
        "</table>",
        "text/<one>.jsonl",
        "&amp;",
        "(<em>)",
    ):
        assert shown in text, shown
    assert page.text("pre", "b").find("Return <b>") >= 0
    assert " it & <script>alert('x')</script>␀? \"q\"" in page.text("pre")


def test_a_sample_keeps_its_lines_and_its_prompt_is_marked(report):
    sample = {"prompt": "\nDef", "text": " f():\n\n    return\t1\n", "settings": "seed 7"}
    page = Page(report(records(), RESULTS | {"samples": [sample, {"prompt": "a", "text": "a a"}]}))
    assert ("b", "\nDef") in page.texts and ("pre", " f():\n\n    return\t1\n") in page.texts
    assert ("b", "a") in page.texts and (
        "pre",
        "a a",
    ) in page.texts  # a text that begins like its prompt is not cut
    assert len(page.all("figure", "sample")) == 2


def test_missing_optional_files_are_named(report):
    text = Page(report(records())).text()
    assert "the folder has no results.json" in text and "the folder has no data.json" in text
    assert (
        "no baselines" in text and "148.4" in text
    )  # the perplexity of the last evaluation during training


@pytest.mark.parametrize(
    ("lines", "empty_charts"),
    [
        ([], 4),
        ([SETUP], 4),
        ([LEDGER], 4),
        ([{"kind": "other", "step": 1}], 4),
        ([{"kind": "eval", "step": 3, "loss": 1.0}], 3),
        ([train_record(1)], 1),
        ([train_record(1, **speeds(5.0))], 0),
    ],
)
def test_runs_that_barely_began(report, lines, empty_charts):
    page = Page(report(lines, {}, {}))
    assert page.text("p").count("Nothing recorded.") == empty_charts
    assert len(page.all("svg", "plot")) == 4 - empty_charts
    assert len(page.all("circle")) == 4 - empty_charts  # a curve of one point is a dot


def test_no_figure_is_nan(report):
    bad = [train_record(21, loss=math.nan, grad_norm=math.inf, **speeds(math.nan))]
    bad += [train_record(22) | {"learning_rate": -math.inf}]
    ledger = LEDGER | {"wall": 110.0, "seconds": LEDGER["seconds"] | {"step": math.nan}}
    results = RESULTS | {
        "model": {"perplexity": math.nan, "bits_per_byte": None},
        "unigram": {"perplexity": math.inf},
    }
    source = report(
        [*records()[:-1], *bad, ledger], results, config={"model": {"x": math.nan, "y": [math.inf]}}
    )
    Page(source)
    assert not re.search(r"\b(nan|inf|infinity)\b", source, re.IGNORECASE)


def test_resumed_runs(report):
    second = [
        SETUP | {"step": 10, "environment": {"jax": "0.11.0"}},
        train_record(12, loss=2.5),
        LEDGER,
    ]
    lines = [*records(), *second]
    page = Page(report(lines))
    assert (
        "resumed at step 10" in page.text()
        and "0.11.0" in page.text()
        and "3 min 20 s" in page.text("dd")
    )
    assert "step 12\ntrain 2.500" in page.text(
        "title"
    )  # of a step written twice the later record counts
    text = Page(report([r for r in lines if r["kind"] != "ledger"] + [LEDGER])).text()
    assert "Counted: the 1 of this run’s 2 starts" in text


def test_wall_time_that_no_category_has_is_shown(report):
    lines = [
        *records()[:-1],
        LEDGER | {"wall": 200.0, "seconds": LEDGER["seconds"] | {"novel": 1.0}},
    ]
    page = Page(report(lines))
    assert (
        "unaccounted" in page.text()
        and "novel" in page.text()
        and "account for 50.0 %" in page.text()
    )
    assert sum(float(a["width"][:-1]) for a in page.all("rect", "part")) == pytest.approx(
        100, abs=0.1
    )


def test_config_marks_what_differs_from_the_defaults(report):
    page = Page(
        report(
            records(), config={"name": "x", "train": {"steps": 77, "keep": 3}, "future": {"z": 1}}
        )
    )
    bold = page.text("b")
    assert "77" in bold and ("td", "3") in page.texts and ("td", "1") in page.texts
    assert len(page.all("details")) == 1 and "open" not in page.all("details")[0]


def test_a_long_run_is_a_small_page_that_keeps_its_extremes(report):
    lines = [
        SETUP,
        *(train_record(s, loss=3 + math.sin(s), **speeds(5e4)) for s in range(1, 50_001)),
        LEDGER,
    ]
    lines[24_321] |= {"loss": 99.0, "grad_norm": 777.0}
    source = report(lines, RESULTS)
    page = Page(source)
    assert len(source.encode()) < 1_500_000
    for line in page.all("polyline"):
        assert len(line["points"].split()) <= charts.MAX_POINTS
    assert "– 99.00" in page.text("title") and "– 777" in page.text("title")
    heights = [int(p.split(",")[1]) for p in page.all("polyline", "faint")[0]["points"].split()]
    assert min(heights) < 200 < 1500 < max(heights)  # the one spike is drawn, near the top of 2000
    assert "logarithmic axis" in page.text("p")


def test_same_files_same_page(report):
    assert report(records(), RESULTS, DATA) == report(records(), RESULTS, DATA)


def test_errors_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json; give the folder"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no metrics\.jsonl; give the folder"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('not json\n{"kind": "train", "step": 1')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl' has a line that is not valid JSON"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1')
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ConfigError, match=r"results\.json' is not valid JSON .*; delete it"):
        write_report(tmp_path)
    (tmp_path / "results.json").unlink()
    assert write_report(tmp_path).exists()
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*"))


def test_writes_without_jax_or_numpy(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    code = """if True:
        import sys
        from pathlib import Path
        from llm_jax.bench.report import write_report
        write_report(Path(sys.argv[1]))
        print([m for m in ("jax", "numpy", "flax") if m in sys.modules])"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert (
        subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (1, 60, [20, 40, 60]),
        (0.0, 0.0216, [0, 0.005, 0.01, 0.015, 0.02]),
        (2.9, 7.1, [3, 4, 5, 6, 7]),
        (-3, 3, [-2, 0, 2]),
        (1, 100_000, [20e3, 40e3, 60e3, 80e3, 100e3]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert charts.Axis(low, high).ticks() == pytest.approx(ticks)


def test_logarithmic_ticks_and_places():
    axis = charts.Axis(0.05, 200, log=True)
    assert axis.ticks() == pytest.approx([0.1, 1, 10, 100])
    assert (
        axis.at(0.05) == 0
        and axis.at(200) == 1
        and axis.at(math.sqrt(0.05 * 200)) == pytest.approx(0.5)
    )


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 7.77, 1e9])
def test_axes_hold_flat_and_tiny_ranges(scale):
    for values in ([0.0], [scale], [-scale, scale], [scale, scale * 1.000001]):
        for zero in (False, True):
            axis = charts.value_axis(values, zero)
            assert axis.low < axis.high and 0 <= axis.at(min(values)) <= axis.at(max(values)) <= 1
            assert len(axis.ticks()) <= 6


def test_smoothing_does_not_lag():
    line = [(float(x), 3.0 * x) for x in range(600)]
    mean, window = charts.smooth(line)
    assert window == 21 and [x for x, _ in mean] == [x for x, _ in line]
    assert [y for _, y in mean] == pytest.approx([y for _, y in line])
    assert charts.smooth(line[:59]) == (line[:59], 1) and charts.smooth([]) == ([], 1)


def test_thinning_keeps_ends_and_extremes_in_order():
    points = [(float(x), math.sin(x)) for x in range(12_345)]
    points[777], points[9999] = (777.0, 50.0), (9999.0, -50.0)
    thin = charts.thin(points)
    assert len(thin) <= charts.MAX_POINTS and thin == sorted(thin)
    assert {points[0], points[777], points[9999], points[-1]} <= set(thin)
    assert charts.thin(points[:1000]) == points[:1000]


FIGURES = {
    page.number: [
        (134.797, "135"),
        (2.4156, "2.42"),
        (9.996, "10.0"),
        (99.96, "100"),
        (0.0, "0"),
        (6.4e6, "6,400,000"),
        (2e-5, "2e-5"),
        (-0.25, "-0.250"),
        (0.0012, "0.00120"),
        (math.nan, "–"),
        (math.inf, "–"),
        (None, "–"),
        ("7", "–"),
        (True, "–"),
    ],
    page.compact: [
        (1_115_264, "1.12 M"),
        (999_999, "1.00 M"),
        (52e9, "52.0 B"),
        (12, "12.0"),
        (None, "–"),
    ],
    page.percent: [(0.1234, "12.3\xa0%"), (0.0001, "<\xa00.1\xa0%"), (0, "0.0\xa0%"), (None, "–")],
    page.duration: [
        (0.85, "850 ms"),
        (4.2, "4.2 s"),
        (59.97, "1 min 00 s"),
        (116, "1 min 56 s"),
        (3599.9, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (None, "–"),
    ],
    charts.tick_label: [
        (0, "0"),
        (0.005, "0.005"),
        (2e-5, "2e-5"),
        (1000, "1000"),
        (20_000, "20k"),
        (1.5e6, "1.5M"),
        (3e9, "3B"),
    ],
    page.value_text: [
        ({"a": [1, True], "b": {}}, "a 1, yes, b –"),
        (4096, "4,096"),
        ("", "–"),
        (math.nan, "–"),
    ],
}


@pytest.mark.parametrize("function", FIGURES, ids=lambda f: f.__name__)
def test_figures_to_read(function):
    assert [function(value) for value, _ in FIGURES[function]] == [
        text for _, text in FIGURES[function]
    ]
