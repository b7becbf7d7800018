"""Chat templates: messages to the text that a model was trained to go on from. Rendered by
``chat_worker`` (extra ``[hf]``).
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

MAX_OUTPUT = 16 << 20
_SECONDS = 10.0
_QUESTION, _ANSWER = "Quibbleforth?", "Zanthomere."


def render_chat(
    source: Path | str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """The text of a conversation, as transformers' ``apply_chat_template`` writes it.

    Args:
        source: folder of an imported tokenizer (a Path), or a template (a str).
        messages: ``{"role": "user", "content": "…"}`` and so on; JSON values only.
        add_generation_prompt: end with what opens the assistant's answer.
        tools: JSON schemas of functions that the model may call. A tokenizer with a template named
            ``tool_use`` then uses that.
        variables: more names for the template. A tokenizer's ``bos_token``, ``eos_token`` and so on
            are given to it anyway.

    Raises:
        DataError: no template, messages that are no JSON, a template that refuses them, is faulty
            or tries to leave the sandbox, that takes more than 10 s or 1 GiB, or writes more than
            16 Mi characters.
    """
    where, template, tokens = _template(source, tools)
    for n, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(
                f"message {n} is {str(message)[:80]!r}; expected an object with a role and its"
                " content"
            )
    if len(template) > MAX_TEMPLATE:
        raise DataError(
            f"{where} of {len(template):,} characters; at most {MAX_TEMPLATE:,} are rendered"
        )
    # transformers gives every template these two, so that a template may ask whether they are none.
    given = {
        "tools": tools and list(tools),
        "documents": None,
        "messages": list(messages),
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        request = json.dumps(
            {
                "template": template,
                "variables": {**tokens, **given, **variables},
                "limit": MAX_OUTPUT,
            }
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"messages, tools and variables of a chat template must be JSON values ({error})"
        ) from error
    answer = _worker.ask(request, where)
    if "error" in answer:
        raise DataError(f"{where} cannot be used for these messages: {answer['error']}")
    return answer["text"]


def has_chat_template(folder: Path) -> bool:
    """Whether ``render_chat`` finds a template in the folder."""
    return is_imported(folder) and bool(read_imported(folder).chat_templates)


def end_of_turn(template: str, tokens: Mapping[str, str], special: Collection[str]) -> str:
    """The special token with which a chat template ends an answer; empty where it shows none.

    A question and its answer are rendered, and the special token that follows the answer, with at
    most one blank between, ends it: ``<|im_end|>`` in ChatML, ``<|eot_id|>`` in Llama 3,
    ``<end_of_turn>`` in Gemma, ``<|end|>`` in Phi-3, ``</s>`` in Mistral. The answer is the last
    message, so gpt-oss gives ``<|return|>``; ``<|end|>`` ends each of several messages of one
    answer there, and is never taken where the vocabulary has ``<|return|>`` and ``<|call|>``.
    Nothing is taken from a template that refuses such messages, which is said, or that puts no
    special token there (GLM-4).

    Args:
        template: Jinja source.
        tokens: bos_token, eos_token, … -> text, which the template may use.
        special: texts of the special tokens of the vocabulary.

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
    """The text of a question and its answer; empty where the template leaves the answer out. Raises
    DataError if it refuses them.
    """
    refused = None
    # Templates of models that see images may take a content of parts only.
    for content in (str, lambda text: [{"type": "text", "text": text}]):
        messages = [
            {"role": "user", "content": content(_QUESTION)},
            {"role": "assistant", "content": content(_ANSWER)},
        ]
        try:
            text = render_chat(template, messages, add_generation_prompt=False, **tokens)
        except DataError as error:
            refused = refused or error
            continue
        if _ANSWER in text:
            return text
    if refused:
        raise refused
    return ""


def _need_jinja(where: str) -> None:
    if importlib.util.find_spec("jinja2") is None:
        raise DataError(
            f"{where} is rendered with jinja2, which is missing; pip install -e '.[hf]'"
        )


def _template(source: Path | str, tools: Any) -> tuple[str, str, dict[str, Any]]:
    """(what to call it in messages, the template, the special tokens that it may use)."""
    if isinstance(source, str):
        return "chat template", source, {}
    if not is_imported(source):
        raise DataError(
            f"tokenizer {str(source)!r} has no chat template: it was trained here; only imported"
            f" ones ({IMPORTED}) have one"
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
    """One process for all templates, started at the first one, and anew after one that had to be
    stopped.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, request: str, where: str) -> dict[str, str]:
        """The worker's answer. Raises DataError if it takes too long or dies."""
        with self._lock:
            process = self._started(where)
            late = threading.Event()
            timer = threading.Timer(_SECONDS, lambda: (late.set(), process.kill()))
            timer.start()
            line = ""
            try:
                process.stdin.write(request + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                # It has died: said below, where there is no line.
                pass
            finally:
                timer.cancel()
                # After a Ctrl-C as well: the answer to this request must not be taken for the next
                # one's.
                if not line.endswith("\n"):
                    self.close()
            if line.endswith("\n"):
                return json.loads(line)
            raise DataError(
                f"{where} was stopped: "
                + (f"it ran for more than {_SECONDS:g} s" if late.is_set() else "its process died")
            )

    def _started(self, where: str) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            _need_jinja(where)
            # -P: beside the script lies an inspect.py, which is not Python's.
            command = [sys.executable, "-P", str(Path(__file__).with_name("chat_worker.py"))]
            pipes = {
                "stdin": subprocess.PIPE,
                "stdout": subprocess.PIPE,
                "text": True,
                "encoding": "utf-8",
            }
            # A session of its own: Ctrl-C is for this process, and the worker ends with its input.
            self._process = subprocess.Popen(command, start_new_session=True, **pipes)
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_worker = _Worker()
atexit.register(_worker.close)
