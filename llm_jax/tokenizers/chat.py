"""Chat templates, which turn messages into the text that a model was trained to continue.

``chat_worker`` renders them (extra ``[hf]``).
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_jax.progress import note
from llm_jax.tokenizers.hf_config import MAX_TEMPLATE
from llm_jax.tokenizers.manifest import IMPORTED, is_imported, read_imported
from llm_jax.types import DataError

# Characters of the rendered text.
MAX_OUTPUT = 16 << 20
_MAX_SECONDS = 10.0
# Words that no template has in it.
_QUESTION = "Quibbleforth?"
_ANSWER = "Zanthomere."


def render_chat(
    source: Path | str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """The text of a conversation, as transformers' ``apply_chat_template`` writes it.

    Args:
        source: Folder of an imported tokenizer (a Path), or a template (a str).
        messages: ``{"role": "user", "content": "…"}`` and so on; JSON values only.
        add_generation_prompt: End with the text that opens the assistant's answer.
        tools: JSON schemas of functions that the model may call. With tools, a tokenizer's template
            named ``tool_use`` is used where it has one.
        variables: More names for the template. A tokenizer's ``bos_token``, ``eos_token`` and so on
            are always given to it.

    Raises:
        DataError: There is no template; the messages are not valid JSON; or the template refuses
            them, is faulty, tries to leave the sandbox, takes more than 10 s or 1 GiB, or writes
            more than 16 Mi characters.
    """
    where, template, tokens = _template(source, tools)
    if len(template) > MAX_TEMPLATE:
        raise DataError(
            f"{where} has {len(template):,} characters, and at most {MAX_TEMPLATE:,} are rendered;"
            " use a shorter template"
        )
    _check_messages(messages)
    values = {
        **tokens,
        # transformers gives these two to every template, and some templates test whether they are
        # none.
        "tools": tools and list(tools),
        "documents": None,
        "messages": list(messages),
        "add_generation_prompt": add_generation_prompt,
        **variables,
    }
    try:
        request = json.dumps({"template": template, "variables": values, "limit": MAX_OUTPUT})
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"messages, tools and variables of a chat template must be JSON values ({error})"
        ) from error
    answer = _worker.ask(request, where)
    if "error" in answer:
        raise DataError(f"{where} cannot be used for these messages: {answer['error']}")
    return answer["text"]


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(
                f"message {index} is {str(message)[:80]!r}; expected an object with a role and its"
                " content"
            )


def has_chat_template(folder: Path) -> bool:
    """Whether ``render_chat`` finds a template in the folder."""
    return is_imported(folder) and bool(read_imported(folder).chat_templates)


def end_of_turn(template: str, tokens: Mapping[str, str], special: Collection[str]) -> str:
    """The special token with which a chat template ends an answer.

    A question and its answer are rendered. The special token after the answer, with at most one
    blank between, ends it: ``<|im_end|>`` in ChatML, ``<|eot_id|>`` in Llama 3, ``<end_of_turn>``
    in Gemma, ``<|end|>`` in Phi-3, ``</s>`` in Mistral. The answer is the last message, so gpt-oss
    gives ``<|return|>``. There ``<|end|>`` ends each of several messages of one answer, so it is
    never taken where the vocabulary has ``<|return|>`` and ``<|call|>``.

    Args:
        template: Jinja source.
        tokens: bos_token, eos_token, … -> text, which the template may use.
        special: Texts of the special tokens of the vocabulary.

    Returns:
        The token's text. It is empty where the template puts no special token there (GLM-4), or
        refuses such messages, which is reported.

    Raises:
        DataError: jinja2 is missing.
    """
    _need_jinja("chat template")
    try:
        text = _rendered_answer(template, tokens)
    except DataError as error:
        note(f"no end of a turn is taken from the chat template: {error}")
        return ""
    _, found, after = text.rpartition(_ANSWER)
    following = [token for token in special if token and after.removeprefix(" ").startswith(token)]
    token = max(following, key=len, default="") if found else ""
    within_an_answer = token == "<|end|>" and {"<|return|>", "<|call|>"} <= set(special)
    return "" if within_an_answer else token


def _rendered_answer(template: str, tokens: Mapping[str, str]) -> str:
    """The text of a question and its answer; empty where the template leaves the answer out.

    Raises:
        DataError: The template refuses the messages.
    """
    refused = None
    # Some templates of models that see images only accept a content that is a list of parts.
    for content in (str, _parts):
        messages = [
            {"role": "user", "content": content(_QUESTION)},
            {"role": "assistant", "content": content(_ANSWER)},
        ]
        variables: dict[str, Any] = dict(tokens)
        try:
            text = render_chat(template, messages, add_generation_prompt=False, **variables)
        except DataError as error:
            refused = refused or error
            continue
        if _ANSWER in text:
            return text
    if refused:
        raise refused
    return ""


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _need_jinja(where: str) -> None:
    if importlib.util.find_spec("jinja2") is None:
        raise DataError(f"{where} needs jinja2, which is not installed; pip install -e '.[hf]'")


def _template(source: Path | str, tools: Any) -> tuple[str, str, dict[str, Any]]:
    """(name for messages, the template, the special tokens that it may use)."""
    if isinstance(source, str):
        return "chat template", source, {}
    if not is_imported(source):
        raise DataError(
            f"tokenizer {str(source)!r} has no chat template: it was trained by llm_jax, and only"
            f" imported tokenizers ({IMPORTED}) have one; use a plain prompt"
        )
    record = read_imported(source)
    if not record.chat_templates:
        raise DataError(
            f"tokenizer {str(source)!r} has no chat template: its source ({record.source}) declares"
            " none; use a plain prompt"
        )
    name = "tool_use" if tools and "tool_use" in record.chat_templates else "default"
    if name not in record.chat_templates:
        raise DataError(
            f"tokenizer {str(source)!r} has no chat template named 'default'; there are"
            f" {sorted(record.chat_templates)}"
        )
    return f"chat template {name!r} of {str(source)!r}", record.chat_templates[name], record.tokens


class _Worker:
    """One process for all templates. It starts with the first template, and again after it had to
    be stopped.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, request: str, where: str) -> dict[str, str]:
        """The worker's answer.

        Raises:
            DataError: The worker takes too long or dies.
        """
        with self._lock:
            process = self._started(where)
            late = threading.Event()

            def stop() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(_MAX_SECONDS, stop)
            timer.start()
            line = ""
            try:
                line = _exchange(process, request)
            except BrokenPipeError:
                # The worker died; the missing line is reported below.
                pass
            finally:
                timer.cancel()
                # Also after a Ctrl-C: the answer to this request must not be read as the answer to
                # the next one.
                if not line.endswith("\n"):
                    self.close()
            if line.endswith("\n"):
                return json.loads(line)
            reason = "its process died"
            if late.is_set():
                reason = f"it ran for more than {_MAX_SECONDS:g} s"
            raise DataError(f"{where} was stopped: {reason}")

    def _started(self, where: str) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            _need_jinja(where)
            # -P keeps the script's folder off the path: its modules must not shadow Python's.
            command = [sys.executable, "-P", str(Path(__file__).with_name("chat_worker.py"))]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                # A session of its own: Ctrl-C is for this process, and the worker ends when its
                # input is closed.
                start_new_session=True,
            )
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _exchange(process: subprocess.Popen[str], request: str) -> str:
    """Writes one line and reads one."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(request + "\n")
    process.stdin.flush()
    return process.stdout.readline()


_worker = _Worker()
atexit.register(_worker.close)
