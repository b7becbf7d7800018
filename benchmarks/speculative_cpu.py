"""Speculative decoding on a CPU: steps and time against the model alone, on a text that copies.

The model goes on with the text that it has read: its head maps each token to the one that follows
it in a fixed order of all tokens, and its layers add noise, which a temperature makes visible. A
prompt has a part of that order, and then begins it again. So prompt lookup finds what comes next as
often as the model follows the prompt. Size and work are those of a model of about 30 M parameters.

    python benchmarks/speculative_cpu.py [--new 128] [--prompt 192] [--tokens 4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import jax
import numpy as np

from llm_jax import models
from llm_jax.config import DecodeConfig, ModelConfig, override
from llm_jax.config.draft import DraftConfig
from llm_jax.decode import Generator
from llm_jax.decode.drafts import Draft
from llm_jax.types import Params

V = 4096
FIELDS = {
    "vocab_size": V,
    "num_layers": 8,
    "embed_dim": 512,
    "attention.num_heads": 8,
    "mlp.hidden_dim": 1376,
    "max_length": 1024,
    "embedding.tied": False,
}


def copier(config: ModelConfig, following: np.ndarray, noise: float) -> tuple[models.Model, Params]:
    """A model after whose token t comes ``following[t]``, but for ``noise`` of its layers."""
    model = models.build(config)
    params = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(V, config.embed_dim)).astype(np.float32)
    head = np.empty_like(embedding)
    head[following] = embedding
    params["embed"]["embedding"] = embedding
    params["head"]["kernel"] = head.T * 16 / config.embed_dim
    params["layers"] = jax.tree_util.tree_map_with_path(
        lambda path, a: a if path[-1].key == "scale" else a * noise, params["layers"]
    )
    return model, params


def seconds(generator: Generator, prompts: list[list[int]], config: DecodeConfig, rounds: int):
    """The texts, and the median time of a call."""
    found = generator.complete(prompts, config)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        generator.complete(prompts, config)
        times.append(time.perf_counter() - start)
    return [completion for (completion,) in found], statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=192)
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--noise", type=float, default=1.0)
    args = parser.parse_args()
    config = override(ModelConfig(), FIELDS)
    order = np.random.default_rng(2).permutation(V)
    following = np.empty(V, np.int64)
    following[order] = np.roll(order, -1)
    model, params = copier(config, following, args.noise)
    # A part of the order, and its first tokens again.
    part = order[: args.prompt - 8].tolist()
    drafts = {
        "alone": None,
        "lookup": Draft(DraftConfig("lookup", tokens=args.tokens)),
        "early_exit:1": Draft(DraftConfig("early_exit", tokens=args.tokens, layers=1)),
    }
    for batch in (1, 8):
        prompts = [part + part[row : row + 8] for row in range(batch)]
        for temperature in (0.0, 0.6):
            settings = DecodeConfig(max_new_tokens=args.new, temperature=temperature)
            alone = None
            for name, draft in drafts.items():
                generator = Generator(model, params, draft=draft)
                found, time_taken = seconds(generator, prompts, settings, args.rounds)
                alone = alone or (found, time_taken)
                row = found[0]
                steps = args.new - row.accepted
                print(
                    json.dumps(
                        {
                            "draft": name,
                            "batch": batch,
                            "temperature": temperature,
                            "same_text": [c.ids for c in found] == [c.ids for c in alone[0]],
                            "drafted": row.drafted,
                            "accepted": row.accepted,
                            "tokens_a_step": round(args.new / steps, 2),
                            "faster": round(alone[1] / time_taken, 2),
                            "tokens_a_second": round(batch * args.new / time_taken, 1),
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
