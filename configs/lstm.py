"""A 1.5 M parameter LSTM, for comparison with the transformer of tiny_cpu on the same shards.

    llm-jax train configs/lstm.py --train.steps=200 --data.path=shards/

Hardware: any CPU. docs/recurrent.md has what both learn, and how fast.
"""

from llm_jax.config import Config, override

SLICES = ("cpu:1",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "lstm",
            "model.recurrent": "lstm",
            # As many parameters as tiny_cpu, in the layers and in the embedding.
            "model.recurrent.hidden_dim": 164,
            "model.num_layers": 4,
            "model.embed_dim": 128,
            "model.init_std": 0.05,
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
