"""Every architecture of GGUF files: the same random model as transformers has it and as llama.cpp's
converter writes it is one model here.

The names, the turned queries and keys, experts in one tensor and the keys of the metadata are those
of ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from gguf_builders import ARRAY, BOOL, F32, I32, STRING, U32, gguf, key, tensor
from test_gguf_tokenizer import byte_level, sentencepieces

from llm_jax.config import override
from llm_jax.config.sections import value_of
from llm_jax.convert.canonical import resolved
from llm_jax.convert.config_json import read_config
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.families.gguf import ARCHITECTURES
from llm_jax.convert.from_gguf import from_gguf
from llm_jax.convert.hf import from_hf
from llm_jax.convert.model_folder import parameter_shapes
from llm_jax.convert.tensor_writer import TensorWriter
from llm_jax.convert.tensors import tensors
from llm_jax.tensor_file import TensorFile
from llm_jax.tokenizers.open_tokenizer import open_tokenizer
from llm_jax.types import ConfigError

pytest.importorskip(
    "tokenizers", reason="tokenizer.json is read by tokenizers: pip install tokenizers"
)

TOKENS = byte_level()
V = len(TOKENS["tokenizer.ggml.tokens"])
REMOVED = object()
HF = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 50000.0,
    "tie_word_embeddings": False,
}
GGUF = {
    "embedding_length": 32,
    "feed_forward_length": 24,
    "block_count": 4,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 128,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 50000.0,
}
PLAIN = {"attention.layer_norm_rms_epsilon": REMOVED, "attention.layer_norm_epsilon": 1e-6}
EXPERTS = {"expert_count": 4, "expert_used_count": 2}
WIDE, WIDE_GGUF = {"head_dim": 16}, {"attention.key_length": 16, "attention.value_length": 16}


class Case(NamedTuple):
    """family: of transformers · hf, gguf: what their files say beside what all do, None of what
    theirs do not · halves: queries and keys are not turned · one: is in the norms' weights ·
    factors: tensors that are no weights.
    """

    family: str
    hf: dict
    gguf: dict
    halves: bool = True
    one: bool = False
    factors: Mapping[str, list[float]] = {}

    @property
    def their_config(self) -> dict:
        return {key: value for key, value in (HF | self.hf).items() if value is not REMOVED}

    @property
    def keys(self) -> dict:
        return {key: value for key, value in (GGUF | self.gguf).items() if value is not REMOVED}


LLAMA_KEYS = dict.fromkeys(HF, REMOVED) | {"vocab_size": V, "tie_word_embeddings": False}
LONG, SHORT = [1.0, 2.5, 3.0, 4.0], [1.0, 1.25, 1.5, 1.75]
YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "truncate": False,
}
CASES = {
    "llama": Case("llama", {}, {}, halves=False),
    "llama with yarn": Case(
        "llama",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 24.0,
                "beta_slow": 2.0,
            }
        },
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.yarn_beta_fast": 24.0,
            "rope.scaling.yarn_beta_slow": 2.0,
        },
        halves=False,
    ),
    "llama of experts": Case(
        "mixtral",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        EXPERTS,
        halves=False,
    ),
    "qwen2": Case("qwen2", {}, {}),
    "qwen3": Case("qwen3", WIDE, WIDE_GGUF),
    "qwen3moe": Case(
        "qwen3_moe",
        WIDE
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "intermediate_size": 40,
            "norm_topk_prob": True,
        },
        WIDE_GGUF | EXPERTS | {"expert_feed_forward_length": 24, "feed_forward_length": 40},
    ),
    "smollm3": Case("smollm3", {"no_rope_layer_interval": 4}, {}, halves=False),
    "granite": Case(
        "granite",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0625,
            "logits_scaling": 8.0,
        },
        {
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "attention.scale": 0.0625,
            "logit_scale": 8.0,
        },
        halves=False,
    ),
    "olmo2": Case("olmo2", {}, {}),
    "gemma3": Case(
        "gemma3_text",
        WIDE
        | {
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 16,
            "sliding_window": 20,
            "sliding_window_pattern": 6,
            "rope_local_base_freq": 10000.0,
        },
        WIDE_GGUF | {"block_count": 7, "attention.sliding_window": 20},
        one=True,
    ),
    "gemma": Case("gemma", WIDE, WIDE_GGUF, one=True),
    "gemma2": Case(
        "gemma2",
        WIDE
        | {
            "query_pre_attn_scalar": 16,
            "sliding_window": 20,
            "attn_logit_softcapping": 40.0,
            "final_logit_softcapping": 20.0,
        },
        WIDE_GGUF
        | {
            "attention.sliding_window": 20,
            "attn_logit_softcapping": 40.0,
            "final_logit_softcapping": 20.0,
        },
        one=True,
    ),
    "phi3": Case(
        "phi3",
        {"sliding_window": None},
        {"rope.scaling.original_context_length": 128, "attention.sliding_window": 0},
    ),
    "phi3 with a window": Case("phi3", {"sliding_window": 20}, {"attention.sliding_window": 20}),
    "phi3 for long texts": Case(
        "phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 32,
            "rope_scaling": {"type": "longrope", "long_factor": LONG, "short_factor": SHORT},
        },
        {
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": (1 + math.log(4) / math.log(32)) ** 0.5,
        },
        factors={"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
    ),
    "gpt2": Case(
        "gpt2",
        LLAMA_KEYS
        | {
            "n_embd": 32,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": 128,
            "n_inner": 24,
            "layer_norm_epsilon": 1e-6,
        },
        PLAIN | {"attention.head_count_kv": REMOVED, "rope.freq_base": REMOVED},
    ),
    "gptneox": Case(
        "gpt_neox",
        {
            "num_key_value_heads": REMOVED,
            "rms_norm_eps": REMOVED,
            "rope_theta": REMOVED,
            "layer_norm_eps": 1e-6,
            "rotary_pct": 0.5,
            "use_parallel_residual": False,
        },
        PLAIN
        | {
            "attention.head_count_kv": REMOVED,
            "rope.freq_base": REMOVED,
            "rope.dimension_count": 4,
            "use_parallel_residual": False,
        },
    ),
    "gpt-oss": Case(
        "gpt_oss",
        WIDE
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 20,
            "rope_scaling": YARN,
            "attention_bias": True,
        },
        WIDE_GGUF
        | EXPERTS
        | {
            "expert_feed_forward_length": 24,
            "attention.sliding_window": 20,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 8.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
}

NAMES = (  # of transformers -> of llama.cpp; the first that fits
    (r"model\.embed_tokens", "token_embd"),
    (r"model\.norm", "output_norm"),
    (r"(?:lm_head|embed_out)", "output"),
    (r"(?:wte|gpt_neox\.embed_in)", "token_embd"),
    (r"wpe", "position_embd"),
    (r"(?:ln_f|gpt_neox\.final_layer_norm)", "output_norm"),
    (r"ln_1", "attn_norm"),
    (r"ln_2", "ffn_norm"),
    (r"(?:attn\.c_attn|attention\.query_key_value|self_attn\.qkv_proj)", "attn_qkv"),
    (r"(?:attn\.c_proj|attention\.dense)", "attn_output"),
    (r"(?:mlp\.c_fc|mlp\.dense_h_to_4h|mlp\.gate_up_proj)", "ffn_up"),
    (r"(?:mlp\.c_proj|mlp\.dense_4h_to_h)", "ffn_down"),
    (r"self_attn\.o_proj", "attn_output"),
    (r"self_attn\.sinks", "attn_sinks.weight"),
    (r"self_attn\.([qkv])_proj", r"attn_\1"),
    (r"self_attn\.([qk])_norm", r"attn_\1_norm"),
    (r"input_layernorm", "attn_norm"),
    (r"pre_feedforward_layernorm", "ffn_norm"),
    (r"post_feedforward_layernorm", "post_ffw_norm"),
    (r"mlp\.(gate|up|down)_proj", r"ffn_\1"),
    (r"(?:block_sparse_moe|mlp)\.(?:gate|router)\b", "ffn_gate_inp"),
)


def theirs(case: Case) -> dict[str, np.ndarray]:
    """A random model as transformers keeps it."""
    family = FAMILIES[case.family]
    model, rng = read_config(family, case.their_config), np.random.default_rng(0)
    return {
        t.name: rng.normal(size=t.shape).astype(np.float32)
        for t in tensors(family, model, parameter_shapes(model))
    }


def as_llama_cpp(case: Case, name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """A tensor under the names of llama.cpp."""
    block = f"blk.{found[1]}." if (found := re.search(r"\.(?:layers|h)\.(\d+)\.", name)) else ""
    if ".experts." in name:  # gpt-oss has those of a layer in one tensor, gate and up in turns
        if "gate_up_proj" in name:
            end = "bias" if name.endswith("bias") else "weight"

            def part(i):
                return x[..., i::2] if end == "bias" else x[..., i::2].transpose(0, 2, 1)

            return {f"{block}ffn_gate_exps.{end}": part(0), f"{block}ffn_up_exps.{end}": part(1)}
        if name.endswith("_bias"):
            return {f"{block}ffn_down_exps.bias": x}
        if name.endswith("down_proj"):
            return {f"{block}ffn_down_exps.weight": x.transpose(0, 2, 1)}
        kind = {"w1": "gate", "w3": "up", "w2": "down"}.get(
            name.split(".")[-2], name.split(".")[-2].removesuffix("_proj")
        )
        return {f"{block}ffn_{kind}_exps.weight#{name.split('.experts.')[1].split('.')[0]}": x}
    if ".c_" in name and name.endswith("weight"):
        x = x.T
    if "query_key_value" in name:  # those of each head in turn: of all heads
        x = x.reshape(4, 3, 8, -1).swapaxes(0, 1).reshape(x.shape)
    if "post_attention_layernorm" in name:
        after = case.family in ("olmo2", "gemma2", "gemma3_text", "gpt_oss")
        return {
            f"{block}{'post_attention_norm' if after else 'ffn_norm'}.{name.split('.')[-1]}": (
                x + case.one
            )
        }
    old, new = next((old, new) for old, new in NAMES if re.search(old, name))
    if not case.halves and re.search(r"[qk]_proj", name):  # pairs of neighbours in place of halves
        heads = 4 if "q_proj" in name else 2
        x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
    out = block + re.sub(old, new, re.search(f"{old}.*", name)[0]).removeprefix(".")
    return {out: x + (1 if case.one and "norm" in name else 0)}


def write_gguf(
    path: Path, architecture: str, case: Case, model: dict[str, np.ndarray], tokens: dict = TOKENS
) -> None:
    parts: dict[str, np.ndarray] = {}
    for name, x in model.items():
        parts |= as_llama_cpp(case, name, x)
    for name in sorted({n.split("#")[0] for n in parts if "#" in n}):
        parts[name] = np.stack([parts.pop(f"{name}#{e}") for e in range(4)])
    parts |= {name: np.array(x, np.float32) for name, x in case.factors.items()}
    entries, data = [], b""
    for name, x in parts.items():
        entries.append(tensor(name, x.shape[::-1], 0, len(data)))
        data += x.astype("<f4").tobytes()
        data += bytes(-len(data) % 32)
    keys = {
        "general.architecture": architecture,
        **{f"{architecture}.{k}": v for k, v in case.keys.items()},
        **tokens,
    }
    path.write_bytes(gguf([said(*item) for item in keys.items()], entries, data))


def said(name: str, value) -> bytes:
    if isinstance(value, list | np.ndarray):
        return key(
            name,
            ARRAY,
            (
                (STRING, value)
                if isinstance(value, list)
                else ({"i": I32, "f": F32}[value.dtype.kind], value.tolist())
            ),
        )
    return key(name, {str: STRING, int: U32, float: F32, bool: BOOL}[type(value)], value)


def test_every_architecture_is_here():
    assert {name.split()[0] for name in CASES} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", CASES)
def test_both_files_are_one_model(name, tmp_path):
    case = CASES[name]
    model = theirs(case)
    write_gguf(tmp_path / "model.gguf", name.split()[0], case, model)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text(
        json.dumps({"model_type": case.family} | case.their_config)
    )
    with TensorWriter(
        tmp_path / "hf/model.safetensors",
        {n: (np.float32, x.shape) for n, x in model.items()},
        {"format": "pt"},
    ) as file:
        for n, x in model.items():
            file.write(n, x)
    wanted = resolved(from_hf(tmp_path / "hf", tmp_path / "a"))
    got = resolved(from_gguf(tmp_path / "model.gguf", tmp_path / "b"))
    offset = value_of(wanted, "norm.unit_offset")
    same = {} if offset is None else {"norm.unit_offset": offset}
    assert override(got, same) == wanted
    assert bool(offset) == case.one and not value_of(got, "norm.unit_offset")
    ours, same = (TensorFile(tmp_path / folder / "params.safetensors") for folder in "ba")
    assert ours.tensors.keys() == same.tensors.keys()
    for path in same.tensors:
        np.testing.assert_array_equal(
            ours.read(path),
            same.read(path) + (1 if case.one and path.endswith("scale") else 0),
            err_msg=path,
        )


@pytest.mark.parametrize("name, usual, largest", [("gemma2", 42, 46), ("gemma3", 48, 62)])
def test_the_largest_gemma_has_a_scale_of_its_own(name, usual, largest):
    keys = CASES[name].keys | {"vocab_size": V, "tied": True}

    def scale(layers):
        return read_config(ARCHITECTURES[name], keys | {"block_count": layers}).attention.scale

    assert scale(usual) == 16**-0.5 and scale(largest) == 8**-0.5


def test_a_gemma_2_without_a_width_of_heads_has_the_usual_one():
    keys = {
        k: v
        for k, v in CASES["gemma2"].keys.items()
        if "length" not in k or k in ("context_length", "embedding_length", "feed_forward_length")
    } | {"vocab_size": V, "tied": True}
    assert read_config(ARCHITECTURES["gemma2"], keys).attention.scale == 8**-0.5


def test_what_an_early_gemma_2_leaves_out():
    keys = {
        k: v
        for k, v in CASES["gemma2"].keys.items()
        if "softcapping" not in k and "window" not in k
    } | {"vocab_size": V, "tied": True}
    m = read_config(ARCHITECTURES["gemma2"], keys)
    assert (m.attention.softcap, m.head.softcap, m.attention.window_pattern) == (
        50.0,
        30.0,
        (4096, 0),
    )


def test_phi_3_has_both_lists_where_its_context_has_texts_of_both(tmp_path):
    case = CASES["phi3 for long texts"]

    def read(length, **more):
        return read_config(
            ARCHITECTURES["phi3"],
            case.keys
            | {
                "vocab_size": V,
                "tied": True,
                "rope_factors_long": LONG,
                "rope_factors_short": SHORT,
                **more,
            },
            (),
            length,
        )

    def lists(length):
        return (
            read(length).positions.scaling.factors,
            read(length).positions.scaling.short_factors,
        )

    assert lists(0) == lists(33) == (tuple(LONG), tuple(SHORT))
    assert lists(32) == (tuple(SHORT), ())
    assert read(0).positions.scaling.attention_factor == 0.0
    assert read(0, **{"rope.scaling.attn_factor": 1.5}).positions.scaling.attention_factor == 1.5
    assert read(0, **{"rope.scaling.type": "longrope"}) == read(0)
    for more, message in (
        ({"rope.scaling.attn_factor": 0.0}, "attn_factor is 0.0; it must be positive"),
        ({"rope.scaling.attn_factor": float("nan")}, "attn_factor is nan"),
        (
            {"rope.scaling.type": "yarn"},
            (
                "rope.scaling.type is 'yarn', and the file has tensors rope_factors_long and"
                " rope_factors_short"
            ),
        ),
        (
            {"rope_factors_long": [1.0, float("inf"), 1.0, 1.0]},
            "model.positions.scaling.factors is .*; it must be finite and more than 0",
        ),
        (
            {"attention.sliding_window": 1.5},
            "attention.sliding_window is 1.5; it must be of type int",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            read(0, **more)
    plain = case.keys | {"vocab_size": V, "tied": True}
    for more, message in (
        ({}, "attn_factor is 1.18.* the file has no lists of factors"),
        (
            {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": 1.0},
            "'longrope' .* the file has no lists of factors",
        ),
        ({"rope_factors_short": SHORT}, "tensor rope_factors_short.weight and not the other list"),
        ({"rope_factors_long": LONG}, "tensor rope_factors_long.weight and not the other list"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_config(ARCHITECTURES["phi3"], plain | more)
    keys = {k: v for k, v in case.keys.items() if "original" not in k}
    with pytest.raises(ConfigError, match="rope.scaling.original_context_length"):
        read_config(
            ARCHITECTURES["phi3"],
            keys
            | {
                "vocab_size": V,
                "tied": True,
                "rope_factors_long": LONG,
                "rope_factors_short": SHORT,
            },
        )


@pytest.mark.parametrize("name, takes", [("phi3", True), ("llama", False)])
def test_added_tokens_of_phi_3_take_the_blanks_after_them(tmp_path, name, takes):
    tokens = sentencepieces()
    case = CASES[name]._replace(
        hf={**CASES[name].hf, "vocab_size": len(tokens["tokenizer.ggml.tokens"])}
    )
    write_gguf(tmp_path / "model.gguf", name, case, theirs(case), tokens)
    from_gguf(tmp_path / "model.gguf", tmp_path / "out")
    t = open_tokenizer(tmp_path / "out/tokenizer")
    assert (t.encode("<sep>\n ab") == t.encode("<sep>ab")) == takes


def test_factors_are_tensors_and_not_metadata(tmp_path):
    case = CASES["llama"]._replace(gguf={"rope_factors": "wxyz"})
    write_gguf(tmp_path / "model.gguf", "llama", case, theirs(case))
    assert from_gguf(tmp_path / "model.gguf", tmp_path / "out").positions.scaling is None


def test_what_is_not_read_is_named(tmp_path):
    case = CASES["llama"]
    write_gguf(tmp_path / "model.gguf", "gemma9", case, theirs(case))
    with pytest.raises(
        ConfigError,
        match=r"general.architecture is 'gemma9'; did you mean 'gemma'\?; supported are",
    ):
        from_gguf(tmp_path / "model.gguf", tmp_path / "out")
    for odd in ([1], 3, None):
        (tmp_path / "model.gguf").write_bytes(
            gguf(
                []
                if odd is None
                else [
                    (
                        key("general.architecture", ARRAY, (I32, odd))
                        if isinstance(odd, list)
                        else key("general.architecture", U32, odd)
                    )
                ]
            )
        )
        with pytest.raises(
            ConfigError, match=r"general.architecture is (\[1\]|array.*|3|None); supported are"
        ):
            from_gguf(tmp_path / "model.gguf", tmp_path / "out")
    for key_, match in (
        ("logit_scale", "llama has no known meaning for logit_scale"),
        ("rope.scaling.type", "supported are none, linear, yarn"),
    ):
        odd = case._replace(gguf={key_: "longrope" if "type" in key_ else 2.0})
        write_gguf(tmp_path / "model.gguf", "llama", odd, theirs(case))
        with pytest.raises(ConfigError, match=match):
            from_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
