"""A small encoder–decoder that learns summaries from pairs of a text and its summary: 6 + 6 layers,
D 512.

    llm-jax data prepare --input train.jsonl --encoder-field document --text-field summary
    --block-size 256 --encoder-block-size 1024 \\
        --tokenizer tokenizer/ --out pairs/
    llm-jax train configs/summarize_small.py --data.path=pairs/

Texts of up to 1,024 tokens, several pairs in a row where they are shorter; a longer pair is left
out and counted by `data prepare`. Rotary positions, norms before each sub-layer, gated MLPs. With a
vocabulary of 32,000, 61 M parameters. Hardware: 4 TPU v5e chips (11.9 GiB of each, by `llm-jax plan
configs/summarize_small.py --topology v5e:2x2`).
"""

from llm_jax.config import Config, override

SLICES = ("v5e:2x2",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "summarize_small",
            "model.num_layers": 6,
            "model.encoder.num_layers": 6,
            "model.embed_dim": 512,
            "model.attention.num_heads": 8,
            "model.mlp.hidden_dim": 1408,
            "model.max_length": 1024,
            "model.dropout": 0.1,
            "data.objective": "pairs",
            "data.seq_length": 256,
            "data.objective.encoder_length": 1024,
            "data.batch_size": 64,
            "optimizer.learning_rate": 5e-4,
            "optimizer.warmup_steps": 1000,
            "optimizer.update.beta2": 0.98,
            "train.steps": 20000,
            "train.label_smoothing": 0.1,
            "train.eval_every": 1000,
            "train.checkpoint_every": 1000,
        },
    )
