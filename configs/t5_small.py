"""T5 small (Raffel et al. 2020), pre-trained by span corruption: 6 + 6 layers, D 512, relative
positions.

    llm-jax tokenizer train --input text/ --vocab-size 32000 --sentinels 100 --out tokenizer/
    llm-jax data prepare --input text/ --tokenizer tokenizer/ --out shards/
    llm-jax train configs/t5_small.py --data.path=shards/

Of 512 tokens of text 15 % are cut out in spans of 3 on average; of one long document that is 104
tokens with the sentinels, so 128 have room for some short ones too, and what has none waits for
another epoch. A step is 128 rows. Documents never meet in attention or in a span. With a vocabulary
of 32,128, 60.5 M parameters, as published. Hardware: 4 TPU v5e chips (7.6 GiB of each, by `llm-jax
plan configs/t5_small.py --topology v5e:2x2`).
"""

from llm_jax.config import Config, override

SLICES = ("v5e:2x2",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "t5_small",
            "model.num_layers": 6,
            "model.encoder.num_layers": 6,
            "model.embed_dim": 512,
            "model.attention.num_heads": 8,
            "model.mlp.hidden_dim": 2048,
            "model.mlp": "plain",
            "model.mlp.activation": "relu",
            "model.norm.eps": 1e-6,
            "model.positions": "relative",
            "model.attention.scale": 1.0,
            "model.head.scale": 512**-0.5,
            "model.init_std": 0.05,
            "model.max_length": 512,
            "model.dropout": 0.1,
            "data.objective": "spans",
            "data.seq_length": 128,
            "data.objective.encoder_length": 512,
            "data.batch_size": 128,
            "optimizer.learning_rate": 1e-3,
            "optimizer.schedule": "rsqrt",
            "optimizer.warmup_steps": 10000,
            "train.steps": 524288,
            "train.eval_every": 5000,
            "train.checkpoint_every": 5000,
        },
    )
