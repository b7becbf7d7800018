"""A model of another program, loaded in memory, is the model that a conversion writes."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hf_builders import CHATML, make_folder

pytest.importorskip("tokenizers", reason="pip install -e '.[hf]'")

from test_gguf_architectures import CASES, theirs, write_gguf

import llm_jax
from llm_jax.checkpoints.checkpoint import CheckpointError, names
from llm_jax.convert.config_json import read_config
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.from_gguf import from_gguf
from llm_jax.convert.hf import from_hf
from llm_jax.convert.model_folder import parameter_shapes
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.convert.tensors import tensors
from llm_jax.types import ConfigError, DataError

CONFIG = {
    "model_type": "llama",
    "vocab_size": 1200,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder of transformers in bfloat16, with a tokenizer and a chat template."""
    folder = make_folder(tmp_path_factory.mktemp("hf") / "m", "byte-level", chat_template=CHATML)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    model, rng = read_config(FAMILIES["llama"], CONFIG), np.random.default_rng(0)
    wanted = {t.name: t.shape for t in tensors(FAMILIES["llama"], model, parameter_shapes(model))}
    kind = np.dtype(ml_dtypes.bfloat16)
    path = folder / "model.safetensors"
    with TensorWriter(path, {name: (kind, shape) for name, shape in wanted.items()}) as file:
        for name, shape in wanted.items():
            file.write(name, rng.normal(size=shape).astype(kind))
    return folder


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, "llama", CASES["llama"], theirs(CASES["llama"]))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", ["source", "gguf"])
def test_saving_a_loaded_model_writes_what_a_conversion_writes(kind, request, tmp_path):
    path = request.getfixturevalue(kind)
    {"source": from_hf, "gguf": from_gguf}[kind](path, tmp_path / "converted")
    opened = llm_jax.load(path)
    opened.save(tmp_path / "saved")
    expected = files(tmp_path / "converted")
    assert {"config.json", "params.safetensors", "source.json"} <= expected.keys()
    assert files(tmp_path / "saved") == expected
    # A converted model that is opened and saved is the same again.
    again = llm_jax.load(tmp_path / "saved")
    again.save(tmp_path / "again")
    assert files(tmp_path / "again") == expected
    ours, same = names(opened.params), names(again.params)
    assert ours.keys() == same.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], same[name])
        assert ours[name].dtype == same[name].dtype == np.float32


def test_options_of_a_conversion_hold_in_memory(source, gguf):
    assert llm_jax.load(source, max_length=32).config.model.max_length == 32
    assert llm_jax.load(gguf, max_length=32).config.model.max_length == 32


def test_what_does_not_apply_is_refused(source, gguf, tmp_path):
    with pytest.raises(ConfigError, match="step is 3, and .* is a folder of transformers, which"):
        llm_jax.load(source, 3)
    with pytest.raises(ConfigError, match="step is 3, and .* is a GGUF file, which has no steps"):
        llm_jax.load(gguf, 3)
    with pytest.raises(ConfigError, match="pre is 'gpt-2', and .*: nothing reads it; leave it out"):
        llm_jax.load(source, pre="gpt-2")
    with pytest.raises(ConfigError, match="encoding is 'gpt2', and .*: nothing reads it"):
        llm_jax.load(gguf, encoding="gpt2")
    from_hf(source, tmp_path / "converted")
    with pytest.raises(ConfigError, match="dtype is 'float16', and .* was converted already"):
        llm_jax.load(tmp_path / "converted", dtype="float16")
    with pytest.raises(ConfigError, match="max_length is -1; it must be at least 0"):
        llm_jax.load(source, max_length=-1)


def test_what_is_no_model_is_named(source, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match=r"notes.txt is not a GGUF file; give a GGUF file, or"):
        llm_jax.load(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="nowhere is not a run"):
        llm_jax.load(tmp_path / "nowhere")
    opened = llm_jax.load(source)
    with pytest.raises(DataError, match="holds other files"):
        opened.save(tmp_path)


def test_the_folder_of_a_model_in_memory_goes_with_it(source):
    opened = llm_jax.load(source)
    folder = opened.folder
    changed = opened.with_params(opened.params)
    del opened
    assert (folder / "tokenizer").is_dir() and changed.tokenizer.vocab_size == 1200
    assert sum(p.stat().st_size for p in folder.rglob("*.safetensors")) == 0
    del changed
    assert not folder.exists()
