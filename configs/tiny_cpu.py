"""A 1.5 M parameter decoder that learns on two CPU cores.

    llm-jax train configs/tiny_cpu.py --train.steps=200 --data.path=shards/

Hardware: any CPU. 200 steps take about a minute on two cores.
"""

from llm_jax.config import Config, override

SLICES = ("cpu:1",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "tiny",
            "model.num_layers": 4,
            "model.embed_dim": 128,
            "model.attention.num_heads": 4,
            "model.mlp.hidden_dim": 384,
            "model.max_length": 256,
            "data.seq_length": 256,
            "data.batch_size": 16,
            "optimizer.update": "muon",
            "optimizer.learning_rate": 0.02,
            "optimizer.update.adam_learning_rate": 0.005,
            "optimizer.warmup_steps": 20,
            "train.steps": 500,
            "train.eval_every": 100,
            "train.checkpoint_every": 100,
        },
    )
