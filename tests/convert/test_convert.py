"""Whole conversions: strict about tensors, whole or not at all, within little memory, and the same
through every verb.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hf_builders import make_folder

from llm_jax.checkpoints.checkpoint import CheckpointError
from llm_jax.checkpoints.open_run import open_run
from llm_jax.cli import main
from llm_jax.config import DecodeConfig
from llm_jax.convert.config_json import read_config
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.hf import from_hf, to_hf
from llm_jax.convert.model_folder import parameter_shapes
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.convert.tensors import tensors
from llm_jax.decode import Generator
from llm_jax.tensor_file import TensorFile
from llm_jax.types import ConfigError, DataError

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
}
UP = "model.layers.1.mlp.up_proj.weight"


def arrays(config=CONFIG, dtype=np.float32):
    model = read_config(FAMILIES[config["model_type"]], config)
    rng = np.random.default_rng(0)
    return {
        t.name: rng.normal(size=t.shape).astype(dtype)
        for t in tensors(FAMILIES[config["model_type"]], model, parameter_shapes(model))
    }


def store(path: Path, tensors: dict) -> None:
    with TensorWriter(path, {n: (a.dtype, a.shape) for n, a in tensors.items()}) as file:
        for name, array in tensors.items():
            file.write(name, array)


def source(folder: Path, tensors=None, config=CONFIG) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    store(folder / "model.safetensors", arrays(config) if tensors is None else tensors)
    return folder


def same(a: Path, b: Path) -> bool:
    x, y = TensorFile(a / "model.safetensors"), TensorFile(b / "model.safetensors")
    return x.tensors.keys() == y.tensors.keys() and all(
        x.read(n).tobytes() == y.read(n).tobytes() for n in x.tensors
    )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_there_and_back_is_the_same_to_the_last_byte(tmp_path, dtype):
    a = source(tmp_path / "a", arrays(dtype=dtype))
    from_hf(a, tmp_path / "b")
    to_hf(tmp_path / "b", tmp_path / "c")
    assert same(a, tmp_path / "c")
    out = json.loads((tmp_path / "c/config.json").read_text())
    assert out["eos_token_id"] == 2 and out["dtype"] == str(np.dtype(dtype))
    # Used, they are what the model computes with.
    assert {x.dtype for x in jax.tree.leaves(open_run(tmp_path / "b").params)} == {
        np.dtype(np.float32)
    }


def test_types_on_disk_can_be_chosen(tmp_path):
    a = source(tmp_path / "a")
    from_hf(a, tmp_path / "b", dtype="bfloat16")
    assert {t.dtype for t in TensorFile(tmp_path / "b/params.safetensors").tensors.values()} == {
        np.dtype(ml_dtypes.bfloat16)
    }
    with pytest.raises(
        ConfigError, match="dtype is 'int8'; supported are float32, bfloat16, float16"
    ):
        from_hf(a, tmp_path / "c", dtype="int8")
    mixed = arrays()
    mixed[UP] = mixed[UP].astype(np.float16)
    with pytest.raises(
        DataError,
        match=(
            "up_proj.weight is of type float16, and other layers of it are of type float32; convert"
            " with --dtype float32"
        ),
    ):
        from_hf(source(tmp_path / "d", mixed), tmp_path / "e")
    from_hf(tmp_path / "d", tmp_path / "e", dtype="float32")


def test_files_in_pieces_and_names_without_their_prefix(tmp_path):
    whole, a = arrays(), source(tmp_path / "a")
    from_hf(a, tmp_path / "whole")
    bare = source(tmp_path / "bare", {n.removeprefix("model."): x for n, x in whole.items()})
    from_hf(bare, tmp_path / "from bare")
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    (pieces / "config.json").write_text(json.dumps(CONFIG))
    half, names = len(whole) // 2, list(whole)
    parts = {"model-1.safetensors": names[:half], "model-2.safetensors": names[half:]}
    for file, held in parts.items():
        store(pieces / file, {n: whole[n] for n in held})
    (pieces / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {n: f for f, held in parts.items() for n in held}})
    )
    from_hf(pieces, tmp_path / "from pieces")
    files = [
        (tmp_path / f / "params.safetensors").read_bytes()
        for f in ("whole", "from bare", "from pieces")
    ]
    assert files[0] == files[1] == files[2]
    store(pieces / "model-2.safetensors", {n: whole[n] for n in names[half - 1 :]})
    with pytest.raises(
        DataError, match=f"has another file for tensor '{names[half - 1]}' than model-2.safetensors"
    ):
        from_hf(pieces, tmp_path / "x")
    store(pieces / "model-2.safetensors", {n: whole[n] for n in names[half + 1 :]})
    with pytest.raises(
        DataError,
        match=(
            f"has another file for tensor '{names[half]}' than model-2.safetensors; download"
            " both again"
        ),
    ):
        from_hf(pieces, tmp_path / "x")
    (pieces / "model.safetensors").touch()
    with pytest.raises(
        DataError,
        match=(
            r"has both model.safetensors and model.safetensors.index.json, which may be different"
            r" models"
        ),
    ):
        from_hf(pieces, tmp_path / "x")
    (pieces / "model.safetensors").unlink()
    (pieces / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../b.safetensors"}})
    )
    with pytest.raises(
        DataError, match="has no weight_map from tensors to .safetensors files beside it"
    ):
        from_hf(pieces, tmp_path / "x")


def test_tied_embeddings_may_be_there_twice_but_not_differ(tmp_path):
    tied = CONFIG | {"tie_word_embeddings": True}
    given = arrays(tied)
    given["lm_head.weight"] = given["model.embed_tokens.weight"].copy()
    given["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    from_hf(source(tmp_path / "a", given, tied), tmp_path / "b")
    given["lm_head.weight"][3, 3] += 1
    with pytest.raises(
        DataError,
        match=(
            r"lm_head.weight differs from model.embed_tokens.weight, but config.json has"
            r" tie_word_embeddings true"
        ),
    ):
        from_hf(source(tmp_path / "c", given, tied), tmp_path / "d")


def test_a_folder_that_cannot_be_converted_leaves_nothing(tmp_path):
    lacking = {n: x for n, x in arrays().items() if n != UP}
    with pytest.raises(DataError, match="1 missing"):
        from_hf(source(tmp_path / "a", lacking), tmp_path / "out")
    odd = arrays() | {"model.layers.0.extra": np.zeros(3, np.float32)}
    with pytest.raises(DataError, match="1 that the model has no place for"):
        from_hf(source(tmp_path / "b", odd), tmp_path / "out")
    packed = arrays() | {UP: np.zeros((24, 16), np.int8)}
    with pytest.raises(
        DataError,
        match="is of type int8, and quantized weights cannot be read; supported are float32, bf",
    ):
        from_hf(source(tmp_path / "c", packed), tmp_path / "out")
    pickle = tmp_path / "pickle"
    pickle.mkdir()
    (pickle / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(DataError, match="has neither model.safetensors nor"):
        from_hf(pickle, tmp_path / "out")
    (pickle / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(
        DataError,
        match=r"has only pytorch_model.bin, a pickle file, and loading a pickle runs the code in",
    ):
        from_hf(pickle, tmp_path / "out")
    (pickle / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config.json' is not valid JSON"):
        from_hf(pickle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_is_never_overwritten_or_opened_in_part(tmp_path):
    a = source(tmp_path / "a")
    from_hf(a, tmp_path / "b")
    with pytest.raises(
        DataError, match=r"holds a (converted|Hugging Face) model \(.*\); choose another folder"
    ):
        from_hf(a, tmp_path / "b")
    with pytest.raises(
        CheckpointError, match="is a converted model, which has no steps; leave step 3 out"
    ):
        open_run(tmp_path / "b", 3)
    config = json.loads((tmp_path / "b/config.json").read_text())
    config["model"]["mlp_dim"] = 32
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError,
        match=(
            r"layers/mlp/up/kernel: \[2, 16, 24\] in params.safetensors, \[2, 16, 32\] by"
            r" config.json"
        ),
    ):
        open_run(tmp_path / "b")


def test_a_run_trained_here_becomes_a_family_and_comes_back(tmp_path):
    """By a converted model without its source, as a run has none."""
    from_hf(source(tmp_path / "a"), tmp_path / "b")
    (tmp_path / "b/source.json").unlink()
    with pytest.raises(
        ConfigError,
        match=(
            "does not name its family: set one with --family; supported are bart, bert, deepseek_v2"
        ),
    ):
        to_hf(tmp_path / "b", tmp_path / "c")
    with pytest.raises(ConfigError, match="has no family 'lama'; did you mean 'llama'"):
        to_hf(tmp_path / "b", tmp_path / "c", family="lama")
    with pytest.raises((ConfigError, DataError), match="gpt2 cannot represent|gpt2 has no tensor"):
        to_hf(tmp_path / "b", tmp_path / "c", family="gpt2")
    to_hf(tmp_path / "b", tmp_path / "c", family="mistral")
    from_hf(tmp_path / "c", tmp_path / "d")
    assert (tmp_path / "d/params.safetensors").read_bytes() == (
        tmp_path / "b/params.safetensors"
    ).read_bytes()
    x, y = (open_run(tmp_path / f) for f in "bd")
    prompt, greedy = [[1, 2, 3]], DecodeConfig(8, temperature=0)
    assert Generator(x.model, x.params).generate(prompt, greedy) == Generator(
        y.model, y.params
    ).generate(prompt, greedy)


def test_verbs(tmp_path, capsys):
    a, b = str(source(tmp_path / "a")), str(tmp_path / "b")
    assert main(["convert", "from-hf", a, "--out", b]) == 0
    assert "2 layers in" in capsys.readouterr().out
    assert (
        main(["convert", "from-hf", a, "--out", b]) == 2
        and main(["generate", b, "--ids", "1", "64"]) == 2
    )
    assert "has 64 at place 1; this model has the ids 0 to 63" in capsys.readouterr().err
    assert (
        main(["generate", b, "--ids", "1", "2", "3", "--temperature", "0", "--max-new-tokens", "5"])
        == 0
    )
    run = open_run(b)
    written = Generator(run.model, run.params).generate(
        [[1, 2, 3]], DecodeConfig(5, temperature=0)
    )[0]
    assert capsys.readouterr().out.split() == [str(i) for i in written]
    assert main(["convert", "inspect", b]) == 0
    out = capsys.readouterr().out
    assert "layers/attention/query/kernel" in out and "12 tensors, 5,968 parameters, 0.0 MB" in out
    assert main(["convert", "to-hf", b, "--out", str(tmp_path / "c")]) == 0
    assert main(["convert", "inspect", a, str(tmp_path / "c")]) == 0
    assert "21 of 21 tensors are equal to the last bit" in capsys.readouterr().out
    changed = arrays()
    changed[UP] = changed[UP] + 0.5
    changed["new"] = changed.pop("model.norm.weight")
    assert main(["convert", "inspect", a, str(source(tmp_path / "d", changed))]) == 0
    out = capsys.readouterr().out
    assert (
        f"values              {UP} differ by up to 0.5 (mean 0.5)" in out
        and "only in the first   model.norm.weight [16]" in out
    )
    assert "only in the second  new [16]" in out and "19 of 22 tensors are equal" in out
    assert main(["convert", "from-hf", str(tmp_path / "none"), "--out", b]) == 2
    assert "config.json' cannot be read (No such file or directory)" in capsys.readouterr().err


PEAK = """
import sys
from pathlib import Path
from llm_jax.convert.hf import from_hf, to_hf
source, out, again = map(Path, sys.argv[1:])
from_hf(source, out)
to_hf(out, again)
# Of this program; what getrusage says may be that of the one that started it.
lines = open("/proc/self/status").read().splitlines()
print(1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1]))
"""


def peak_of_both_ways(folder: Path, layers: int, width: int) -> tuple[int, int, int]:
    """Bytes: of the whole file, of the largest tensor, of memory at most."""
    config = CONFIG | {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "vocab_size": 1024,
    }
    model = read_config(FAMILIES["llama"], config)
    wanted = tensors(FAMILIES["llama"], model, parameter_shapes(model))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    largest = max(int(np.prod(t.shape)) for t in wanted) * 4
    rng = np.random.default_rng(0)
    with TensorWriter(
        folder / "model.safetensors", {t.name: (np.float32, t.shape) for t in wanted}
    ) as file:
        for t in wanted:
            file.write(t.name, rng.standard_normal(t.shape, np.float32))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, folder, folder.with_name("out"), folder.with_name("again")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert same(folder, folder.with_name("again"))
    return (folder / "model.safetensors").stat().st_size, largest, int(done.stdout.split()[-1])


@pytest.mark.slow
def test_memory_is_that_of_a_tensor_and_not_of_the_model(tmp_path):
    """A model of 2 GB, four times what the programs themselves take."""
    size, largest, peak = peak_of_both_ways(tmp_path / "in", layers=40, width=1024)
    assert peak <= 3 * largest + 500e6, (size, largest, peak)


def with_tokenizer(folder: Path, **config) -> Path:
    """``source`` with a byte-level tokenizer of 1,200 ids beside it."""
    made = {**CONFIG, "vocab_size": 1200, **config}
    folder = source(folder, arrays(made), made)
    return make_folder(folder, "byte-level")


def test_a_tokenizer_of_more_ids_than_the_embedding_is_refused_before_anything_is_written(tmp_path):
    a = with_tokenizer(tmp_path / "a", vocab_size=1199)
    with pytest.raises(
        ConfigError,
        match=(
            r"its tokenizer has 1,200 ids, and the model's embedding has 1,199 rows; resize"
            r" the embedding"
        ),
    ):
        from_hf(a, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    # A padded embedding has more rows than there are tokens.
    from_hf(with_tokenizer(tmp_path / "c", vocab_size=1216), tmp_path / "d")


def test_a_converted_model_is_not_read_with_another_tokenizer(tmp_path):
    from_hf(with_tokenizer(tmp_path / "a"), tmp_path / "b")
    open_run(tmp_path / "b")
    record = json.loads((tmp_path / "b/tokenizer/imported.json").read_text())
    record["added_tokens"] = [{"id": 1199, "content": "new", "special": True}]
    (tmp_path / "b/tokenizer/imported.json").write_text(json.dumps(record))
    with pytest.raises(
        CheckpointError,
        match="has the fingerprint .*, and the model was trained with .*; put that tokenizer back",
    ):
        open_run(tmp_path / "b")


def test_a_conversion_that_fails_or_is_killed_can_be_run_again(tmp_path):
    weights = arrays({**CONFIG, "vocab_size": 1200})
    weights[UP][0, 0] = 1e30
    a = make_folder(source(tmp_path / "a", weights, {**CONFIG, "vocab_size": 1200}), "byte-level")
    with pytest.raises(DataError, match="too large for float16; write the file as bfloat16"):
        from_hf(a, tmp_path / "b", dtype="float16")
    assert not (tmp_path / "b").exists()
    # As a kill leaves it.
    (tmp_path / "b" / "tokenizer").mkdir(parents=True)
    (tmp_path / "b" / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "b" / ".params.safetensors.partial").write_text("")
    from_hf(a, tmp_path / "b", dtype="bfloat16")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "config.json",
        "params.safetensors",
        "source.json",
        "tokenizer",
    ]
    with pytest.raises(DataError, match="too large for float16"):
        to_hf(tmp_path / "b", tmp_path / "c", dtype="float16")
    assert not (tmp_path / "c").exists()


def test_an_encoding_is_for_files_of_ranks(tmp_path):
    with pytest.raises(DataError, match="encoding is 'gpt2', which is for files of ranks"):
        from_hf(with_tokenizer(tmp_path / "a"), tmp_path / "b", encoding="gpt2")
    with pytest.raises(
        ConfigError, match="encoding is 'gpt2', and .* has no tokenizer; leave it out"
    ):
        from_hf(source(tmp_path / "c"), tmp_path / "d", encoding="gpt2")


def test_one_list_of_rotary_factors_of_an_earlier_conversion_is_said(tmp_path, capsys):
    scaling = {"type": "longrope", "long_factor": [2.0, 3.0], "short_factor": [1.0, 1.0]}
    more = {
        "original_max_position_embeddings": 64,
        "rope_scaling": scaling,
        "pad_token_id": 0,
        "bos_token_id": 1,
    }
    config = {**CONFIG, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], **more}
    from_hf(source(tmp_path / "a", arrays(config), config), tmp_path / "b")
    open_run(tmp_path / "b")
    assert "earlier version" not in capsys.readouterr().err
    saved = json.loads((tmp_path / "b/config.json").read_text())
    del saved["model"]["positions"]["scaling"]["short_factors"]
    (tmp_path / "b/config.json").write_text(json.dumps(saved))
    open_run(tmp_path / "b")
    assert (
        "was converted by an earlier version, which kept the long rotary factors alone"
        in capsys.readouterr().err
    )
