"""The floors of ARCHITECTURE.md: who imports whom, read from the source, deferred imports
included.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llm_jax"

# Bottom to top, as in ARCHITECTURE.md. An import goes to a lower floor, or stays in its folder; on
# the ground floor the files know each other, and ops knows only itself.
GROUND = {"types", "ranges", "progress", "goodput", "host_memory"}
FLOORS = (
    {"ops"} | GROUND,
    {"storage"},
    {"config", "tensor_file", "files"},
    {"sharding", "tokenizers"},
    {"models", "data", "multihost"},
    {"params"},
    {"checkpoints", "objectives"},
    {"convert", "decode", "training"},
    {"classic"},
    {"serve", "bench", "plan", "evaluation"},
    {"api"},
    {"commands"},
    {"cli", "__main__"},
)
FLOOR = {unit: i for i, units in enumerate(FLOORS) for unit in units}
# They run where jax is not, in workers of the CPU.
WITHOUT_JAX = {"data", "tokenizers", "config", "tensor_file", "files", "storage"} | GROUND
# What storage alone may import, where a path is of a bucket.
BUCKET_CLIENTS = {"etils", "fsspec", "google_crc32c"}
# They take batches and token ids, and know nothing of where those come from.
WITHOUT_DATA = {"ops", "models", "decode", "params"}
# What a bare GPU machine with only jax, flax, optax and orbax lacks; these floors import it where
# it is used.
LATE_ONLY = {
    "grain",
    "tensorflow_datasets",
    "tyro",
    "sentencepiece",
    "array_record",
    "llguidance",
}
BARE_UNITS = {
    "ops",
    "models",
    "params",
    "objectives",
    "training",
    "decode",
    "bench",
    "sharding",
    "checkpoints",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(p): p for p in sorted(PACKAGE.rglob("*.py")) if "__pycache__" not in p.parts}


def imports_of(name: str, path: Path) -> list[tuple[str, bool]]:
    """(imported module, whether on import of the file) for every import statement of a file."""
    tree = ast.parse(path.read_text())
    late = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for n in ast.walk(f)
    }
    typing_only = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test)
        for n in ast.walk(i)
    }
    out = []
    for node in ast.walk(tree):
        at_once = id(node) not in late and id(node) not in typing_only
        if isinstance(node, ast.Import):
            out += [(alias.name, at_once) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path}:{node.lineno} is a relative import; this project writes absolute ones"
            )
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                out.append((full if full in MODULES else node.module or "", at_once))
    return out


IMPORTS = {name: imports_of(name, path) for name, path in MODULES.items()}


def unit(module: str) -> str:
    """The part of the house a module belongs to: its top-level file or folder."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def inner_edges():
    for name, found in IMPORTS.items():
        # The package itself imports nothing: its names are for type checkers, and resolved late.
        if name == "llm_jax":
            continue
        for target, _ in found:
            if target.split(".")[0] == "llm_jax":
                yield name, target


def outer_edges():
    for name, found in IMPORTS.items():
        for target, at_once in found:
            top = target.split(".")[0]
            if top != "llm_jax" and top not in sys.stdlib_module_names:
                yield name, top, at_once


def test_every_module_has_a_floor():
    homeless = {u for u in map(unit, MODULES) if u and u not in FLOOR}
    assert not homeless, f"{homeless} stand on no floor of ARCHITECTURE.md; add them there and here"


def test_imports_go_down_or_stay_in_their_folder():
    wrong = []
    for name, target in inner_edges():
        a, b = unit(name), unit(target)
        if a == b or b == "":
            continue
        if not (FLOOR[b] < FLOOR[a] or (a in GROUND and b in GROUND)):
            wrong.append(f"{name} imports {target}")
    assert not wrong


def test_who_knows_nothing_of_data():
    assert not [
        f"{name} imports {target}"
        for name, target in inner_edges()
        if unit(name) in WITHOUT_DATA and unit(target) == "data"
    ]


def test_what_each_floor_may_import_from_outside():
    wrong = []
    for name, top, _ in outer_edges():
        u = unit(name)
        if top == "flax" and u != "models":
            wrong.append(f"{name} imports flax; only models/ may")
        if u in WITHOUT_JAX and top in {"jax", "jaxlib", "flax", "optax", "orbax"}:
            wrong.append(f"{name} imports {top}; this floor never imports jax")
        if u in {"ops", "sharding"} and top not in {"jax", "numpy"}:
            wrong.append(f"{name} imports {top}; this floor has jax only")
        allowed = {"numpy", "ml_dtypes"} | (BUCKET_CLIENTS if u == "storage" else set())
        if u in WITHOUT_JAX - {"data", "tokenizers", "progress"} and top not in allowed:
            wrong.append(
                f"{name} imports {top}; this floor has the standard library and numpy only"
            )
        if top in {"tensorflow", "torch"}:
            wrong.append(f"{name} imports {top}; nothing in the library may")
    assert not wrong


def test_ops_know_only_ops():
    assert not [
        f"{n} imports {t}" for n, t in inner_edges() if unit(n) == "ops" and unit(t) != "ops"
    ]


def test_what_a_bare_gpu_machine_lacks_is_imported_late():
    assert not [
        f"{n} imports {t} at once"
        for n, t, at_once in outer_edges()
        if at_once and t in LATE_ONLY and unit(n) in BARE_UNITS
    ]


def test_there_are_no_circles():
    graph = {name: {t for n, t in inner_edges() if n == name and t in MODULES} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "circle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_there_is_no_drawer_for_odds_and_ends():
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert not [str(p) for p in PACKAGE.rglob("*") if p.stem in drawers]


def loaded_by(statement: str) -> dict:
    """Top-level packages and llm_jax modules that a fresh interpreter has after ``statement``, and
    started backends.
    """
    code = (
        f"import sys, json\n{statement}\ntop = sorted({{m.split('.')[0] for m in"
        " sys.modules})\nown = sorted(m for m in sys.modules if m.split('.')[0] =="
        " 'llm_jax')\nbridge = sys.modules.get('jax._src.xla_bridge')\nprint(json.dumps({'top':"
        " top, 'own': own, 'backends': sorted(bridge._backends) if bridge else []}))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


HEAVY = {
    "flax",
    "optax",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
    "transformers",
    "grain",
    "tyro",
    "sentencepiece",
    "rich",
}


def test_import_llm_jax_loads_nothing():
    got = loaded_by("import llm_jax; dir(llm_jax)")
    assert not HEAVY & set(got["top"]) and "jax" not in got["top"]
    assert got["own"] == ["llm_jax"]


def test_the_front_door_imports_what_a_name_needs_and_starts_no_device():
    got = loaded_by("import llm_jax; llm_jax.prepare; llm_jax.train_tokenizer")
    assert "jax" not in got["top"] and not {"flax", "optax", "orbax"} & set(got["top"])
    names = "load", "train", "evaluate", "generate", "LanguageModel"
    got = loaded_by(f"import llm_jax; {'; '.join(f'llm_jax.{name}' for name in names)}")
    assert got["backends"] == []
    assert not {
        "tensorflow",
        "torch",
        "transformers",
        "grain",
        "tensorflow_datasets",
        "tyro",
        "sentencepiece",
    } & set(got["top"])


def test_import_of_the_ground_floor_needs_no_jax():
    got = loaded_by(
        "import llm_jax.types, llm_jax.config, llm_jax.progress, llm_jax.data, llm_jax.tokenizers"
    )
    assert not (HEAVY | {"jax"}) & set(got["top"])


def test_who_makes_batches_of_an_objective_needs_no_jax():
    got = loaded_by("import llm_jax.objectives, llm_jax.data.loading.loader")
    assert not (HEAVY | {"jax"}) & set(got["top"])


def test_import_of_ops_loads_jax_only_and_starts_no_device():
    got = loaded_by("import llm_jax.ops")
    assert not HEAVY & set(got["top"])
    assert {m.split(".")[1] for m in got["own"] if "." in m} == {"ops"}
    assert got["backends"] == []


@pytest.mark.parametrize(
    "name",
    ["llm_jax.models", "llm_jax.training.step", "llm_jax.training.optimizer", "llm_jax.sharding"],
)
def test_import_of_the_upper_floors_starts_no_device(name):
    got = loaded_by(f"import {name}")
    assert got["backends"] == []
    assert not {"tensorflow", "torch", "grain", "tensorflow_datasets", "tyro"} & set(got["top"])


def test_no_two_test_modules_share_a_name():
    """pytest imports test modules by their bare names."""
    counts = Counter(path.name for path in (ROOT / "tests").rglob("*.py"))
    del counts["conftest.py"]
    assert not [name for name, count in counts.items() if count > 1]
