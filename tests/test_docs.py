"""What README.md, the site and CONTRIBUTING.md show exists: commands and options, Python, files."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import runpy
import shlex
from pathlib import Path

import jax
import pytest

import llm_jax
from llm_jax import models, sharding
from llm_jax.checkpoints.open_run import Run
from llm_jax.cli import VERBS
from llm_jax.config import Config, MeshConfig, override
from llm_jax.config.sections import flatten
from llm_jax.multihost.join import FLAGS

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.pt-BR.md")
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "tests/README.md")
)


def indented(page: str) -> list[str]:
    """Lines of the page's indented blocks."""
    text = re.sub(r"(?ms)^```.*?^```$", "", (ROOT / page).read_text())
    return [line[4:] for line in text.splitlines() if line.startswith("    ")]


def commands(page: str) -> list[list[str]]:
    """Words of each ``llm-jax`` command that a page shows, in a block or between backticks."""
    text = (ROOT / page).read_text()
    lines = "\n".join(indented(page)).replace("\\\n", " ").splitlines()
    found = [line.partition("llm-jax ")[2] for line in lines if re.match(r"(.*&& )?llm-jax ", line)]
    found += re.findall(r"`llm-jax ([^`]+)`", re.sub(r"(?m)^    .*$", "", text))
    words = [shlex.split(command.split(" #")[0], comments=False) for command in found]
    return [one for one in words if one[0].isascii() and one[0].islower() and one[0] != "help"]


def parameters(verb: str, words: list[str]) -> dict[str, inspect.Parameter]:
    module, _, function = VERBS[verb].target_of(words).partition(":")
    called = getattr(importlib.import_module(f"llm_jax.{module}"), function)
    return dict(inspect.signature(called).parameters)


def test_the_pages_show_commands():
    assert len(commands("README.md")) >= 8 and len(commands("docs/getting-started.md")) >= 9


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_a_verb_with_these_options(page):
    for words in commands(page):
        verb = next((v for v in (" ".join(words[:2]), words[0]) if v in VERBS), None)
        group = any(name.startswith(f"{words[0]} ") for name in VERBS) and len(words) == 1
        assert verb or group or words == ["VERB"], f"{page}: llm-jax {' '.join(words)}"
        if not verb:
            continue
        names = parameters(verb, words)
        known = {f"--{'no-' * no}{name.replace('_', '-')}" for name in names for no in (0, 1)}
        if verb == "train":
            known = {f"--{key.replace('_', '-')}" for key in flatten(Config())}
            known |= {f"--{flag}" for flag in map(str, FLAGS)} | set(map(str, FLAGS))
        given = [word.partition("=")[0].replace("_", "-") for word in words if word[:2] == "--"]
        missing = set(given) - known - {"--help"}
        assert not missing, f"{page}: llm-jax {' '.join(words)}: there is no {missing}"


# Modules that need a package which is no part of the tests.
NEEDS = {"llm_jax.evaluation.harness": "lm_eval"}


def python_blocks(page: str) -> list[str]:
    return re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / page).read_text())


@pytest.mark.parametrize("page", PAGES)
def test_python_on_a_page_is_python_and_what_it_imports_from_here_exists(page):
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("llm_jax"):
                needs = NEEDS.get(node.module)
                if needs and importlib.util.find_spec(needs) is None:
                    source = ROOT / f"{node.module.replace('.', '/')}.py"
                    assert all(f"\nclass {a.name}(" in source.read_text() for a in node.names)
                    continue
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page}: {node.module}.{alias.name}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "llm_jax":
                assert hasattr(llm_jax, node.attr), f"{page}: llm_jax.{node.attr}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "lm":
                known = hasattr(llm_jax.LanguageModel, node.attr)
                assert known, f"{page}: lm.{node.attr}"


@pytest.mark.parametrize("page", PAGES)
def test_a_link_to_a_file_finds_it(page):
    for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text()):
        if "://" not in target:
            assert ((ROOT / page).parent / target).resolve().exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/adding-a-family.md"])
def test_a_file_that_is_to_be_touched_exists(page):
    text = (ROOT / page).read_text()
    for path in re.findall(r"`((?:llm_jax|tests|docs|scripts|configs|examples)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), f"{page}: {path}"


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_both_readmes_show_the_same_commands():
    english, portuguese = (
        [line.split(" #")[0].rstrip() for line in indented(page)] for page in READMES
    )
    assert english == portuguese
    without_comments = [
        [re.sub(r"\s+#.*", "", block) for block in python_blocks(page)] for page in READMES
    ]
    assert without_comments[0] == without_comments[1]


def test_the_pages_that_show_the_six_commands_of_a_slice_show_the_same():
    lines = [line for line in indented("README.md") if line.startswith(("export", "tpu_scripts/"))]
    assert len(lines) == 7
    assert set(lines) <= set(indented("docs/tasks/many-hosts.md"))


def test_the_readmes_ten_lines_of_python_run(tmp_path, monkeypatch, capsys):
    (block,) = python_blocks("README.md")
    assert len(block.splitlines()) <= 11
    text = (str(ROOT / "CONTRIBUTING.md"),)
    tokenizer = llm_jax.train_tokenizer(text, tmp_path / "tokenizer", vocab_size=400)
    sizes = {
        "num_layers": 1,
        "embed_dim": 16,
        "attention.num_heads": 2,
        "mlp.hidden_dim": 16,
        "max_length": 64,
    }
    values = {f"model.{name}": size for name, size in sizes.items()}
    config = override(Config(), values | {"model.vocab_size": tokenizer.vocab_size})
    model = models.build(config.model)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    params = jax.jit(model.init)(jax.random.key(0))
    made = llm_jax.LanguageModel(Run(tmp_path, 0, config, mesh, model, params))
    made.save(tmp_path / "runs/quickstart")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["logits"].shape[1] == tokenizer.vocab_size
    assert "bits_per_byte" in capsys.readouterr().out
    assert llm_jax.load("my-model").config.model == config.model


def test_the_picture_of_the_floors_is_what_the_script_draws():
    drawn = runpy.run_path(str(ROOT / "scripts/docs_pictures"))["floors_picture"]()
    assert (ROOT / "docs/images/floors.svg").read_text() == drawn
