"""Training: text to shards, a run that goes on after any stop, its perplexity, its text.

    python examples/train_and_resume.py runs/example

From the checkout's folder; a minute on two CPU cores. On TPU VMs the same config file is started
with ``llm-jax train`` on every host.
"""

# %% Before renting a slice: does the config fit, how fast can it go, what does it cost?
import sys
from pathlib import Path

import llm_jax
from llm_jax.commands.plan import plan

print(plan("configs/lm_1b.py", topology="v5e:2x4", analytic=True))

# %% Text to shards
out = Path(sys.argv[1])
text = ("README.md", "docs")
llm_jax.train_tokenizer(text, out / "tokenizer", vocab_size=512)
llm_jax.prepare(text, out / "tokenizer", out / "shards", block_size=256, workers=1)

# %% Train; the second call goes on from the newest checkpoint of the first
small = {"model.num_layers": 1, "model.embed_dim": 32, "data.seq_length": 128, "data.batch_size": 8}
where = {"data.path": (str(out / "shards"),), "train.out": str(out / "run")}
llm_jax.train("configs/tiny_cpu.py", small | where | {"train.steps": 30})
longer = {"train.steps": 40, "train.allow_changed": ("train.steps",)}
run = llm_jax.train("configs/tiny_cpu.py", small | where | longer)

# %% What it has learned
results = llm_jax.evaluate(run, out / "shards")
print({name: results[name]["perplexity"] for name in ("model", "bigram", "unigram")})
print(llm_jax.generate(run, "The config", max_new_tokens=40, temperature=0.8, seed=1))
