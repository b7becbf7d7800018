"""Keys of config files for rotary positions, in the schema of old files (``rope_theta``,
``rope_scaling``) and in that of new files (``rope_parameters``).

Export writes both schemas, so that old and new programs read the same model. A file in which two
places disagree is refused, because which of them holds depends on the program and its version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.config.positions import RopeConfig
from llm_jax.config.sections import kind_of
from llm_jax.convert.family import ConfigTransform
from llm_jax.convert.keys import FULL, SLIDING, typed
from llm_jax.convert.rope_scaling import ORIGINAL, read_scaling, write_scaling
from llm_jax.types import ConfigError

# Old name of a rope_type -> its present name.
_RENAMED = {"su": "longrope"}


def rope(
    theta: float = 10000.0,
    *,
    theta_key: str = "rope_theta",
    partial: float = 0.0,
    fraction_key: str = "partial_rotary_factor",
    windowed_theta: float = 0.0,
    windowed_key: str = "rope_local_base_freq",
    original_length: int = 0,
    scaled: bool = True,
) -> ConfigTransform:
    """Rotary positions.

    Args:
        theta: Base of the rotation where a file does not give it.
        theta_key: Key of the base in old files.
        partial: Default of the rotated share of a head; 0 means that the family rotates whole
            heads.
        fraction_key: Key of the rotated share in old files.
        windowed_theta: Default base of layers with a window; 0 means that these layers have no
            base of their own.
        windowed_key: Key of the base of layers with a window in old files.
        original_length: Default, in tokens, of ``original_max_position_embeddings`` beside the
            rotation; 0 means that programs of the family read that key inside the rotation.
        scaled: Programs of the family agree on what a scaling does.
    """
    keys = _RopeKeys(
        theta=theta,
        theta_key=theta_key,
        partial=partial,
        fraction_key=fraction_key,
        windowed_theta=windowed_theta,
        windowed_key=windowed_key,
        original_length=original_length,
        scaled=scaled,
    )
    return ConfigTransform(keys.names, keys.read, keys.write)


@dataclasses.dataclass(frozen=True)
class _RopeKeys:
    """How one family writes rotations; the fields are the arguments of ``rope``."""

    theta: float
    theta_key: str
    partial: float
    fraction_key: str
    windowed_theta: float
    windowed_key: str
    original_length: int
    scaled: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Every key that is read."""
        return (
            "rope_scaling",
            "rope_parameters",
            self.theta_key,
            self.fraction_key,
            self.windowed_key,
            ORIGINAL,
            "rope_theta",
            "partial_rotary_factor",
        )

    @property
    def fraction(self) -> float:
        """Default of the rotated share of a head."""
        return self.partial or 1.0

    def read(self, source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of ``ModelConfig`` for a config file."""
        outside_names = {"rope_theta": self.theta_key, "partial_rotary_factor": self.fraction_key}
        main, windowed = _rotations(source, outside_names)
        base = _one_of_two(source, self.theta_key, "rope_theta", self.theta)
        share = _one_of_two(source, self.fraction_key, "partial_rotary_factor", self.fraction)
        out = {
            "positions.theta": _take(main, "rope_theta", source, self.theta_key, base),
            "positions.fraction": _take(
                main, "partial_rotary_factor", source, self.fraction_key, share
            ),
            **read_scaling(main, source, native, self.original_length),
        }
        self._check(out)
        if self.windowed_theta:
            out["positions.windowed_theta"] = self._windowed_base(windowed, source)
        elif windowed:
            raise ConfigError(
                f"config.json: {SLIDING} has its own rotation, and layers of this family have none"
                " of their own; leave it out"
            )
        return out

    def _check(self, out: Mapping[str, Any]) -> None:
        fraction = out["positions.fraction"]
        if fraction != 1 and not self.partial:
            raise ConfigError(
                f"config.json: {self.fraction_key} is {fraction}, and programs of this"
                " family rotate whole heads; leave it out"
            )
        if out["positions.scaling"] != "none" and not self.scaled:
            raise ConfigError(
                "config.json: the rotation is scaled, and programs of this family differ in which"
                " layers they scale; leave the scaling out"
            )

    def _windowed_base(self, windowed: dict[str, Any], source: Mapping[str, Any]) -> float:
        """Base of layers with a window."""
        outside = source.get(self.windowed_key, self.windowed_theta)
        base = _take(windowed, "rope_theta", source, self.windowed_key, outside)
        if windowed.pop("rope_type", "default") != "default" or windowed:
            raise ConfigError(
                f"config.json: the rotation of layers with a window is scaled ({windowed}); only"
                " its base can be represented"
            )
        return base

    def write(self, m: ModelConfig) -> dict[str, Any]:
        """Keys of ``config.json`` for a model."""
        rope = m.rope or RopeConfig()
        scaling = write_scaling(m)
        kind = scaling["rope_type"]
        old = None if kind == "default" else {**scaling, "type": kind}
        new = {"rope_theta": rope.theta, **scaling}
        out: dict[str, Any] = {
            self.theta_key: rope.theta,
            "rope_scaling": old,
            "rope_parameters": new,
        }
        if not rope.fraction == self.fraction == 1.0:
            new["partial_rotary_factor"] = rope.fraction
            out[self.fraction_key] = rope.fraction
        if self.original_length and kind == "longrope":
            out[ORIGINAL] = scaling[ORIGINAL]
        if self.windowed_theta:
            base = self._written_windowed_base(m, rope)
            windowed = {"rope_type": "default", "rope_theta": base}
            out[self.windowed_key] = base
            out["rope_parameters"] = {FULL: new, SLIDING: windowed}
        return out

    def _written_windowed_base(self, m: ModelConfig, rope: RopeConfig) -> float:
        if not rope.windowed_theta and any(m.attention.window_pattern):
            raise ConfigError(
                "model.positions.windowed_theta is 0 with model.positions.scaling"
                f" {kind_of(rope.scaling)!r}, and programs of this family do not scale layers with"
                f" a window; set it to the base of these layers, such as {rope.theta}"
            )
        return rope.windowed_theta or rope.theta


def _one_of_two(source: Mapping[str, Any], name: str, usual: str, default: float) -> Any:
    """A value under the family's own key. Files of GPT-NeoX from transformers 4 also have it under
    the usual key, which their programs do not read.
    """
    value = source.get(name, default)
    if usual in source and (name not in source or source[usual] != value):
        raise ConfigError(
            f"config.json: {usual} is {source[usual]!r:.50}, and programs of this family read"
            f" {name}, which is {value!r:.50}; leave {usual} out"
        )
    return value


def _take(
    rotation: dict[str, Any], key: str, source: Mapping[str, Any], name: str, outside: Any
) -> float:
    """Takes a number out of a rotation.

    Args:
        rotation: The rotation, from which ``key`` is removed.
        key: Key inside the rotation.
        source: The whole file.
        name: Key of the same number beside the rotation.
        outside: The number beside the rotation, or its default. It is used where the rotation does
            not have ``key``.
    """
    value = rotation.pop(key, outside)
    if name in source and value != outside:
        raise ConfigError(
            f"config.json: {name} is {outside!r:.50}, and the rotation's {key} is {value!r:.50};"
            " leave out the wrong one"
        )
    return typed(float, value, name)


def _rotations(
    source: Mapping[str, Any], outside_names: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotation of layers without a window (or of all layers), and that of layers with one.

    Args:
        source: The file.
        outside_names: Key inside a rotation -> its name beside the rotation, where they differ.

    Returns:
        Two rotations, each with its kind under ``rope_type``. The second is empty where the file
        does not tell the two kinds of layers apart.
    """
    old = _by_layers(source, "rope_scaling")
    new = _by_layers(source, "rope_parameters")
    for before, after in zip(old, new):
        _check_equal(before, after, source, outside_names)
    main, windowed = ({**after, **before} for before, after in zip(old, new))
    return main, windowed


def _check_equal(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    source: Mapping[str, Any],
    outside_names: Mapping[str, str],
) -> None:
    """Raises ConfigError where rope_scaling and rope_parameters disagree."""
    if not old:
        return
    for key, value in new.items():
        # A key that only the new rotation has is known to old programs if it is beside the
        # rotation.
        outside = outside_names.get(key, key) in source or key in source
        if old.get(key, value if outside else None) != value:
            raise ConfigError(
                f"config.json: {key} is {old.get(key)!r:.50} in rope_scaling and {value!r:.50} in"
                " rope_parameters; leave out the wrong one"
            )


def _by_layers(source: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotations under one key, without nulls: of layers without a window (or of all layers),
    and of layers with one.
    """
    given = source.get(name) or {}
    _check_object(name, given)
    if FULL not in given and SLIDING not in given:
        return _with_kind(name, given), {}
    unknown = given.keys() - {FULL, SLIDING}
    if unknown:
        listed = ", ".join(sorted(map(repr, unknown)))
        raise ConfigError(
            f"config.json: {name} has {listed} beside rotations of layers; leave it out"
        )
    return _with_kind(name, given.get(FULL) or {}), _with_kind(name, given.get(SLIDING) or {})


def _check_object(name: str, value: Any) -> None:
    if not isinstance(value, dict) or not all(
        isinstance(inner, dict) for key, inner in value.items() if key.endswith("_attention")
    ):
        raise ConfigError(f"config.json: {name} is {value!r}, which is not a JSON object")


def _with_kind(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A rotation with its kind under ``rope_type``. Files from before 2024 have it under ``type``,
    and some files have both.
    """
    out = {key: value for key, value in given.items() if value is not None}
    kinds = [out.pop(key) for key in ("rope_type", "type") if key in out]
    if not kinds:
        return out
    kinds = [_RENAMED.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
    if kinds[1:] and kinds[0] != kinds[1]:
        raise ConfigError(
            f"config.json: {name} has the rope_type {kinds[0]!r:.50} and the type"
            f" {kinds[1]!r:.50}; leave out the wrong one"
        )
    return {"rope_type": kinds[0], **out}
