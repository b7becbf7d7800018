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

from llm_jax.config import Config, DecodeConfig, MeshConfig, ModelConfig, OptimizerConfig
from llm_jax.config.model import NONZERO
from llm_jax.config.overrides import (
    check_unread,
    explain,
    flatten,
    from_json,
    help_of,
    load_config,
    nearest,
    override,
    provenance,
    to_json,
    unread,
)
from llm_jax.config.validate import remat_names, validate, validate_decode
from llm_jax.types import ConfigError

ROOT = Path(__file__).parents[1]

KEYS = list(flatten(Config()))


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
            override(Config(), {wrong: flatten(Config())[key]})
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
        ("num_heads", "model.num_heads"),
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


@pytest.mark.parametrize("key", ["model", "model.norm.rms", "train.", "", ".", "model..norm"])
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
        ("model.qk_norm", 1, "model.qk_norm is 1; it must be bool"),
        ("train.out", None, "train.out is None; it must be str"),
        ("data.path", "shards/", "data.path is 'shards/'; it must be tuple[str, ...]"),
        ("model.window_pattern", (1, 2.5), "it must be tuple[int, ...]"),
        (
            "model.norm",
            "rmsnorm",
            "model.norm is 'rmsnorm'; it must be 'rms' or 'layer'; did you mean 'rms'?",
        ),
        ("model.activation", "gelu_tan", "did you mean 'gelu_tanh'?"),
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
        Config(), {"model.dropout": 0, "model.window_pattern": [1, 0], "data.path": ["a", "b"]}
    )
    assert isinstance(config.model.dropout, float)
    assert config.model.window_pattern == (1, 0) and config.data.path == ("a", "b")
    assert Config().model.window_pattern == (0,)  # the original is untouched


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
        in explain(Config(), "model.norm_bias")
    )
    with pytest.raises(ConfigError, match=r"did you mean 'train\.steps'"):
        explain(Config(), "train.step")


def test_values_set_without_override_are_not_called_defaults():
    config = dataclasses.replace(Config(), model=ModelConfig(norm_bias=True))
    assert "default" not in explain(config, "model.norm_bias").splitlines()[1]
    with pytest.raises(ConfigError, match="norm_bias"):
        check_unread(config)


UNREAD = [
    (
        {"model.norm_bias": True},
        "it is read only when model.norm is 'layer', and model.norm is 'rms'",
    ),
    ({"model.norm": "layer", "model.norm_unit_offset": True}, "only when model.norm is 'rms'"),
    (
        {"model.rope_factor": 2.0},
        "only when model.rope_scaling is 'linear' or 'ntk' or 'llama3' or 'yarn'",
    ),
    (
        {"model.positions": "learned", "model.rope_theta": 1e5},
        "only when model.positions is 'rope'",
    ),
    (
        {"optimizer.name": "sgd", "optimizer.beta1": 0.8},
        "only when optimizer.name is 'adamw' or 'lion' or 'muon'",
    ),
    ({"optimizer.momentum": 0.9}, "only when optimizer.name is 'sgd' or 'muon'"),
    (
        {"optimizer.schedule": "constant", "optimizer.final_ratio": 0.0},
        "only when optimizer.schedule is",
    ),
    (
        {"optimizer.weight_decay": 0.0, "optimizer.decay": ("role:matrix",)},
        "only when optimizer.weight_decay is not 0",
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


def test_a_setting_behind_two_gates_names_the_closed_one():
    config = override(
        Config(),
        {"model.rope_scaling": "linear", "model.rope_factor": 2.0, "model.positions": "none"},
        "here",
    )
    assert set(unread(config)) == {"model.rope_scaling", "model.rope_factor"}
    assert "model.positions is 'rope'" in unread(config)["model.rope_factor"]


def test_a_file_made_moot_by_the_command_line_is_a_note():
    config = override(Config(), {"optimizer.beta1": 0.8}, "file.py:3")
    config = override(config, {"optimizer.name": "sgd"}, "command line")
    (note,) = check_unread(config, ["optimizer.name"])
    assert note.startswith(
        "optimizer.beta1 (set at file.py:3) is not read: it is read only when optimizer.name"
    )
    with pytest.raises(ConfigError):
        check_unread(config)


def test_a_file_made_moot_through_two_gates_is_a_note_too():
    config = override(
        Config(), {"model.rope_scaling": "linear", "model.rope_factor": 2.0}, "file.py:3"
    )
    config = override(config, {"model.positions": "learned"}, "command line")
    assert len(check_unread(config, ["model.positions"])) == 2


def gates():
    """key -> (key of its gate, values that open it), for every setting marked ``read_when``."""
    out = {}
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default):
            for f in dataclasses.fields(section.default):
                if "when" in f.metadata:
                    sibling, values = f.metadata["when"]
                    out[f"{section.name}.{f.name}"] = (f"{section.name}.{sibling}", values)
    return out


def something(key):
    """A value of a setting that is not zero."""
    return 4 if isinstance(flatten(Config())[key], int) else 0.5


@pytest.mark.parametrize("key", gates())
def test_every_gated_setting_can_be_read_and_can_be_unread(key):
    chain, all_gates = {}, gates()
    at = key
    while at in all_gates:
        at, values = all_gates[at]
        chain[at] = something(at) if values == NONZERO else values[0]
    default = flatten(Config())[key]
    gate = all_gates[key][0]
    for value in [something(gate)] if all_gates[key][1] == NONZERO else all_gates[key][1]:
        opened = override(Config(), chain | {gate: value, key: default}, "here")
        assert unread(opened) == {}
    owner = type(getattr(Config(), gate.split(".")[0]))
    hint = typing.get_type_hints(owner)[gate.split(".")[1]]
    choices = (True, False) if hint is bool else typing.get_args(hint)
    closed = (
        [0 * something(gate)]
        if all_gates[key][1] == NONZERO
        else [v for v in choices if v not in all_gates[key][1]]
    )
    assert closed
    for value in closed:
        assert key in unread(override(Config(), chain | {gate: value, key: default}, "here"))


def test_json_round_trip():
    updates = {
        "model.window_pattern": (128, 0),
        "model.rope_theta": 5e5,
        "data.path": ("a", "b"),
        "data.weights": (0.25, 0.75),
        "mesh.fsdp": 2,
        "name": "x",
        "execution.remat": "names:query,mlp_hidden",
        "model.qk_norm": True,
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
    ({"model.attention_softcap": -1.0}, "model.attention_softcap is -1.0; it must be at least 0"),
    (
        {"model.num_kv_heads": 5},
        "model.num_kv_heads is 5, which does not divide model.num_heads 12",
    ),
    (
        {"model.embed_dim": 100},
        "model.embed_dim 100 is not a multiple of model.num_heads 12; set model.head_dim",
    ),
    (
        {"model.head_dim": 3},
        "rotary positions need an even width; model.head_dim 3 times model.rope_fraction 1.0 is 3",
    ),
    (
        {"model.positions": "sinusoidal", "model.embed_dim": 15, "model.num_heads": 3},
        "sinusoidal positions need an even model.embed_dim; it is 15",
    ),
    ({"model.window_pattern": ()}, "model.window_pattern is empty"),
    ({"model.window_pattern": (4, -1)}, "model.window_pattern is (4, -1); it must be at least 0"),
    ({"model.dropout": 1.0}, "model.dropout is 1.0; it must be at least 0 and less than 1"),
    ({"model.rope_factor": 0.5}, "model.rope_factor is 0.5; it must be at least 1"),
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
        {"optimizer.decay_fraction": 0.0},
        "optimizer.decay_fraction is 0.0; it must be more than 0 and at most 1",
    ),
    (
        {"mesh.data": -1, "mesh.fsdp": -1},
        "mesh axes ['data', 'fsdp'] are all -1; only one can take",
    ),
    ({"mesh.tensor": 0}, "mesh.tensor is 0; it must be at least 1, or -1 for the rest"),
    (
        {"train.out": "gs://bucket/runs/x"},
        (
            "train.out is 'gs://bucket/runs/x', and only folders are read and written; mount the"
            " bucket (tpu_scripts/setup.sh does) and name its folder, such as /mnt/bucket/runs/x"
        ),
    ),
    (
        {"data.path": ("shards", "s3://bucket/two")},
        "data.path is 's3://bucket/two', and only folders are read",
    ),
]


@pytest.mark.parametrize("updates, message", BAD)
def test_validate_names_the_setting_its_value_and_the_fix(updates, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(override(Config(), updates))


UNSEEN = [
    {"optimizer.clip_norm": -1.0},
    {"optimizer.warmup_steps": -5},
    {"optimizer.beta1": 1.5},
    {"optimizer.weight_decay": -0.1},
    {"model.norm_eps": -1e-5},
    {"model.rope_theta": 0.0},
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
    m = ModelConfig(window_pattern=(4, 8, 0))
    assert [m.window(l) for l in range(5)] == [4, 8, 0, 4, 8]
    assert (ModelConfig().kv_heads, ModelConfig(num_kv_heads=2).kv_heads) == (12, 2)
    assert (ModelConfig().head_size, ModelConfig(head_dim=10).head_size) == (64, 10)
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
    assert nearest("adam_learning_rat", KEYS) == "; did you mean 'optimizer.adam_learning_rate'?"
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
