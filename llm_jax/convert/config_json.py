"""Reading and writing ``config.json`` by the tables of a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.config.overrides import override
from llm_jax.config.sections import flatten, settings, value_of
from llm_jax.config.validate_model import validate_model
from llm_jax.convert.canonical import resolved
from llm_jax.convert.family import REQUIRED, ConfigKey, Family
from llm_jax.convert.ignored_keys import IGNORED_KEYS
from llm_jax.types import ConfigError

# No model has more layers or experts; a file that says more would make very long lists.
_MAX_COUNT = 10_000
# Larger numbers are refused: they overflow in the computations that follow.
_MAX_FLOAT = 1e300
# Fields that only training reads.
_NOT_EXPORTED = (
    "dropout",
    "init_std",
    "experts.balance",
    "experts.balance.weight",
    "experts.balance.rate",
    "experts.router_z_loss",
)
# What a table raises on a value that it does not expect.
_UNEXPECTED = (
    KeyError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    StopIteration,
    IndexError,
)


def read_config(
    family: Family, source: Mapping[str, Any], ignore: tuple[str, ...] = (), max_length: int = 0
) -> ModelConfig:
    """Converts a ``config.json`` to a ``ModelConfig``.

    Args:
        family: Tables of the model's family.
        source: Contents of the file.
        ignore: Keys of the file that are known to change nothing.
        max_length: A shorter context than the model's, in tokens. 0 keeps the model's context.

    Raises:
        ConfigError: A key is missing or unknown, or has a value that no field can represent.
    """
    if "quantization_config" in source and "quantization_config" not in ignore:
        raise ConfigError(
            "config.json has a quantization_config, and quantized weights cannot be read; use, or"
            " save, a de-quantized copy of the model"
        )
    try:
        model = _read_config(family, source, ignore, max_length)
        validate_model(model)
    except ConfigError:
        raise
    except _UNEXPECTED as error:
        raise ConfigError(
            f"config.json is not a valid config of {family.model_type}: {type(error).__name__}:"
            f" {str(error)[:100]}"
        ) from error
    return model


def _read_config(
    family: Family, source: Mapping[str, Any], ignore: tuple[str, ...], max_length: int
) -> ModelConfig:
    native = _read_keys(family, source)
    native |= _head_fields(family, source)
    _check_counts(native)
    native["max_length"] = _context(native, max_length)
    for codec in family.codecs:
        native |= codec.read(source, native)
    if not any(native.get("attention.window_pattern", (0,))):
        # No layer has a window, so nothing reads the rotation base of windowed layers.
        native.pop("positions.windowed_theta", None)
    _check_required_values(family, source)
    _check_known(family, source, ignore)
    return override(ModelConfig(), _of_present_sections(native), "config.json")


def _of_present_sections(native: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those of a section that the model does not have: files keep the keys of
    heads that their architecture leaves out.
    """
    absent = tuple(f"{name}." for name, value in native.items() if value == "none")
    return {name: value for name, value in native.items() if not name.startswith(absent)}


def _read_keys(family: Family, source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that one key each sets; two keys for one field must agree."""
    native = dict(family.fixed)
    first_key: dict[str, ConfigKey] = {}
    for key in family.keys:
        value = _read_key(key, source, family)
        first = first_key.setdefault(key.native, key)
        if first is not key and native[key.native] != value:
            raise ConfigError(
                f"config.json: {first.source} is {native[key.native]!r} and {key.source} is"
                f" {value!r}; only equal values can be represented"
            )
        native[key.native] = value
    return native


def _read_key(key: ConfigKey, source: Mapping[str, Any], family: Family) -> Any:
    value = source.get(key.source, source.get(key.also, key.default))
    if value is REQUIRED:
        raise ConfigError(f"config.json lacks {key.source!r}, which {family.model_type} needs")
    if value is None and key.none is not REQUIRED:
        return key.none
    if key.values is not None:
        if not isinstance(value, str | int | float | bool) or value not in key.values:
            known = ", ".join(map(repr, key.values))
            raise ConfigError(f"config.json: {key.source} is {value!r}; supported are {known}")
        return key.values[value]
    expected = type(settings(ModelConfig)[key.native][0].default)
    if not _has_type(value, expected):
        raise ConfigError(
            f"config.json: {key.source} is {repr(value)[:50]}; it must be of type"
            f" {expected.__name__}"
        )
    return expected(value)


def _has_type(value: Any, expected: type) -> bool:
    if expected is not float:
        return type(value) is expected
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < _MAX_FLOAT


def _head_fields(family: Family, source: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields that the file's architecture sets."""
    architecture = (source.get("architectures") or [""])[0]
    default = family.heads.get(family.architecture, {})
    return family.heads.get(architecture, default)


def _check_counts(native: Mapping[str, Any]) -> None:
    for name in ("num_layers", "experts.count", "encoder.num_layers"):
        if native.get(name, 0) > _MAX_COUNT:
            raise ConfigError(
                f"config.json: {name} would be {str(native[name])[:20]}; at most {_MAX_COUNT:,} are"
                " read"
            )


def _context(native: Mapping[str, Any], max_length: int) -> int:
    """The context length: ``max_length``, or the model's where that is 0."""
    positions = native.get("positions")
    # Relative positions have no largest length.
    too_long = max_length > native["max_length"] and positions != "relative"
    if too_long or max_length < 0:
        raise ConfigError(
            f"max_length is {max_length}; the model has a context of {native['max_length']}"
        )
    if max_length and positions == "learned":
        raise ConfigError(
            f"max_length is {max_length}, but the model's positions are learned and their table"
            " sets the context; leave max_length out"
        )
    return max_length or native["max_length"]


def _check_required_values(family: Family, source: Mapping[str, Any]) -> None:
    for name, values in family.required_values.items():
        if name in source and source[name] not in values:
            raise ConfigError(
                f"config.json: {name} is {source[name]!r}; for {family.model_type} only"
                f" {values[0]!r} can be represented"
            )


def _check_known(family: Family, source: Mapping[str, Any], ignore: tuple[str, ...]) -> None:
    known = {*family.required_values, *family.unused, *ignore} | IGNORED_KEYS
    for key in family.keys:
        known |= {key.source, key.also}
    for codec in family.codecs:
        known.update(codec.keys)
    unknown = sorted(set(source) - known)
    if unknown:
        listed = ", ".join(f"{name} = {source[name]!r}"[:100] for name in unknown)
        raise ConfigError(
            f"config.json: {family.model_type} has no known meaning for {listed}; it may change"
            " what the model computes. If it does not, convert with --ignore"
            f" {' '.join(unknown)}"
        )


def write_config(family: Family, native: ModelConfig) -> dict[str, Any]:
    """Converts a ``ModelConfig`` to a ``config.json`` of the family.

    Raises:
        ConfigError: The family cannot represent the model; the message names the fields.
    """
    native = resolved(native)
    source: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [_architecture(family, native)],
    }
    source |= family.implicit_defaults
    for key in family.keys:
        value = _written(key, native)
        source |= {name: value for name in (key.source, key.also) if name}
    for codec in family.codecs:
        source |= codec.write(native)
    lost = {name for name, value in source.items() if value is REQUIRED}
    if lost:
        fields = [key.native for key in family.keys if key.source in lost]
    else:
        fields = _changed_fields(native, resolved(read_config(family, source)))
    if lost or fields:
        named = ", ".join(dict.fromkeys(_shown(native, name) for name in fields))
        raise ConfigError(
            f"{family.model_type} cannot represent {named}; export the model as another family, or"
            " reset these fields"
        )
    return source


def _architecture(family: Family, native: ModelConfig) -> str:
    """The first architecture whose fields the model has, else the default one."""
    for name, fields in family.heads.items():
        if all(_matches(value_of(native, field), value) for field, value in fields.items()):
            return name
    return family.architecture


def _matches(a: Any, b: Any) -> bool:
    """Whether two values are equal, or are both non-zero counts."""
    return a == b or (bool(a) and bool(b) and not isinstance(a, str | bool))


def _written(key: ConfigKey, native: ModelConfig) -> Any:
    """Value of the key to export; REQUIRED where the file cannot represent the field's value."""
    value = value_of(native, key.native)
    if value is None:
        # The model does not have the section of the field.
        return key.default
    if key.none is not REQUIRED and value == key.none:
        return None
    if key.some and not value:
        return REQUIRED
    if key.values is not None:
        for source_value, native_value in key.values.items():
            if native_value == value:
                return source_value
        return REQUIRED
    return value


def _changed_fields(before: ModelConfig, after: ModelConfig) -> list[str]:
    """Fields that an export would lose."""
    old = flatten(before)
    new = flatten(after)
    return [key for key in old if key not in _NOT_EXPORTED and old[key] != new.get(key)]


def _shown(native: ModelConfig, key: str) -> str:
    """The setting and its value; where the model has it not, the section that decides so."""
    values = flatten(native)
    while key not in values:
        key = key.rpartition(".")[0]
    return f"model.{key} = {values[key]!r}"
