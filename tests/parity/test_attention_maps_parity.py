"""Attention maps beside transformers' own, in families of every kind."""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install -e '.[parity]'"
)
pytest.importorskip(
    "transformers", reason="parity tests need the extra: pip install -e '.[parity]'"
)

from reference import PAD, VARIANTS, VOCAB, make

from llm_jax.checkpoints.open_run import open_run
from llm_jax.convert.hf import from_hf
from llm_jax.evaluation.attention import attention_of, head_figures

pytestmark = pytest.mark.parity

FAMILIES = ["t5-relu tied", "bart-plain", "gpt2-tied", "llama-untied"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_head_looks_where_theirs_looks(name, tmp_path):
    variant = next(v for v in VARIANTS if v.id == name)
    theirs = make(variant).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    from_hf(tmp_path / "theirs", tmp_path / "ours")
    ours = open_run(tmp_path / "ours")
    rng = np.random.default_rng(3)
    ids = rng.integers(PAD + 1, VOCAB, 9).tolist()
    reads = rng.integers(PAD + 1, VOCAB, 12).tolist() if ours.config.model.encoder else []
    theirs.set_attn_implementation("eager")
    given = {"decoder_input_ids": torch.tensor([ids]), "input_ids": torch.tensor([reads])}
    with torch.no_grad():
        out = theirs(
            **(given if reads else {"input_ids": torch.tensor([ids])}), output_attentions=True
        )
    if reads:
        wanted = [*out.encoder_attentions, *out.decoder_attentions, *out.cross_attentions]
    else:
        wanted = list(out.attentions)
    maps = attention_of(ours, ids, reads)
    assert len(maps) == len(wanted)
    for found, their in zip(maps, wanted):
        np.testing.assert_allclose(found.weights, their.numpy(), atol=1e-5)
    assert len(head_figures(maps)) == sum(jax.numpy.shape(m.weights)[1] for m in maps)
