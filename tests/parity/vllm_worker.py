"""Run by a Python that has vLLM: loads models one after another and writes what it makes of token
ids, for ``test_vllm.py``.

    python vllm_worker.py JOBS.json OUT.json

A job: {"id", "folder", "ids" (lists of token ids), "new" (tokens to write; 0: embed)}. Of each, OUT
has {"ids", "log_probabilities"} or {"embeddings"}, a list of each prompt's, or {"error"}.
"""

import gc
import json
import os
import sys

# In this process, so that one job's end frees what it had.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def run(job: dict) -> dict:
    prompts = [{"prompt_token_ids": ids} for ids in job["ids"]]
    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
    if not job["new"]:
        llm = LLM(
            job["folder"], runner="pooling", pooler_config={"pooling_type": "MEAN"}, **settings
        )
        return {"embeddings": [list(out.outputs.embedding) for out in llm.embed(prompts)]}
    llm = LLM(job["folder"], skip_tokenizer_init=True, **settings)
    # The prompt's own log-probabilities, not those of other tokens.
    greedy = SamplingParams(
        temperature=0, max_tokens=job["new"], ignore_eos=True, detokenize=False, prompt_logprobs=0
    )
    found = llm.generate(prompts, greedy)
    scores = [
        [at[i].logprob for at, i in zip(out.prompt_logprobs[1:], ids[1:])]
        for out, ids in zip(found, job["ids"])
    ]
    return {"ids": [list(out.outputs[0].token_ids) for out in found], "log_probabilities": scores}


def main() -> None:
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    results = {}
    for job in jobs:
        try:
            results[job["id"]] = run(job)
        except Exception as error:  # noqa: BLE001 - the test of that model says it, the others go on
            results[job["id"]] = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
        cleanup_dist_env_and_memory()
    with open(sys.argv[2], "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
