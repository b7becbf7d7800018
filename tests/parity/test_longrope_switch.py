"""Phi-3's two lists of rope factors against transformers: at every length, in packed rows, and in
text that is written over the switch.
"""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

from reference import VOCAB, Variant, make

from llm_jax.checkpoints.open_run import open_run
from llm_jax.config import DecodeConfig
from llm_jax.convert.hf import from_hf, to_hf
from llm_jax.decode import Generator
from llm_jax.models import rows_of
from llm_jax.types import Batch, Tokens

ORIGINAL, NEW, TOLERANCE = 64, 10, 2e-5
LISTS = {
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [1.0 + 1.7 * i for i in range(6)],
}
PHI3 = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "original_max_position_embeddings": ORIGINAL,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": ORIGINAL,
        **LISTS,
    },
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("longrope")
    reference = make(Variant("phi3", "longrope", "Phi3Config", "Phi3ForCausalLM", PHI3))
    reference.save_pretrained(folder / "theirs")
    from_hf(folder / "theirs", folder / "ours")
    return reference, open_run(folder / "ours"), folder


def text(length, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def theirs(reference, ids):
    with torch.no_grad():
        return reference(torch.tensor([ids])).logits[0].float().numpy()


@pytest.fixture(scope="module")
def forward(both):
    model = both[1].model
    run = jax.jit(lambda params, batch: model.logits(params, model.apply(params, batch).hidden))
    return lambda batch: np.asarray(run(both[1].params, batch))


@pytest.mark.parametrize("length", [1, 20, 63, 64, 65, 66, 100, 128])
def test_the_same_logits_at_every_length(both, forward, length):
    ids = text(length)
    tokens = np.zeros((1, 128), np.int32)
    tokens[0, :length] = ids
    got = forward(rows_of(tokens, np.array([length])))[0, :length]
    np.testing.assert_allclose(got, theirs(both[0], ids), atol=TOLERANCE)


def test_texts_packed_in_one_row_are_as_if_each_were_alone(both, forward):
    texts = [text(n, n) for n in (64, 20, 65, 7, 90)]
    sizes = [len(ids) for ids in texts]
    tokens = np.concatenate(texts)[None].astype(np.int32)
    segments = np.repeat(np.arange(1, 6), sizes)[None].astype(np.int32)
    positions = np.concatenate([np.arange(n) for n in sizes])[None].astype(np.int32)
    got = forward(
        Batch(inputs=Tokens(tokens, segments, positions), targets=tokens, loss_mask=segments != 0)
    )[0]
    for ids, begin in zip(texts, np.cumsum([0, *sizes])):
        np.testing.assert_allclose(
            got[begin : begin + len(ids)], theirs(both[0], ids), atol=TOLERANCE
        )


def test_text_written_over_the_switch_is_theirs(both, forward):
    """Each row as transformers writes it alone: where it passes, it computes everything anew."""
    reference, run, _ = both
    prompts = [text(n, 100 + n) for n in (60, 64, 65, 20, 55, 54)]
    how = {
        "do_sample": False,
        "max_new_tokens": NEW,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    generator = Generator(run.model, run.params)
    config = DecodeConfig(max_new_tokens=NEW, temperature=0)
    written = generator.generate(prompts, config)
    for prompt, new in zip(prompts, written):
        out = reference.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **how
        )
        assert new == out.sequences[0, len(prompt) :].tolist()
        assert list(generator.stream(prompt, config)) == new
        for n, logits in enumerate(out.logits):
            row = [*prompt, *new[:n]]
            tokens = np.zeros((1, 128), np.int32)
            tokens[0, : len(row)] = row
            got = forward(rows_of(tokens, np.array([len(row)])))[0, len(row) - 1]
            np.testing.assert_allclose(got, logits[0].float().numpy(), atol=TOLERANCE)


def test_both_lists_are_written_back(both):
    _, run, folder = both
    assert run.config.model.positions.scaling.factors == tuple(LISTS["long_factor"])
    assert run.config.model.positions.scaling.short_factors == tuple(LISTS["short_factor"])
    to_hf(folder / "ours", folder / "again")
    before, after = (
        json.loads((folder / name / "config.json").read_text()) for name in ("theirs", "again")
    )
    assert {key: after[key] for key in before} == before
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "again", attn_implementation="eager"
    ).eval()
    for length in (20, 100):
        np.testing.assert_array_equal(theirs(loaded, text(length)), theirs(both[0], text(length)))


def test_a_context_within_the_original_has_the_short_list_alone(both):
    _, run, folder = both
    m = from_hf(folder / "theirs", folder / "short", max_length=ORIGINAL)
    assert (
        m.positions.scaling.factors == tuple(LISTS["short_factor"])
        and m.positions.scaling.short_factors == ()
    )
    assert open_run(folder / "short").model.config.rope_switch == 0
    longer = from_hf(folder / "theirs", folder / "longer", max_length=ORIGINAL + 1)
    assert (
        longer.positions.scaling.short_factors == run.config.model.positions.scaling.short_factors
    )
