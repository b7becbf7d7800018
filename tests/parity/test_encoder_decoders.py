"""Encoder–decoders against transformers': the same random weights give the same logits and the same greedy text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need the extra: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra: pip install -e '.[parity]'")

from encoder_rows import TOLERANCE, checked_build, dense, heads, norm, params_of, randomise  # noqa: E402

from llm_jax.config import DecodeConfig, ModelConfig  # noqa: E402
from llm_jax.decode import Generator  # noqa: E402
from llm_jax.decode.parity import check_parity  # noqa: E402
from llm_jax.ops.relative import distance_buckets  # noqa: E402
from llm_jax.types import Batch  # noqa: E402

pytestmark = pytest.mark.parity

VOCAB, READS, WRITES, WIDTH, HEADS, HIDDEN, LENGTH, PAD = 131, 2, 3, 48, 4, 88, 512, 1
BASE = ModelConfig(
    vocab_size=VOCAB, num_layers=WRITES, encoder_layers=READS, start_token=PAD, embed_dim=WIDTH, num_heads=HEADS, mlp_dim=HIDDEN,
    max_length=LENGTH,
)
STACKS = {"encoder/": range(READS)}
SHAPE = {"vocab_size": VOCAB, "d_model": WIDTH, "pad_token_id": PAD, "attn_implementation": "eager", "decoder_start_token_id": PAD,
         "bos_token_id": None, "eos_token_id": None}  # fmt: skip
SIZES = SHAPE | {
    "encoder_layers": READS, "decoder_layers": WRITES, "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": HIDDEN, "decoder_ffn_dim": HIDDEN, "max_position_embeddings": LENGTH, "forced_eos_token_id": None,
}  # fmt: skip


def t5_rows(gated: bool, tied: bool) -> list:
    rows = [("shared.weight", "embed/embedding", "same")]
    for theirs, ours, mlp in (("encoder", "encoder/", 1), ("decoder", "", 2)):
        block = f"{theirs}.block.{{l}}.layer"
        rows += [
            (f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{ours}relative/bias", "same"),
            *heads(f"{block}.0.SelfAttention", f"{ours}layers/attention", ("q", "k", "v", "o"), bias=False),
            *norm(f"{block}.0.layer_norm", f"{ours}layers/attention_norm", bias=False),
            *dense(f"{block}.{mlp}.DenseReluDense.wo", f"{ours}layers/mlp/down", bias=False),
            *norm(f"{block}.{mlp}.layer_norm", f"{ours}layers/mlp_norm", bias=False),
            *norm(f"{theirs}.final_layer_norm", f"{ours}final_norm", bias=False),
        ]
        for name, our in {"wi_0": "gate", "wi_1": "up"}.items() if gated else {"wi": "up"}.items():
            rows += dense(f"{block}.{mlp}.DenseReluDense.{name}", f"{ours}layers/mlp/{our}", bias=False)
    rows += heads("decoder.block.{l}.layer.1.EncDecAttention", "layers/cross_attention", ("q", "k", "v", "o"), bias=False)
    rows += norm("decoder.block.{l}.layer.1.layer_norm", "layers/cross_attention_norm", bias=False)
    return rows if tied else [*rows, ("lm_head.weight", "head/kernel", "kernel")]


def bart_rows(embedding_norm: bool, learned: bool) -> list:
    """Of BART, and of Marian, which has neither."""
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    rows = [("model.shared.weight", "embed/embedding", "same"), ("final_logits_bias", "head/bias", "row")]
    for theirs, ours in (("model.encoder", "encoder/"), ("model.decoder", "")):
        layer = f"{theirs}.layers.{{l}}"
        rows += [
            *heads(f"{layer}.self_attn", f"{ours}layers/attention", names, bias=True),
            *norm(f"{layer}.self_attn_layer_norm", f"{ours}layers/attention_norm"),
            *dense(f"{layer}.fc1", f"{ours}layers/mlp/up"),
            *dense(f"{layer}.fc2", f"{ours}layers/mlp/down"),
            *norm(f"{layer}.final_layer_norm", f"{ours}layers/mlp_norm"),
        ]
        rows += norm(f"{theirs}.layernorm_embedding", f"{ours}embedding_norm") if embedding_norm else []
        rows += [(f"{theirs}.embed_positions.weight", f"{ours}positions/positions", "same")] if learned else []
    rows += heads("model.decoder.layers.{l}.encoder_attn", "layers/cross_attention", names, bias=True)
    return rows + norm("model.decoder.layers.{l}.encoder_attn_layer_norm", "layers/cross_attention_norm")


def t5(gated: bool, tied: bool):
    config = transformers.T5Config(
        **SHAPE, d_kv=10, d_ff=HIDDEN, num_layers=READS, num_decoder_layers=WRITES, num_heads=HEADS, relative_attention_num_buckets=16,
        relative_attention_max_distance=40, feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=tied,
    )
    config.tie_word_embeddings = tied  # its constructor sets True whatever is given
    ours = dataclasses.replace(
        BASE, norm="rms", norm_eps=1e-6, positions="relative", relative_buckets=16, relative_max_distance=40, head_dim=10,
        attention_scale=1.0, tied_embeddings=tied, logit_scale=WIDTH**-0.5 if tied else 1.0, mlp="gated" if gated else "plain",
        activation="gelu_tanh" if gated else "relu",
    )
    reference = transformers.T5ForConditionalGeneration(config)
    reference.set_input_embeddings(reference.shared)  # of both stacks, also where the output projection is another
    return reference, ours, t5_rows(gated, tied)


POST = dataclasses.replace(
    BASE, norm="layer", norm_bias=True, norm_position="post", final_norm=False, mlp="plain", qkv_bias=True, out_bias=True, mlp_bias=True,
    head_bias=True,
)


def bart(scaled: bool):
    config = transformers.BartConfig(**SIZES, activation_function="gelu", scale_embedding=scaled)
    ours = dataclasses.replace(
        POST, positions="learned", position_offset=2, embedding_norm=True, activation="gelu", scale_embeddings=scaled
    )
    return transformers.BartForConditionalGeneration(config), ours, bart_rows(embedding_norm=True, learned=True)


def marian(activation: str):
    config = transformers.MarianConfig(**SIZES, activation_function=activation, scale_embedding=True)
    same = "silu" if activation == "swish" else activation
    ours = dataclasses.replace(POST, positions="sinusoidal", scale_embeddings=True, activation=same)
    return transformers.MarianMTModel(config), ours, bart_rows(embedding_norm=False, learned=False)


FAMILIES = {
    "t5 relu tied": lambda: t5(gated=False, tied=True),
    "t5 relu untied": lambda: t5(gated=False, tied=False),
    "t5 gated tied": lambda: t5(gated=True, tied=True),
    "t5 gated untied": lambda: t5(gated=True, tied=False),
    "bart": lambda: bart(scaled=False),
    "bart scaled": lambda: bart(scaled=True),
    "marian": lambda: marian("swish"),
    "marian gelu": lambda: marian("gelu"),
}


def made(family: str, seed: int):
    reference, config, rows = FAMILIES[family]()
    # Marian's positions are computed, though kept as a weight.
    randomise(reference.eval(), seed, keep=("embed_positions",) if "marian" in family else ())
    if "t5" in family:
        # As its own initialisation has it: scores are not scaled, and with logits scaled the embedding is wide.
        for name, weight in reference.named_parameters():
            weight.data *= config.head_size**-0.5 if name.endswith("Attention.q.weight") else 1
        reference.shared.weight.data *= 3 if config.tied_embeddings else 1
    return reference, config, params_of(reference, rows, config, STACKS)


def random_tokens(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(PAD + 1, VOCAB, shape)


def rows_of(tokens: np.ndarray, real: np.ndarray, read: np.ndarray, read_real: np.ndarray) -> Batch:
    """Rows of which ``real`` marks the tokens that are no padding, wherever they stand."""
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    as_int = lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
    batch = Batch(as_int(tokens), as_int(tokens), jnp.asarray(real), as_int(real), as_int(positions))
    return batch._replace(encoder_tokens=as_int(read), encoder_segment_ids=as_int(read_real))


def our_logits(config, params, batch: Batch, layers: str = "unroll") -> np.ndarray:
    model = checked_build(config, params, layers)
    return np.asarray(jax.jit(lambda p, b: model.logits(p, model.apply(p, b).hidden))(params, batch))


def their_logits(reference, tokens, read, read_real=None) -> np.ndarray:
    mask = None if read_real is None else torch.tensor(read_real.astype(int))
    with torch.no_grad():
        return reference(torch.tensor(read), attention_mask=mask, decoder_input_ids=torch.tensor(tokens)).logits.numpy()


def assert_close(ours, theirs) -> None:
    assert np.std(theirs) > 0.3, "the logits are too flat to tell anything"
    print(f"largest difference {np.abs(ours - theirs).max():.1e}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def whole(x: np.ndarray) -> np.ndarray:
    return np.ones(x.shape, bool)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family: str) -> None:
    reference, config, params = made(family, 1)
    for length, layers in ((40, "scan"), (LENGTH, "unroll")):
        read, tokens = random_tokens(length, 2, length), random_tokens(length + 1, 2, length - 7)
        ours = our_logits(config, params, rows_of(tokens, whole(tokens), read, whole(read)), layers)
        assert_close(ours, their_logits(reference, tokens, read))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["t5 relu tied", "bart", "marian"])
def test_padding_changes_nothing(family: str, side: str) -> None:
    """Rows with padding in encoder and decoder give what transformers gives of each alone."""
    reference, config, params = made(family, 2)

    def padded(seed: int, width: int, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.arange(width)[None]
        real = at < lengths[:, None] if side == "right" else at >= width - lengths[:, None]
        return np.where(real, random_tokens(seed, len(lengths), width), PAD), real

    read, read_real = padded(3, 20, np.array([20, 5, 13]))
    tokens, real = padded(2, 14, np.array([6, 14, 1]))
    ours = our_logits(config, params, rows_of(tokens, real, read, read_real))
    for b in range(3):
        alone = their_logits(reference, tokens[b][real[b]][None], read[b][read_real[b]][None])[0]
        np.testing.assert_allclose(ours[b][real[b]], alone, rtol=0, atol=TOLERANCE)


def their_greedy(reference, read: np.ndarray, new: int) -> list[int]:
    text = torch.full((1, 1), PAD)
    with torch.no_grad():
        for _ in range(new):
            text = torch.cat([text, reference(torch.tensor(read)[None], decoder_input_ids=text).logits[:, -1:].argmax(-1)], dim=1)
    return text[0, 1:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_through_the_cache(family: str) -> None:
    """Prompts of different lengths in one batch, padded on the right, against each alone."""
    reference, config, params = made(family, 3 if family in ("t5 relu tied", "marian") else 4)
    prompts = [random_tokens(i, n).tolist() for i, n in enumerate((24, 5, 11))]
    generator = Generator(checked_build(config, params), params)
    ours = generator.generate(prompts, DecodeConfig(max_new_tokens=32, temperature=0.0))
    assert ours == [their_greedy(reference, np.array(p), 32) for p in prompts]
    # Random post-norm models repeat themselves; that every step is right whatever came before is the next test.
    assert len({t for row in ours for t in row}) > (4 if "t5" in family else 1), "the text is too dull to tell anything"
    assert list(generator.stream(prompts[1], DecodeConfig(max_new_tokens=6, temperature=0.0))) == ours[1][:6]


@pytest.mark.parametrize("family", ["t5 gated tied", "bart", "marian"])
def test_cached_decoding_equals_the_full_forward_pass(family: str) -> None:
    _, config, params = made(family, 4)
    rows, read = ([random_tokens(i, n).tolist() for i, n in enumerate(lengths)] for lengths in ((20, 12, 17), (9, 30, 2)))
    found = check_parity(checked_build(config, params), params, rows, [8, 1, 5], read)
    assert found.compared == 12 + 11 + 12 and found.difference < 1e-5


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (16, 40), (8, 20), (64, 256)])
@pytest.mark.parametrize("causal", [True, False])
def test_every_distance_is_in_their_bucket(buckets: int, distance: int, causal: bool) -> None:
    after = np.arange(-600, 601)
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        torch.tensor(after), bidirectional=not causal, num_buckets=buckets, max_distance=distance
    ).numpy()
    known = distance_buckets(buckets if causal else buckets // 2, distance)
    apart = np.minimum(np.maximum(-after, 0) if causal else np.abs(after), distance)
    np.testing.assert_array_equal(known[apart] + (0 if causal else (after > 0) * (buckets // 2)), theirs)
