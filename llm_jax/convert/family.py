"""What a family of models is: a table of the keys of its config file and one of its tensors, each
read in both directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llm_jax.config.model import ModelConfig
from llm_jax.config.validate import validate_model
from llm_jax.types import ConfigError

REQUIRED = object()


class ConfigKey(NamedTuple):
    """A key of ``config.json`` and the field of ``ModelConfig`` with the same meaning.

    source: the key in ``config.json``.
    native: the field of ``ModelConfig``.
    default: value of the key where a file has no such key; REQUIRED: a file must have it.
    values: value of the key -> value of the field, where the two differ.
    none: value of the field for a JSON null.
    write: attribute of ``ModelConfig`` to export, where it is not the field (``kv_heads`` for
        ``num_kv_heads``).
    also: another name that some files have for the key.
    some: the field's 0 has no equivalent in ``config.json`` and is not written.
    """

    source: str
    native: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None
    none: Any = REQUIRED
    write: str = ""
    also: str = ""
    some: bool = False


class ConfigTransform(NamedTuple):
    """Several keys of ``config.json`` that together set fields of ``ModelConfig``.

    keys: every key that ``read`` looks at.
    read: (config.json, fields so far) -> fields.
    write: config -> keys of ``config.json``.
    """

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


class TensorMap(NamedTuple):
    """A tensor of a model file and the parameter, or the parameters, that it holds.

    source: name in the file, with ``{l}`` for the layer and ``{e}`` for the expert, which are the
        leading axes of the parameter.
    native: path of the parameter; several paths where the tensor holds several along ``axis``.
    layouts: one pattern for all parts, or one each.
    per: a letter of the first layout; the parts follow one another for each index of it.
    order: order of the indices along ``axis``, from the model's config, where no pattern has it.
    when: condition for the tensor to exist: a field that must be set, or must have the value after
        ``=``, or, after ``not``, must not; several are joined by ``and``.
    """

    source: str
    native: str | tuple[str, ...]
    layouts: str | tuple[str, ...]
    axis: int = 0
    per: str = ""
    order: Callable[[ModelConfig], np.ndarray] | None = None
    when: str = ""

    @property
    def parts(self) -> tuple[tuple[str, str], ...]:
        """(path, layout) of each."""
        paths = (self.native,) if isinstance(self.native, str) else self.native
        layouts = (self.layouts,) * len(paths) if isinstance(self.layouts, str) else self.layouts
        return tuple(zip(paths, layouts, strict=True))


class Family(NamedTuple):
    """A family of models, as tables.

    model_type, architecture: as in ``config.json``.
    fixed: fields of ``ModelConfig`` that the whole family has.
    keys, codecs: the keys of ``config.json``.
    rows: the tensors.
    required_values: keys that must have one of these values where they are present; export writes
        the first.
    unused: keys that change nothing in what the family computes here.
    prefix: prefix of most tensor names, which some files leave out.
    copies: tensor -> tensor that it repeats where the model has no parameter of that name.
    duplicated_tensors: like ``copies``, and written where embeddings are not tied.
    buffers: endings of tensor names that are ignored where the model has no such parameter.
    endings: old endings of tensor names -> new ones.
    heads: by architecture, the fields that it sets; ``architecture`` is the default.
    bare: the architecture without a head, whose tensor names have no prefix.
    """

    model_type: str
    architecture: str
    fixed: Mapping[str, Any]
    keys: tuple[ConfigKey, ...]
    codecs: tuple[ConfigTransform, ...]
    rows: tuple[TensorMap, ...]
    required_values: Mapping[str, tuple[Any, ...]] = {}
    unused: tuple[str, ...] = ()
    prefix: str = ""
    copies: Mapping[str, str] = {}
    duplicated_tensors: Mapping[str, str] = {}
    buffers: tuple[str, ...] = ()
    endings: Mapping[str, str] = {}
    heads: Mapping[str, Mapping[str, Any]] = {}
    bare: str = ""

    @property
    def architectures(self) -> tuple[str, ...]:
        """All of the family, the usual one first."""
        return tuple(self.heads) or (self.architecture,)

    @property
    def implicit_defaults(self) -> dict[str, Any]:
        """What a file need not say, as it is written."""
        return {name: values[0] for name, values in self.required_values.items()}


# Keys that change no output of a model that only reads text: bookkeeping, training, other programs'
# ways to run.
_NOT_READ = frozenset(
    {
        "architectures",
        "model_type",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "_name_or_path",
        "use_cache",
        "initializer_range",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "pretraining_tp",
        "attention_dropout",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "hidden_dropout",
        "classifier_dropout",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_return_dict",
        "task_specific_params",
        "_attn_implementation",
        "cache_implementation",
        "max_new_tokens",
        "n_ctx",
        "aux_loss_alpha",
        "seq_aux",
        "ep_size",
        "unsloth_version",
        "unsloth_fixed",
        "chunk_size_feed_forward",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "is_decoder",
        "is_encoder_decoder",
        "torchscript",
        "id2label",
        "label2id",
        "problem_type",
        "gradient_checkpointing",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
        "activation_dropout",
        "init_std",
        "initializer_factor",
        "dropout_rate",
        "num_labels",
        "finetuning_task",
        "auto_map",
        "tokenizer_class",
        "output_past",
        "save_step",
        "transformers.js_config",
        "sentence_transformers",
        "is_llama_config",
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    }
)


# More layers or experts than any model has; a file with more would have long lists made of it.
_MOST = 10_000


def read_config(
    family: Family, source: Mapping[str, Any], ignore: tuple[str, ...] = (), max_length: int = 0
) -> ModelConfig:
    """Their config as ours, with a shorter context if ``max_length`` is given. ConfigError for a
    key that is missing, has a value that no field can say, or is unknown.
    """
    if "quantization_config" in source and "quantization_config" not in ignore:
        raise ConfigError(
            "config.json has a quantization_config: quantised weights are not read; take, or save,"
            " the model de-quantised"
        )
    try:
        model = _read_config(family, source, ignore, max_length)
        validate_model(model)
    except ConfigError:
        raise
    except (
        KeyError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        StopIteration,
        IndexError,
    ) as error:
        # A file may hold anything; what the tables do not expect is named by what they stumbled
        # over.
        raise ConfigError(
            f"config.json cannot be that of a {family.model_type}: {type(error).__name__}:"
            f" {str(error)[:100]}"
        ) from error
    return model


def _read_config(
    family: Family, source: Mapping[str, Any], ignore: tuple[str, ...], max_length: int
) -> ModelConfig:
    native, said = dict(family.fixed), dict[str, ConfigKey]()
    for key in family.keys:
        value, other = _read(key, source, family), said.setdefault(key.native, key)
        if native.get(key.native, value) != value and other is not key:
            both = f"{other.source} is {native[key.native]!r} and {key.source} {value!r}"
            raise ConfigError(f"config.json: {both}; only equal ones can be represented")
        native[key.native] = value
    native |= family.heads.get(
        (source.get("architectures") or [""])[0], family.heads.get(family.architecture, {})
    )
    for name in ("num_layers", "num_experts", "encoder_layers"):
        if native.get(name, 0) > _MOST:
            raise ConfigError(
                f"config.json: {name} would be {str(native[name])[:20]}; at most {_MOST:,} are read"
            )
    # Relative positions have no end.
    if (
        max_length > native["max_length"] and native.get("positions") != "relative"
    ) or max_length < 0:
        raise ConfigError(
            f"max_length is {max_length}; the model has a context of {native['max_length']}"
        )
    if max_length and native.get("positions") == "learned":
        raise ConfigError(
            f"max_length is {max_length}, but positions are learned: the context is the length of"
            " their table"
        )
    native["max_length"] = max_length or native["max_length"]
    for codec in family.codecs:
        native |= codec.read(source, native)
    if not any(native.get("window_pattern", (0,))):
        # The base of layers that there are none of.
        native.pop("rope_theta_windowed", None)
    for name, values in family.required_values.items():
        if name in source and source[name] not in values:
            raise ConfigError(
                f"config.json: {name} is {source[name]!r}; of {family.model_type} only"
                f" {values[0]!r} can be represented"
            )
    known = {name for k in family.keys for name in (k.source, k.also)} | {
        name for c in family.codecs for name in c.keys
    }
    known |= {*family.required_values, *family.unused} | _NOT_READ
    if unknown := sorted(set(source) - known - set(ignore)):
        raise ConfigError(
            f"config.json: {family.model_type} has no known meaning for"
            f" {', '.join(f'{n} = {source[n]!r}'[:100] for n in unknown)}; it may change what the"
            f" model computes. If it does not, convert with --ignore {' '.join(unknown)}"
        )
    return dataclasses.replace(ModelConfig(), **native)


def _read(key: ConfigKey, source: Mapping[str, Any], family: Family) -> Any:
    value = source.get(key.source, source.get(key.also, key.default))
    if value is REQUIRED:
        raise ConfigError(f"config.json lacks {key.source!r}, which {family.model_type} needs")
    if value is None and key.none is not REQUIRED:
        return key.none
    if key.values is not None:
        if not isinstance(value, str | int | float | bool) or value not in key.values:
            raise ConfigError(
                f"config.json: {key.source} is {value!r}; there are"
                f" {', '.join(map(repr, key.values))}"
            )
        return key.values[value]
    want = type(getattr(ModelConfig(), key.native))
    fits = (
        isinstance(value, int | float) and not isinstance(value, bool)
        if want is float
        else type(value) is want
    )
    if not fits or (want is float and not abs(value) < 1e300):
        raise ConfigError(
            f"config.json: {key.source} is {repr(value)[:50]}; it must be of type {want.__name__}"
        )
    return want(value)


def write_config(family: Family, native: ModelConfig) -> dict[str, Any]:
    """Our config as theirs. ConfigError, naming the fields, where the family cannot say it."""
    native = resolved(native)
    heads = [
        name
        for name, fields in family.heads.items()
        if all(_alike(getattr(native, f), v) for f, v in fields.items())
    ]
    source: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": (heads or [family.architecture])[:1],
    }
    source |= family.implicit_defaults
    for key in family.keys:
        value = getattr(native, key.write or key.native)
        if key.none is not REQUIRED and value == key.none:
            value = None
        elif key.some and not value:
            value = REQUIRED
        elif key.values is not None:
            value = next((t for t, o in key.values.items() if o == value), REQUIRED)
        source |= {name: value for name in (key.source, key.also) if name}
    for codec in family.codecs:
        source |= codec.write(native)
    lost = {name: value for name, value in source.items() if value is REQUIRED}
    again = native if lost else resolved(read_config(family, source))
    changed = [
        f.name
        for f in dataclasses.fields(native)
        if f.name not in _NOT_EXPORTED and getattr(again, f.name) != getattr(native, f.name)
    ]
    if lost or changed:
        fields = changed or [k.native for k in family.keys if k.source in lost]
        named = ", ".join(f"model.{name} = {getattr(native, name)!r}" for name in fields)
        raise ConfigError(
            f"a {family.model_type} cannot have {named}; export it as another family, or set these"
            " back"
        )
    return source


def _alike(a: Any, b: Any) -> bool:
    """The same, or both numbers of something that is there."""
    return a == b or (bool(a) and bool(b) and not isinstance(a, str | bool))


# Fields that only training reads.
_NOT_EXPORTED = frozenset(
    {"dropout", "init_std", "balance", "balance_weight", "balance_rate", "router_z_loss"}
)


def shortest(pattern: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest pattern that, repeated and cut off, gives this one."""
    n = next(
        n
        for n in range(1, len(pattern) + 1)
        if all(x == pattern[i % n] for i, x in enumerate(pattern))
    )
    return tuple(pattern[:n])


def factors_in_use(
    long: tuple[float, ...], short: tuple[float, ...], original: int, max_length: int
) -> dict[str, Any]:
    """Our fields for two lists of rope factors, of which the long one holds for texts longer than
    ``original``: both, or one where a model of ``max_length`` has no text that the other would hold
    for.
    """
    if short and max_length <= original:
        return {"rope_factors": short, "rope_short_factors": ()}
    return {"rope_factors": long, "rope_short_factors": () if short == long else short}


def resolved(m: ModelConfig) -> ModelConfig:
    """``m`` with defaults that stand for another field's value written out, and patterns as short
    as they are.
    """
    # With a scaling, layers with a window and no base of their own are scaled like the others,
    # which no family can say.
    windowed = m.rope_theta_windowed or (m.rope_theta if m.rope_scaling == "none" else 0.0)
    grouped = m.expert_groups > 1
    return dataclasses.replace(
        m,
        num_kv_heads=m.kv_heads,
        head_dim=m.head_size,
        attention_scale=m.attention_scale or m.head_size**-0.5,
        rope_theta_windowed=windowed,
        expert_groups=m.expert_groups if grouped else 0,
        groups_per_token=m.groups_per_token if grouped else 1,
        encoder_mlp_dim=m.encoder_mlp_size if m.encoder_layers else 0,
        window_pattern=shortest([m.window(l) for l in range(m.num_layers)]),
        rope_pattern=shortest(
            [m.rope_pattern[l % len(m.rope_pattern)] for l in range(m.num_layers)]
        ),
        **factors_in_use(
            m.rope_factors, m.rope_short_factors, m.rope_original_length, m.max_length
        ),
    )
