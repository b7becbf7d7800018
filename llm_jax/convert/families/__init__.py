"""Every family that can be read and written, by the ``model_type`` of its config file."""

from __future__ import annotations

from llm_jax.convert.families.bart import BART, MARIAN
from llm_jax.convert.families.bert import BERT, ROBERTA
from llm_jax.convert.families.deepseek import DEEPSEEK2, DEEPSEEK3
from llm_jax.convert.families.distilbert import DISTILBERT
from llm_jax.convert.families.experts import MIXTRAL, QWEN3_MOE
from llm_jax.convert.families.gemma import GEMMA, GEMMA2, GEMMA3
from llm_jax.convert.families.gpt import GPT2, GPT_NEOX
from llm_jax.convert.families.gpt_oss import GPT_OSS
from llm_jax.convert.families.llama import GRANITE, LLAMA, MISTRAL, OLMO2, QWEN2, QWEN3, SMOLLM3
from llm_jax.convert.families.modernbert import MODERNBERT
from llm_jax.convert.families.phi3 import PHI3
from llm_jax.convert.families.stablelm import STABLELM
from llm_jax.convert.families.t5 import T5

FAMILIES = {
    f.model_type: f
    for f in (
        GPT2,
        LLAMA,
        MISTRAL,
        MIXTRAL,
        QWEN2,
        QWEN3,
        QWEN3_MOE,
        GEMMA,
        GEMMA2,
        GEMMA3,
        PHI3,
        OLMO2,
        SMOLLM3,
        GRANITE,
        STABLELM,
        GPT_NEOX,
        DEEPSEEK2,
        DEEPSEEK3,
        GPT_OSS,
        BERT,
        ROBERTA,
        DISTILBERT,
        MODERNBERT,
        T5,
        BART,
        MARIAN,
    )
}
