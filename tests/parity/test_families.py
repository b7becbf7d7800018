"""Every family against transformers: random small models converted, compared, decoded, spread over
devices, and written back.

``LLM_JAX_FAMILY_RESULTS=FILE`` appends what was measured, a JSON line for each variant;
``scripts/families_table`` makes the table of them in docs/families.md.
"""

from __future__ import annotations

import json
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

from reference import NIGHTLY, ONLY_5, PAD, VARIANTS, VOCAB, make

from llm_jax.checkpoints.open_run import Run, open_run
from llm_jax.config import DecodeConfig, MeshConfig
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.hf import from_hf, to_hf
from llm_jax.decode import Generator
from llm_jax.decode.parity import check_parity
from llm_jax.models import class_logits, pooled
from llm_jax.tensor_file import TensorFile
from llm_jax.types import Batch, Tokens

pytestmark = pytest.mark.parity

TOLERANCE, AGAIN = 1e-4, 1e-5
NEW, PROMPT = 32, 20


def batch(
    tokens: np.ndarray, read: np.ndarray | None, padding: int = 0, left: bool = False
) -> Batch:
    """Rows of ``tokens``, and of what an encoder reads, with that many places of padding on one
    side.
    """
    B, T = tokens.shape
    sides = ((0, 0), (padding, 0) if left else (0, padding))

    def pad(x):
        return jnp.asarray(np.pad(x, sides))

    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    ones = np.ones((B, T), np.int32)
    rows = Batch(
        inputs=Tokens(pad(tokens), pad(ones), pad(positions)),
        targets=pad(tokens),
        loss_mask=pad(ones.astype(bool)),
    )
    if read is None:
        return rows
    at = np.broadcast_to(np.arange(read.shape[1], dtype=np.int32), read.shape)
    return rows._replace(encoder=Tokens(pad(read), pad(np.ones_like(read)), pad(at)))


def ours(run: Run, given: Batch, writes: bool) -> np.ndarray:
    """At each position: logits, or of a model that has none (``writes`` is False) the hidden state,
    the row's vector and its classes.
    """
    m = run.config.model

    def says(p, b):
        hidden = run.model.apply(p, b).hidden
        if writes:
            return run.model.logits(p, hidden)
        rows = []
        if m.pooler and m.pooler.num_classes:
            rows = [class_logits(m, p, hidden, b.loss_mask)]
        elif m.pooler and m.pooler.layer == "tanh":
            rows = [pooled(m, p, hidden, b.loss_mask)]
        return jnp.concatenate(
            [
                hidden,
                *(jnp.broadcast_to(r[:, None], (*hidden.shape[:2], r.shape[-1])) for r in rows),
            ],
            axis=-1,
        )

    with jax.set_mesh(run.mesh):
        return np.asarray(jax.jit(says)(run.params, given))


def theirs(reference, tokens: np.ndarray, read: np.ndarray | None = None) -> np.ndarray:
    given = {"input_ids": torch.tensor(tokens if read is None else read)}
    given |= {} if read is None else {"decoder_input_ids": torch.tensor(tokens)}
    with torch.no_grad():
        out = reference(**given)
        if "logits" in out and out.logits.ndim == 3:
            return out.logits.float().numpy()
        body = reference.base_model(**given)
        rows = [
            getattr(out, name)
            for name in ("pooler_output", "logits")
            if getattr(out, name, None) is not None
        ]
        hidden = body.last_hidden_state
        return torch.cat(
            [hidden, *(r[:, None].expand(*hidden.shape[:2], -1) for r in rows)], dim=-1
        ).numpy()


def their_greedy(reference, prompt: np.ndarray) -> np.ndarray:
    writes = reference.config.is_encoder_decoder
    text = torch.full((len(prompt), 1), PAD) if writes else torch.tensor(prompt)
    begins = text.shape[1]
    with torch.no_grad():
        for _ in range(NEW):
            out = (
                reference(torch.tensor(prompt), decoder_input_ids=text)
                if writes
                else reference(text)
            )
            text = torch.cat([text, out.logits[:, -1:].argmax(-1)], dim=1)
    return text[:, begins:].numpy()


def worst(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def record(variant, **figures) -> None:
    if path := os.environ.get("LLM_JAX_FAMILY_RESULTS"):
        with open(path, "a") as file:
            file.write(
                json.dumps(
                    {
                        "family": variant.family,
                        "variant": variant.name,
                        "length": variant.length,
                        **figures,
                    }
                )
                + "\n"
            )


def written_back(variant, reference, folder: Path):
    """The model that transformers loads of what we write, which is the same to the last byte, less
    tables that are computed.
    """
    to_hf(folder / "ours", folder / "again")
    before, after = (TensorFile(folder / f / "model.safetensors") for f in ("theirs", "again"))
    computed = {n for n, p in reference.named_parameters() if not p.requires_grad}
    kinds = {n: (t.dtype, t.shape) for n, t in before.tensors.items() if n not in computed}
    # transformers 4 leaves out the second name of a tensor, which the 5 reads.
    doubles = (
        {} if reference.config.tie_word_embeddings else FAMILIES[variant.family].duplicated_tensors
    )
    twice = {n: first for n, first in doubles.items() if n not in kinds and first in kinds}
    assert kinds | {n: kinds[first] for n, first in twice.items()} == {
        n: (t.dtype, t.shape) for n, t in after.tensors.items()
    }
    assert all(
        before.read(twice.get(n, n)).tobytes() == after.read(n).tobytes() for n in kinds | twice
    )
    return (
        getattr(transformers, variant.model)
        .from_pretrained(folder / "again", attn_implementation="eager")
        .eval()
    )


FIRST = {v.family: v for v in reversed(VARIANTS)}


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(v, id=v.id, marks=[pytest.mark.slow] if v.id in NIGHTLY else [])
        for v in VARIANTS
    ],
)
def test_family(variant, tmp_path):
    if variant.id in ONLY_5 and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip(ONLY_5[variant.id])
    reference, rng = make(variant), np.random.default_rng(1)
    reference.save_pretrained(tmp_path / "theirs")
    from_hf(tmp_path / "theirs", tmp_path / "ours")
    run = open_run(tmp_path / "ours")
    m, writes = run.config.model, reference.get_output_embeddings() is not None
    # Encoders of theirs know padding by its id.
    first = 0 if m.causal and not m.encoder else PAD + 1

    def draw(*shape):
        return rng.integers(first, VOCAB, shape, dtype=np.int32)

    tokens, read = (
        draw(1, variant.length),
        draw(1, variant.length - 7) if m.encoder else None,
    )
    want = theirs(reference, tokens, read)
    assert np.std(want) > 0.1, "the logits are too flat to tell anything"
    got = ours(run, batch(tokens, read), writes)
    figures = {"logits": worst(got, want)}
    assert figures["logits"] <= TOLERANCE
    if not m.causal:
        with torch.no_grad():
            hidden = reference.base_model(torch.tensor(tokens)).last_hidden_state.numpy()
        figures["hidden"] = worst(
            np.asarray(run.model.apply(run.params, batch(tokens, None)).hidden), hidden
        )
        assert figures["hidden"] <= TOLERANCE

    prompts = draw(2, PROMPT)
    given = draw(2, 15) if m.encoder else None
    if m.causal and writes:
        written = Generator(run.model, run.params).generate(
            prompts.tolist(), DecodeConfig(NEW, temperature=0)
        )
        np.testing.assert_array_equal(written, their_greedy(reference, prompts))

    alone = ours(run, batch(prompts, given), writes)
    padded = {left: ours(run, batch(prompts, given, 12, left), writes) for left in (True, False)}
    figures["padding"] = max(
        worst(padded[True][:, 12:], alone), worst(padded[False][:, :PROMPT], alone)
    )
    assert figures["padding"] <= AGAIN

    loaded = written_back(variant, reference, tmp_path)
    figures["exported"] = worst(theirs(loaded, tokens, read), want)
    assert figures["exported"] <= AGAIN

    if variant == FIRST[variant.family] and given is not None:
        # Random models with the norm after the sum repeat themselves: every step is right whatever
        # came before it.
        found = check_parity(run.model, run.params, prompts.tolist(), [8, 1], given.tolist())
        figures["cached"] = found.difference
        assert found.compared == 2 * PROMPT - 9 and found.difference <= AGAIN
    if variant == FIRST[variant.family]:
        spread = open_run(tmp_path / "ours", mesh=MeshConfig(data=2, fsdp=2, tensor=2))
        rows, reads = (x if x is None else np.repeat(x, 2, axis=0) for x in (prompts, given))
        figures["spread"] = worst(
            ours(spread, batch(rows, reads), writes), np.repeat(alone, 2, axis=0)
        )
        assert figures["spread"] <= AGAIN
        if m.causal:
            ids = Generator(spread.model, spread.params, spread.mesh).generate(
                rows.tolist(), DecodeConfig(NEW, temperature=0)
            )
            np.testing.assert_array_equal(ids, np.repeat(written, 2, axis=0))
    record(variant, **figures)


def test_every_family_is_compared():
    assert set(FIRST) == set(FAMILIES) == {v.family for v in VARIANTS if v.id not in NIGHTLY}
    assert {v.id for v in VARIANTS} > NIGHTLY
