"""Families of transformers' models, small and with random weights: what ``test_families.py``
converts and compares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers

VOCAB = 132
LONG, SHORT = 4097, 512


class Variant(NamedTuple):
    """A model of a family. config: its class · model: its class · settings: of the config · length:
    positions compared.
    """

    family: str
    name: str
    config: str
    model: str
    settings: dict[str, Any]
    length: int = SHORT

    @property
    def id(self) -> str:
        return f"{self.family}-{self.name}"


_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
_LONG = {"max_position_embeddings": 8192}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return _LONG | {
        "rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 8.0, **more}
    }


SCALINGS = {
    "linear": _rope("linear"),
    "llama3": _rope(
        "llama3", original_max_position_embeddings=1024, low_freq_factor=1.0, high_freq_factor=4.0
    ),
    "yarn": _rope("yarn", original_max_position_embeddings=1024, beta_fast=32.0, beta_slow=1.0),
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 1024,
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [1.0 + 1.7 * i for i in range(6)],
}


def _variants(
    family: str,
    stem: str,
    variants: dict[str, dict],
    head: str = "ForCausalLM",
    base: dict | None = None,
) -> list[Variant]:
    """Settings of each variant beside ``base``; those with a changed rotation are compared as far
    as it changes.
    """
    out = []
    for name, more in variants.items():
        settings = (_SIZES if base is None else base) | more
        length = LONG if settings.get("max_position_embeddings", 0) > 4096 else SHORT
        out.append(
            Variant(
                family,
                name,
                f"{stem}Config",
                f"{stem.removesuffix('Text')}{head}",
                settings,
                length,
            )
        )
    return out


_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 512,
    "bos_token_id": None,
    "eos_token_id": None,
}
_NEOX = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"} | {
    "hidden_size": 64,
    "intermediate_size": 96,
}
_HEADS = {"head_dim": 16}
_TIED, _WINDOW, _NO_WINDOW = (
    {"tie_word_embeddings": True},
    {"sliding_window": 40},
    {"sliding_window": None},
)
_GATED = _WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
_EXPERTS = {"num_experts_per_tok": 2}
_FOUR = _EXPERTS | {"num_local_experts": 4}
_LATENT = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "kv_lora_rank": 20,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 8,
    "q_lora_rank": 28,
    "n_group": 4,
    "topk_group": 2,
}
_TWO = _LATENT | {
    "topk_method": "group_limited_greedy",
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 2,
}
_LITE = _TWO | {"topk_method": "greedy", "q_lora_rank": None, "first_k_dense_replace": 0}
_THREE = _LATENT | {"n_shared_experts": 1, "first_k_dense_replace": 1}
_MSCALE = _rope(
    "yarn",
    original_max_position_embeddings=1024,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=0.7,
)
_OSS = _HEADS | _FOUR | _WINDOW
_PLAIN = {"rope_parameters": {"rope_type": "default", "rope_theta": 1.5e5}}
_OSS_YARN = _rope("yarn", original_max_position_embeddings=1024, truncate=False)
_SEVEN = {"num_hidden_layers": 7}
# RoBERTa counts positions from the id of padding on.
PAD = 1
_BERT = {
    k: v for k, v in _SIZES.items() if k not in ("num_key_value_heads", "tie_word_embeddings")
} | {
    "max_position_embeddings": SHORT,
    "pad_token_id": PAD,
}
_ROBERTA = _BERT | {
    "max_position_embeddings": SHORT + PAD + 1,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
_DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": 48,
    "hidden_dim": 88,
    "n_layers": 3,
    "n_heads": 4,
    "max_position_embeddings": SHORT,
    "pad_token_id": PAD,
}
_MODERNBERT = _BERT | {
    "num_hidden_layers": 5,
    "local_attention": 12,
    "global_attn_every_n_layers": 3,
    "cls_token_id": None,
    "sep_token_id": None,
}
_BIASES = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "classifier_bias": True}
_TEXT = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "pad_token_id": PAD,
    "decoder_start_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
}
_T5 = _TEXT | {
    "d_kv": 10,
    "d_ff": 88,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 40,
}
_GELU, _UNTIED = {"feed_forward_proj": "gated-gelu"}, {"tie_word_embeddings": False}
_BART = _TEXT | {
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 88,
    "decoder_ffn_dim": 88,
    "max_position_embeddings": SHORT,
    "forced_eos_token_id": None,
}
VARIANTS = [
    *_variants(
        "gpt2",
        "GPT2",
        {"tied": {}, "inner": {"n_inner": 88, "activation_function": "gelu"}},
        "LMHeadModel",
        _GPT2,
    ),
    *_variants(
        "llama",
        "Llama",
        {
            "untied": {},
            "tied": _TIED,
            "biases": {"attention_bias": True, "mlp_bias": True},
            "one key head": {"num_key_value_heads": 1},
            "wide heads": {"head_dim": 20},
            **SCALINGS,
        },
    ),
    *_variants(
        "mistral",
        "Mistral",
        {
            "window": _WINDOW,
            "full": _NO_WINDOW,
            "yarn": SCALINGS["yarn"] | _NO_WINDOW | {"head_dim": 12},
        },
    ),
    *_variants("mixtral", "Mixtral", {"window": _FOUR | _WINDOW, "full": _FOUR}),
    *_variants(
        "qwen2", "Qwen2", {"full": {}, "tied": _TIED, "windows": _GATED, "yarn": SCALINGS["yarn"]}
    ),
    *_variants(
        "qwen3",
        "Qwen3",
        {
            "full": _HEADS,
            "tied": _HEADS | _TIED,
            "biases": _HEADS | {"attention_bias": True},
            "windows": _HEADS | _GATED,
        },
    ),
    *_variants(
        "qwen3_moe",
        "Qwen3Moe",
        {
            name: (
                _HEADS
                | _EXPERTS
                | {
                    "num_experts": 4,
                    "moe_intermediate_size": 40,
                    "norm_topk_prob": norm,
                }
            )
            for name, norm in (("weights of the best", True), ("weights of all", False))
        },
    ),
    *_variants("gemma", "Gemma", {"tied": _HEADS | _TIED}),
    *_variants(
        "gemma2", "Gemma2", {"windows": _HEADS | _TIED | _WINDOW | {"query_pre_attn_scalar": 24}}
    ),
    *_variants(
        "gemma3_text",
        "Gemma3Text",
        {
            "windows": _HEADS | _TIED | _WINDOW | _SEVEN,
            "linear": (
                _HEADS
                | _TIED
                | _WINDOW
                | _SEVEN
                | _LONG
                | {
                    "rope_parameters": {
                        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    }
                }
            ),
        },
    ),
    *_variants(
        "phi3",
        "Phi3",
        {
            "full": {},
            "window": _WINDOW,
            "longrope": (
                _LONG | {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 1024}
            ),
            "partial": {
                "hidden_size": 64,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.75,
                },
            },
        },
    ),
    *_variants("olmo2", "Olmo2", {"untied": {}, "biases": {"attention_bias": True}}),
    *_variants(
        "smollm3",
        "SmolLM3",
        {
            "tied": _TIED | {"num_hidden_layers": 5},
            "every other layer": {"no_rope_layers": [1, 0, 1]},
        },
    ),
    *_variants(
        "granite",
        "Granite",
        {
            "scales": (
                _TIED
                | {
                    "embedding_multiplier": 12.0,
                    "residual_multiplier": 0.22,
                    "attention_multiplier": 0.0625,
                    "logits_scaling": 8.0,
                }
            )
        },
    ),
    *_variants(
        "stablelm",
        "StableLm",
        {
            "untied": {},
            "tied": _TIED,
            "biases": {"use_qkv_bias": True},
            "half": {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
            "linear": SCALINGS["linear"],
        },
        base=_SIZES | {"hidden_size": 64},
    ),
    *_variants(
        "gpt_neox",
        "GPTNeoX",
        {
            "parallel": {},
            "in turn": {"use_parallel_residual": False},
            "without biases": {"attention_bias": False},
            "tied": _TIED,
        },
        base=_NEOX,
    ),
    *_variants(
        "deepseek_v2",
        "DeepseekV2",
        {"groups": _TWO, "lite": _LITE, "yarn": _TWO | _MSCALE | {"attention_bias": True}},
    ),
    *_variants(
        "deepseek_v3",
        "DeepseekV3",
        {
            "groups": _THREE,
            "queries of the input": _THREE | {"q_lora_rank": None, "norm_topk_prob": False},
            "yarn": _THREE | _MSCALE | {"attention_bias": True},
        },
    ),
    *_variants(
        "gpt_oss",
        "GptOss",
        {
            "yarn": _OSS | _OSS_YARN,
            "low clamp": _OSS | _PLAIN | {"swiglu_limit": 0.7},
            "without biases": _OSS | _PLAIN | {"attention_bias": False},
        },
    ),
    *_variants(
        "bert",
        "Bert",
        {"masked tokens": {}, "relu": {"hidden_act": "relu"}, "untied": _UNTIED},
        "ForMaskedLM",
        _BERT,
    ),
    *_variants("bert", "Bert", {"classes": {"num_labels": 5}}, "ForSequenceClassification", _BERT),
    *_variants("bert", "Bert", {"alone": {}}, "Model", _BERT),
    *_variants(
        "roberta", "Roberta", {"masked tokens": {}, "untied": _UNTIED}, "ForMaskedLM", _ROBERTA
    ),
    *_variants(
        "roberta", "Roberta", {"classes": {"num_labels": 3}}, "ForSequenceClassification", _ROBERTA
    ),
    *_variants("roberta", "Roberta", {"alone": {}}, "Model", _ROBERTA),
    *_variants(
        "distilbert", "DistilBert", {"tied": {}, "untied": _UNTIED}, "ForMaskedLM", _DISTILBERT
    ),
    *_variants(
        "distilbert",
        "DistilBert",
        {"classes": {"num_labels": 3}},
        "ForSequenceClassification",
        _DISTILBERT,
    ),
    *_variants("distilbert", "DistilBert", {"alone": {}}, "Model", _DISTILBERT),
    *_variants(
        "modernbert",
        "ModernBert",
        {
            "tied": {},
            "untied": _UNTIED,
            "biases": _BIASES,
            "without a bias": {"decoder_bias": False},
        },
        "ForMaskedLM",
        _MODERNBERT,
    ),
    *_variants(
        "modernbert",
        "ModernBert",
        {
            "classes of the first": {"num_labels": 3},
            "classes of the mean": _BIASES | {"num_labels": 5, "classifier_pooling": "mean"},
        },
        "ForSequenceClassification",
        _MODERNBERT,
    ),
    *_variants("modernbert", "ModernBert", {"alone": {}}, "Model", _MODERNBERT),
    *_variants(
        "t5",
        "T5",
        {
            "relu tied": {},
            "relu untied": _UNTIED,
            "gated tied": _GELU,
            "gated untied": _GELU | _UNTIED,
            "not scaled": _GELU | {"scale_decoder_outputs": False},
        },
        "ForConditionalGeneration",
        _T5,
    ),
    *_variants("t5", "T5", {"alone": {}}, "Model", _T5),
    *_variants("t5", "T5", {"encoder": {}, "gated encoder": _GELU}, "EncoderModel", _T5),
    *_variants(
        "bart",
        "Bart",
        {
            "plain": {},
            "scaled": {"scale_embedding": True},
            "a wider encoder": {"encoder_ffn_dim": 104},
        },
        "ForConditionalGeneration",
        _BART,
    ),
    *_variants("bart", "Bart", {"alone": {}}, "Model", _BART),
    *_variants(
        "marian",
        "Marian",
        {
            "swish": {"activation_function": "swish", "scale_embedding": True},
            "gelu": {"activation_function": "gelu"},
        },
        "MTModel",
        _BART,
    ),
    *_variants("marian", "Marian", {"alone": {}}, "Model", _BART),
]


def _of_this_version(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` with rotations as transformers 4 has them, where it is that."""
    if int(transformers.__version__.split(".")[0]) >= 5 or "rope_parameters" not in settings:
        return settings
    out = dict(settings)
    given = out.pop("rope_parameters")
    main = dict(given.get("full_attention", given))
    beside = {key: main.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in main}
    if "sliding_attention" in given:
        beside["rope_local_base_freq"] = given["sliding_attention"]["rope_theta"]
    if main["rope_type"] == "longrope":
        return (
            out
            | beside
            | {
                "rope_scaling": (
                    {"type": "longrope"} | {k: v for k, v in main.items() if k.endswith("_factor")}
                )
            }
        )
    return out | beside | {"rope_scaling": None if main["rope_type"] == "default" else main}


# What another variant of the same family, or the same field in another family, shows in every run;
# scripts/nightly compares these too.
NIGHTLY = frozenset(
    {
        "llama-wide heads",
        "llama-linear",
        "mistral-yarn",
        "mixtral-full",
        "qwen2-tied",
        "qwen2-yarn",
        "qwen3-tied",
        "qwen3-biases",
        "gemma3_text-linear",
        "phi3-window",
        "olmo2-biases",
        "stablelm-tied",
        "stablelm-linear",
        "gpt_neox-without biases",
        "gpt_neox-tied",
        "deepseek_v2-lite",
        "deepseek_v3-queries of the input",
        "deepseek_v3-yarn",
        "gpt_oss-low clamp",
        "gpt_oss-without biases",
        "bert-relu",
        "bert-alone",
        "roberta-untied",
        "roberta-alone",
        "distilbert-untied",
        "distilbert-alone",
        "modernbert-untied",
        "modernbert-biases",
        "modernbert-without a bias",
        "modernbert-classes of the first",
        "t5-relu untied",
        "t5-gated tied",
        "t5-not scaled",
        "t5-alone",
        "t5-gated encoder",
        "bart-scaled",
        "bart-alone",
        "marian-gelu",
        "marian-alone",
    }
)

# What transformers 4 computes otherwise than the model's authors and transformers 5 do.
ONLY_5 = {
    "deepseek_v2-yarn": "transformers 4 does not scale the scores of DeepSeek-V2 by mscale_all_dim",
    "gpt_oss-low clamp": "transformers 4 clamps gpt-oss at 7, whatever swiglu_limit says",
    "t5-not scaled": "transformers 4 has no scale_decoder_outputs",
}


def make(variant: Variant, seed: int = 0) -> Any:
    """The model, every weight away from its initial value, norms, biases and buffers of routers
    too, so that a forgotten one shows.
    """
    config = getattr(transformers, variant.config)(
        **_of_this_version(variant.settings), attn_implementation="eager"
    )
    # T5's constructor sets it whatever is given.
    config.tie_word_embeddings = variant.settings.get(
        "tie_word_embeddings", config.tie_word_embeddings
    )
    model = getattr(transformers, variant.model)(config).eval()
    if config.is_encoder_decoder:
        # Of both stacks, also where the output projection is another.
        model.set_input_embeddings(model.get_input_embeddings())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        # Without gradients are tables that are computed.
        for name, p in ((n, p) for n, p in model.named_parameters() if p.requires_grad):
            noise = torch.randn(p.shape, generator=generator)
            offset = "gemma" in variant.family
            scale = p.ndim == 1 and name.endswith("weight")
            p.copy_(
                (0 if offset else 1) + 0.3 * noise
                if scale
                else (0.3 if p.ndim == 1 else p.shape[-1] ** -0.5) * noise
            )
            if name.endswith("Attention.q.weight"):
                # T5 does not scale scores.
                p.mul_(config.d_kv**-0.5)
        for name, b in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "final_logits_bias")):
                b.copy_(0.2 * torch.randn(b.shape, generator=generator))
        for head in (m for m in model.modules() if hasattr(m, "decoder") and hasattr(m, "bias")):
            # Untied, transformers 4 has one tensor under both names, 5 two, of which it adds the
            # decoder's; equal, both versions agree.
            head.decoder.bias.copy_(head.bias)
    return model
