"""The process that renders chat templates: one JSON request a line on stdin, one JSON answer a line
on stdout.

A template is an untrusted program. Jinja's sandbox keeps it away from Python, and this process
keeps it away from the memory of its caller, who stops the process when it takes too long. ``chat``
starts this module as a script, so it imports jinja2 and nothing of llm_jax.

The environment is that of transformers' ``apply_chat_template``: trimmed blocks, loop controls,
``raise_exception``, a ``tojson`` that does not escape characters, ``strftime_now``, and the
``generation`` block, whose contents are plain text here.
"""

from __future__ import annotations

import functools
import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Bytes of address space; jinja2 takes about 50 MiB.
_MAX_MEMORY = 1 << 30


class Sandbox(ImmutableSandboxedEnvironment):
    """Refuses attributes that lead to Python's internals. Jinja's own sandbox makes them undefined
    and goes on.
    """

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(
            f"access to attribute {attribute!r} of a {type(obj).__name__} is unsafe"
        )


class Generation(jinja2.ext.Extension):
    """``{% generation %} … {% endgeneration %}``, which marks the assistant's text. It is a scope
    of its own and changes no text.
    """

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("_text"), [], [], body)
        block.set_lineno(line)
        return block

    def _text(self, caller: Any) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # No name is taken by a parameter, so that any may be a keyword of the template.
        self = args[0]
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"namespace attribute {name!r} begins with an underscore")


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
    """The template, ready to render.

    Raises:
        TemplateError: The template is not valid.
    """
    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise,
        strftime_now=_strftime_now,
        namespace=Namespace,
    )
    return environment.from_string(template)


def render(template: str, variables: dict[str, Any], limit: int) -> str:
    """The rendered text.

    Raises:
        TemplateError: The template fails.
        ValueError: The text has more than ``limit`` characters.
    """
    parts = []
    size = 0
    for part in compiled(template).generate(**variables):
        size += len(part)
        if size > limit:
            raise ValueError(f"it writes more than {limit:,} characters")
        parts.append(part)
    return "".join(parts)


def answer(request: dict[str, Any]) -> dict[str, str]:
    """``{"text": …}``, or ``{"error": …}`` with what is wrong with the template."""
    try:
        return {"text": render(request["template"], request["variables"], request["limit"])}
    except MemoryError:
        return {"error": f"it takes more than {_MAX_MEMORY >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # noqa: BLE001 - a template may raise anything, which the caller reports.
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        return {"error": f"{error} ({type(error).__name__}{line})"}


def main() -> None:
    """Answers one request a line until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
