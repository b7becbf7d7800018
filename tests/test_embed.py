"""Vectors of texts: the mean over each text's own tokens, whatever else is in the batch."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="pip install -e '.[hf]'")

from hf_builders import make_folder

from llm_jax.checkpoints.open_run import open_run
from llm_jax.cli import main
from llm_jax.config import MeshConfig
from llm_jax.convert.config_json import read_config
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.hf import from_hf
from llm_jax.convert.model_folder import parameter_shapes
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.convert.tensors import tensors
from llm_jax.decode.embed import vectors
from llm_jax.models import rows_of
from llm_jax.sharding import batch_ways
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 1200,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
}
TEXTS = (
    "the cat sat",
    "rain",
    "a longer text about a small bird that flies over green hills",
    "rain",
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    source = make_folder(folder / "source", "wordpiece")
    (source / "config.json").write_text(json.dumps(CONFIG))
    family, rng = FAMILIES["bert"], np.random.default_rng(0)
    model = read_config(family, CONFIG)
    wanted = {
        t.name.removeprefix(family.prefix): t.shape
        for t in tensors(family, model, parameter_shapes(model))
    }
    with TensorWriter(
        source / "model.safetensors", {n: (np.dtype(np.float32), s) for n, s in wanted.items()}
    ) as file:
        for name, shape in wanted.items():
            file.write(name, rng.normal(size=shape).astype(np.float32))
    from_hf(source, folder / "run")
    return folder / "run"


def test_a_line_of_json_for_each_text(encoder, capsys):
    assert main(["embed", str(encoder), "--text", *TEXTS]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == list(TEXTS)
    found = np.array([line["vector"] for line in lines])
    assert found.shape == (4, 16) and np.allclose(np.linalg.norm(found, axis=1), 1)
    np.testing.assert_allclose(found[1], found[3], atol=1e-6)


@pytest.fixture(scope="module")
def opened(encoder):
    return open_run(encoder), open_tokenizer(encoder / "tokenizer")


@pytest.fixture(scope="module")
def alone(opened) -> np.ndarray:
    """The mean of each text's last hidden states, of a row of its own length."""
    (run, tokenizer), apply = opened, jax.jit(opened[0].model.apply)
    means = []
    for text in TEXTS:
        ids = jnp.asarray([[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]])
        hidden = apply(run.params, rows_of(ids, jnp.asarray([ids.shape[1]]))).hidden
        means.append(np.asarray(hidden[0]).mean(axis=0))
    return np.array(means)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_vector_is_the_mean_over_the_text_and_what_is_around_it(opened, alone, batch_size):
    run, tokenizer = opened
    found = vectors(run, tokenizer, TEXTS, normalize=False, batch_size=batch_size)
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_what_has_no_vector_is_named(encoder, opened, capsys):
    assert main(["embed", str(encoder)]) == 2
    assert "text is empty; give --text one or more texts" in capsys.readouterr().err
    assert main(["embed", str(encoder), "--text", "fine", "word " * 60]) == 2
    assert (
        "text 'word word" in (said := capsys.readouterr().err)
        and "it must have from 1 to model.max_length 48" in said
    )
    run, tokenizer = opened
    with pytest.raises(ConfigError, match="batch_size is 0; it must be at least 1"):
        vectors(run, tokenizer, TEXTS, batch_size=0)


@pytest.mark.mesh
def test_any_number_of_texts_is_embedded_on_a_mesh(encoder):
    tokenizer = open_tokenizer(encoder / "tokenizer")
    single = vectors(open_run(encoder), tokenizer, TEXTS)
    run = open_run(encoder, mesh=MeshConfig())
    assert batch_ways(run.mesh) == 8
    # Batches of three texts and of one.
    split = vectors(run, tokenizer, TEXTS, batch_size=3)
    np.testing.assert_allclose(split, single, atol=1e-5)
