"""Keys of config files that several families share: activations, sliding windows, decoding
settings, and numbers that are a function of a field. ``rope`` has those of rotary positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.config.sections import value_of
from llm_jax.convert.canonical import shortest
from llm_jax.convert.family import ConfigTransform
from llm_jax.types import ConfigError

# Source name -> native name. Of several source names with one meaning, export writes the first.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
# Decoding settings, which are given at each call here and are no part of the model.
WRITING = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "num_beams",
    "num_beam_groups",
    "max_length",
    "min_length",
    "early_stopping",
    "length_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "prefix",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "force_bos_token_to_be_generated",
    "sep_token_id",
    "suppress_tokens",
)
# Kinds of layers in ``layer_types``.
FULL = "full_attention"
SLIDING = "sliding_attention"
_MAX_NUMBER = 1e300


def typed(expected: type, value: Any, name: str) -> Any:
    """Converts a number or a boolean of a config file to ``expected``.

    Args:
        expected: bool, int or float.
        value: The value in the file.
        name: The key, for the message.

    Raises:
        ConfigError: The value is of another type.
    """
    fits = (
        isinstance(value, bool) == (expected is bool)
        and isinstance(value, int | float)
        and abs(value) < _MAX_NUMBER
    )
    if not fits or (expected is int and value != int(value)):
        raise ConfigError(
            f"config.json: {name} is {repr(value)[:50]}; it must be of type {expected.__name__}"
        )
    return expected(value)


def _start_read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """The token that decoding starts with: the padding token where a file does not name one."""
    if "encoder.num_layers" not in native:
        # An encoder alone decodes nothing.
        return {}
    name = "decoder_start_token_id"
    if source.get(name) is None:
        name = "pad_token_id"
    return {"encoder.start_token": typed(int, source.get(name, 0), name)}


def _start_write(m: ModelConfig) -> dict[str, Any]:
    return {"decoder_start_token_id": value_of(m, "encoder.start_token") or 0}


START = ConfigTransform(("decoder_start_token_id",), _start_read, _start_write)


def windows(
    cycle: tuple[str, ...] = (SLIDING,),
    *,
    width: int = 0,
    listed: bool = False,
    gated: bool = False,
    first: int = 0,
    unrotated: bool = False,
) -> ConfigTransform:
    """Sliding windows.

    Args:
        cycle: Kinds of the layers, repeated, where a file does not list them.
        width: Width in tokens where a file does not give it; 0 means no window.
        listed: Export writes ``layer_types``.
        gated: Windows are off unless ``use_sliding_window`` is true.
        first: Default of ``max_window_layers``, the first layer with a window; 0 means that the
            family does not read this key.
        unrotated: The layers without rotation are those with a window.
    """

    keys = _WindowKeys(
        cycle=cycle, width=width, listed=listed, gated=gated, first=first, unrotated=unrotated
    )
    return ConfigTransform(_WINDOW_KEYS, keys.read, keys.write)


_WINDOW_KEYS = (
    "sliding_window",
    "layer_types",
    "use_sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
)


@dataclasses.dataclass(frozen=True)
class _WindowKeys:
    """How one family writes windows; the fields are the arguments of ``windows``."""

    cycle: tuple[str, ...]
    width: int
    listed: bool
    gated: bool
    first: int
    unrotated: bool

    def read(self, source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of ``ModelConfig`` for a config file."""
        given = source.get("sliding_window", self.width)
        if not given or (self.gated and not source.get("use_sliding_window", False)):
            return {"attention.window_pattern": (0,)}
        width = typed(int, given, "sliding_window")
        layers = native["num_layers"]
        kinds = self._kinds(source, native)
        if not isinstance(kinds, list) or len(kinds) != layers or set(kinds) - {FULL, SLIDING}:
            raise ConfigError(
                f"config.json: layer_types is {str(kinds)[:100]}; it must be a list of {layers}"
                f" kinds, each {FULL} or {SLIDING}"
            )
        return {"attention.window_pattern": shortest([width if k == SLIDING else 0 for k in kinds])}

    def _kinds(self, source: Mapping[str, Any], native: Mapping[str, Any]) -> Any:
        """Kind of each layer."""
        layers = range(native["num_layers"])
        first = 0
        if self.first:
            first = typed(int, source.get("max_window_layers", self.first), "max_window_layers")
        if source.get("layer_types"):
            return source["layer_types"]
        if self.unrotated:
            rotated = native["positions.pattern"]
            return [FULL if rotated[l % len(rotated)] else SLIDING for l in layers]
        if self.first:
            return [SLIDING if l >= first else FULL for l in layers]
        period = source.get("sliding_window_pattern") or source.get("_sliding_window_pattern")
        cycle = self.cycle
        if isinstance(period, int) and period > 1:
            cycle = (SLIDING,) * (period - 1) + (FULL,)
        return [cycle[l % len(cycle)] for l in layers]

    def write(self, m: ModelConfig) -> dict[str, Any]:
        """Keys of ``config.json`` for a model."""
        widths = [m.window(l) for l in range(m.num_layers)]
        out: dict[str, Any] = {"sliding_window": max(widths) or None}
        if self.listed:
            out["layer_types"] = [SLIDING if w else FULL for w in widths]
        if self.gated:
            out["use_sliding_window"] = any(widths)
        if self.first:
            windowed = (l for l, w in enumerate(widths) if w)
            out["max_window_layers"] = next(windowed, m.num_layers)
        return out


def through(
    key: str,
    field: str,
    *,
    to_native: Callable[[float], float],
    to_source: Callable[[float], float],
    default: float,
) -> ConfigTransform:
    """A number of the file that is a function of a field, such as its inverse.

    Args:
        key: Key of ``config.json``.
        field: Field of ``ModelConfig``.
        to_native: Value of the key -> value of the field.
        to_source: Value of the field -> value of the key.
        default: Value of the key where a file lacks it.
    """

    def read(source: Mapping[str, Any], _: Mapping[str, Any]) -> dict[str, Any]:
        value = typed(float, source.get(key, default), key)
        if value <= 0:
            raise ConfigError(f"config.json: {key} is {value}; it must be positive")
        return {field: to_native(value)}

    def write(m: ModelConfig) -> dict[str, Any]:
        # Twelve digits undo the rounding of the two conversions.
        value = float(f"{to_source(value_of(m, field)):.12g}")
        return {key: int(value) if value == int(value) else value}

    return ConfigTransform((key,), read, write)
