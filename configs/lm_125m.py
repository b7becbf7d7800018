"""A 125 M parameter decoder (12 layers, D 768), 2.5 billion tokens.

    llm-jax train configs/lm_125m.py --data.path=shards/

Hardware: 4 TPU v5e chips (5.2 GiB of each, by `llm-jax plan configs/lm_125m.py --topology
v5e:2x2`). On one chip raise train.accumulation to 64. Vocabulary from the tokenizer; 32,000 makes
about 110 M parameters.
"""

from llm_jax.config import Config, override

SLICES = ("v5e:2x2",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "lm_125m",
            "model.num_layers": 12,
            "model.embed_dim": 768,
            "model.attention.num_heads": 12,
            "model.mlp.hidden_dim": 2048,
            "model.max_length": 2048,
            "data.seq_length": 2048,
            "data.batch_size": 128,
            "optimizer.learning_rate": 6e-4,
            "optimizer.warmup_steps": 500,
            "train.accumulation": 16,
            "train.steps": 9500,
            "train.eval_every": 500,
        },
    )
