"""From tokens to text in ``llm-jax generate``, and where it stops: one text and one set of ends for
every way to ask.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_builders import CHATML, make_folder

from llm_jax import models, sharding
from llm_jax.api.language_model import LanguageModel
from llm_jax.checkpoints.open_run import Run, open_run, stop_ids
from llm_jax.cli import main
from llm_jax.commands import generate as command
from llm_jax.config import Config, MeshConfig
from llm_jax.config.overrides import override
from llm_jax.config.saved import to_json
from llm_jax.convert.model_folder import parameter_shapes
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.tokenizers.import_tokenizer import import_tokenizer
from llm_jax.tokenizers.open_tokenizer import open_tokenizer

SMALL = {
    "num_layers": 1,
    "embed_dim": 8,
    "attention.num_heads": 1,
    "mlp.hidden_dim": 8,
    "max_length": 128,
    "embedding.tied": False,
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind in ("metaspace", "byte-level"):
        source = make_folder(folder / f"{kind} source", kind, chat_template=CHATML)
        import_tokenizer(source, folder / kind / "tokenizer")
    return folder


def always(folder: Path, token: int) -> Run:
    """A model whose next token is always the same."""
    size = open_tokenizer(folder / "tokenizer").vocab_size
    config = override(
        Config(), {f"model.{name}": value for name, value in {**SMALL, "vocab_size": size}.items()}
    )
    model = models.build(config.model)
    zero = jax.tree.map(jnp.zeros_like, model.init(jax.random.key(0)))
    params = {
        **zero,
        "embed": {"embedding": jnp.ones((size, 8))},
        "final_norm": {"scale": jnp.ones(8)},
        "head": {"kernel": jnp.zeros((8, size)).at[:, token].set(1.0)},
    }
    return Run(
        folder, 0, config, sharding.make_mesh(MeshConfig(), jax.devices()[:1]), model, params
    )


def token_with(tokenizer, text: str) -> int:
    """The first token whose piece is ``text`` and a word."""
    words = (
        (i, tokenizer.piece(i).removeprefix(text))
        for i in range(tokenizer.vocab_size)
        if tokenizer.piece(i).startswith(text)
    )
    return next(i for i, word in words if word.isascii() and word.isalpha())


@pytest.mark.parametrize("kind, mark", [("metaspace", "▁"), ("byte-level", "Ġ")])
def test_a_blank_after_the_prompt_stays(tokenizers, kind, mark, monkeypatch, capsys):
    folder = tokenizers / kind
    tokenizer = open_tokenizer(folder / "tokenizer")
    token = token_with(tokenizer, mark)
    run = always(folder, token)
    word = " " + tokenizer.piece(token)[1:]
    opened = LanguageModel(run)
    asked = {"max_new_tokens": 3, "temperature": 0.0}
    assert opened.generate(["the red", "a dog"], **asked) == [word * 3, word * 3]
    assert "".join(opened.stream("the red", **asked)) == word * 3
    monkeypatch.setattr(command, "load", lambda *_: opened)
    command.generate(folder, prompt=("the red",), max_new_tokens=3, temperature=0.0)
    assert capsys.readouterr().out == f"the red{word * 3}\n"
    command.generate(folder, prompt=("the red", "a dog"), max_new_tokens=3, temperature=0.0)
    assert capsys.readouterr().out.splitlines()[::2] == [f"the red{word * 3}", f"a dog{word * 3}"]
    # A whole text begins without the blank that its tokenizer puts before it.
    command.generate(folder, max_new_tokens=3, temperature=0.0)
    start = word.strip() if kind == "metaspace" else word
    assert capsys.readouterr().out == f"{start}{word * 2}\n"


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>"])
def test_every_end_stops_however_it_is_asked(tokenizers, end, monkeypatch, capsys):
    folder = tokenizers / "byte-level"
    tokenizer = open_tokenizer(folder / "tokenizer")
    token = next(i for i in range(tokenizer.vocab_size) if tokenizer.piece(i) == end)
    run = always(folder, token)
    assert token in stop_ids(run)
    opened = LanguageModel(run)
    monkeypatch.setattr(command, "load", lambda *_: opened)
    asked = {"max_new_tokens": 3, "temperature": 0.0}
    for given, before in [
        ({"prompt": ("a dog",)}, "a dog"),
        ({"ids": (5, 6)}, ""),
        ({"chat": "hello"}, ""),
    ]:
        command.generate(folder, **given, **asked)
        assert capsys.readouterr().out == f"{before}\n"
    command.generate(folder, prompt=("a", "b"), **asked)
    assert capsys.readouterr().out == "a\n" + "-" * 40 + "\nb\n" + "-" * 40 + "\n"
    assert opened.generate(["a"], **asked) == [""] and opened.generate([[5]], **asked) == [[]]
    assert opened.chat("hello", **asked) == opened.generate("a", **asked) == ""
    assert list(opened.stream([5], **asked)) == []
    assert "".join(opened.stream_chat("hello", **asked)) == ""


def model_folder(out: Path, source: dict, token: int = 7) -> Path:
    """A converted model without a tokenizer that always writes ``token``."""
    out.mkdir()
    config = override(
        Config(), {f"model.{k}": v for k, v in {**SMALL, "vocab_size": 40}.items()}
    ).model
    shapes = parameter_shapes(config)
    values = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    values["embed/embedding"][:] = 1.0
    values["final_norm/scale"][:] = 1.0
    values["head/kernel"][:, token] = 1.0
    with TensorWriter(
        out / "params.safetensors", {name: (np.float32, shape) for name, shape in shapes.items()}
    ) as file:
        for name, value in values.items():
            file.write(name, value)
    (out / "source.json").write_text(json.dumps(source))
    (out / "config.json").write_text(json.dumps(to_json(Config(model=config))))
    return out


@pytest.mark.parametrize(
    "source, ends",
    [
        ({"config": {"eos_token_id": 7}}, (7,)),
        ({"config": {"eos_token_id": [3, 7]}, "generation": {"eos_token_id": 5}}, (5, 3, 7)),
        ({"config": {"eos_token_id": None}, "generation": {"eos_token_id": [7, 99]}}, (7,)),
        ({"config": {}}, ()),
        ({}, ()),
    ],
)
def test_a_model_without_a_tokenizer_stops_where_its_source_says(tmp_path, source, ends, capsys):
    out = model_folder(tmp_path / "model", source)
    assert stop_ids(open_run(out)) == ends
    assert (
        main(
            ["generate", str(out), "--ids", "5", "6", "--temperature", "0", "--max-new-tokens", "2"]
        )
        == 0
    )
    assert capsys.readouterr().out == ("\n" if 7 in ends else "7 7\n")


def test_ids_that_the_model_does_not_have_are_refused(tmp_path, capsys):
    out = model_folder(tmp_path / "model", {})
    assert main(["generate", str(out), "--ids", "5", "40"]) == 2
    assert "has 40 at place 1; this model has the ids 0 to 39" in capsys.readouterr().err
