"""Chat templates: what they write, and what a hostile one cannot do."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="chat templates need the extra: pip install -e '.[hf]'")
pytest.importorskip(
    "tokenizers", reason="imported tokenizers need the extra: pip install -e '.[hf]'"
)

from hf_builders import CHATML, make_folder

from llm_jax.tokenizers import chat
from llm_jax.tokenizers.chat import has_chat_template, render_chat
from llm_jax.tokenizers.import_tokenizer import import_tokenizer
from llm_jax.types import DataError

HI = [{"role": "user", "content": "Hi <é> 😀"}]


def test_a_template_writes_the_conversation():
    assert (
        render_chat(CHATML, HI) == "<|im_start|>user\nHi <é> 😀<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (
        render_chat(CHATML, HI, add_generation_prompt=False)
        == "<|im_start|>user\nHi <é> 😀<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        (
            (
                "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{%"
                " endif %}{{ i }}{% endfor %}"
            ),
            "013",
        ),
        ("{{ {'é': '<&>', 'a': [1, none, true]} | tojson }}", '{"é": "<&>", "a": [1, null, true]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": 2,\n  "b": 1\n}'),
        ("{% generation %}{{ messages[0].content[:2] }}{% endgeneration %}!", "Hi!"),
        (
            (
                "{{ strftime_now('%%') }}{{ tools is none }}{{ documents is none }}{{ name }}{{"
                " unknown }}"
            ),
            "%TrueTruex",
        ),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("a{# note #}\n{{- '\\n' }}", "a\n"),
    ],
)
def test_the_means_that_templates_use(template, text):
    assert render_chat(template, HI, name="x") == text


def test_tools_and_more_names_reach_the_template():
    tools = [{"type": "function", "function": {"name": "f"}}]
    template = "{{ tools[0].function.name }} {{ documents[0].title }} {{ add_generation_prompt }}"
    assert render_chat(template, HI, tools=tools, documents=[{"title": "t"}]) == "f t True"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__ }}", "access to attribute '__class__' of a str is unsafe"),
        ("{{ ''['__class__'].__mro__ }}", "access to attribute '__class__'"),
        ("{{ messages | map(attribute='__class__') | list }}", "access to attribute '__class__'"),
        ("{{ ('x' | attr('__class__')) }}", "access to attribute '__class__'"),
        ("{{ '{0.__class__}'.format(messages) }}", "access to attribute '__class__'"),
        (
            "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
            "access to attribute '__init__'",
        ),
        ("{{ raise_exception.__globals__ }}", "access to attribute '__globals__'"),
        ("{{ messages.append(1) }}", "access to attribute 'append' of a list is unsafe"),
        (
            "{% set ns = namespace(__init__=1) %}",
            "namespace attribute '__init__' begins with an underscore",
        ),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ unknown.field }}", "'unknown' is undefined"),
        (
            "{{ raise_exception('Only user messages, please') }}",
            r"Only user messages, please \(TemplateError\)",
        ),
        ("a\n{% if %}", r"Expected an expression.*line 2"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it calls itself without end"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{{ 'a' * 10 ** 11 }}", "it takes more than 1024 MiB of memory"),
        (
            "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
            "it writes more than 16,777,216 characters",
        ),
        ("{{ 'a' * 10 ** 8 }}", "it writes more than 16,777,216 characters"),
    ],
)
def test_a_hostile_or_faulty_template_is_refused(template, message):
    with pytest.raises(DataError, match=message):
        render_chat(template, HI)
    assert render_chat("{{ 1 }}", HI) == "1"


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [ENDLESS, "{{ 9 ** (9 ** 9) }}"])
def test_an_endless_template_is_stopped(template, monkeypatch):
    monkeypatch.setattr(chat, "_MAX_SECONDS", 0.5)
    with pytest.raises(DataError, match=r"chat template was stopped: it ran for more than 0\.5 s"):
        render_chat(template, HI)
    monkeypatch.setattr(chat, "_MAX_SECONDS", 10.0)
    assert render_chat("{{ 1 }}", HI) == "1"


def test_a_worker_that_dies_is_named_and_replaced():
    assert render_chat("{{ 1 }}", HI) == "1"
    worker = chat._worker._process
    timer = threading.Timer(0.5, lambda: os.kill(worker.pid, signal.SIGKILL))
    timer.start()
    with pytest.raises(DataError, match="its process died"):
        render_chat(ENDLESS, HI)
    assert render_chat("{{ 2 }}", HI) == "2" and chat._worker._process.pid != worker.pid


def test_an_interrupted_answer_is_not_taken_for_the_next_one(monkeypatch):
    assert render_chat("{{ 1 }}", HI) == "1"

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            render_chat(
                "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}late",
                HI,
            )
    finally:
        signal.signal(signal.SIGALRM, old)
    assert render_chat("{{ 2 }}", HI) == "2"


def test_many_threads_get_their_own_answers():
    out: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: out.update({n: render_chat("{{ n }}", HI, n=n)}))
        for n in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == {n: str(n) for n in range(40)}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (["hi"], r"message 0 is 'hi'; expected an object with a role"),
        ([{"content": "hi"}], "message 0 .* an object with a role"),
        ([*HI, {"role": 3}], "message 1"),
        ([{"role": "user", "content": Path("x")}], "must be JSON values"),
    ],
)
def test_messages_that_are_none(messages, message):
    with pytest.raises(DataError, match=message):
        render_chat(CHATML, messages)


def test_a_template_that_is_too_long():
    with pytest.raises(
        DataError,
        match="chat template has 1,048,577 characters, and at most 1,048,576 are rendered",
    ):
        render_chat("x" * (1 << 20) + "y", HI)


def test_the_template_of_a_folder(tokenizer, tmp_path):
    made = make_folder(
        tmp_path / "a",
        "byte-level",
        chat_template="{{ bos_token }}{{ eos_token }}{{ messages[0].content }}",
    )
    folder = import_tokenizer(made, tmp_path / "out").path
    assert has_chat_template(folder) and render_chat(folder, HI) == "<s></s>Hi <é> 😀"
    # A file of its own is the later word, and one of several is chosen by what is asked.
    (made / "chat_template.jinja").write_text("own file")
    assert render_chat(import_tokenizer(made, tmp_path / "own").path, HI) == "own file"
    (made / "chat_template.jinja").unlink()
    config = json.loads((made / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with tools"},
    ]
    (made / "tokenizer_config.json").write_text(json.dumps(config))
    folder = import_tokenizer(made, tmp_path / "named").path
    assert (render_chat(folder, HI), render_chat(folder, HI, tools=[{}])) == ("plain", "with tools")


def test_a_folder_without_a_template_says_why(tokenizer, tmp_path):
    assert not has_chat_template(tokenizer.path.parent)
    with pytest.raises(
        DataError, match=r"has no chat template: it was trained by llm_jax, and only imported"
    ):
        render_chat(tokenizer.path.parent, HI)
    folder = import_tokenizer(make_folder(tmp_path / "a", "byte-level"), tmp_path / "out").path
    assert not has_chat_template(folder)
    with pytest.raises(
        DataError,
        match=r"has no chat template: its source \(.*\) declares none; use a plain prompt",
    ):
        render_chat(folder, HI)


def test_rendering_is_cheap_once_it_runs():
    """One process serves all: its number stays the same."""
    render_chat(CHATML, HI)
    pid = chat._worker._process.pid
    for _ in range(200):
        render_chat(CHATML, HI)
    assert chat._worker._process.pid == pid


def test_the_worker_ends_with_its_caller(tmp_path):
    import subprocess
    import sys

    code = (
        "from llm_jax.tokenizers import chat; chat.render_chat('x', []);"
        " print(chat._worker._process.pid); import os; os._exit(0)"
    )
    pid = int(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )
    for _ in range(100):
        if (
            not Path(f"/proc/{pid}").exists()
            or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
        ):
            return
        time.sleep(0.1)
    raise AssertionError(f"worker {pid} still runs")


# --- the token that ends an answer

LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] +"
    " '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor"
    " %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{%"
    " endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else"
    " m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
)
PHI3 = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ ' [INST] ' + m.content + '"
    " [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
HARMONY = (
    "{% for m in messages %}{{ '<|start|>' + m.role }}{% if m.role == 'assistant' %}{{"
    " '<|channel|>final' }}{% endif %}{{ '<|message|>' + m.content }}{% if loop.last and not"
    " add_generation_prompt %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}{% endfor %}"
)
GLM = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}{% if"
    " add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS = (
    "{% for m in messages %}{% for part in m.content %}{{ part['text'] }}{% endfor %}{{"
    " '<|im_end|>' }}{% endfor %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA3, "<|eot_id|>"),
        (GEMMA, "<end_of_turn>"),
        (PHI3, "<|end|>"),
        (MISTRAL, "</s>"),
        (HARMONY, "<|return|>"),
        (PARTS, "<|im_end|>"),
        (GLM, ""),
        ("{{ messages[0].content }}<|im_end|>", ""),
        ("{{ messages[-1].content }} is what was said<|im_end|>", ""),
        ("{{ messages[-1].content }}\n<|im_end|>", ""),
        ("{{ messages[-1].content }}<|im_end|>more", "<|im_end|>more"),
    ],
)
def test_the_token_that_ends_an_answer(template, end):
    special = [
        "<s>",
        "</s>",
        "<|im_end|>",
        "<|im_end|>more",
        "<|eot_id|>",
        "<end_of_turn>",
        "<|end|>",
        "<|assistant|>",
        "<|return|>",
        "",
    ]
    assert chat.end_of_turn(template, TOKENS, special) == end
    assert chat.end_of_turn(template, TOKENS, []) == ""


def test_what_ends_a_message_of_several_ends_no_answer():
    always = HARMONY.replace("<|return|>", "<|end|>")
    assert chat.end_of_turn(always, TOKENS, ["<|end|>", "<|return|>"]) == "<|end|>"
    assert chat.end_of_turn(always, TOKENS, ["<|end|>", "<|return|>", "<|call|>"]) == ""


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{{ messages[9].content.x }}",
        "{{ ''.__class__ }}",
    ],
)
def test_a_template_that_refuses_an_answer_gives_no_end_and_says_so(template, capsys):
    assert chat.end_of_turn(template, TOKENS, ["<|im_end|>"]) == ""
    assert (
        "no end of a turn is taken from the chat template: chat template cannot be used"
        in capsys.readouterr().err
    )


def test_an_end_needs_jinja(monkeypatch):
    monkeypatch.setattr(chat.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        DataError, match=r"needs jinja2, which is not installed; pip install -e '\.\[hf\]'"
    ):
        chat.end_of_turn(CHATML, TOKENS, ["<|im_end|>"])
