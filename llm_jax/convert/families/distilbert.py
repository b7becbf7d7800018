"""DistilBERT: BERT without token types, with other names of tensors."""

from __future__ import annotations

from llm_jax.convert.families.bert import ACTIVATION, BERT, FIXED, embeddings, heads
from llm_jax.convert.families.rows import affine, attention, dense
from llm_jax.convert.family import ConfigKey, TensorMap

_D = "distilbert"
_L = f"{_D}.transformer.layer.{{l}}"
DISTILBERT = BERT._replace(
    model_type="distilbert",
    architecture="DistilBertForMaskedLM",
    fixed={**FIXED, "norm.eps": 1e-12},
    keys=(
        ConfigKey("vocab_size", "vocab_size"),
        ConfigKey("dim", "embed_dim"),
        ConfigKey("hidden_dim", "mlp.hidden_dim"),
        ConfigKey("n_layers", "num_layers"),
        ConfigKey("n_heads", "attention.num_heads"),
        ConfigKey("max_position_embeddings", "max_length"),
        ACTIVATION._replace(source="activation"),
        ConfigKey("tie_word_embeddings", "embedding.tied", True),
    ),
    rows=(
        *embeddings(f"{_D}.embeddings"),
        *attention(f"{_L}.attention", "layers/attention", ("q_lin", "k_lin", "v_lin", "out_lin")),
        *affine(f"{_L}.sa_layer_norm", "layers/attention_norm"),
        *dense(f"{_L}.ffn.lin1", "layers/mlp/up"),
        *dense(f"{_L}.ffn.lin2", "layers/mlp/down"),
        *affine(f"{_L}.output_layer_norm", "layers/mlp_norm"),
        *dense("vocab_transform", "head_transform"),
        *affine("vocab_layer_norm", "head_transform/norm"),
        TensorMap("vocab_projector.weight", "head/kernel", "v d -> d v"),
        TensorMap("vocab_projector.bias", "head/bias", "v -> v"),
        *dense("pre_classifier", "pooler"),
        *dense("classifier", "classes"),
    ),
    required_values={},
    # sinusoidal_pos_embds is how the table of positions was initialized.
    unused=("sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_"),
    prefix=f"{_D}.",
    copies={"vocab_projector.weight": f"{_D}.embeddings.wordembeddings.weight"},
    duplicated_tensors={},
    buffers=(".position_ids",),
    endings={},
    heads=heads("DistilBert", "none", "relu"),
    bare="DistilBertModel",
)
