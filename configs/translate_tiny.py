"""A 7.6 M parameter transformer that learns to translate on two CPU cores.

    llm-jax tokenizer train --input pairs/train.jsonl --encoder-field en --text-field pt
    --vocab-size 8000 --out tokenizer/ llm-jax data prepare --input pairs/train.jsonl --validation
    pairs/validation.jsonl --encoder-field en --text-field pt \\
        --block-size 256 --tokenizer tokenizer/ --out shards/
    llm-jax train configs/translate_tiny.py --data.path=shards/

Pairs: examples/libreoffice_pairs.py. Hardware: any CPU; time and result: docs/translation.md. 3 + 3
layers, D 256.
"""

from llm_jax.config import Config, override

SLICES = ("cpu:1",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "translate_tiny",
            "model.num_layers": 3,
            "model.encoder.num_layers": 3,
            "model.embed_dim": 256,
            "model.attention.num_heads": 4,
            "model.mlp.hidden_dim": 1024,
            "model.mlp": "plain",
            "model.mlp.activation": "relu",
            "model.max_length": 256,
            "model.dropout": 0.15,
            "data.objective": "pairs",
            "data.seq_length": 256,
            "data.objective.encoder_length": 256,
            "data.batch_size": 16,
            "optimizer.update": "muon",
            "optimizer.learning_rate": 0.02,
            "optimizer.update.adam_learning_rate": 0.005,
            "optimizer.warmup_steps": 100,
            "train.steps": 1000,
            "train.label_smoothing": 0.1,
            "train.eval_every": 200,
            "train.checkpoint_every": 200,
        },
    )
