"""The base transformer of "Attention Is All You Need" (Vaswani et al. 2017, table 3): 6 + 6 layers,
D 512, for translation.

    llm-jax data prepare --input train.jsonl --encoder-field de --text-field en --block-size 256
    --tokenizer tokenizer/ --out pairs/ llm-jax train configs/translate_base.py --data.path=pairs/

Norms after each residual sum, sinusoidal positions, one embedding for both languages and the
output, dropout and label smoothing 0.1, the paper's learning rate. A step is 128 rows of 256 tokens
on each side, about the paper's 25,000 once padding is off; 100,000 steps. With a vocabulary of
37,000, 63 M parameters. Hardware: 4 TPU v5e chips (6.1 GiB of each, by `llm-jax plan
configs/translate_base.py --topology v5e:2x2`).
"""

from llm_jax.config import Config, override

SLICES = ("v5e:2x2",)


def config() -> Config:
    return override(
        Config(),
        {
            "name": "translate_base",
            "model.num_layers": 6,
            "model.encoder.num_layers": 6,
            "model.embed_dim": 512,
            "model.attention.num_heads": 8,
            "model.mlp.hidden_dim": 2048,
            "model.mlp": "plain",
            "model.mlp.activation": "relu",
            "model.mlp.bias": True,
            "model.norm": "layer",
            "model.norm.bias": True,
            "model.norm.position": "post",
            "model.norm.final": False,
            "model.positions": "sinusoidal",
            "model.embedding.scale_by_width": True,
            "model.init_std": 512**-0.5,
            "model.max_length": 256,
            "model.dropout": 0.1,
            "data.objective": "pairs",
            "data.seq_length": 256,
            "data.objective.encoder_length": 256,
            "data.batch_size": 128,
            "optimizer.learning_rate": (512 * 4000) ** -0.5,
            "optimizer.schedule": "rsqrt",
            "optimizer.warmup_steps": 4000,
            "optimizer.update.beta2": 0.98,
            "optimizer.update.eps": 1e-9,
            "optimizer.weight_decay": 0.0,
            "train.steps": 100000,
            "train.label_smoothing": 0.1,
            "train.eval_every": 2000,
            "train.checkpoint_every": 2000,
        },
    )
