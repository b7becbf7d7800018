"""Every family against transformers: random small models converted, compared, decoded, spread over devices, and written back.

``LLM_JAX_FAMILY_RESULTS=FILE`` appends what was measured, a JSON line for each variant; ``scripts/families_table`` makes the README's
table of them.
"""

from __future__ import annotations

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need the extra: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra: pip install -e '.[parity]'")

from reference import VARIANTS, VOCAB, make  # noqa: E402

from llm_jax.config import DecodeConfig, MeshConfig  # noqa: E402
from llm_jax.convert.families import FAMILIES  # noqa: E402
from llm_jax.convert.hf import from_hf, to_hf  # noqa: E402
from llm_jax.decode import Generator  # noqa: E402
from llm_jax.tensor_file import TensorFile  # noqa: E402
from llm_jax.training.restore import Run, open_run  # noqa: E402
from llm_jax.types import Batch  # noqa: E402

pytestmark = pytest.mark.parity

TOLERANCE, AGAIN = 1e-4, 1e-5
NEW, PROMPT = 32, 20


def batch(tokens: np.ndarray, padding: int = 0, left: bool = False) -> Batch:
    """Rows of ``tokens``, with that many places of padding on one side."""
    B, T = tokens.shape
    sides = ((0, 0), (padding, 0) if left else (0, padding))
    pad = lambda x: jnp.asarray(np.pad(x, sides))  # noqa: E731
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    ones = np.ones((B, T), np.int32)
    return Batch(pad(tokens), pad(tokens), pad(ones.astype(bool)), pad(ones), pad(positions))


def ours(run: Run, given: Batch) -> np.ndarray:
    with jax.set_mesh(run.mesh):
        return np.asarray(jax.jit(lambda p, b: run.model.logits(p, run.model.apply(p, b).hidden))(run.params, given))


def theirs(reference, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return reference(torch.tensor(tokens)).logits.float().numpy()


def their_greedy(reference, prompt: np.ndarray) -> np.ndarray:
    text = torch.tensor(prompt)
    with torch.no_grad():
        for _ in range(NEW):
            text = torch.cat([text, reference(text).logits[:, -1:].argmax(-1)], dim=1)
    return text[:, prompt.shape[1] :].numpy()


def worst(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def record(variant, **figures) -> None:
    if path := os.environ.get("LLM_JAX_FAMILY_RESULTS"):
        with open(path, "a") as file:
            file.write(json.dumps({"family": variant.family, "variant": variant.name, "length": variant.length, **figures}) + "\n")


FIRST = {v.family: v for v in reversed(VARIANTS)}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.id)
def test_family(variant, tmp_path):
    reference, rng = make(variant), np.random.default_rng(1)
    reference.save_pretrained(tmp_path / "theirs")
    from_hf(tmp_path / "theirs", tmp_path / "ours")
    run = long = open_run(tmp_path / "ours")
    if variant.context:
        from_hf(tmp_path / "theirs", tmp_path / "short", max_length=variant.context)
        run = open_run(tmp_path / "short")

    tokens = rng.integers(0, VOCAB, (1, variant.length), dtype=np.int32)
    want = theirs(reference, tokens)
    assert np.std(want) > 0.1, "the logits are too flat to tell anything"
    got = ours(long, batch(tokens))
    figures = {"logits": worst(got, want)}
    assert figures["logits"] <= TOLERANCE

    prompts = rng.integers(0, VOCAB, (2, PROMPT), dtype=np.int32)
    written = Generator(run.model, run.params).generate(prompts.tolist(), DecodeConfig(NEW, temperature=0))
    np.testing.assert_array_equal(written, their_greedy(reference, prompts))

    alone = ours(run, batch(prompts))
    padded = {left: ours(run, batch(prompts, 12, left)) for left in (True, False)}
    figures["padding"] = max(worst(padded[True][:, 12:], alone), worst(padded[False][:, :PROMPT], alone))
    assert figures["padding"] <= AGAIN

    to_hf(tmp_path / "ours", tmp_path / "again")
    before, after = (TensorFile(tmp_path / f / "model.safetensors") for f in ("theirs", "again"))
    assert {n: (t.dtype, t.shape) for n, t in before.tensors.items()} == {n: (t.dtype, t.shape) for n, t in after.tensors.items()}
    assert all(before.read(n).tobytes() == after.read(n).tobytes() for n in before.tensors)
    loaded = getattr(transformers, variant.model).from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    figures["exported"] = worst(theirs(loaded, tokens), want)
    assert figures["exported"] <= AGAIN

    if variant == FIRST[variant.family]:
        spread = open_run(tmp_path / "ours", mesh=MeshConfig(data=2, fsdp=2, tensor=2))
        rows = np.repeat(prompts, 2, axis=0)
        figures["spread"] = worst(ours(spread, batch(rows)), np.repeat(alone, 2, axis=0))
        assert figures["spread"] <= AGAIN
        ids = Generator(spread.model, spread.params, spread.mesh).generate(rows.tolist(), DecodeConfig(NEW, temperature=0))
        np.testing.assert_array_equal(ids, np.repeat(written, 2, axis=0))
    record(variant, **figures)


def test_every_family_is_compared():
    assert set(FIRST) == set(FAMILIES)
