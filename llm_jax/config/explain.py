"""``llm-jax config explain``: value, place, type, default and meaning of a setting."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from typing import Any

from llm_jax.config.overrides import nearest_setting, not_read, provenance, type_name, why_absent
from llm_jax.config.run import Config
from llm_jax.config.sections import Setting, flatten, setting_of, settings
from llm_jax.types import ConfigError


def explain(config: Config, key: str) -> str:
    """Value, place where it was set, type, default, meaning and condition of one setting, as a few
    lines of text.

    Raises:
        ConfigError: there is no such setting; the message names the nearest.
    """
    known = settings(Config)
    if key not in known:
        raise ConfigError(f"unknown setting {key!r}{nearest_setting(key, known)}")
    values = flatten(config)
    setting = setting_of(config, key)
    reason = not_read(config, key, values) if setting else why_absent(config, key)
    described = setting or known[key][0]
    value = repr(values[key]) if setting else "not set"
    default = f"default, {_docs(described.owner)[described.field.name][1]}"
    lines = [
        f"{key} = {value}",
        f"  set at   {provenance(config).get(key, default)}",
        f"  type     {_type(described)}",
        f"  default  {described.default!r}",
        f"  meaning  {help_of(key)}",
    ]
    if reason:
        lines.append(f"  note     not read by this config: {reason}")
    return "\n".join(lines)


def _type(setting: Setting) -> str:
    if setting.alternatives:
        return " | ".join(map(repr, setting.alternatives))
    return type_name(setting.hint)


def help_of(key: str) -> str:
    """The help text of a setting."""
    setting = settings(Config)[key][0]
    return help_of_field(setting.owner, setting.field.name)


def help_of_field(owner: type, name: str) -> str:
    """The help text under a field of a dataclass."""
    return _docs(owner)[name][0]


@functools.cache
def _docs(owner: type) -> dict[str, tuple[str, str]]:
    """field -> (help text, file and line), read from the source of a dataclass and its bases."""
    out: dict[str, tuple[str, str]] = {}
    for cls in reversed(owner.__mro__[:-1]):
        module = sys.modules[cls.__module__]
        file = cls.__module__.replace(".", "/") + ".py"
        out |= _docs_of_class(inspect.getsource(module), cls.__name__, file)
    return out


def _docs_of_class(source: str, name: str, file: str) -> dict[str, tuple[str, str]]:
    tree = ast.parse(source)
    (cls,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    out = {}
    for here, after in zip(cls.body, [*cls.body[1:], ast.Pass()]):
        if not isinstance(here, ast.AnnAssign) or not isinstance(here.target, ast.Name):
            continue
        text: Any = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = after.value.value
        out[here.target.id] = (" ".join(str(text).split()), f"{file}:{here.lineno}")
    return out
