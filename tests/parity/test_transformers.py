"""What the families' variants do not compare with transformers: rotary frequencies to the last bit,
buckets of distances, types of tokens, the mean over tokens, and batches padded as transformers pads
them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.config import override

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install -e '.[parity]'"
)
transformers = pytest.importorskip(
    "transformers", reason="parity tests need the extra: pip install -e '.[parity]'"
)

from reference import PAD, VARIANTS, VOCAB, make

from llm_jax.checkpoints.open_run import open_run
from llm_jax.commands.convert import convert_verify
from llm_jax.convert.hf import from_hf
from llm_jax.convert.verify import compare, table
from llm_jax.models import build, class_logits
from llm_jax.ops import mean_pool, rope_frequencies
from llm_jax.ops.relative import distance_buckets
from llm_jax.types import Batch, Tokens

pytestmark = pytest.mark.parity

TOLERANCE, LENGTH = 1e-4, 1024
# Our settings beside theirs. The long context is eight times the original one, so every branch of
# the scaling is in use.
SCALINGS = {
    "none": ({}, {}),
    "linear": ({"scaling": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "llama3": (
        {
            "scaling": "llama3",
            "factor": 8.0,
            "original_length": 128,
            "low_frequency": 1.0,
            "high_frequency": 4.0,
        },
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 128,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    "yarn": (
        {"scaling": "yarn", "factor": 8.0, "original_length": 128},
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
    ),
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rope_frequencies_are_theirs_to_the_last_bit(scaling: str) -> None:
    """Where PyTorch's power is not the nearest float32, one bit of it may differ: 1.7 % of 3,105
    (theta, head size) pairs tried.
    """
    ours, theirs = SCALINGS[scaling]
    equal = []
    for theta in (10000.0, 500000.0):
        for head_size in (64, 80, 128):
            rope = {"rope_type": "default", **theirs, "rope_theta": theta}
            config = transformers.LlamaConfig(
                head_dim=head_size, max_position_embeddings=LENGTH, rope_parameters=rope
            )
            want = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
                config
            ).inv_freq.numpy()
            got, _ = rope_frequencies(head_size, theta=theta, **ours)
            np.testing.assert_array_max_ulp(got, want, maxulp=2)
            equal.append(got == want)
    assert np.mean(np.concatenate(equal)) > 0.95


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 40), (8, 20), (64, 256)])
@pytest.mark.parametrize("causal", [True, False])
def test_every_distance_is_in_their_bucket(buckets: int, distance: int, causal: bool) -> None:
    after = np.arange(-600, 601)
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        torch.tensor(after), bidirectional=not causal, num_buckets=buckets, max_distance=distance
    ).numpy()
    known = distance_buckets(buckets if causal else buckets // 2, distance)
    apart = np.minimum(np.maximum(-after, 0) if causal else np.abs(after), distance)
    np.testing.assert_array_equal(
        known[apart] + (0 if causal else (after > 0) * (buckets // 2)), theirs
    )


def converted(id: str, tmp_path, **changed):
    """The variant of that id, some of its settings changed: their model, and ours as a run."""
    variant = next(v for v in VARIANTS if v.id == id)
    reference = make(variant._replace(settings=variant.settings | changed))
    reference.save_pretrained(tmp_path / "theirs")
    from_hf(tmp_path / "theirs", tmp_path / "ours")
    return reference, open_run(tmp_path / "ours")


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(PAD + 1, VOCAB, shape)


def rows_of(tokens: np.ndarray, real: np.ndarray, types: np.ndarray | None = None) -> Batch:
    """Rows of which ``real`` marks the tokens that are no padding, wherever they stand."""
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    ids, segments, positions = (
        jnp.asarray(x, jnp.int32) for x in (tokens, real.astype(np.int32), positions)
    )
    return Batch(
        Tokens(ids, segments, positions, token_types=types),
        targets=ids,
        loss_mask=jnp.asarray(real),
    )


def logits(model, params, batch: Batch) -> np.ndarray:
    return np.asarray(
        jax.jit(lambda p, b: model.logits(p, model.apply(p, b).hidden))(params, batch)
    )


def test_ntk_frequencies_are_those_of_a_raised_theta(tmp_path) -> None:
    """transformers has only the dynamic form; static NTK is plain rotation with theta ·
    factor^(H/(H-2)).
    """
    theta = 10000.0 * 4.0 ** (12 / 10)
    reference, run = converted(
        "llama-untied", tmp_path, rope_parameters={"rope_type": "default", "rope_theta": theta}
    )
    assert run.config.model.head_dim == 12 and run.config.model.positions.theta == theta
    ntk = override(
        run.config.model,
        {"positions.theta": 10000.0, "positions.scaling": "ntk", "positions.scaling.factor": 4.0},
    )
    tokens = random_tokens(2, 512)
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens)).logits.numpy()
    ours = logits(build(ntk), run.params, rows_of(tokens, np.ones(tokens.shape, bool)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_types_of_tokens(tmp_path) -> None:
    reference, run = converted("bert-masked tokens", tmp_path)
    tokens = random_tokens(2, 32)
    types = (np.arange(32)[None] >= np.array([[9], [20]])).astype(np.int32)
    with torch.no_grad():
        theirs = reference(
            torch.tensor(tokens), token_type_ids=torch.tensor(types, dtype=torch.long)
        ).logits.numpy()
    ours = logits(run.model, run.params, rows_of(tokens, np.ones(tokens.shape, bool), types))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


# Its DistilBERT cannot be told the positions of rows padded on the left, and counts those of the
# padding.
PADDED = [
    (id, side)
    for id in ("bert-masked tokens", "roberta-masked tokens", "distilbert-tied", "modernbert-tied")
    for side in ("left", "right")
    if (id, side) != ("distilbert-tied", "left")
]


@pytest.mark.parametrize(("id", "side"), PADDED)
def test_rows_of_other_lengths_are_as_in_their_padded_batch(id: str, side: str, tmp_path) -> None:
    """Its BERT must be told the positions of rows padded on the left."""
    reference, run = converted(id, tmp_path)
    tokens, lengths, at = random_tokens(3, 24), np.array([[24], [7], [15]]), np.arange(24)[None]
    real = at < lengths if side == "right" else at >= 24 - lengths
    tokens[~real] = PAD
    batch = rows_of(tokens, real)
    given = (
        {"position_ids": torch.tensor(np.asarray(batch.inputs.positions), dtype=torch.long)}
        if id.startswith("bert")
        else {}
    )
    with torch.no_grad():
        theirs = reference(
            torch.tensor(tokens), attention_mask=torch.tensor(real.astype(int)), **given
        ).logits.numpy()
    np.testing.assert_allclose(
        logits(run.model, run.params, batch)[real], theirs[real], rtol=0, atol=TOLERANCE
    )


def test_the_mean_over_what_is_no_padding(tmp_path) -> None:
    reference, run = converted("bert-alone", tmp_path)
    tokens, real = random_tokens(4, 20), np.arange(20)[None] < np.array([[20], [6], [11], [1]])
    marked = torch.tensor(real)[..., None].float()
    with torch.no_grad():
        hidden = reference(
            torch.tensor(tokens), attention_mask=torch.tensor(real.astype(int))
        ).last_hidden_state
    ours = mean_pool(run.model.apply(run.params, rows_of(tokens, real)).hidden, jnp.asarray(real))
    np.testing.assert_allclose(
        ours, (hidden * marked).sum(1) / marked.sum(1), rtol=0, atol=TOLERANCE
    )


SAYS = [
    ("bert-alone", "hidden states"),
    ("bert-masked tokens", "logits"),
    ("t5-relu tied", "logits"),
    ("t5-encoder", "hidden states"),
    ("bart-alone", "hidden states"),
]


def test_classes_of_the_mean_over_what_is_no_padding(tmp_path) -> None:
    reference, run = converted("modernbert-classes of the mean", tmp_path)
    tokens, real = random_tokens(4, 20), np.arange(20)[None] < np.array([[20], [6], [11], [1]])
    with torch.no_grad():
        theirs = reference(
            torch.tensor(tokens), attention_mask=torch.tensor(real.astype(int))
        ).logits.numpy()
    hidden = run.model.apply(run.params, rows_of(tokens, real)).hidden
    ours = class_logits(run.config.model, run.params, hidden, jnp.asarray(real))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("id", "what"), SAYS)
def test_verify_compares_what_the_model_says(id: str, what: str, tmp_path) -> None:
    _, run = converted(id, tmp_path)
    found = compare(run, tmp_path / "theirs", random_tokens(1, 24))
    assert found.what == what and found.gap.shape == (1, 24) and found.gap.max() <= TOLERANCE
    assert f"{what} have a standard deviation" in table(found)


@pytest.mark.parametrize(
    "id", ["roberta-masked tokens", "roberta-alone", "bart-plain", "gpt2-tied"]
)
def test_the_command_finds_every_conversion_equal_and_a_changed_one_not(id, tmp_path) -> None:
    """Of ids up to padding's, RoBERTa does not count the places: they are not among the random
    ones.
    """
    converted(id, tmp_path)
    for seed in range(3):
        assert (
            convert_verify(
                tmp_path / "theirs", tmp_path / "ours", length=300, seed=seed, tolerance=TOLERANCE
            )
            == 0
        )
    other = make(next(v for v in VARIANTS if v.id == id), seed=1)
    other.save_pretrained(tmp_path / "other")
    assert convert_verify(tmp_path / "other", tmp_path / "ours", length=30) == 1
