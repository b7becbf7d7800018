"""A corpus that every machine has: the documentation of the running Python.

``pydoc_data.topics`` (chapters of the language reference) and the docstrings of the standard
library, about 2 MB of English. Docstrings are found by parsing the source files; nothing is
imported.
"""

from __future__ import annotations

import ast
import inspect
import json
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from llm_jax.files import make_folder, write_atomic
from llm_jax.progress import note
from llm_jax.storage.paths import path_of
from llm_jax.types import DataError

SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "site-packages",
    "dist-packages",
    "lib2to3",
    "pydoc_data",
    "turtledemo",
    "__pycache__",
    "ensurepip",
}
MIN_CHARACTERS = 40

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def write_corpus(out_dir: Path) -> list[Path]:
    """Write the corpus as ``topics.jsonl`` and ``library.jsonl`` (fields ``text`` and ``name``).

    Args:
        out_dir: folder to write to; made if it does not exist.

    Returns:
        The paths of both files.

    Raises:
        DataError: ``out_dir`` cannot be written, or this Python has no sources of its library.
    """
    out_dir = path_of(out_dir)
    make_folder(out_dir)
    groups = {"topics": topics(), "library": library(Path(sysconfig.get_path("stdlib")))}
    paths = []
    for group, documents in groups.items():
        lines = [
            json.dumps({"text": text, "name": name}, ensure_ascii=False) for name, text in documents
        ]
        if not lines:
            raise DataError(
                f"this Python has no {group} documentation in {sysconfig.get_path('stdlib')}; name"
                " text files of your own"
            )
        paths.append(out_dir / f"{group}.jsonl")
        write_atomic(paths[-1], ("\n".join(lines) + "\n").encode("utf-8", errors="replace"))
    return paths


def topics() -> Iterator[tuple[str, str]]:
    """(name, text) of each chapter of the language reference; none if Python comes without them."""
    try:
        from pydoc_data.topics import topics as chapters
    except ImportError:
        return
    yield from sorted(chapters.items())


def library(root: Path) -> Iterator[tuple[str, str]]:
    """(qualified name, text) of every docstring of ``MIN_CHARACTERS`` under a folder of sources.

    They come in the order of file names and lines. Prints how many files could not be read or
    parsed.
    """
    skipped = 0
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED & set(parts) or any(part.startswith("config-") for part in parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            # Written for another version of Python, or not readable by this user.
            skipped += 1
            continue
        module = ".".join(parts).removesuffix(".__init__")
        yield from _docstrings(tree, module, module)
    if skipped:
        note(
            f"{root}: {skipped} files could not be read or are no Python"
            f" {sysconfig.get_python_version()}; left out"
        )


def _docstrings(node: _Documented, name: str, header: str) -> Iterator[tuple[str, str]]:
    text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "").strip()
    if len(text) >= MIN_CHARACTERS:
        yield name, f"{header}\n\n{text}\n"
    yield from _definitions(node, name)


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Docstrings of the functions and classes in a body, also inside ``if`` and ``try``."""
    for child in ast.iter_child_nodes(node):
        qualified = f"{name}.{getattr(child, 'name', '')}"
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child, qualified, f"{qualified}({ast.unparse(child.args)})")
        elif isinstance(child, ast.ClassDef):
            yield from _docstrings(child, qualified, f"class {qualified}")
        elif isinstance(child, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
            yield from _definitions(child, name)
