"""BERT small (Turc et al. 2019), pre-trained on hidden tokens: 4 layers, D 512, learned positions.

    llm-jax tokenizer train --input text/ --vocab-size 30000 --control-symbols '<mask>' --out
    tokenizer/ llm-jax data prepare --input text/ --tokenizer tokenizer/ --out shards/ llm-jax train
    configs/bert_small.py --data.path=shards/

15 % of the tokens are hidden, others in every epoch; there is no second objective on pairs of
sentences. A step is 256 rows of 512 tokens. Two token types, of which only the first is used, so
that `llm-jax convert to-hf` writes it as a BertForMaskedLM. With a vocabulary of 30,522, 28.8 M
parameters. Hardware: 4 TPU v5e chips (9.7 GiB of each, by `llm-jax plan configs/bert_small.py
--topology v5e:2x2`).
"""

from llm_jax.config import Config, override

SLICES = ("v5e:2x2",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "bert_small",
            "model.causal": False,
            "model.num_layers": 4,
            "model.embed_dim": 512,
            "model.attention.num_heads": 8,
            "model.mlp.hidden_dim": 2048,
            "model.mlp": "plain",
            "model.mlp.activation": "gelu",
            "model.norm": "layer",
            "model.norm.bias": True,
            "model.norm.eps": 1e-12,
            "model.norm.position": "post",
            "model.norm.final": False,
            "model.embedding.norm": True,
            "model.positions": "learned",
            "model.embedding.token_types": 2,
            "model.attention.qkv_bias": True,
            "model.attention.out_bias": True,
            "model.mlp.bias": True,
            "model.head.transform": "on",
            "model.head.transform.bias": True,
            "model.head.bias": True,
            "model.max_length": 512,
            "model.dropout": 0.1,
            "data.objective": "masked",
            "data.seq_length": 512,
            "data.batch_size": 256,
            "optimizer.learning_rate": 1e-4,
            "optimizer.schedule": "linear",
            "optimizer.schedule.final_ratio": 0.0,
            "optimizer.warmup_steps": 10000,
            "optimizer.update.beta2": 0.999,
            "optimizer.update.eps": 1e-6,
            "optimizer.weight_decay": 0.01,
            "train.steps": 250000,
            "train.eval_every": 5000,
            "train.checkpoint_every": 5000,
        },
    )
