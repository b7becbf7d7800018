"""A mixture of experts of 6.9 billion parameters, 1.3 billion of them met by each token
(OLMoE-1B-7B shape), context 4,096.

    llm-jax train configs/moe_7b.py --data.path=shards/

Hardware: 16 TPU v5p chips (42.9 GiB of each, by `llm-jax plan configs/moe_7b.py --topology
v5p:2x2x4`).
"""

from llm_jax.config import Config, override

SLICES = ("v5p:2x2x4",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "moe_7b",
            "model.vocab_size": 50304,
            "model.num_layers": 16,
            "model.embed_dim": 2048,
            "model.attention.num_heads": 16,
            "model.mlp.hidden_dim": 1024,
            "model.max_length": 4096,
            "model.attention.qk_norm": "head",
            "model.embedding.tied": False,
            "model.experts.count": 64,
            "model.experts.per_token": 8,
            "model.experts.normalize": False,
            "model.experts.balance.weight": 0.01,
            "model.experts.router_z_loss": 0.001,
            "execution.remat": "full",
            "mesh.data": 1,
            "mesh.fsdp": -1,
            "mesh.expert": 4,
            "data.seq_length": 4096,
            "data.batch_size": 256,
            "optimizer.learning_rate": 4e-4,
            "optimizer.warmup_steps": 2000,
            "train.accumulation": 2,
            "train.z_loss": 1e-4,
            "train.steps": 250000,
            "train.eval_every": 2000,
            "train.checkpoint_every": 1000,
        },
    )
