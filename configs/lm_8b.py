"""An 8 billion parameter decoder (Llama-3-8B shape), context 8,192.

    llm-jax train configs/lm_8b.py --data.path=shards/

Hardware: 64 TPU v5p chips (18.8 GiB of each, by `llm-jax plan configs/lm_8b.py --topology
v5p:4x4x4`).
"""

from llm_jax.config import Config, override

SLICES = ("v5p:4x4x4",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "lm_8b",
            "model.vocab_size": 128256,
            "model.num_layers": 32,
            "model.embed_dim": 4096,
            "model.attention.num_heads": 32,
            "model.attention.num_kv_heads": 8,
            "model.mlp.hidden_dim": 14336,
            "model.max_length": 8192,
            "model.positions.theta": 500000.0,
            "model.embedding.tied": False,
            "execution.remat": "full",
            "mesh.data": 1,
            "mesh.fsdp": -1,
            "data.seq_length": 8192,
            "data.batch_size": 512,
            "optimizer.learning_rate": 3e-4,
            "optimizer.warmup_steps": 2000,
            "train.accumulation": 2,
            "train.z_loss": 1e-4,
            "train.steps": 250000,
            "train.eval_every": 2000,
            "train.checkpoint_every": 1000,
        },
    )
