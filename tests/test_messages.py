"""What messages advise exists: the options they name are those of a command, and of theirs."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import llm_jax
from llm_jax.cli import VERBS

PACKAGE = Path(llm_jax.__file__).parent
FOLDERS = ("data", "tokenizers")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


TREES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for folder in FOLDERS
    for path in (PACKAGE / folder).rglob("*.py")
}
OPTION = re.compile(r"--[a-z][a-z0-9-]*[a-z0-9](?![a-z0-9-]*\{)")


def parameters(target: str) -> dict[str, inspect.Parameter]:
    module, _, function = target.partition(":")
    called = getattr(importlib.import_module(f"llm_jax.{module}"), function)
    return dict(inspect.signature(called, eval_str=True).parameters)


def options(target: str) -> set[str]:
    names = {name: parameter.annotation is bool for name, parameter in parameters(target).items()}
    yes = {f"--{name.replace('_', '-')}" for name in names}
    no = {f"--no-{name.replace('_', '-')}" for name, is_flag in names.items() if is_flag}
    return yes | no


# By module. Verbs of other folders import jax, and their options are not advised here.
TARGETS = [verb.target for verb in VERBS.values() if verb.target.startswith(FOLDERS)]
OPTIONS = {target.partition(":")[0]: options(target) for target in TARGETS}
PARAMETERS = {name for target in TARGETS for name in parameters(target)}


def imported(module: str) -> set[str]:
    """Modules of the folders that a module imports."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("llm_jax."):
            name = node.module.removeprefix("llm_jax.")
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return found & TREES.keys()


def reached(module: str) -> set[str]:
    """Modules of the folder that run when a module does."""
    known, new = set(), {module}
    while new:
        known |= new
        new = {name for one in new for name in imported(one)} - known
    return known


def texts(module: str) -> list[str]:
    """The strings of a module, "{}" for what is filled in."""
    tree = TREES[module]
    parts = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts_of_it = (p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
            found.append("".join(parts_of_it))
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts
        ):
            found.append(node.value)
    return found


def in_parentheses(text: str) -> set[str]:
    """Options of the command that shows the message, as in "pass overwrite (--overwrite)"."""
    return {
        name for inside in re.findall(r"\((--[^()]*)\)", text) for name in OPTION.findall(inside)
    }


@pytest.mark.parametrize("module", sorted(TREES))
def test_an_option_that_a_message_names_is_one_of_a_command(module):
    anywhere = set().union(*OPTIONS.values())
    for text in texts(module):
        assert set(OPTION.findall(text)) <= anywhere, text


@pytest.mark.parametrize("verb", sorted(OPTIONS))
def test_an_option_in_parentheses_is_one_of_every_command_that_can_show_it(verb):
    for module in reached(verb):
        for text in texts(module):
            assert in_parentheses(text) <= OPTIONS[verb], f"{module}: {text}"


@pytest.mark.parametrize("module", sorted(TREES))
def test_advice_to_pass_a_parameter_names_its_option(module):
    for text in texts(module):
        for name, rest in re.findall(r"\bpass (\w+|{})(?:=\S+)?(.*)", text):
            no_parameter = name not in PARAMETERS and name != "{}"
            assert no_parameter or rest.startswith((" (--", " ({}")), text


def test_the_walk_sees_messages_and_commands():
    assert (
        "--no-add-bos" in OPTIONS["data.prepare.pipeline"]
        and "--text-field" in OPTIONS["data.prepare.train_tokenizer"]
    )
    assert {"data.corpus.formats", "data.corpus.utf8", "data.prepare.resume"} <= reached(
        "data.prepare.pipeline"
    )
    assert "data.corpus.utf8" not in reached("data.shards.inspect")
    assert any("pass overwrite (--overwrite)" in text for text in texts("data.prepare.resume"))
    assert in_parentheses("pass x (--invalid-utf8 repair) or --other") == {"--invalid-utf8"}
