"""``llm-jax chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from llm_jax.api.decode_settings import DecodeSettings
from llm_jax.api.language_model import LanguageModel
from llm_jax.api.load import load
from llm_jax.commands.conversation import Conversation, check_settings, load_conversation
from llm_jax.commands.decode_flags import changed_settings, decode_flags, with_flags
from llm_jax.decode.text import chat_ids
from llm_jax.ranges import Natural, checked
from llm_jax.training.compile_cache import use_compile_cache
from llm_jax.types import ConfigError, DataError

HELP = """\
/system TEXT         what the model is told before the conversation; - for nothing
/set NAME VALUE      a setting of decoding, such as /set temperature 0.7; /set shows those set
/save FILE           write the conversation to a file
/load FILE           go on with a conversation that was saved
/reset               begin a new conversation; the system message and the settings stay
/undo                take back the last message and its answer
/help                this list
/quit                end, as Ctrl-D does
A message that begins with / is written with two of them. Ctrl-C stops the answer only."""


@checked
@with_flags(*decode_flags())
def chat(
    run: Path,
    *,
    system: str | None = None,
    step: Natural | None = None,
    **settings: Unpack[DecodeSettings],
) -> int:
    """Talk with a model in the chat template of its tokenizer. /help lists the commands. Messages
    may come from a pipe, one a line; the exit status is 2 if one of them was refused.

    Args:
        run: folder of the run.
        system: what the model is told before the conversation.
        step: which checkpoint; the newest if not given.
    """
    check_settings(settings)
    use_compile_cache()
    opened = load(run, step)
    if opened.config.model.encoder is not None:
        raise ConfigError(
            "chat is for decoders alone, and this model's prompts are what its encoder reads; use"
            " llm-jax generate"
        )
    # A model that cannot chat is refused before the first message.
    chat_ids(opened.tokenizer, "Hello")
    return Chat(opened, Conversation(system=system, settings=changed_settings(settings))).run()


class Chat:
    """The loop that reads messages and commands, and writes answers.

    Args:
        opened: the model.
        conversation: what it begins with.
    """

    def __init__(self, opened: LanguageModel, conversation: Conversation) -> None:
        self._opened = opened
        self.conversation = conversation
        self._interactive = sys.stdin.isatty()
        self._refused = False
        self._commands: dict[str, Callable[[str], None]] = {
            "system": self._system,
            "set": self._set,
            "save": self._save,
            "load": self._load,
            "reset": self._reset,
            "undo": self._undo,
            "help": lambda _: self._say(HELP),
        }

    def run(self) -> int:
        """Reads to the end, or to /quit. Returns the exit status."""
        if self._interactive:
            # Keys that edit the line, where Python has them.
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401
            self._say("/help lists the commands; Ctrl-D ends.")
        while True:
            try:
                line = self._read()
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print()
                continue
            if line is None or line.strip() == "/quit":
                break
            if line.strip():
                self._take(line)
        return 2 if self._refused and not self._interactive else 0

    def _read(self) -> str | None:
        """The next line; None at the end."""
        if self._interactive:
            try:
                return input("> ")
            except EOFError:
                print()
                return None
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None

    def _take(self, line: str) -> None:
        """Does what a line asks for; what cannot be is said, and changes nothing."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                name, _, rest = line[1:].partition(" ")
                self._command(name, rest.strip())
            else:
                self._answer(line[1:] if line.startswith("//") else line)
        except (ConfigError, DataError) as error:
            self._refused = True
            self._say(f"error: {error}")

    def _command(self, name: str, rest: str) -> None:
        if name not in self._commands:
            raise ConfigError(f"unknown command /{name}; /help lists the commands")
        self._commands[name](rest)

    def _answer(self, text: str) -> None:
        talk = self.conversation
        talk.ask(text)
        written = ""
        try:
            pieces = self._opened.stream_chat(talk.messages, talk.system, **talk.settings)
            for piece in pieces:
                written += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print()
            self._say("stopped")
        except (ConfigError, DataError) as error:
            talk.undo()
            hint = "the message is taken back. /reset begins a new conversation, /undo takes back"
            raise type(error)(f"{error}\n{hint} the message before it") from error
        else:
            print(flush=True)
        if written:
            talk.answer(written)
        else:
            talk.undo()
            self._say("there is no answer; the message is taken back")

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = None if text == "-" else text
        self._say(f"system: {self.conversation.system or 'nothing'}")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if not name:
            for each in self.conversation.settings:
                self._say(self.conversation.shown(each))
            return
        if value.strip():
            self.conversation.set(name, value.strip())
        self._say(self.conversation.shown(name))

    def _save(self, text: str) -> None:
        self.conversation.save(_file("save", text))
        self._say(f"saved to {self.conversation.file}")

    def _load(self, text: str) -> None:
        self.conversation = load_conversation(_file("load", text))
        self._say(f"{len(self.conversation.messages)} messages of {self.conversation.file}")

    def _reset(self, _: str) -> None:
        self.conversation.messages.clear()
        self.conversation.file = None
        self._say("a new conversation")

    def _undo(self, _: str) -> None:
        found = self.conversation.undo()
        self._say("the last message is taken back" if found else "there is no message")

    def _say(self, text: str) -> None:
        """What the program says, beside what the model does."""
        print(text, file=sys.stderr, flush=True)


def _file(command: str, text: str) -> Path:
    if not text:
        raise ConfigError(f"/{command} needs the name of a file, as in /{command} talk.json")
    return Path(text).expanduser()
