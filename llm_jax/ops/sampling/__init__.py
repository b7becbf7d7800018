"""Sampling of the next token from logits [B, V].

Settings are per row, so that one compiled program serves all.
"""

from llm_jax.ops.sampling.contrastive import contrastive_scores
from llm_jax.ops.sampling.draws import ALL_BANNED, categorical, greedy, row_keys
from llm_jax.ops.sampling.filters import (
    epsilon_cutoff,
    eta_cutoff,
    min_p,
    top_h,
    top_k,
    top_p,
    typical_p,
)
from llm_jax.ops.sampling.guidance import guide
from llm_jax.ops.sampling.history import History, history_of
from llm_jax.ops.sampling.lengths import force_token, length_decay, min_new_tokens
from llm_jax.ops.sampling.logprobs import Logprobs, token_logprobs
from llm_jax.ops.sampling.penalties import (
    encoder_repetition_penalty,
    frequency_penalty,
    presence_penalty,
    repetition_penalty,
    scale_temperature,
    token_counts,
)
from llm_jax.ops.sampling.process import PROCESSORS, process
from llm_jax.ops.sampling.sequences import (
    encoder_no_repeat_ngram,
    no_repeat_ngram,
    sequence_bias,
)
from llm_jax.ops.sampling.settings import Filters, Penalties, Rules, Settings, Watermark, off
from llm_jax.ops.sampling.stops import (
    MATCHED,
    START,
    StopTable,
    TokenBytes,
    advance_stops,
    stop_table,
    token_bytes_table,
)
from llm_jax.ops.sampling.tokens import (
    all_banned,
    allow_tokens,
    logit_bias,
    pack_mask,
    remove_invalid,
    renormalize,
    unpack_mask,
)
from llm_jax.ops.sampling.warp import ORDERS, filter_logits, filters_off, warp_logits
from llm_jax.ops.sampling.watermark import Detection, detect_watermark, watermark

__all__ = [
    "ALL_BANNED",
    "MATCHED",
    "ORDERS",
    "PROCESSORS",
    "START",
    "Detection",
    "Filters",
    "History",
    "Logprobs",
    "Penalties",
    "Rules",
    "Settings",
    "StopTable",
    "TokenBytes",
    "Watermark",
    "advance_stops",
    "all_banned",
    "allow_tokens",
    "categorical",
    "contrastive_scores",
    "detect_watermark",
    "encoder_no_repeat_ngram",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "filter_logits",
    "filters_off",
    "force_token",
    "frequency_penalty",
    "greedy",
    "guide",
    "history_of",
    "length_decay",
    "logit_bias",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram",
    "off",
    "pack_mask",
    "presence_penalty",
    "process",
    "remove_invalid",
    "renormalize",
    "repetition_penalty",
    "row_keys",
    "scale_temperature",
    "sequence_bias",
    "stop_table",
    "token_bytes_table",
    "token_counts",
    "token_logprobs",
    "top_h",
    "top_k",
    "top_p",
    "typical_p",
    "unpack_mask",
    "warp_logits",
    "watermark",
]
