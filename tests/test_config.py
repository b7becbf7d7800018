"""Settings: typos, types, provenance, unread keys, JSON, config files, and the message of every
refusal.
"""

import dataclasses
import json
import random
import re
import string
import typing
from pathlib import Path

import pytest

from llm_jax.config import Config, DecodeConfig, MeshConfig, ModelConfig, OptimizerConfig, old_keys
from llm_jax.config.explain import explain, help_of
from llm_jax.config.model import LayerNormConfig
from llm_jax.config.overrides import (
    check_unread,
    nearest,
    override,
    provenance,
    unread,
)
from llm_jax.config.saved import from_json, load_config, to_json
from llm_jax.config.sections import NONE, NONZERO, settings
from llm_jax.config.validate import remat_names, validate
from llm_jax.config.validate_decode import validate_decode
from llm_jax.types import ConfigError

ROOT = Path(__file__).parents[1]

# Of every alternative of every section.
KEYS = list(settings(Config))


def typo(rng: random.Random, key: str) -> str:
    i = rng.randrange(len(key))
    letter = rng.choice(string.ascii_lowercase)
    j = min(i, len(key) - 2)
    return rng.choice(
        [
            key[:i] + letter + key[i + 1 :],
            key[:i] + letter + key[i:],
            key[:i] + key[i + 1 :],
            key[:j] + key[j + 1] + key[j] + key[j + 2 :],
        ]
    )


def test_a_thousand_typos_are_refused_and_nine_tenths_corrected():
    rng, right, count, missed = random.Random(0), 0, 0, []
    while count < 1000:
        key = rng.choice(KEYS)
        wrong = typo(rng, key)
        if wrong in KEYS or not wrong:
            continue  # no typo, or one that spells another setting
        count += 1
        with pytest.raises(ConfigError, match="unknown setting") as error:
            override(Config(), {wrong: settings(Config)[key][0].default})
        right += f"did you mean {key!r}?" in str(error.value)
        if f"did you mean {key!r}?" not in str(error.value):
            missed.append((key, str(error.value)))
    assert right >= 900, missed[:30]


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("learning_rate", "optimizer.learning_rate"),
        ("model.learning_rate", "optimizer.learning_rate"),
        ("batchsize", "data.batch_size"),
        ("train.batch_size", "data.batch_size"),
        ("model.n_layers", "model.num_layers"),
        ("num_heads", "model.attention.num_heads"),
    ],
)
def test_a_name_in_the_wrong_section_finds_its_own(wrong, right):
    with pytest.raises(
        ConfigError, match=re.escape(f"unknown setting {wrong!r}; did you mean {right!r}?")
    ):
        override(Config(), {wrong: 1})


def test_a_name_like_no_other_has_no_suggestion():
    with pytest.raises(ConfigError, match=r"^unknown setting 'zzzzzz'$"):
        override(Config(), {"zzzzzz": 1})


@pytest.mark.parametrize(
    "key", ["model", "model.norm.rms", "train.hosts", "train.", "", ".", "model..norm"]
)
def test_sections_and_fragments_are_no_settings(key):
    with pytest.raises(ConfigError, match="unknown setting"):
        override(Config(), {key: 1})


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("train.steps", 1.5, "train.steps is 1.5; it must be int"),
        ("train.steps", "10", "train.steps is '10'; it must be int"),
        ("train.steps", True, "train.steps is True; it must be int"),
        ("model.dropout", "0.1", "model.dropout is '0.1'; it must be float"),
        ("model.dropout", True, "model.dropout is True; it must be float"),
        ("model.causal", 1, "model.causal is 1; it must be bool"),
        ("train.out", None, "train.out is None; it must be str"),
        ("data.path", "shards/", "data.path is 'shards/'; it must be tuple[str, ...]"),
        ("model.attention.window_pattern", (1, 2.5), "it must be tuple[int, ...]"),
        (
            "model.norm",
            "rmsnorm",
            "model.norm is 'rmsnorm'; it must be 'rms' or 'layer'; did you mean 'rms'?",
        ),
        ("model.mlp.activation", "gelu_tan", "did you mean 'gelu_tanh'?"),
        (
            "optimizer.schedule",
            ["cosine"],
            "it must be 'cosine' or 'linear' or 'wsd' or 'rsqrt' or 'constant'",
        ),
    ],
)
def test_wrong_types_are_named(key, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        override(Config(), {key: value})


def test_override_converts_only_what_loses_nothing():
    config = override(
        Config(),
        {"model.dropout": 0, "model.attention.window_pattern": [1, 0], "data.path": ["a", "b"]},
    )
    assert isinstance(config.model.dropout, float)
    assert config.model.attention.window_pattern == (1, 0) and config.data.path == ("a", "b")
    assert Config().model.attention.window_pattern == (0,)  # the original is untouched


def test_defaults_validate_and_every_field_has_help():
    validate(Config())
    validate_decode(DecodeConfig())
    for key in KEYS:
        assert len(help_of(key)) > 10, key


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.num_layers = 3


def test_provenance_is_file_and_line_or_the_given_source():
    config = override(Config(), {"train.steps": 5})
    line = test_provenance_is_file_and_line_or_the_given_source.__code__.co_firstlineno + 1
    assert provenance(config) == {"train.steps": f"{__file__}:{line}"}
    config = override(config, {"train.seed": 1}, "command line")
    assert provenance(config)["train.seed"] == "command line" and len(provenance(config)) == 2
    assert provenance(override(config, {"train.steps": 6}, "later"))["train.steps"] == "later"
    assert provenance(Config()) == {}


def test_explain_says_value_place_type_default_meaning():
    text = explain(override(Config(), {"model.norm": "layer"}, "command line"), "model.norm")
    assert text.splitlines() == [
        "model.norm = 'layer'",
        "  set at   command line",
        "  type     'rms' | 'layer'",
        "  default  'rms'",
        "  meaning  RMSNorm or LayerNorm.",
    ]
    lines = explain(Config(), "train.steps").splitlines()
    place = re.fullmatch(r"  set at   default, (llm_jax/config/run.py):(\d+)", lines[1])
    source = (ROOT / place[1]).read_text().splitlines()
    assert source[int(place[2]) - 1].strip() == "steps: Count = 1000"
    lines = explain(Config(), "model.num_layers").splitlines()
    place = re.fullmatch(r"  set at   default, llm_jax/config/model.py:(\d+)", lines[1])
    source = (ROOT / "llm_jax/config/model.py").read_text().splitlines()
    assert source[int(place[1]) - 1].strip() == "num_layers: Count = 12"
    assert (
        "note     not read by this config: it is read only when model.norm is 'layer'"
        in explain(Config(), "model.norm.bias")
    )
    with pytest.raises(ConfigError, match=r"did you mean 'train\.steps'"):
        explain(Config(), "train.step")


def test_values_set_without_override_are_not_called_defaults():
    norm = LayerNormConfig(bias=True)
    config = dataclasses.replace(Config(), model=ModelConfig(norm=norm))
    assert "default" not in explain(config, "model.norm.bias").splitlines()[1]
    assert set(provenance(config)) == {"model.norm", "model.norm.bias"}


ABSENT = [
    (
        {"model.norm.bias": True},
        "model.norm.bias was set (here) but nothing in this run reads it: it is read only when"
        " model.norm is 'layer', and model.norm is 'rms'",
    ),
    (
        {"model.norm": "layer", "model.norm.unit_offset": True},
        "it is read only when model.norm is 'rms', and model.norm is 'layer'",
    ),
    (
        {"model.positions.scaling.factor": 2.0},
        "only when model.positions.scaling is 'linear' or 'ntk' or 'llama3' or 'yarn' or"
        " 'longrope', and model.positions.scaling is 'none'",
    ),
    (
        {"model.positions": "learned", "model.positions.scaling.factor": 2.0},
        "only when model.positions is 'rope', and model.positions is 'learned'",
    ),
    (
        {"optimizer.update": "sgd", "optimizer.update.beta1": 0.8},
        "only when optimizer.update is 'adamw' or 'lion' or 'muon', and optimizer.update is 'sgd'",
    ),
    (
        {"optimizer.schedule": "constant", "optimizer.schedule.final_ratio": 0.0},
        "only when optimizer.schedule is 'cosine' or 'linear' or 'wsd'",
    ),
    (
        {"data.objective": "masked", "data.objective.encoder_length": 4},
        "only when data.objective is 'spans' or 'pairs', and data.objective is 'masked'",
    ),
]


@pytest.mark.parametrize("updates, reason", ABSENT)
def test_a_setting_of_another_alternative_is_refused(updates, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)):
        override(Config(), updates, "here")


UNREAD = [
    (
        {"optimizer.weight_decay": 0.0, "optimizer.decay": ("role:matrix",)},
        "it is read only when optimizer.weight_decay is not 0, and optimizer.weight_decay is 0.0",
    ),
    (
        {"model.norm.position": "output", "model.norm.attention": False},
        "it is read only when model.norm.position is 'pre' or 'sandwich'",
    ),
]


@pytest.mark.parametrize("updates, reason", UNREAD)
def test_a_setting_nothing_reads_is_refused(updates, reason):
    config = override(Config(), updates, "here")
    key = list(updates)[-1]
    assert set(unread(config)) == {key}
    with pytest.raises(
        ConfigError, match=re.escape(f"{key} was set (here) but nothing in this run reads it")
    ) as error:
        check_unread(config)
    assert reason in str(error.value)


def test_alternatives_are_chosen_before_their_fields_in_any_order():
    config = override(
        Config(),
        {
            "model.positions.scaling.factor": 2.0,
            "model.positions.theta": 5e5,
            "model.positions.scaling": "linear",
            "model.positions": "rope",
        },
    )
    assert config.model.rope.scaling.factor == 2.0 and config.model.rope.theta == 5e5


def test_fields_that_both_alternatives_have_keep_their_values():
    config = override(
        Config(), {"model.norm.eps": 1e-6, "optimizer.update": "muon", "optimizer.update.eps": 1e-9}
    )
    config = override(config, {"model.norm": "layer", "optimizer.update": "adamw"})
    assert config.model.norm.eps == 1e-6 and config.optimizer.update.eps == 1e-9
    again = override(config, {"model.norm": "layer"})
    assert again == config


def test_a_section_alone_can_be_changed():
    attention = override(ModelConfig().attention, {"head_dim": 4, "qk_norm": "all"})
    assert (attention.head_dim, attention.normalized_axes) == (4, 2)


def test_an_optional_section_is_made_by_setting_one_of_its_fields():
    config = override(Config(), {"model.experts.count": 4, "model.experts.groups.per_token": 1})
    assert config.model.experts.count == 4 and config.model.experts.groups.per_token == 1
    assert override(config, {"model.experts": NONE}).model == Config().model
    assert Config().model.experts is None


def test_a_file_made_moot_by_the_command_line_is_a_note():
    config = override(Config(), {"optimizer.update.beta1": 0.8}, "file.py:3")
    config = override(config, {"optimizer.update": "sgd"}, "command line")
    (note,) = check_unread(config, ["optimizer.update"])
    assert note.startswith(
        "optimizer.update.beta1 (set at file.py:3) is not read: it is read only when"
        " optimizer.update"
    )
    with pytest.raises(ConfigError, match=r"optimizer\.update\.beta1 was set \(file\.py:3\)"):
        check_unread(config)
    # What is set again, and read, is no longer moot.
    config = override(config, {"optimizer.update": "lion", "optimizer.update.beta1": 0.7}, "later")
    assert check_unread(config) == []


def test_a_file_made_moot_through_two_sections_is_a_note_too():
    updates = {"model.positions.scaling": "linear", "model.positions.scaling.factor": 2.0}
    config = override(Config(), updates, "file.py:3")
    config = override(config, {"model.positions": "learned"}, "command line")
    assert len(check_unread(config, ["model.positions"])) == 2


def gates():
    """key -> (key of its gate, values that open it), for every setting marked ``read_when``."""
    out = {}
    for key, (setting, *_) in settings(Config).items():
        if "when" in setting.field.metadata:
            sibling, values = setting.field.metadata["when"]
            out[key] = (f"{key.rpartition('.')[0]}.{sibling}", values)
    return out


@pytest.mark.parametrize("key", gates())
def test_every_gated_setting_can_be_read_and_can_be_unread(key):
    gate, values = gates()[key]
    default = settings(Config)[key][0].default
    hint = settings(Config)[gate][0].hint
    opening = [0.5] if values == NONZERO else values
    closing = [0.0] if values == NONZERO else set(typing.get_args(hint)) - set(values)
    assert closing
    for value in opening:
        assert unread(override(Config(), {gate: value, key: default}, "here")) == {}
    for value in closing:
        assert key in unread(override(Config(), {gate: value, key: default}, "here"))


def sections(cls):
    """Every dataclass of a config, through all alternatives."""
    return {setting.owner for found in settings(cls).values() for setting in found}


def test_sections_have_about_twenty_fields_at_most():
    for section in sections(Config):
        assert len(dataclasses.fields(section)) <= 21, section


def test_json_round_trip():
    updates = {
        "model.attention.window_pattern": (128, 0),
        "model.positions.theta": 5e5,
        "data.path": ("a", "b"),
        "data.weights": (0.25, 0.75),
        "mesh.fsdp": 2,
        "name": "x",
        "execution.remat": "names:query,mlp_hidden",
        "model.attention.qk_norm": "head",
        "model.experts": "on",
        "model.experts.count": 4,
        "model.experts.balance": "none",
        "model.norm": "layer",
        "train.spike": "skip",
        "data.objective": "spans",
        "data.objective.span_length": 2.0,
    }
    config = override(Config(), updates)
    back = from_json(json.loads(json.dumps(to_json(config))), "saved.json")
    assert back == config
    assert provenance(back) == dict.fromkeys(updates, "saved.json")
    assert from_json({}) == Config() and from_json({"train": {"steps": 7}}).train.steps == 7


@pytest.mark.parametrize(
    "data, message",
    [
        ({"train": {"stepz": 7}}, "unknown setting 'train.stepz'; did you mean 'train.steps'?"),
        ({"trian": {"steps": 7}}, "unknown setting 'trian.steps'; did you mean 'train.steps'?"),
        ({"train": {"steps": "7"}}, "train.steps is '7'; it must be int"),
        ({"model": 3}, "unknown setting 'model'"),
    ],
)
def test_json_that_does_not_fit_is_refused(data, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_json(data)


BAD = [
    ({"model.num_layers": 0}, "model.num_layers is 0; it must be at least 1"),
    ({"model.attention.softcap": -1.0}, "model.attention.softcap is -1.0; it must be at least 0"),
    (
        {"model.attention.num_kv_heads": 5},
        "model.attention.num_kv_heads is 5, which does not divide model.attention.num_heads 12",
    ),
    (
        {"model.embed_dim": 100},
        "model.embed_dim 100 is not a multiple of model.attention.num_heads 12; set"
        " model.attention.head_dim",
    ),
    (
        {"model.attention.head_dim": 3},
        "rotary positions need an even width; model.attention.head_dim 3 times"
        " model.positions.fraction 1.0 is 3",
    ),
    (
        {"model.positions": "sinusoidal", "model.embed_dim": 15, "model.attention.num_heads": 3},
        "sinusoidal positions need an even model.embed_dim; it is 15",
    ),
    ({"model.attention.window_pattern": ()}, "model.attention.window_pattern is empty"),
    (
        {"model.attention.window_pattern": (4, -1)},
        "model.attention.window_pattern is (4, -1); it must be at least 0",
    ),
    ({"model.dropout": 1.0}, "model.dropout is 1.0; it must be at least 0 and less than 1"),
    (
        {"model.positions.scaling": "ntk", "model.positions.scaling.factor": 0.5},
        "model.positions.scaling.factor is 0.5; it must be at least 1",
    ),
    (
        {"execution.remat": "some"},
        "execution.remat is 'some'; use none, full, dots, names:a,b or offload:a,b",
    ),
    ({"execution.remat": "names:querry"}, "with names out of query, key, value"),
    ({"execution.remat": "names:"}, "execution.remat is 'names:'"),
    ({"execution.loss_chunk": -1}, "execution.loss_chunk is -1; it must be at least 0"),
    (
        {"execution.loss_chunk": 301, "model.vocab_size": 300},
        "execution.loss_chunk is 301; it must be from 0 to the model.vocab_size 300",
    ),
    ({"data.seq_length": 0}, "data.seq_length is 0; it must be at least 1"),
    (
        {"data.seq_length": 2048},
        "data.seq_length 2048 is longer than model.max_length 1024; raise model.max_length",
    ),
    ({"data.prefetch": 0}, "data.prefetch is 0"),
    (
        {"data.batch_size": 33, "train.accumulation": 2},
        "data.batch_size 33 does not divide by train.accumulation 2",
    ),
    ({"train.accumulation": 0}, "train.accumulation is 0; it must be at least 1"),
    ({"train.keep": 0}, "train.keep is 0"),
    (
        {"train.steps": 2**31},
        "train.steps is 2147483648; it must be at least 1 and at most 2147483647",
    ),
    ({"train.seed": -1}, "train.seed is -1; it must be at least 0"),
    (
        {"data.seed": 2**64},
        "data.seed is 18446744073709551616; it must be at least 0 and at most 18446744073709551615",
    ),
    (
        {"optimizer.clip_norm": float("inf")},
        "optimizer.clip_norm is inf; it must be finite and at least 0",
    ),
    ({"train.profile_steps": (0, 2)}, "train.profile_steps is (0, 2); it must be at least 1"),
    ({"optimizer.learning_rate": 0.0}, "optimizer.learning_rate is 0.0; it must be more than 0"),
    (
        {"optimizer.learning_rate": float("nan")},
        "optimizer.learning_rate is nan; it must be finite and more than 0",
    ),
    ({"train.steps": 50}, "optimizer.warmup_steps 100 is not less than train.steps 50; lower it"),
    (
        {"optimizer.schedule": "wsd", "optimizer.schedule.decay_fraction": 0.0},
        "optimizer.schedule.decay_fraction is 0.0; it must be more than 0 and at most 1",
    ),
    (
        {"mesh.data": -1, "mesh.fsdp": -1},
        "mesh axes ['data', 'fsdp'] are all -1; only one can take",
    ),
    ({"mesh.tensor": 0}, "mesh.tensor is 0; it must be at least 1, or -1 for the rest"),
    (
        {"train.out": "s3://bucket/runs/x"},
        (
            "train.out is 's3://bucket/runs/x'; checkpoints are written to folders and to gs://,"
            " since orbax has no commit protocol for other buckets; choose one of these, or mount"
            " the bucket"
        ),
    ),
    ({"train.out": "gs://"}, "train.out is 'gs://' names no bucket; give gs://BUCKET/FOLDER"),
    (
        {"data.path": ("shards", "hdfs://host/two")},
        "data.path is 'hdfs://host/two', and hdfs:// cannot be read or written; give a folder,",
    ),
]


@pytest.mark.parametrize("updates, message", BAD)
def test_validate_names_the_setting_its_value_and_the_fix(updates, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(override(Config(), updates))


UNSEEN = [
    {"optimizer.clip_norm": -1.0},
    {"optimizer.warmup_steps": -5},
    {"optimizer.update.beta1": 1.5},
    {"optimizer.weight_decay": -0.1},
    {"model.norm.eps": -1e-5},
    {"model.positions.theta": 0.0},
    {"model.init_std": -0.02},
    {"train.z_loss": -1.0},
    {"train.eval_every": -1},
    {"data.path": ("a", "b"), "data.weights": (1.0,)},
    {"data.path": ("a",), "data.weights": (-1.0,)},
]


@pytest.mark.parametrize("updates", UNSEEN, ids=lambda u: list(u)[-1])
def test_values_without_a_meaning_are_refused(updates):
    with pytest.raises(ConfigError, match=re.escape(list(updates)[-1])):
        validate(override(Config(), updates))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"temperature": -0.1}, "temperature is -0.1; it must be at least 0"),
        ({"temperature": 1e-9}, "temperature is 1e-09; it must be 0 (greedy) or at least 1e-06"),
        ({"top_k": -1}, "top_k is -1; it must be at least 0"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be more than 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.5}, "min_p is 1.5; it must be at least 0 and at most 1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 2.5}, "top_k is 2.5; it must be a whole number"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"top_p": "1"}, "top_p is '1'; it must be a number"),
        ({"order": "llama"}, "order is 'llama'; use hf or vllm"),
    ],
)
def test_validate_decode(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate_decode(DecodeConfig(**fields))


def test_remat_names():
    assert remat_names("none") == remat_names("full") == remat_names("dots") == ()
    assert (
        remat_names("names:query, mlp_out")
        == remat_names("offload:query,mlp_out")
        == ("query", "mlp_out")
    )


def test_windows_repeat_over_the_layers():
    m = override(ModelConfig(), {"attention.window_pattern": (4, 8, 0)})
    assert [m.window(l) for l in range(5)] == [4, 8, 0, 4, 8]
    grouped = override(ModelConfig(), {"attention.num_kv_heads": 2, "attention.head_dim": 10})
    assert (ModelConfig().attention.kv_heads, grouped.attention.kv_heads) == (12, 2)
    assert (ModelConfig().head_dim, grouped.head_dim) == (64, 10)
    assert MeshConfig() == MeshConfig(-1, 1, 1)


def test_load_a_config_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from llm_jax.config import Config\nfrom llm_jax.config.overrides import override\n\n\n"
        "def config():\n    return override(Config(), {'train.steps': 7})\n"
    )
    config = load_config(path)
    assert config.train.steps == 7 and provenance(config) == {"train.steps": f"{path}:6"}
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(to_json(config)))
    assert load_config(saved) == config and provenance(load_config(saved)) == {
        "train.steps": str(saved)
    }


def test_a_missing_config_file_suggests_its_neighbour(tmp_path):
    (tmp_path / "tiny_cpu.py").write_text("")
    with pytest.raises(
        ConfigError, match=r"there is no config file '.*tiny_cp.py'; did you mean 'tiny_cpu.py'\?"
    ):
        load_config(tmp_path / "tiny_cp.py")
    with pytest.raises(ConfigError, match=r"there is no config file 'nowhere/x.py'$"):
        load_config("nowhere/x.py")


@pytest.mark.parametrize("text, got", [("x = 1", "None"), ("def config(): return 3", "3")])
def test_a_config_file_must_return_a_config(tmp_path, text, got):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(
        ConfigError,
        match=rf"must define a function config\(\) that returns llm_jax.config.Config; got {got}",
    ):
        load_config(path)


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_damaged_json_config_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_config(path)


def test_nearest_prefers_the_closest_leaf():
    assert (
        nearest("adam_learning_rat", KEYS)
        == "; did you mean 'optimizer.update.adam_learning_rate'?"
    )
    assert nearest("x", []) == ""


def test_a_config_file_that_imports_what_has_moved_is_told_where_it_is(tmp_path):
    file = tmp_path / "old.py"
    file.write_text("from llm_jax.overrides import override\n")
    said = r"old\.py imports llm_jax\.overrides.* from llm_jax\.config import Config, override"
    with pytest.raises(ConfigError, match=said):
        load_config(file)
    file.write_text("import not_a_module_of_anybody\n")
    with pytest.raises(ModuleNotFoundError, match="not_a_module_of_anybody"):
        load_config(file)


@pytest.mark.parametrize(
    ("saved", "decay"),
    [
        (["kernel", "embedding"], OptimizerConfig().decay),
        (["kernel"], ("*/kernel",)),
        (["k*", "role:norm"], ("*/k*", "role:norm")),
    ],
)
def test_a_config_from_before_decay_went_by_role_is_read(saved, decay):
    """Its patterns were of the last name of a path, and ``no_decay`` was what was left."""
    data = to_json(Config())
    data["optimizer"] |= {"decay": saved, "no_decay": ["scale", "bias", "positions"]}
    assert from_json(data).optimizer == dataclasses.replace(Config().optimizer, decay=decay)


def test_a_config_from_before_sections_is_read(capsys):
    """Its settings were flat, with every default written out."""
    flat = json.loads((ROOT / "tests/fixtures/run_before_sections/config.json").read_text())
    config = from_json(flat, "a file of before")
    assert config.model.attention.num_heads == flat["model"]["num_heads"] == 4
    assert config.model.experts.count == 4 and config.model.experts.balance.kind == "bias"
    assert config.model.norm.kind == "layer" and config.model.norm.bias
    assert config.model.encoder is None and config.model.pooler is None
    assert config.optimizer.update.kind == "muon" and config.train.spike is None
    assert "settings under earlier names" in capsys.readouterr().err
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("old", "updates"),
    [
        ({"num_experts": 0}, {}),
        ({"num_experts": 8, "expert_groups": 2}, {"experts.count": 8, "experts.groups.count": 2}),
        ({"kv_latent": 0}, {}),
        ({"kv_latent": 8}, {"attention": "latent", "attention.kv_latent": 8}),
        ({"qk_norm": True, "qk_norm_width": "all"}, {"attention.qk_norm": "all"}),
        ({"qk_norm": False, "qk_norm_width": "all"}, {}),
        ({"head_transform": True, "head_transform_bias": True}, {"head.transform.bias": True}),
        ({"pooler": "relu", "pooling": "mean"}, {"pooler.layer": "relu", "pooler.reads": "mean"}),
        (
            {"first_layers": 2, "first_mlp_dim": 4},
            {"first_layers.count": 2, "first_layers.mlp_dim": 4},
        ),
        ({"encoder_layers": 3}, {"encoder.num_layers": 3}),
        (
            {"rope_scaling": "yarn", "rope_beta_fast": 8.0},
            {"positions.scaling": "yarn", "positions.scaling.beta_fast": 8.0},
        ),
    ],
)
def test_old_settings_mean_what_they_meant(old, updates):
    wanted = override(ModelConfig(), updates)
    assert override(ModelConfig(), old) == wanted
    assert from_json({"model": old}).model == wanted


def test_every_old_setting_has_one_of_today_and_a_message_names_it(capsys):
    known = settings(Config)
    assert set(old_keys.RENAMED.values()) <= set(known)
    assert not set(old_keys.RENAMED) & set(known)
    override(Config(), {"model.logit_softcap": 1.0})
    assert "the setting model.logit_softcap is now model.head.softcap" in capsys.readouterr().err
    assert override(Config(), {"train.spike": "off"}) == Config()


def test_a_value_of_an_old_file_that_nothing_would_read_is_refused():
    with pytest.raises(
        ConfigError, match=r"model\.positions\.scaling\.factor was set .* but nothing"
    ):
        from_json({"model": {"num_heads": 4, "rope_scaling": "none", "rope_factor": 2.0}})
