"""A 1.2 billion parameter decoder (Llama-3.2-1B shape), 20 billion tokens.

    llm-jax train configs/lm_1b.py --data.path=shards/
    llm-jax bench train --config configs/lm_1b.py

Hardware: 8 TPU v5e chips (12.2 GiB of each, by `llm-jax plan configs/lm_1b.py --topology v5e:2x4`).
On one GPU raise train.accumulation; parameters and optimizer state take 12 bytes a parameter.
"""

from llm_jax.config import Config, override

SLICES = ("v5e:2x4",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "lm_1b",
            "model.vocab_size": 128256,
            "model.num_layers": 16,
            "model.embed_dim": 2048,
            "model.attention.num_heads": 32,
            "model.attention.num_kv_heads": 8,
            "model.attention.head_dim": 64,
            "model.mlp.hidden_dim": 8192,
            "model.max_length": 2048,
            "model.positions.theta": 500000.0,
            "execution.remat": "dots",
            "mesh.data": 1,
            "mesh.fsdp": -1,
            "data.seq_length": 2048,
            "data.batch_size": 256,
            "optimizer.learning_rate": 4e-4,
            "optimizer.warmup_steps": 2000,
            "train.accumulation": 8,
            "train.z_loss": 1e-4,
            "train.steps": 40000,
            "train.eval_every": 1000,
            "train.checkpoint_every": 1000,
        },
    )
