"""``llm-jax generate``: an option for every setting, log-probabilities, pages, files of prompts."""

from __future__ import annotations

import inspect
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_model import save_small_model

import llm_jax
from llm_jax.cli import main
from llm_jax.commands import answer_file, show_logprobs
from llm_jax.commands import generate as command
from llm_jax.commands.decode_flags import beam_flags, decode_flags, with_flags
from llm_jax.commands.logprobs_page import page
from llm_jax.commands.prompt_file import read_prompts
from llm_jax.commands.written import Spelling, Written, as_record, json_line
from llm_jax.config import DecodeConfig
from llm_jax.config.decode import decode_settings
from llm_jax.config.explain import help_of_field
from llm_jax.config.search import BeamConfig
from llm_jax.decode.requests import Wanted
from llm_jax.decode.results import Completion, TokenScore
from llm_jax.decode.text import TextGenerator
from llm_jax.types import ConfigError, DataError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("generate"))


@pytest.fixture(scope="module")
def opened(folder):
    """One open model for all tests: its programs are compiled once."""
    opened = llm_jax.load(folder)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("generate", "chat"):
            patch.setattr(f"llm_jax.commands.{module}.load", lambda run, step: opened)
        yield opened


def generate(*words: object) -> int:
    try:
        return main(["generate", "run", *map(str, words)])
    except SystemExit as end:
        return int(end.code or 0)


class Counting:
    """In the place of a generator: it writes numbers that count on from the prompt and the seed."""

    def complete(self, prompts, configs, wanted, *, seeds):
        return [
            [self._completion(ids, config, seed + i) for i in range(wanted.samples)]
            for ids, config, seed in zip(prompts, configs, seeds)
        ]

    def search(self, prompts, configs, beams, *, seeds):
        found = self.complete(prompts, configs, Wanted(samples=beams.returned), seeds=seeds)
        return [[text._replace(score=-1.0) for text in texts] for texts in found]

    def _completion(self, ids, config, seed):
        first = sum(ids) + seed
        new = [5 + (first + i) % 300 for i in range(config.max_new_tokens)]
        return Completion(new, "length", None, seed, config.order)


@pytest.fixture
def counting(opened, monkeypatch):
    """The model with numbers that count in place of what it writes."""
    text = TextGenerator(Counting(), opened.tokenizer, has_encoder=False)
    monkeypatch.setitem(opened.__dict__, "_text", text)
    return opened


# Options ------------------------------------------------------------------------------------------


def test_every_setting_is_an_option_with_its_default_and_its_help(capsys, monkeypatch):
    parameters = inspect.signature(command.generate).parameters
    for name, setting in decode_settings().items():
        assert parameters[name].default == setting.field.default
    monkeypatch.setenv("COLUMNS", "200")
    assert generate("--help") == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for name, setting in decode_settings().items():
        assert f"--{name.replace('_', '-')}" in text, name
        assert " ".join(help_of_field(setting.owner, name).split())[:60] in text, name


def test_a_new_setting_is_an_option_at_once():
    asked: dict = {}

    @with_flags(*decode_flags())
    def verb(run: str, **settings) -> None:
        """Does.

        Args:
            run: a run.
        """
        asked.update(settings)

    assert list(inspect.signature(verb).parameters) == ["run", *decode_settings()]
    assert "    top_h: Keep most likely tokens" in verb.__doc__
    verb("x", top_k=3)
    assert asked == {"top_k": 3}


VALUES = {
    "negative_prompt": (("a b",), "a b"),
    "order": (("vllm",), "vllm"),
    "renormalize": ((), True),
    "include_stop": ((), True),
    "ignore_eos": ((), True),
    "logit_bias": (("15", "-2.0", "3", "-inf"), ((15, -2.0), (3, -math.inf))),
    "sequence_bias": (("a b", "-1.5", "c", "2"), (("a b", -1.5), ("c", 2.0))),
    "bad_words": (("a b", "c"), ("a b", "c")),
    "stop": (("a b", "c"), ("a b", "c")),
    "allowed_ids": (("1", "2"), (1, 2)),
    "suppress_ids": (("1", "2"), (1, 2)),
    "begin_suppress_ids": (("1", "2"), (1, 2)),
    "stop_ids": (("1", "2"), (1, 2)),
}


def test_each_option_gives_its_setting(opened, monkeypatch):
    seen: list = []
    monkeypatch.setattr(
        command, "_print_plainly", lambda model, request, given, _: seen.append(given)
    )
    words: list[str] = []
    expected = {}
    for name, setting in decode_settings().items():
        # 0.5 and 3 are in the range of every number.
        kind = float if isinstance(setting.field.default, float) else int
        default = (("0.5",), 0.5) if kind is float else (("3",), 3)
        given, expected[name] = VALUES.get(name, default)
        words += [f"--{name.replace('_', '-')}", *given]
    assert generate(*words) == 0
    assert seen == [expected]


def test_every_setting_of_beam_search_is_an_option(opened, monkeypatch, capsys):
    page = (ROOT / "docs/decoding.md").read_text()
    parameters = inspect.signature(command.generate).parameters
    for flag in beam_flags():
        assert parameters[flag.name].default == flag.default and flag.help
        assert f"`--{flag.name.replace('_', '-')}`" in page
    seen: list = []

    def search(rows, beams, *, required, **settings):
        seen.append((len(rows), beams, required, settings["max_new_tokens"]))
        found = Completion([5, 6], "stop", None, 0, "hf", text=" 6", score=-1.5)
        return [[found] * beams.returned] * len(rows)

    monkeypatch.setattr(opened, "search", search)
    words = ["--beams", 6, "--beam-returned", 2, "--beam-length-penalty", -0.5]
    words += ["--beam-early-stopping", "never", "--beam-required", "a b", "c"]
    assert generate("--prompt", "The", "A", *words, "--max-new-tokens", 3, "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["prompt"], r["sample"], r["score"]) for r in records][1:3] == [
        (0, 1, -1.5),
        (1, 0, -1.5),
    ]
    expected = BeamConfig(beams=6, returned=2, length_penalty=-0.5, early_stopping="never")
    assert seen == [(2, expected, ("a b", "c"), 3)]


@pytest.mark.parametrize(
    "words, said",
    [
        (("--beam-returned", 2), "--beam-returned is set and beams (--beams) is not"),
        (("--beam-required", "x"), "--beam-required is set and beams (--beams) is not"),
        (("--beams", 2, "--beam-returned", 3), "returned 3 is more than beams 2"),
        (("--beams", 2, "--n", 3), "--n does not go with --beams"),
        (("--beams", 2, "--logprobs", 3), "--logprobs does not go with --beams"),
        (("--beams", 0), "beams is 0; it must be at least 1"),
    ],
)
def test_beams_that_cannot_be_are_refused(words, said, capsys):
    assert generate(*words) == 2
    assert said in capsys.readouterr().err


def test_a_setting_out_of_range_is_named(capsys):
    assert main(["generate", "nowhere", "--typical-p", "1.5"]) == 2
    assert "typical_p is 1.5; it must be more than 0 and at most 1" in capsys.readouterr().err


# Log-probabilities --------------------------------------------------------------------------------

COMPLETION = Completion(
    ids=[5, 6],
    finish_reason="stop",
    stop="</x>",
    seed=3,
    order="hf",
    scores=(
        TokenScore(5, math.log(0.95), 1, ((5, math.log(0.95)), (7, math.log(0.03)))),
        TokenScore(6, -math.inf, 9, ((8, -0.1), (6, -math.inf))),
    ),
    text="5 6 ",
)


def test_json_has_null_for_what_is_not_finite():
    (first, second) = json.loads(json_line(as_record(COMPLETION, Spelling(None))))["logprobs"]
    assert first["top"][1] == {"id": 7, "token": "7", "logprob": pytest.approx(math.log(0.03))}
    assert second["logprob"] is None and second["rank"] == 9
    assert second["top"][1]["logprob"] is None


def test_json_lines_are_the_completions(opened, capsys):
    words = ["--max-new-tokens", 6, "--logprobs", 2, "--seed", 4, "--json"]
    assert generate("--prompt", "The", *words) == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (record["prompt"], record["sample"], record["seed"]) == (0, 0, 4)
    assert [one["id"] for one in record["logprobs"]] == record["ids"]
    assert all(len(one["top"]) == 2 for one in record["logprobs"])


def test_each_of_several_texts_is_printed(opened, monkeypatch, capsys):
    monkeypatch.setattr(
        opened._generator,
        "complete",
        lambda ids, configs, wanted, *, seeds: Counting().complete(
            ids, configs, wanted, seeds=[4, 6]
        ),
    )
    words = ["--prompt", "The", "A model", "--max-new-tokens", 6, "--n", 2]
    assert generate(*words, "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["prompt"], r["sample"], r["seed"]) for r in records] == [
        (0, 0, 4),
        (0, 1, 5),
        (1, 0, 6),
        (1, 1, 7),
    ]
    assert generate(*words) == 0
    out = capsys.readouterr().out
    expected = [text + r["text"] for text, r in zip(("The", "The", "A model", "A model"), records)]
    assert out == "".join(f"{text}\n{'-' * 40}\n" for text in expected)


def test_the_tokenizers_end_ends_nothing_where_it_is_ignored(opened):
    end = opened.tokenizer.eos_id
    settings = {"max_new_tokens": 6, "forced_first_id": end, "stop_ids": ()}
    wanted = command.Wanted(logprobs=2)
    (found,) = opened.complete("The", wanted=wanted, **settings)
    assert (found.ids, found.finish_reason, found.stop) == ([], "stop", end)
    (found,) = opened.complete("The", wanted=wanted, **settings, ignore_eos=True)
    assert found.ids[0] == end and len(found.ids) == 6 and found.finish_reason == "length"


@pytest.mark.parametrize("stop", [(), ("e",)])
def test_pieces_are_the_text(opened, stop):
    ids = opened.token_ids("The")
    wanted = command.Wanted(logprobs=2)
    (found,) = opened.complete(ids, wanted=wanted, max_new_tokens=24, seed=1, stop=stop)
    pieces = command.spelling_of(opened).pieces(ids, found)
    assert len(pieces) == len(found.ids) > 0
    assert "".join(piece.text for piece in pieces) == found.text


def test_without_a_terminal_probabilities_are_numbers(capsys):
    show_logprobs.show([Written("on ", [1], [COMPLETION])], Spelling(None))
    text, head, first, second = capsys.readouterr().out.splitlines()
    assert text == "on 5 6 " and head.startswith("probability\tlogprob\trank")
    assert first == "0.9500\t-0.0513\t1\t'5'\t'5' -0.0513  '7' -3.5066"
    assert second.startswith("0.0000\t-inf\t9\t'6'")


def test_on_a_terminal_they_are_colours(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show_logprobs.show([Written("[on] ", [1], [COMPLETION])], Spelling(None))
    out = capsys.readouterr().out
    assert "\x1b[2m[on] " in out and "\x1b[32m5 " in out and "\x1b[31m6 " in out
    assert "probability at least" in out


@pytest.mark.parametrize(
    "probability, colour",
    [(1.0, "green"), (0.9, "green"), (0.5, "cyan"), (0.21, "yellow"), (0.05, "magenta")]
    + [(1e-9, "red")],
)
def test_colours_are_bands_of_probability(probability, colour):
    assert show_logprobs.band(math.log(probability) + 1e-12) == colour
    assert show_logprobs.band(-math.inf) == "red" and show_logprobs.band(math.nan) == "dim"


class Reader(HTMLParser):
    """Elements, attributes and text of a page; every element is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_a_page_is_whole_and_what_models_write_is_text_in_it(opened, tmp_path):
    bad = '<script>alert("x")</script>\x00 & \ud800'
    named = Spelling(None)
    named.name = lambda id: f"{bad}{id}"  # type: ignore[method-assign]
    read = Reader(page([Written(bad, [1], [COMPLETION])], named, bad))
    assert "script" not in read.tags and {"src", "href"}.isdisjoint(dict(read.attributes))
    assert not any(name.startswith("on") for name, _ in read.attributes)
    assert '<script>alert("x")</script>␀ & ?' in read.words
    assert "95.00%" in read.words and "3.00%" in read.words and "0.00%" in read.words
    path = tmp_path / "page.html"
    words = ("--max-new-tokens", 6, "--logprobs", 2, "--html", path)
    assert generate("--prompt", "The", *words) == 0
    text = path.read_text()
    assert "http" not in text and Reader(text).tags.count("code") >= 3


# Files of prompts ---------------------------------------------------------------------------------

LINES = [
    {"prompt": "The", "id": "first"},
    {"prompt": "A model of many words is there, and more of it", "max_new_tokens": 3},
    {"ids": [5, 6, 7], "id": 3, "temperature": 0, "stop": "zzz"},
    {"prompt": "A", "seed": 99},
    {"prompt": "On and on"},
]
SETTINGS = ("--max-new-tokens", 5, "--seed", 10)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(map(json.dumps, LINES)))
    return path


def answers(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_in_the_order_of_the_prompts_whatever_the_batches(counting, prompts, tmp_path):
    out = tmp_path / "new" / "answers.jsonl"
    words = ("--prompts", prompts, "--out", out, *SETTINGS)
    assert generate(*words, "--batch-size", 2) == 0
    found = answers(out)
    assert [r["prompt"] for r in found] == list(range(5))
    assert [r.get("id") for r in found] == ["first", None, 3, None, None]
    assert [r["seed"] for r in found] == [10, 11, 12, 99, 14]
    assert [len(r["ids"]) for r in found] == [5, 3, 5, 5, 5]
    # Those that this prompt gets alone, with its seed.
    expected = Counting()._completion(counting.token_ids("On and on"), DecodeConfig(), 14).ids[:5]
    assert found[4]["ids"] == expected
    assert found[4]["text"] == counting.tokenizer.decode([2, *expected])
    assert {p.name for p in out.parent.iterdir()} == {out.name, f"{out.name}.settings.json"}
    before = out.read_bytes()
    # All is there: nothing is generated, with another size of batch too.
    assert generate(*words, "--batch-size", 5) == 0
    assert out.read_bytes() == before


def test_a_killed_command_goes_on_where_it_was(counting, prompts, tmp_path, monkeypatch, capsys):
    whole = tmp_path / "whole.jsonl"
    words = ("--prompts", prompts, *SETTINGS, "--n", 2, "--batch-size", 2)
    assert generate(*words, "--out", whole) == 0
    out = tmp_path / "answers.jsonl"
    append = answer_file.AnswerFile.append

    def die_in_the_second(self, records):
        if self.partial.stat().st_size:
            with self.partial.open("ab") as file:
                # One whole answer of two, and half of another.
                data = "".join(map(json_line, records)).encode()
                file.write(data[: data.index(b"\n") + 30])
            raise KeyboardInterrupt
        append(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(answer_file.AnswerFile, "append", die_in_the_second)
        assert generate(*words, "--out", out) == 130
    assert not out.exists()
    capsys.readouterr()
    written: list = []
    monkeypatch.setattr(
        answer_file.AnswerFile,
        "append",
        lambda self, records: (written.extend(records), append(self, records)),
    )
    assert generate(*words, "--out", out) == 0
    assert "going on: 2 of 5 prompts are answered" in capsys.readouterr().err
    assert len(written) == 6 and out.read_bytes() == whole.read_bytes()


def test_answers_to_other_settings_are_refused(counting, prompts, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    words = ("--prompts", prompts, "--out", out)
    assert generate(*words, *SETTINGS) == 0
    before = out.read_bytes()
    for other, said in (
        ((*SETTINGS, "--temperature", 0.5), "temperature is 0.5, and"),
        ((*SETTINGS, "--stop", "x"), "stop is ['x'], and"),
        ((*SETTINGS, "--n", 2), "n is 2, and"),
    ):
        assert generate(*words, *other) == 2
        assert said in capsys.readouterr().err
    prompts.write_text('{"prompt": "Other"}')
    assert generate(*words, *SETTINGS) == 2
    assert "prompts is '" in capsys.readouterr().err
    assert out.read_bytes() == before
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("mine")
    assert generate("--prompts", prompts, "--out", foreign) == 2
    assert "exists, without foreign.jsonl.settings.json" in capsys.readouterr().err
    assert foreign.read_text() == "mine"


def test_a_file_of_prompts_is_searched_by_beams(counting, prompts, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    words = ("--prompts", prompts, "--out", out, *SETTINGS, "--beams", 3)
    assert generate(*words, "--beam-returned", 2) == 0
    found = answers(out)
    assert [(r["prompt"], r["sample"], r["score"]) for r in found[:3]] == [
        (0, 0, -1.0),
        (0, 1, -1.0),
        (1, 0, -1.0),
    ]
    assert generate(*words, "--beam-returned", 3) == 2
    assert "beam_returned is 3, and" in capsys.readouterr().err


def test_two_processes_do_not_write_one_file(tmp_path):
    file = answer_file.AnswerFile(tmp_path / "a.jsonl", 1, 1)
    file.check_settings({"n": 1})
    with file.locked(), pytest.raises(ConfigError, match="another process writes"), file.locked():
        pass


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "line 2 is not valid JSON"),
        ("[1]", r"line 2 is '\[1\]'; expected an object"),
        ('{"id": 1}', "line 2 has none of them; give one of prompt, messages, ids"),
        ('{"prompt": "a", "ids": [1]}', "line 2 has prompt and ids"),
        ('{"prompt": 3}', "prompt is '3'; it must be a text"),
        ('{"ids": []}', "ids is .*; it must be a list of token ids"),
        ('{"ids": [true]}', "it must be a list of token ids"),
        ('{"messages": "hi"}', "it must be a list of messages"),
        ('{"prompt": "a", "id": 1.5}', "id is 1.5; it must be a text or a whole number"),
        ('{"prompt": "a", "id": "x"}', "id 'x' is that of line 1 too"),
        ('{"prompt": "a", "temprature": 1}', "unknown key 'temprature'; did you mean 'temp"),
        ('{"prompt": "a", "top_p": 2}', "line 2: top_p is 2; it must be"),
        ('{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias has 'x'; it must be a token id"),
        ('{"prompt": "a", "min_new_tokens": 200}', "min_new_tokens is 200 and max_new_tokens"),
    ],
)
def test_a_line_that_cannot_be_is_named(line, said):
    content = b'{"prompt": "a", "id": "x"}\n' + line.encode()
    with pytest.raises(DataError, match=said):
        read_prompts(Path("p.jsonl"), content, DecodeConfig())


def test_a_prompt_that_is_too_long_is_named_and_the_answers_before_are_kept(
    opened, tmp_path, capsys
):
    path = tmp_path / "prompts.jsonl"
    out = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n' + json.dumps({"ids": [5] * 300}))
    assert generate("--prompts", path, "--out", out) == 2
    assert "lines 2, 1 of the prompts: " in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (("--prompts", "p"), "give both, a file of prompts and one for the answers"),
        (("--out", "p"), "give both"),
        (("--prompts", "p", "--out", "o", "--prompt", "x"), "--prompt does not go with --prompts"),
        (("--prompts", "p", "--out", "o", "--json"), "--json does not go with --prompts"),
        (("--prompts", "/nowhere", "--out", "o"), "/nowhere cannot be read"),
    ],
)
def test_files_that_do_not_go_together_are_refused(opened, words, said, capsys):
    assert generate(*words) == 2
    assert said in capsys.readouterr().err


def test_a_setting_of_a_line_may_be_a_mapping():
    content = b'{"prompt": "a", "logit_bias": {"5": -1, "6": 2}, "bad_words": ["x", [1, 2]]}'
    (line,) = read_prompts(Path("p"), content, DecodeConfig())
    assert line.config.tokens.logit_bias == ((5, -1), (6, 2))
    assert line.config.tokens.bad_words == ("x", (1, 2))


# Constraints and drafts ---------------------------------------------------------------------------


def printed(capsys, *words: object) -> str:
    assert generate("--prompt", "the", *words) == 0
    return capsys.readouterr().out.removeprefix("the").removesuffix("\n")


def test_a_text_is_what_a_constraint_says(opened, capsys, tmp_path):
    assert printed(capsys, "--choices", "yes", "no") in ("yes", "no")
    assert re.fullmatch("[ab]{3}-[0-9]", printed(capsys, "--regex", "[ab]{3}-[0-9]"))
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    for given in (json.dumps(schema), tmp_path / "schema.json"):
        (tmp_path / "schema.json").write_text(json.dumps(schema))
        assert json.loads(printed(capsys, "--json-schema", given)) in ({"a": 1}, {"a": 2})
    (tmp_path / "grammar.lark").write_text('start: "x" | "yy"')
    assert printed(capsys, "--grammar", tmp_path / "grammar.lark") in ("x", "yy")
    record = json.loads(printed(capsys, "--choices", "yes", "no", "--json"))
    assert record["text"] in ("yes", "no") and record["finish_reason"] == "stop"


def test_a_draft_changes_no_greedy_text(opened, capsys):
    words = ("--temperature", 0, "--max-new-tokens", 12)
    plain = printed(capsys, *words)
    assert printed(capsys, *words, "--draft", "lookup", "--draft-tokens", 3) == plain


@pytest.mark.parametrize(
    "words, message",
    [
        (("--choices", "a", "--regex", "b"), "--regex and --choices are given"),
        (("--draft-tokens", 3), "--draft-tokens is set and --draft is not"),
        (("--draft", "lookup", "--beams", 2), "--beams and --draft are given"),
        (("--draft", "lookup", "--choices", "a"), "--draft and a constraint are given"),
        (("--draft", "early_exit"), "draft is 'early_exit'; give lookup"),
        (("--draft", "early_exit:9"), "9"),
        (("--json-schema", "missing.json"), "missing.json cannot be read"),
        (("--regex", "("), "\\("),
        (("--choices", "a", "--stop", "b"), "stop"),
    ],
)
def test_constraints_and_drafts_that_cannot_be_are_refused(opened, capsys, words, message):
    assert generate("--prompt", "the", *words) == 2
    assert re.search(message, capsys.readouterr().err)
