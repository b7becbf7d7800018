"""The tables of families: every configuration that they can say and none that they cannot; every
tensor once.
"""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from llm_jax.config import override
from llm_jax.config.model import ModelConfig
from llm_jax.config.sections import kind_of, settings
from llm_jax.convert.canonical import shortest
from llm_jax.convert.config_json import read_config, write_config
from llm_jax.convert.export_config import export_config
from llm_jax.convert.families import FAMILIES
from llm_jax.convert.family import REQUIRED
from llm_jax.convert.model_folder import parameter_shapes
from llm_jax.convert.source import family_of
from llm_jax.convert.tensors import check_names, tensors
from llm_jax.types import ConfigError, DataError

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GEMMA2 = LLAMA | {
    "model_type": "gemma2",
    "head_dim": 4,
    "sliding_window": 8,
    "architectures": ["Gemma2ForCausalLM"],
}
QWEN = LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


def read(**more):
    config = LLAMA | more
    return read_config(FAMILIES[config["model_type"]], config)


def test_what_a_file_leaves_out_has_the_value_of_its_program():
    m = read()
    assert (
        m.positions.theta,
        m.norm.eps,
        m.mlp.activation,
        m.embedding.tied,
        m.attention.qkv_bias,
        m.head_dim,
    ) == (
        10000.0,
        1e-6,
        "silu",
        False,
        False,
        4,
    )
    assert read(num_key_value_heads=None).attention.kv_heads == 4
    assert (
        read_config(FAMILIES["mixtral"], LLAMA | {"model_type": "mixtral"}).positions.theta == 1e6
    )
    g = read_config(FAMILIES["gemma2"], GEMMA2)
    assert (g.attention.window_pattern, g.attention.scale, g.attention.softcap, g.head.softcap) == (
        (8, 0),
        256**-0.5,
        50.0,
        30.0,
    )


OLD = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
NEW = {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}


def test_rotations_of_old_and_new_files_are_the_same():
    assert (
        read(**OLD)
        == read(**NEW)
        == read(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4.0})
    )
    assert (
        kind_of(read(**OLD).positions.scaling) == "linear"
        and kind_of(read(rope_scaling=None).positions.scaling) == "none"
    )


LINEAR = {"rope_type": "linear", "factor": 4.0}
ORIGINAL = "original_max_position_embeddings"
PHI = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "pad_token_id": 0}
LISTS = {"long_factor": [1.0, 2.0], "short_factor": [1.0, 1.5]}
SAID_TWICE = {
    "kinds": (
        {"rope_scaling": LINEAR | {"type": "linear"}},
        {"type": "yarn"},
        "has the rope_type 'linear' and the type 'yarn'",
    ),
    "kinds in new files": (
        {"rope_parameters": LINEAR | {"type": "linear"}},
        {"type": "default"},
        "has the rope_type 'linear' and the type 'default'",
    ),
    "a renamed kind": (
        PHI | {ORIGINAL: 64, "rope_scaling": {"rope_type": "longrope", "type": "su", **LISTS}},
        {"type": "yarn"},
        "and the type 'yarn'",
    ),
    "bases": (
        {"rope_theta": 5e5, "rope_parameters": LINEAR | {"rope_theta": 500000}},
        {"rope_theta": 1e4},
        "rope_theta is 500000.0, and",
    ),
    "bases in old files": (
        {"rope_theta": 5e5, "rope_scaling": LINEAR | {"rope_theta": 5e5}},
        {"rope_theta": 1e4},
        "rope_theta is 500000.0",
    ),
    "shares": (
        PHI
        | {
            "partial_rotary_factor": 0.5,
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
        },
        {"partial_rotary_factor": 1.0},
        "partial_rotary_factor is 0.5, and the rotation's",
    ),
    "lengths": (
        {ORIGINAL: 64, "rope_scaling": {"rope_type": "yarn", "factor": 2.0, ORIGINAL: 64}},
        {ORIGINAL: 32},
        "is 32 in the rotation and 64",
    ),
    "schemas": (
        {"rope_scaling": LINEAR, "rope_parameters": dict(LINEAR)},
        {"factor": 2.0},
        "factor is 4.0 in rope_scaling and 2.0 in",
    ),
    "kinds of schemas": (
        {"rope_scaling": LINEAR, "rope_parameters": dict(LINEAR)},
        {"rope_type": "default"},
        "rope_type is 'linear' in",
    ),
    "what one schema lacks": (
        {"rope_scaling": LINEAR, "rope_parameters": dict(LINEAR)},
        {"rope_theta": 5e5},
        "rope_theta is None in",
    ),
}


@pytest.mark.parametrize("given, other, message", SAID_TWICE.values(), ids=SAID_TWICE)
def test_what_is_said_twice_is_read_where_it_is_the_same_and_refused_elsewhere(
    given, other, message
):
    """Which of two holds depends on the program: transformers 5 takes rope_type, others type."""
    last = "rope_parameters" if "rope_parameters" in given else "rope_scaling"
    read(**given)
    with pytest.raises(ConfigError, match=message):
        read(**{**given, last: given[last] | other})


def test_null_is_not_said():
    assert read(rope_scaling=LINEAR | {"type": None}) == read(
        rope_scaling={"type": "linear", "rope_type": None, "factor": 4.0}
    )
    assert read(rope_scaling=None, rope_parameters=LINEAR) == read(rope_scaling=LINEAR)


def test_bases_of_layers_with_a_window_are_the_same_in_both_places():
    sizes = LLAMA | {
        "model_type": "gemma3_text",
        "head_dim": 4,
        "sliding_window": 8,
        "architectures": ["Gemma3ForCausalLM"],
    }

    def read(base, **more):
        return read_config(
            FAMILIES["gemma3_text"],
            sizes
            | more
            | {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6},
                    "sliding_attention": {"rope_theta": base},
                }
            },
        )

    assert read(1e4, rope_local_base_freq=10000).positions.windowed_theta == 1e4
    assert read(3e4).positions.windowed_theta == 3e4
    with pytest.raises(
        ConfigError,
        match="rope_local_base_freq is 10000.0, and the rotation's rope_theta is 30000.0",
    ):
        read(3e4, rope_local_base_freq=1e4)


def test_a_rotation_of_some_layers_alone_is_refused_where_no_layer_would_have_it():
    nested = {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 2e4}}
    with pytest.raises(
        ConfigError,
        match="sliding_attention has its own rotation, and layers of this family have none",
    ):
        read(rope_parameters=nested)
    with pytest.raises(
        ConfigError, match="rope_parameters has 'rope_theta' beside rotations of layers"
    ):
        read(rope_parameters={"full_attention": {"rope_theta": 1e4}, "rope_theta": 1e4})


def test_what_programs_do_not_agree_on_is_refused():
    """transformers 4 does not scale ModernBERT, 5 scales its layers with a window too."""
    sizes = {
        "model_type": "modernbert",
        "architectures": ["ModernBertModel"],
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "local_attention": 8,
    }
    assert kind_of(read_config(FAMILIES["modernbert"], sizes).positions.scaling) == "none"
    with pytest.raises(
        ConfigError, match="the rotation is scaled, and programs of this family differ"
    ):
        read_config(FAMILIES["modernbert"], sizes | {"rope_scaling": LINEAR})


def test_a_length_that_a_phi_3_does_not_say_beside_its_rotation_is_4096():
    """Its programs take theirs, whatever stands in the rotation."""
    long = PHI | {"max_position_embeddings": 8192}

    def inside(length):
        return {"rope_parameters": {"rope_type": "longrope", ORIGINAL: length, **LISTS}}

    assert read(**long, **inside(4096)).positions.scaling.original_length == 4096
    assert (
        read(**long, rope_scaling={"type": "su", **LISTS}).positions.scaling.original_length == 4096
    )
    with pytest.raises(
        ConfigError,
        match="is 64 in the rotation and 4096 beside it .the default of programs of this family",
    ):
        read(**long, **inside(64))
    assert read(**long, **inside(64), **{ORIGINAL: 64}).positions.scaling.original_length == 64


def test_two_lists_of_factors_are_read_and_written():
    given = PHI | {ORIGINAL: 64, "rope_scaling": {"type": "longrope", **LISTS}}
    m = read(**given)
    assert (m.positions.scaling.factors, m.positions.scaling.short_factors, m.rope_switch) == (
        (1.0, 2.0),
        (1.0, 1.5),
        64,
    )
    out = write_config(FAMILIES["phi3"], m)
    for schema in ("rope_scaling", "rope_parameters"):
        assert {name: out[schema][name] for name in LISTS} == LISTS
    # Programs look for it beside the rotation.
    assert out[ORIGINAL] == 64
    # Of texts that the model cannot have there is no list.
    within = dataclasses.replace(m, max_length=64)
    short = read_config(FAMILIES["phi3"], LLAMA | given, max_length=64)
    assert (short.positions.scaling.factors, short.positions.scaling.short_factors) == (
        (1.0, 1.5),
        (),
    )
    assert write_config(FAMILIES["phi3"], within)["rope_scaling"]["long_factor"] == [1.0, 1.5]
    one = read(
        **(
            given
            | {
                "rope_scaling": {
                    "type": "longrope",
                    "long_factor": [1.0, 2.0],
                    "short_factor": [1.0, 2.0],
                }
            }
        )
    )
    assert (one.positions.scaling.factors, one.positions.scaling.short_factors) == ((1.0, 2.0), ())
    with pytest.raises(
        ConfigError,
        match="scaling.short_factors has 3 numbers and model.positions.scaling.factors 2",
    ):
        read(
            **(
                given
                | {
                    "rope_scaling": {
                        "type": "longrope",
                        "long_factor": [1.0, 2.0],
                        "short_factor": [1.0] * 3,
                    }
                }
            )
        )
    # What phi-3-small and phi-3.5-MoE have besides.
    with pytest.raises(ConfigError, match="unknown keys 'long_mscale'"):
        read(**(given | {"rope_scaling": {"type": "longrope", **LISTS, "long_mscale": 1.2}}))


@pytest.mark.parametrize("schema", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_a_kind_under_either_name_is_written_in_the_other_schema(schema, name):
    source = LLAMA | {schema: {name: "linear", "factor": 4.0}}
    out = export_config(FAMILIES["llama"], read(**source), source)
    assert out[schema] == source[schema]
    for alone in ("rope_scaling", "rope_parameters"):
        assert read_config(
            FAMILIES["llama"], {k: v for k, v in out.items() if k == alone or "rope_" not in k}
        ) == read(**source)


def test_gpt_neox_says_its_rotation_under_two_names():
    """transformers 4 writes both, and reads its own."""
    sizes = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {
        "model_type": "gpt_neox",
        "hidden_size": 64,
    }

    def read(**more):
        return read_config(FAMILIES["gpt_neox"], sizes | more)

    own = {"rotary_pct": 0.5, "rotary_emb_base": 20000}
    both = own | {"partial_rotary_factor": 0.5, "rope_theta": 20000.0}
    assert read(**both) == read(**own) and (
        read(**both).positions.fraction,
        read(**both).positions.theta,
    ) == (0.5, 20000.0)
    assert (read().positions.fraction, read().positions.theta) == (0.25, 10000.0)
    for odd in ({"partial_rotary_factor": 0.25}, {"rope_theta": 10000}):
        for given in (both | odd, odd):
            with pytest.raises(ConfigError, match="programs of this family read rot.*leave .* out"):
                read(**given)
    out = export_config(FAMILIES["gpt_neox"], read(**both), sizes | both)
    assert (out["rotary_pct"], out["rotary_emb_base"]) == (0.5, 20000.0)
    assert read_config(FAMILIES["gpt_neox"], out) == read(**own)


@pytest.mark.parametrize("given", [OLD, NEW, {}], ids=["old", "new", "neither"])
def test_both_schemas_are_written_and_each_alone_says_the_same(given):
    source = LLAMA | given
    model = read(**given)
    out = export_config(FAMILIES["llama"], model, source)
    old = {k: v for k, v in out.items() if k != "rope_parameters"}
    new = {k: v for k, v in out.items() if k not in ("rope_scaling", "rope_theta")}
    assert read_config(FAMILIES["llama"], old) == read_config(FAMILIES["llama"], new) == model
    assert {"rope_theta", "rope_scaling", "rope_parameters"} <= out.keys()


def test_what_goes_without_saying_is_written():
    """vLLM looks for topk_method, which transformers leaves out of a DeepSeek-V3's config."""
    source = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {
        "model_type": "deepseek_v3",
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
        "q_lora_rank": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_attention_heads": 2,
    }
    model = read_config(FAMILIES["deepseek_v3"], source)
    out = export_config(FAMILIES["deepseek_v3"], model, source)
    assert (out["topk_method"], out["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert read_config(FAMILIES["deepseek_v3"], out) == model


def test_a_model_made_here_is_written_and_read_back():
    m = override(
        ModelConfig(),
        {
            "vocab_size": 64,
            "num_layers": 3,
            "embed_dim": 16,
            "attention.num_heads": 4,
            "attention.num_kv_heads": 2,
            "mlp.hidden_dim": 24,
            "max_length": 128,
            "embedding.tied": False,
            "positions.scaling": "llama3",
            "positions.scaling.factor": 8.0,
            "positions.scaling.original_length": 32,
        },
    )
    out = write_config(FAMILIES["llama"], m)
    again = read_config(FAMILIES["llama"], out)
    assert again.positions.scaling.kind == "llama3" and (
        again.attention.kv_heads,
        again.head_dim,
        again.max_length,
    ) == (2, 4, 128)
    mistral = write_config(
        FAMILIES["mistral"],
        override(ModelConfig(), {"vocab_size": 64, "attention.window_pattern": (32,)}),
    )
    assert mistral["sliding_window"] == 32


@pytest.mark.parametrize(
    "family, fields, named",
    [
        ("llama", {"attention.window_pattern": (8,)}, r"model\.attention\.window_pattern = \(8,\)"),
        ("llama", {"norm": "layer"}, "model.norm = 'layer'"),
        ("mistral", {"attention.window_pattern": (8, 0)}, "model.attention.window_pattern"),
        ("gpt2", {"experts.count": 4}, "gpt2 cannot represent"),
        (
            "llama",
            {"head.softcap": 5.0},
            r"model.head.softcap = 5.0; export the model as another family, or reset these fields",
        ),
        ("llama", {"mlp.activation": "quick_gelu"}, "model.mlp.activation = 'quick_gelu'"),
    ],
)
def test_what_a_family_cannot_say_is_named(family, fields, named):
    with pytest.raises(ConfigError, match=named):
        write_config(FAMILIES[family], override(ModelConfig(), {"vocab_size": 64, **fields}))


@pytest.mark.parametrize(
    "more, message",
    [
        (
            {"attention_wobble": 3},
            "llama has no known meaning for attention_wobble = 3; .*--ignore attention_wobble",
        ),
        (
            {"quantization_config": {"bits": 4}},
            (
                "has a quantization_config, and quantized weights cannot be read; use, or save, a"
                " de-quantized copy"
            ),
        ),
        ({"hidden_size": "16"}, "hidden_size is '16'; it must be of type int"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast'; supported are 'silu'"),
        ({"hidden_act": ["silu"]}, "hidden_act is"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_scaling has the type 'dynamic'; supported are default, linear",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling of type 'linear' lacks factor"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "extra": 1}},
            "type 'linear' has the unknown keys 'extra'",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', which is not a JSON object"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "needs long_factor, short_factor",
        ),
        (
            GEMMA2 | {"layer_types": ["full_attention"]},
            "layer_types is .* it must be a list of 2 kinds",
        ),
        (
            GEMMA2 | {"query_pre_attn_scalar": 0},
            "query_pre_attn_scalar is 0.0; it must be positive",
        ),
        (
            GEMMA2 | {"use_bidirectional_attention": True},
            "use_bidirectional_attention is True; for gemma2 only None can be represented",
        ),
        ({"model_type": "gpt2"}, "config.json lacks 'n_embd', which gpt2 needs"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(more, message):
    with pytest.raises(ConfigError, match=message):
        read(**more)


def test_a_key_that_changes_nothing_can_be_named():
    assert read_config(FAMILIES["llama"], LLAMA | {"wobble": 3}, ("wobble",)) == read()


def test_an_unknown_family_or_head_is_named():
    with pytest.raises(
        ConfigError,
        match="model_type is 'lama'; did you mean 'llama'.; supported are bart, bert, deepseek_v2",
    ):
        family_of({"model_type": "lama"}, "x")
    with pytest.raises(ConfigError, match="model_type is None; supported are"):
        family_of({}, "x")
    with pytest.raises(
        ConfigError, match="LlamaForSequenceClassification.*only LlamaForCausalLM is supported"
    ):
        family_of({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "x")
    with pytest.raises(
        ConfigError,
        match="only BertForMaskedLM, BertForSequenceClassification, BertModel are supported",
    ):
        family_of({"model_type": "bert", "architectures": ["BertForTokenClassification"]}, "x")


def test_windows_of_layers():
    assert read_config(
        FAMILIES["qwen2"], QWEN | {"sliding_window": 8}
    ).attention.window_pattern == (0,)
    on = QWEN | {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
    assert read_config(FAMILIES["qwen2"], on).attention.window_pattern == (0, 8)
    assert (
        shortest([1, 2, 1, 2, 1]) == (1, 2)
        and shortest([1, 1]) == (1,)
        and shortest([1, 2, 3]) == (1, 2, 3)
    )


def test_a_shorter_context_is_chosen_and_a_longer_one_refused():
    assert read_config(FAMILIES["llama"], LLAMA, max_length=64).max_length == 64
    with pytest.raises(ConfigError, match="max_length is 256; the model has a context of 128"):
        read_config(FAMILIES["llama"], LLAMA, max_length=256)


def test_every_tensor_is_listed_with_the_nearest_names():
    model = read()
    wanted = tensors(FAMILIES["llama"], model, parameter_shapes(model))
    shapes = {t.name: t.shape for t in wanted}
    assert len(shapes) == len(wanted) == 3 + 2 * 9
    check_names(shapes, wanted, "x")
    wrong = {
        n.replace("layers.1.mlp.up_proj", "layers.1.mlp.upp_proj"): s for n, s in shapes.items()
    }
    wrong["model.norm.weight"] = (17,)
    with pytest.raises(DataError) as error:
        check_names(wrong, wanted, "x")
    for part in (
        "1 missing",
        "1 that the model has no place for",
        "model.layers.1.mlp.up_proj.weight (nearest: model.layers.1.mlp.upp_proj",
        "1 of another shape",
        "model.norm.weight is [17], the config needs [16]",
    ):
        assert part in str(error.value)


def test_a_parameter_without_a_row_is_named():
    model = override(
        ModelConfig(),
        {"vocab_size": 64, "num_layers": 1, "attention.qk_norm": "head", "positions": "learned"},
    )
    with pytest.raises(
        DataError,
        match=(
            "llama has no tensor for the parameters positions/positions; export the model as"
            " another family"
        ),
    ):
        tensors(FAMILIES["llama"], model, parameter_shapes(model))


def test_nothing_asks_for_the_name_of_a_model():
    """Differences between families are fields and rows."""
    from pathlib import Path

    import llm_jax

    root = Path(llm_jax.__file__).parent
    names = [name for family in FAMILIES for name in (f'"{family}"', f"'{family}'")]
    files = [path for folder in ("models", "convert") for path in (root / folder).glob("*.py")]
    for path in files:
        lines = [
            line
            for line in path.read_text().splitlines()
            if any(n in line for n in names) and ("==" in line or "if " in line)
        ]
        assert not lines, (path, lines)


def test_the_table_of_families_is_what_was_measured():
    import runpy
    from pathlib import Path

    root = Path(__file__).parents[2]
    script = runpy.run_path(str(root / "scripts/families_table"))
    text = (root / "docs/families.md").read_text()
    assert script["BEGIN"] + script["table"]() + script["END"] in text
    assert {line.split(" ")[1] for line in script["table"]().splitlines()[2:]} == set(FAMILIES)


def test_what_is_off_here_is_not_written_as_a_number_that_means_something_else():
    """Their programs take a 0 at its word."""
    base = override(
        ModelConfig(),
        {
            "vocab_size": 64,
            "num_layers": 2,
            "embed_dim": 16,
            "attention.num_heads": 4,
            "mlp.hidden_dim": 24,
        },
    )

    def write(family, fields=()):
        return write_config(FAMILIES[family], override(base, dict(fields)))

    assert write("granite")["attention_multiplier"] == 0.5
    gemma = {
        "norm.unit_offset": True,
        "embedding.scale_by_width": True,
        "norm.position": "sandwich",
        "mlp.activation": "gelu_tanh",
    }
    assert write("gemma2", gemma)["query_pre_attn_scalar"] == 4
    gemma3 = gemma | {"attention.qk_norm": "head", "attention.window_pattern": (8, 0)}
    assert write("gemma3_text", gemma3)["rope_local_base_freq"] == 10000.0
    with pytest.raises(ConfigError, match="model.positions.windowed_theta"):
        scaled = {"positions.scaling": "linear", "positions.scaling.factor": 2.0}
        write("gemma3_text", gemma3 | scaled)
    oss = {
        "attention.sinks": True,
        "attention.qkv_bias": True,
        "attention.out_bias": True,
        "mlp.bias": True,
        "experts.router_bias": True,
        "experts.count": 4,
        "mlp.activation": "quick_gelu",
        "mlp.up_offset": 1.0,
        "embedding.tied": False,
    }
    with pytest.raises(ConfigError, match="gpt_oss cannot represent model.mlp.clamp = 0.0"):
        write("gpt_oss", oss)
    assert write("gpt_oss", oss | {"mlp.clamp": 5.0})["swiglu_limit"] == 5.0
    with pytest.raises(
        ConfigError, match="model.positions.scaling is 'ntk', which config files cannot represent"
    ):
        write("llama", {"positions.scaling": "ntk", "positions.scaling.factor": 2.0})
    with pytest.raises(ConfigError, match="partial_rotary_factor is 0.5|model.positions.fraction"):
        write("llama", {"positions.fraction": 0.5})


ODD = [None, True, -1, 0, 3, 10**400, 1e308, float("nan"), "x", [], [1], {}, {"a": 1}, "\ud800"]


def test_a_config_with_anything_in_it_is_read_or_named():
    """Every key of every family, and every rotation, replaced by values of all kinds."""
    for name, family in FAMILIES.items():
        keys = (
            {k.source for k in family.keys}
            | {key for codec in family.codecs for key in codec.keys}
            | set(family.required_values)
        )
        sizes = {
            k.source: 4
            for k in family.keys
            if k.default is REQUIRED and isinstance(settings(ModelConfig)[k.native][0].default, int)
        }
        for key in sorted(keys):
            for value in ODD:
                given = (
                    LLAMA
                    | sizes
                    | {
                        "model_type": name,
                        "architectures": [family.architecture],
                        key: value,
                    }
                )
                with contextlib.suppress(ConfigError):
                    read_config(family, given, tuple(given))
    for value in ODD:
        for key in (
            "factor",
            "rope_type",
            "rope_theta",
            "original_max_position_embeddings",
            "mscale",
            "full_attention",
        ):
            with contextlib.suppress(ConfigError):
                read(
                    rope_scaling={
                        "rope_type": "yarn",
                        "factor": 2.0,
                        "original_max_position_embeddings": 64,
                        key: value,
                    }
                )


@pytest.mark.parametrize(
    "more, message",
    [
        ({"num_hidden_layers": 10**8}, "num_layers would be 100000000; at most 10,000"),
        ({"num_hidden_layers": 0}, "model.num_layers is 0; it must be at least 1"),
    ],
)
def test_sizes_that_no_model_has_are_named_before_lists_are_made(more, message):
    with pytest.raises(ConfigError, match=message):
        read(**more)


# What released models say beside the keys of their families, from their config.json.
RELEASED = {
    "llama": {
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "is_llama_config": True,
        "torch_dtype": "bfloat16",
        "auto_map": {},
    },
    "phi3": {
        "auto_map": {"AutoConfig": "x"},
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
    },
    "qwen2": {
        "use_mrope": False,
        "max_window_layers": 21,
        "use_sliding_window": False,
        "sliding_window": 131072,
    },
    "gemma2": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "cache_implementation": "hybrid",
    },
}


@pytest.mark.parametrize("family", RELEASED)
def test_what_released_models_say_is_known(family):
    read_config(FAMILIES[family], LLAMA | {"model_type": family} | RELEASED[family])
