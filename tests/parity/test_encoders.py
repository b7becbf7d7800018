"""Encoders against transformers': the same random weights give the same logits, hidden states and classes of rows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity tests need the extra: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra: pip install -e '.[parity]'")

from encoder_rows import TOLERANCE, checked_build, dense, heads, norm, params_of, randomise  # noqa: E402

from llm_jax.config import ModelConfig  # noqa: E402
from llm_jax.models import class_logits, pooled  # noqa: E402
from llm_jax.ops import mean_pool  # noqa: E402
from llm_jax.types import Batch  # noqa: E402

pytestmark = pytest.mark.parity

VOCAB, LAYERS, WIDTH, HEADS, HIDDEN, LENGTH = 131, 3, 48, 4, 88, 512
PAD = 1  # RoBERTa counts positions from the padding id on, and knows padding by it
ENCODER = ModelConfig(
    vocab_size=VOCAB, num_layers=LAYERS, embed_dim=WIDTH, num_heads=HEADS, mlp_dim=HIDDEN, max_length=LENGTH, causal=False, norm="layer",
    norm_bias=True, norm_eps=1e-12, norm_position="post", final_norm=False, positions="learned", mlp="plain", activation="gelu",
    qkv_bias=True, out_bias=True, mlp_bias=True, embedding_norm=True, head_transform=True, head_transform_bias=True, head_bias=True,
)
SIZES = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "attn_implementation": "eager", "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


def bert_body(theirs: str) -> list:
    """Of BERT and RoBERTa."""
    layer = f"{theirs}.encoder.layer.{{l}}"
    return [
        (f"{theirs}.embeddings.word_embeddings.weight", "embed/embedding", "same"),
        (f"{theirs}.embeddings.position_embeddings.weight", "positions/positions", "same"),
        (f"{theirs}.embeddings.token_type_embeddings.weight", "token_types/embedding", "same"),
        *norm(f"{theirs}.embeddings.LayerNorm", "embedding_norm"),
        *heads(f"{layer}.attention", "layers/attention", ("self.query", "self.key", "self.value", "output.dense"), bias=True),
        *norm(f"{layer}.attention.output.LayerNorm", "layers/attention_norm"),
        *dense(f"{layer}.intermediate.dense", "layers/mlp/up"),
        *dense(f"{layer}.output.dense", "layers/mlp/down"),
        *norm(f"{layer}.output.LayerNorm", "layers/mlp_norm"),
    ]


BERT_HEAD = [
    *dense("cls.predictions.transform.dense", "head_transform"),
    *norm("cls.predictions.transform.LayerNorm", "head_transform/norm"),
    ("cls.predictions.bias", "head/bias", "same"),
]
POOLER = [*dense("bert.pooler.dense", "pooler"), *dense("classifier", "classes")]
ROBERTA_HEAD = [
    *dense("lm_head.dense", "head_transform"),
    *norm("lm_head.layer_norm", "head_transform/norm"),
    ("lm_head.bias", "head/bias", "same"),
]
DISTILBERT = [
    ("distilbert.embeddings.word_embeddings.weight", "embed/embedding", "same"),
    ("distilbert.embeddings.position_embeddings.weight", "positions/positions", "same"),
    *norm("distilbert.embeddings.LayerNorm", "embedding_norm"),
    *heads("distilbert.transformer.layer.{l}.attention", "layers/attention", ("q_lin", "k_lin", "v_lin", "out_lin"), bias=True),
    *norm("distilbert.transformer.layer.{l}.sa_layer_norm", "layers/attention_norm"),
    *dense("distilbert.transformer.layer.{l}.ffn.lin1", "layers/mlp/up"),
    *dense("distilbert.transformer.layer.{l}.ffn.lin2", "layers/mlp/down"),
    *norm("distilbert.transformer.layer.{l}.output_layer_norm", "layers/mlp_norm"),
]
DISTILBERT_HEAD = [
    *dense("vocab_transform", "head_transform"),
    *norm("vocab_layer_norm", "head_transform/norm"),
    ("vocab_projector.bias", "head/bias", "same"),
]


def bert():
    config = transformers.BertConfig(**SIZES, max_position_embeddings=LENGTH, type_vocab_size=2)
    ours = dataclasses.replace(ENCODER, token_types=2)
    return transformers.BertForMaskedLM(config), ours, bert_body("bert") + BERT_HEAD


def roberta():
    config = transformers.RobertaConfig(**SIZES, max_position_embeddings=LENGTH + PAD + 1, type_vocab_size=1, layer_norm_eps=1e-5)
    ours = dataclasses.replace(ENCODER, token_types=1, position_offset=PAD + 1, norm_eps=1e-5)
    return transformers.RobertaForMaskedLM(config), ours, bert_body("roberta") + ROBERTA_HEAD


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=VOCAB, dim=WIDTH, hidden_dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, max_position_embeddings=LENGTH,
        attn_implementation="eager", pad_token_id=PAD,
    )
    return transformers.DistilBertForMaskedLM(config), ENCODER, DISTILBERT + DISTILBERT_HEAD


def modernbert_rows(stack: str, attention_norm: bool) -> list:
    qkv = ",".join(f"{stack}/attention/{name}/kernel" for name in ("query", "key", "value"))
    return [
        *(norm("model.layers.{l}.attn_norm", f"{stack}/attention_norm", bias=False) if attention_norm else []),
        ("model.layers.{l}.attn.Wqkv.weight", qkv, "into heads"),
        ("model.layers.{l}.attn.Wo.weight", f"{stack}/attention/out/kernel", "out of heads"),
        *norm("model.layers.{l}.mlp_norm", f"{stack}/mlp_norm", bias=False),
        ("model.layers.{l}.mlp.Wi.weight", f"{stack}/mlp/gate/kernel,{stack}/mlp/up/kernel", "kernel"),
        *dense("model.layers.{l}.mlp.Wo", f"{stack}/mlp/down", bias=False),
    ]


MODERNBERT = [
    ("model.embeddings.tok_embeddings.weight", "embed/embedding", "same"),
    *norm("model.embeddings.norm", "embedding_norm", bias=False),
    *modernbert_rows("first_layers", attention_norm=False),
    *modernbert_rows("layers", attention_norm=True),
    *norm("model.final_norm", "final_norm", bias=False),
    *dense("head.dense", "head_transform", bias=False),
    *norm("head.norm", "head_transform/norm", bias=False),
    ("decoder.bias", "head/bias", "same"),
]


def modernbert():
    """Their window is as many tokens to either side as ours is wide, the token itself included."""
    layers, side = 5, 6
    config = transformers.ModernBertConfig(
        **SIZES | {"num_hidden_layers": layers, "cls_token_id": None, "sep_token_id": None}, max_position_embeddings=LENGTH,
        local_attention=2 * side, global_attn_every_n_layers=3,
    )
    ours = ModelConfig(
        vocab_size=VOCAB, num_layers=layers, embed_dim=WIDTH, num_heads=HEADS, mlp_dim=HIDDEN, max_length=LENGTH, causal=False,
        norm="layer", embedding_norm=True, first_layers=1, first_attention_norm=False, activation="gelu",
        window_pattern=(0, side + 1, side + 1), rope_theta=160000.0, rope_theta_windowed=10000.0, head_transform=True, head_bias=True,
    )
    return transformers.ModernBertForMaskedLM(config), ours, MODERNBERT


FAMILIES = {"bert": bert, "roberta": roberta, "distilbert": distilbert, "modernbert": modernbert}


def made(family: str, seed: int):
    reference, config, rows = FAMILIES[family]()
    randomise(reference.eval(), seed)
    stacks = {"first_layers/": range(config.first_layers), "layers/": range(config.first_layers, config.num_layers)}
    return reference, config, params_of(reference, rows, config, stacks)


def random_tokens(seed: int, length: int, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(PAD + 1, VOCAB, (rows, length))


def rows_of(tokens: np.ndarray, real: np.ndarray, types: np.ndarray | None = None) -> Batch:
    """Rows of which ``real`` marks the tokens that are no padding, wherever they stand."""
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    fields = (tokens, tokens, real, real.astype(np.int32), positions)
    return Batch(*(jnp.asarray(x, bool if x.dtype == bool else jnp.int32) for x in fields), token_types=types)


def our_logits(config, params, batch: Batch, layers: str = "unroll") -> np.ndarray:
    model = checked_build(config, params, layers)
    return np.asarray(jax.jit(lambda p, b: model.logits(p, model.apply(p, b).hidden))(params, batch))


def assert_close(ours, theirs, real=None) -> None:
    theirs = theirs.detach().numpy()
    assert np.std(theirs) > 0.3, "the numbers are too flat to tell anything"
    ours, theirs = (ours, theirs) if real is None else (ours[real], theirs[real])
    print(f"largest difference {np.abs(ours - theirs).max():.1e}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("length", [48, LENGTH])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_token_logits(family: str, length: int) -> None:
    reference, config, params = made(family, length)
    tokens = random_tokens(length, length)
    theirs = reference(torch.tensor(tokens)).logits
    batch = rows_of(tokens, np.ones(tokens.shape, bool))
    assert_close(our_logits(config, params, batch, "scan" if length == 48 else "unroll"), theirs)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family: str, side: str) -> None:
    """Against transformers with the same padding, and alone. Its BERT must be told the positions of rows padded on the left; its
    DistilBERT, which cannot, is right alone.
    """
    reference, config, params = made(family, 3)
    tokens, lengths = random_tokens(3, 24, rows=3), np.array([24, 7, 15])
    at = np.arange(24)[None]
    real = at < lengths[:, None] if side == "right" else at >= 24 - lengths[:, None]
    tokens[~real] = PAD
    batch = rows_of(tokens, real)
    ours = our_logits(config, params, batch)
    if (family, side) != ("distilbert", "left"):
        given = {"position_ids": torch.tensor(np.asarray(batch.positions), dtype=torch.long)} if family == "bert" else {}
        assert_close(ours, reference(torch.tensor(tokens), attention_mask=torch.tensor(real.astype(int)), **given).logits, real)
    for row, keep, out in zip(tokens, real, ours, strict=True):
        assert_close(out[keep], reference(torch.tensor(row[keep])[None]).logits[0])


def test_types_of_tokens() -> None:
    reference, config, params = made("bert", 4)
    tokens = random_tokens(4, 32)
    types = (np.arange(32)[None] >= np.array([[9], [20]])).astype(np.int32)
    theirs = reference(torch.tensor(tokens), token_type_ids=torch.tensor(types, dtype=torch.long)).logits
    assert_close(our_logits(config, params, rows_of(tokens, np.ones(tokens.shape, bool), types)), theirs)


def test_classes_of_rows_and_their_vectors() -> None:
    config = transformers.BertConfig(**SIZES, max_position_embeddings=LENGTH, type_vocab_size=2, num_labels=5)
    reference = transformers.BertForSequenceClassification(config).eval()
    randomise(reference, 5)
    ours = dataclasses.replace(
        ENCODER, token_types=2, head_transform=False, head_transform_bias=False, head_bias=False, pooler="tanh", num_classes=5
    )
    params = params_of(reference, bert_body("bert") + POOLER, ours)
    tokens, real = random_tokens(5, 20, rows=4), np.arange(20)[None] < np.array([[20], [6], [11], [1]])
    mask = torch.tensor(real.astype(int))
    model = checked_build(ours, params)
    hidden = model.apply(params, rows_of(tokens, real)).hidden
    assert_close(np.asarray(class_logits(ours, params, hidden, real)), reference(torch.tensor(tokens), attention_mask=mask).logits)
    body = reference.bert(torch.tensor(tokens), attention_mask=mask)
    assert_close(np.asarray(pooled(ours, params, hidden, real)), body.pooler_output)
    marked = mask[..., None].float()
    assert_close(np.asarray(mean_pool(hidden, jnp.asarray(real))), (body.last_hidden_state * marked).sum(1) / marked.sum(1))
