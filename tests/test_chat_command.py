"""``llm-jax chat``: what it keeps of a conversation, its commands, and how it ends."""

from __future__ import annotations

import io
import json

import pytest

from llm_jax.cli import main
from llm_jax.commands import chat as command
from llm_jax.commands.conversation import Conversation, load_conversation
from llm_jax.config import Config
from llm_jax.types import ConfigError, DataError

QUESTION = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "ab"}


class Told:
    """A model that answers "ab", and keeps what it is asked."""

    config = Config()
    tokenizer = None

    def __init__(self) -> None:
        self.asked: list = []
        self.fail: BaseException | None = None
        self.pieces = ["a", "b"]

    def stream_chat(self, messages, system, **settings):
        self.asked.append(([*messages], system, settings))
        if isinstance(self.fail, ConfigError):
            raise self.fail
        return self._pieces()

    def _pieces(self):
        yield from self.pieces
        if self.fail is not None:
            raise self.fail


@pytest.fixture
def model(monkeypatch):
    model = Told()
    monkeypatch.setattr(command, "load", lambda run, step: model)
    monkeypatch.setattr(command, "chat_ids", lambda *_: [1])
    return model


def talk(monkeypatch, *lines: str, words: tuple[str, ...] = ()) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return main(["chat", "run", *words])


def test_answers_are_on_stdout_and_the_history_grows(model, monkeypatch, capsys):
    words = ("--system", "Be brief.", "--top-k", "5")
    assert talk(monkeypatch, "Hello", "", "Again", words=words) == 0
    assert capsys.readouterr().out == "ab\nab\n"
    settings = {"top_k": 5}
    again = {"role": "user", "content": "Again"}
    assert model.asked == [
        ([QUESTION], "Be brief.", settings),
        ([QUESTION, ANSWER, again], "Be brief.", settings),
    ]


def test_commands_change_what_is_asked(model, monkeypatch, capsys):
    lines = ("/system Be kind.", "/set temperature 0.7", "/set stop ab c", "/set", "Hello", "/undo")
    lines += ("/set top_k 4", "/set order vllm", "Hello", "/reset", "/system -", "Hello")
    assert talk(monkeypatch, *lines, "//slash", "/help", "/quit", "never") == 0
    settings = {"temperature": 0.7, "stop": ["ab c"]}
    assert model.asked[0] == ([QUESTION], "Be kind.", settings)
    assert model.asked[1][0] == [QUESTION]
    assert model.asked[1][2] == {**settings, "top_k": 4, "order": "vllm"}
    assert model.asked[2][:2] == ([QUESTION], None)
    assert model.asked[3][0][-1]["content"] == "/slash" and len(model.asked) == 4
    said = capsys.readouterr().err
    assert "temperature = 0.7  Divides the logits" in said and "/undo" in said


@pytest.mark.parametrize(
    "line, said",
    [
        ("/set temperature -1", "temperature is -1; it must be at least 0"),
        ("/set temperature hot", "temperature is 'hot'; it must be a number"),
        ("/set temprature 1", "unknown setting of decoding 'temprature'; did you mean"),
        ("/set temprature", "unknown setting of decoding 'temprature'; did you mean"),
        ("/set logit_bias 5", "logit_bias has 5; give pairs"),
        ("/sett x", "unknown command /sett; /help lists the commands"),
        ("/save", "/save needs the name of a file"),
        ("/load /nowhere", "/nowhere cannot be read"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(model, monkeypatch, capsys, line, said):
    assert talk(monkeypatch, line, "Hello") == 2
    captured = capsys.readouterr()
    assert f"error: {said}" in captured.err and captured.out == "ab\n"
    assert model.asked == [([QUESTION], None, {})]


def test_an_overflow_is_an_error_that_offers_a_reset_and_keeps_the_rest(model, monkeypatch, capsys):
    asked = []
    given = model.stream_chat

    def overflows_at_the_second(messages, system, **settings):
        asked.append(len(messages))
        if len(messages) == 3:
            raise ConfigError("prompt of 99 tokens does not fit the context")
        return given(messages, system, **settings)

    monkeypatch.setattr(model, "stream_chat", overflows_at_the_second, raising=False)
    assert talk(monkeypatch, "Hello", "too long", "too long", "/undo", "Hello") == 2
    error = capsys.readouterr().err
    assert "does not fit the context" in error and "/reset begins a new conversation" in error
    # The refused message is not kept; the one before it is, until it is taken back.
    assert asked == [1, 3, 3, 1]


def test_control_c_stops_the_answer_only_and_what_is_written_stays(model, monkeypatch, capsys):
    model.fail = KeyboardInterrupt()
    assert talk(monkeypatch, "Hello", "More") == 0
    assert model.asked[1][0] == [QUESTION, ANSWER, {"role": "user", "content": "More"}]
    model.pieces = []
    model.asked.clear()
    assert talk(monkeypatch, "Hello", "Hello") == 0
    assert [len(messages) for messages, _, _ in model.asked] == [1, 1]
    assert "the message is taken back" in capsys.readouterr().err


def test_on_a_terminal_control_d_ends_and_control_c_begins_a_new_line(model, monkeypatch, capsys):
    lines = iter(["Hello", KeyboardInterrupt(), "/set top_k x", EOFError()])

    def typed(prompt):
        assert prompt == "> "
        line = next(lines)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert main(["chat", "run"]) == 0
    assert len(model.asked) == 1 and capsys.readouterr().out == "ab\n\n\n"


def test_a_conversation_is_saved_and_loaded(model, monkeypatch, capsys, tmp_path):
    path = tmp_path / "talk.json"
    lines = ("/set top_k 4", "Hello", f"/save {path}", "Hello", f"/save {path}")
    assert talk(monkeypatch, *lines, words=("--system", "Be brief.")) == 0
    value = json.loads(path.read_text())
    assert value == {
        "system": "Be brief.",
        "messages": [QUESTION, ANSWER] * 2,
        "settings": {"top_k": 4},
    }
    model.asked.clear()
    # A new conversation does not write over it.
    assert talk(monkeypatch, f"/save {path}", f"/load {path}", "Hello", f"/save {path}") == 2
    assert f"error: {path} exists; give the name of a new file" in capsys.readouterr().err
    assert model.asked == [([*value["messages"], QUESTION], "Be brief.", {"top_k": 4})]
    assert len(json.loads(path.read_text())["messages"]) == 6


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"system": null, "messages": []}',
        '{"system": null, "messages": [{"role": "user", "content": "a"}], "settings": {}}',
        '{"system": 1, "messages": [], "settings": {}}',
        '{"system": null, "messages": [], "settings": {"top_p": 7}}',
        '{"system": null, "messages": [], "settings": {"top": 7}}',
    ],
)
def test_a_file_that_is_no_conversation_is_refused(tmp_path, text):
    path = tmp_path / "talk.json"
    path.write_text(text)
    with pytest.raises(DataError, match="talk.json"):
        load_conversation(path)


def test_a_file_of_something_else_is_not_written_over(tmp_path):
    path = tmp_path / "notes.json"
    path.write_text("mine")
    with pytest.raises(DataError, match="exists; give the name of a new file"):
        Conversation().save(path)
    assert path.read_text() == "mine"


def test_a_model_that_cannot_chat_is_refused_before_the_first_message(model, monkeypatch, capsys):
    def refuse(*_):
        raise DataError("tokenizer 'x' has no chat template")

    monkeypatch.setattr(command, "chat_ids", refuse)
    assert talk(monkeypatch, "Hello") == 2
    assert "has no chat template" in capsys.readouterr().err and not model.asked
    assert talk(monkeypatch, "Hello", words=("--top-p", "2")) == 2
    assert "top_p is 2.0; it must be" in capsys.readouterr().err
