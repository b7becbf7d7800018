"""A 70 billion parameter decoder (Llama-3-70B shape), context 8,192.

    llm-jax train configs/lm_70b.py --data.path=shards/

Hardware: 512 TPU v5p chips (65.8 GiB of each, by `llm-jax plan configs/lm_70b.py --topology
v5p:8x8x8`). Mesh, remat and accumulation are what `--search` found best for them.
"""

from llm_jax.config import Config, override

SLICES = ("v5p:8x8x8",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "lm_70b",
            "model.vocab_size": 128256,
            "model.num_layers": 80,
            "model.embed_dim": 8192,
            "model.attention.num_heads": 64,
            "model.attention.num_kv_heads": 8,
            "model.mlp.hidden_dim": 28672,
            "model.max_length": 8192,
            "model.positions.theta": 500000.0,
            "model.embedding.tied": False,
            "execution.remat": "dots",
            "mesh.data": -1,
            "mesh.fsdp": 128,
            "mesh.tensor": 2,
            "data.seq_length": 8192,
            "data.batch_size": 512,
            "optimizer.learning_rate": 1.5e-4,
            "optimizer.warmup_steps": 2000,
            "train.accumulation": 2,
            "train.z_loss": 1e-4,
            "train.steps": 250000,
            "train.eval_every": 2000,
            "train.checkpoint_every": 1000,
        },
    )
