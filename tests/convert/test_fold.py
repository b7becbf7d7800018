"""A model with muP, exported, computes the same as a standard one of other programs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import parametrize
from test_convert import CONFIG, arrays, source

from llm_jax.checkpoints.open_run import open_run
from llm_jax.convert.fold import folded
from llm_jax.convert.hf import from_hf, to_hf
from llm_jax.models import rows_of
from llm_jax.types import ConfigError

MUP = {"kind": "mup", "base_width": 4, "base_head_dim": 2}
FAMILIES = {
    "llama": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 4, "tie_word_embeddings": False},
}


def with_mup(folder):
    """The converted model of ``folder`` as if it had been trained here with muP."""
    (folder / "source.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["model"]["parametrization"] = MUP
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def logits(run):
    batch = rows_of(jnp.array([[3, 1, 4, 1, 5, 9]]), jnp.array([6]))
    return jax.jit(lambda p: run.model.logits(p, run.model.apply(p, batch).hidden))(run.params)


@parametrize("family", [[family] for family in FAMILIES], by_default=[["qwen3"]])
def test_an_exported_model_computes_the_same(tmp_path, family):
    config = {**CONFIG, **FAMILIES[family], "model_type": family}
    from_hf(source(tmp_path / "a", arrays(config), config), tmp_path / "b")
    run = open_run(with_mup(tmp_path / "b"))
    assert run.config.model.growth["embed"] == 4
    assert run.config.model.attention_scale == pytest.approx(2**0.5 / 4)
    to_hf(tmp_path / "b", tmp_path / "c", family=family)
    written = json.loads((tmp_path / "c/config.json").read_text())
    assert not written["tie_word_embeddings"]
    from_hf(tmp_path / "c", tmp_path / "d")
    back = open_run(tmp_path / "d")
    assert back.config.model.growth == {}
    np.testing.assert_allclose(logits(back), logits(run), rtol=2e-5, atol=2e-5)


def test_a_family_that_is_always_tied_refuses_by_name(tmp_path):
    from_hf(source(tmp_path / "a"), tmp_path / "b")
    with_mup(tmp_path / "b")
    with pytest.raises(ConfigError, match="cannot represent"):
        to_hf(tmp_path / "b", tmp_path / "c", family="gemma")


def test_a_standard_model_is_left_alone(tmp_path):
    from_hf(source(tmp_path / "a"), tmp_path / "b")
    model = open_run(tmp_path / "b").config.model

    def read(piece):
        raise AssertionError(piece)

    assert folded(model, read) == (model, read)
