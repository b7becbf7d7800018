"""Import and export of a 2 GB Llama against reading and writing the file with safetensors.numpy
alone.

    python benchmarks/convert.py [--rounds 5] [--layers 40] [--width 1024] [--dtype float16]

The weights are random and read once before the first round, so that all sides read from the page
cache. Each measurement is a process of its own and times the call, not the imports. Reading and
importing take turns, then reading, writing and exporting; every other round goes backwards.

Before each measurement, files are flushed to disk, and as much memory as a side may take is filled
and freed: a virtual machine gets its memory from the host at the first touch, which costs several
times as much as a copy, and the first side would pay for it.

"read" is ``load_file``, all tensors as arrays; "import" is ``from_hf``: checked, converted and
written; "write" is ``save_file`` of loaded arrays; "export" is ``to_hf``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SIDES = {
    "read": (
        "import safetensors.numpy as s\nstart()\nx = s.load_file(a / 'model.safetensors')\nstop()"
    ),
    "import": "from llm_jax.convert.hf import from_hf\nstart()\nfrom_hf(a, b)\nstop()",
    "write": (
        "import safetensors.numpy as s\nx = s.load_file(a / 'model.safetensors')\n"
        "start()\ns.save_file(x, b / 'x')\nstop()"
    ),
    "export": (
        "from llm_jax.convert.hf import to_hf\nstart()\nto_hf(a.with_name('native'), b)\nstop()"
    ),
}
AROUND = """
import shutil, sys, time
from pathlib import Path
a, b = map(Path, sys.argv[1:])
def start():
    global began
    began = time.perf_counter()
def stop():
    print(time.perf_counter() - began)
"""


def make(folder: Path, layers: int, width: int, dtype: str) -> int:
    """Writes a Llama of random weights and returns the bytes of its file."""
    import numpy as np

    from llm_jax.convert.config_json import read_config
    from llm_jax.convert.families import FAMILIES
    from llm_jax.convert.model_folder import TYPES, parameter_shapes
    from llm_jax.convert.tensor_writer import TensorWriter
    from llm_jax.convert.tensors import tensors

    config = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 128,
        "max_position_embeddings": 2048,
    }
    model = read_config(FAMILIES["llama"], config)
    wanted = tensors(FAMILIES["llama"], model, parameter_shapes(model))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes = {t.name: (TYPES[dtype], t.shape) for t in wanted}
    with TensorWriter(folder / "model.safetensors", shapes) as file:
        for t in wanted:
            file.write(t.name, rng.standard_normal(t.shape, np.float32).astype(TYPES[dtype]))
    return (folder / "model.safetensors").stat().st_size


def timed(side: str, a: Path, b: Path, size: int) -> float:
    """Seconds of one side, in a process of its own."""
    shutil.rmtree(b, ignore_errors=True)
    if side == "write":
        b.mkdir()
    os.sync()
    subprocess.run(
        [sys.executable, "-c", f"import numpy; numpy.ones({2 * size + 10**9}, numpy.uint8)"],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", AROUND + SIDES[side], a, b],
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(b, ignore_errors=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"))
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source"
        out = Path(work) / "out"
        size = make(source, args.layers, args.width, args.dtype)
        from llm_jax.convert.hf import from_hf

        from_hf(source, Path(work) / "native")
        print(f"{size / 1e9:.2f} GB {args.dtype}, {args.rounds} rounds, medians")
        for sides in (("read", "import"), ("read", "write", "export")):
            times: dict[str, list[float]] = {side: [] for side in sides}
            for i in range(args.rounds):
                for side in sides if i % 2 else sides[::-1]:
                    times[side].append(timed(side, source, out, size))
            report(times)


def report(times: dict[str, list[float]]) -> None:
    """Prints the medians of all sides, and the ratios of the last side to the others."""
    print(", ".join(f"{side} {statistics.median(took):.2f} s" for side, took in times.items()))
    *bases, last = times
    for base in bases:
        ratios = sorted(x / y for x, y in zip(times[last], times[base]))
        print(
            f"    {last} / {base} {statistics.median(ratios):.2f}"
            f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
