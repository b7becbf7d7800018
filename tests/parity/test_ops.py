"""Operations against those of transformers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax.numpy as jnp
from transformers import RepetitionPenaltyLogitsProcessor
from transformers.models.bloom import modeling_bloom
from transformers.models.gptj import modeling_gptj

from llm_jax.ops import (
    alibi_slopes,
    repetition_penalty,
    rope_interleaved,
    token_counts,
)

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 12, 14, 16, 25, 112])
def test_slopes_of_bloom(heads):
    mask = torch.tensor([[1, 1]])
    bias = modeling_bloom.build_alibi_tensor(mask, heads, torch.float32)
    np.testing.assert_allclose(alibi_slopes(heads), bias[:, 0, 1].numpy(), rtol=1e-5)


def test_rotation_of_gptj():
    x = torch.randn(2, 5, 3, 16, generator=torch.Generator().manual_seed(0))
    positions = np.array([[0, 1, 2, 3, 4], [9, 0, 1, 30, 2]])
    angles = modeling_gptj.create_sinusoidal_positions(40, 16)[positions]
    sin, cos = torch.split(angles, 8, dim=-1)
    expected = modeling_gptj.apply_rotary_pos_emb(x, sin, cos)
    out = rope_interleaved(jnp.asarray(x.numpy()), jnp.asarray(positions))
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-5)


def test_repetition_penalty():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 20, generator=generator)
    ids = torch.randint(0, 20, (3, 7), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, logits.clone())
    counts = token_counts(jnp.asarray(ids.numpy()), jnp.ones((3, 7), bool), 20)
    out = repetition_penalty(jnp.asarray(logits.numpy()), counts, 1.3)
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-6)
