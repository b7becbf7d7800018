"""Keys of config files that several families share: activations, rotations, windows, scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from llm_jax.config.model import ModelConfig
from llm_jax.convert.family import ConfigTransform, factors_in_use, shortest
from llm_jax.types import ConfigError

# Theirs -> ours; of several names for one, the first is written.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
# Of how text is written, which is said anew each time.
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


def _start(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """Where a file does not say what decoding begins with, it is the token of padding; an encoder
    alone begins nothing.
    """
    name = (
        "pad_token_id" if source.get("decoder_start_token_id") is None else "decoder_start_token_id"
    )
    return (
        {"start_token": typed(int, source.get(name, 0), name)} if native["encoder_layers"] else {}
    )


START = ConfigTransform(
    ("decoder_start_token_id",), _start, lambda m: {"decoder_start_token_id": m.start_token}
)


# Keys of rope_scaling (or rope_parameters) -> our fields.
_SCALINGS: dict[str, tuple[str, dict[str, str]]] = {
    "default": ("none", {}),
    "linear": ("linear", {"factor": "rope_factor"}),
    "llama3": (
        "llama3",
        {
            "factor": "rope_factor",
            "original_max_position_embeddings": "rope_original_length",
            "low_freq_factor": "rope_low_frequency",
            "high_freq_factor": "rope_high_frequency",
        },
    ),
    "yarn": (
        "yarn",
        {
            "factor": "rope_factor",
            "original_max_position_embeddings": "rope_original_length",
            "beta_fast": "rope_beta_fast",
            "beta_slow": "rope_beta_slow",
            "truncate": "rope_truncate",
            "attention_factor": "rope_attention_factor",
        },
    ),
    "longrope": (
        "longrope",
        {
            "factor": "rope_factor",
            "original_max_position_embeddings": "rope_original_length",
            "attention_factor": "rope_attention_factor",
        },
    ),
}
_WITHOUT_DEFAULT = (
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
)


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
    """Rotary positions in the schema of old files (``rope_theta``, ``rope_scaling``) and of new
    ones (``rope_parameters``); both are written, so that old and new programs read them alike. A
    file that says something twice, and not the same, is refused: which of the two holds depends on
    the program and its version.

    partial: the share of a head that rotates where the file does not say, for families that can
    rotate a part · windowed_theta: of layers with a window, where these have their own ·
    original_length: ``original_max_position_embeddings`` of a file that does not say it beside the
    rotation; 0: programs of the family read it in the rotation · scaled: programs of the family
    agree on what a scaling does.
    """
    fraction = partial or 1.0

    def read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
        names = {"rope_theta": theta_key, "partial_rotary_factor": fraction_key}
        main, windowed = _rotations(source, names)
        base = _under_either(source, theta_key, "rope_theta", theta)
        share = _under_either(source, fraction_key, "partial_rotary_factor", fraction)
        out = {
            "rope_theta": _inside(main, "rope_theta", source, theta_key, base),
            "rope_fraction": _inside(main, "partial_rotary_factor", source, fraction_key, share),
            **_scaling(main, source, native, original_length),
        }
        if out["rope_fraction"] != 1 and not partial:
            raise ConfigError(
                f"config.json: {fraction_key} is {out['rope_fraction']}, and programs of this"
                " family rotate whole heads"
            )
        if out["rope_scaling"] != "none" and not scaled:
            raise ConfigError(
                "config.json: the rotation is scaled, and programs of this family differ in the"
                " layers that are scaled"
            )
        if not windowed_theta:
            if windowed:
                raise ConfigError(
                    f"config.json: {_SLIDING} has a rotation of its own, which layers of this"
                    " family have not; leave it out"
                )
            return out
        base = source.get(windowed_key, windowed_theta)
        out["rope_theta_windowed"] = _inside(windowed, "rope_theta", source, windowed_key, base)
        if windowed.pop("rope_type", "default") != "default" or windowed:
            raise ConfigError(
                f"config.json: rotation of layers with a window is scaled ({windowed}); only their"
                " base can be set"
            )
        return out

    def write(m: ModelConfig) -> dict[str, Any]:
        kind, keys = next(
            ((kind, keys) for kind, (name, keys) in _SCALINGS.items() if name == m.rope_scaling),
            ("", {}),
        )
        if not kind:
            raise ConfigError(
                f"model.rope_scaling is {m.rope_scaling!r}, which no file can say; there are"
                f" {', '.join(_SCALINGS)}"
            )
        scaled = {"rope_type": kind} | {key: getattr(m, field) for key, field in keys.items()}
        if not scaled.get("attention_factor", 1.0):
            del scaled["attention_factor"]
        if kind == "longrope":
            short = m.rope_short_factors or m.rope_factors
            scaled |= {"long_factor": list(m.rope_factors), "short_factor": list(short)}
        part = {} if m.rope_fraction == fraction == 1.0 else {fraction_key: m.rope_fraction}
        new = {
            "rope_theta": m.rope_theta,
            **scaled,
            **({"partial_rotary_factor": m.rope_fraction} if part else {}),
        }
        old = None if kind == "default" else {**scaled, "type": kind}
        out: dict[str, Any] = {
            theta_key: m.rope_theta,
            "rope_scaling": old,
            "rope_parameters": new,
            **part,
        }
        if original_length and kind == "longrope":
            out["original_max_position_embeddings"] = m.rope_original_length
        if windowed_theta:
            if not m.rope_theta_windowed and any(m.window_pattern):
                raise ConfigError(
                    f"model.rope_theta_windowed is 0 with model.rope_scaling {m.rope_scaling!r}:"
                    " programs of this family do not scale layers with a window; set it to their"
                    f" base, such as {m.rope_theta}"
                )
            base = m.rope_theta_windowed or m.rope_theta
            local = {"rope_type": "default", "rope_theta": base}
            out |= {
                windowed_key: base,
                "rope_parameters": {"full_attention": new, "sliding_attention": local},
            }
        return out

    keys = (
        "rope_scaling",
        "rope_parameters",
        theta_key,
        fraction_key,
        windowed_key,
        "original_max_position_embeddings",
        "rope_theta",
        "partial_rotary_factor",
    )
    return ConfigTransform(keys, read, write)


def _under_either(source: Mapping[str, Any], name: str, usual: str, default: float) -> Any:
    """A value under the family's name for it. transformers 4 writes GPT-NeoX's also under the name
    that others use, and reads its own.
    """
    value = source.get(name, default)
    if usual in source and (name not in source or source[usual] != value):
        raise ConfigError(
            f"config.json: {usual} is {source[usual]!r:.50}, and programs of this family take"
            f" {name}, {value!r:.50}; leave it out"
        )
    return value


def _inside(
    rotation: dict[str, Any], key: str, source: Mapping[str, Any], name: str, beside: Any
) -> float:
    """What ``rotation`` says under ``key``, which is taken out of it, or else ``beside``, the value
    under ``name`` or its default.
    """
    value = rotation.pop(key, beside)
    if name in source and value != beside:
        raise ConfigError(
            f"config.json: {name} is {beside!r:.50}, and the rotation's {key} {value!r:.50}; leave"
            " out the one that is wrong"
        )
    return typed(float, value, name)


def _rotations(
    source: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file says of the rotation of all layers, or of those without a window, and of those
    with one, each kind as ``rope_type``.

    names: what stands beside a rotation under another name than in it.
    """
    old, new = (_by_layers(source, name) for name in ("rope_scaling", "rope_parameters"))
    for before, after in zip(old, new):
        for key, value in after.items() if before else ():
            # Of a key that is only in the new one, old programs know what stands beside it.
            outside = names.get(key, key) in source or key in source
            if before.get(key, value if outside else None) != value:
                raise ConfigError(
                    f"config.json: {key} is {before.get(key)!r:.50} in rope_scaling and"
                    f" {value!r:.50} in rope_parameters; leave out the one that is wrong"
                )
    main, windowed = ({**after, **before} for before, after in zip(old, new))
    return main, windowed


def _by_layers(source: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotation of all layers, or of those without a window, and of those with one; nulls are
    left out.
    """
    given = source.get(name) or {}
    _is_dict(name, given)
    if _FULL not in given and _SLIDING not in given:
        return _with_kind(name, given), {}
    if unknown := given.keys() - {_FULL, _SLIDING}:
        listed = ", ".join(sorted(map(repr, unknown)))
        raise ConfigError(
            f"config.json: {name} has {listed} beside rotations of layers; leave it out"
        )
    return _with_kind(name, given.get(_FULL) or {}), _with_kind(name, given.get(_SLIDING) or {})


# Kinds that were renamed, and what they are called now.
_RENAMED = {"su": "longrope"}


def _with_kind(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with its kind under ``rope_type``, which was ``type`` in files before 2024; some
    files have both.
    """
    out = {key: value for key, value in given.items() if value is not None}
    kinds = [out.pop(key) for key in ("rope_type", "type") if key in out]
    kinds = [_RENAMED.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
    if kinds[1:] and kinds[0] != kinds[1]:
        raise ConfigError(
            f"config.json: {name} has the rope_type {kinds[0]!r:.50} and the type "
            f"{kinds[1]!r:.50}; leave out the one that is wrong"
        )
    return {"rope_type": kinds[0], **out} if kinds else out


def _scaling(
    main: dict[str, Any], source: Mapping[str, Any], native: Mapping[str, Any], original_length: int
) -> dict[str, Any]:
    """Our fields for a rope_scaling; every key of it must be known."""
    kind = main.pop("rope_type", "default")
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise ConfigError(
            f"config.json: rope_scaling has the type {kind!r}; there are {', '.join(_SCALINGS)}"
        )
    name, keys = _SCALINGS[kind]
    length = source.get("max_position_embeddings", 0)
    if "original_max_position_embeddings" in keys:
        original = _original(main, source, original_length)
        if main.get("factor") is None and original:
            main["factor"] = length / original
    else:
        main.pop("original_max_position_embeddings", None)
    out: dict[str, Any] = {"rope_scaling": name}
    if kind == "longrope":
        out |= _longrope(main, native)
    if kind == "yarn":
        out |= _mscale(main)
    for key, field in keys.items():
        value = main.pop(key, None)
        if value is None and key in _WITHOUT_DEFAULT:
            raise ConfigError(f"config.json: rope_scaling of type {kind!r} lacks {key}")
        if value is not None:
            out[field] = typed(type(getattr(ModelConfig(), field)), value, f"rope_scaling.{key}")
    if main:
        raise ConfigError(
            f"config.json: rope_scaling of type {kind!r} has the unknown keys"
            f" {', '.join(map(repr, main))}"
        )
    return out


def _original(main: dict[str, Any], source: Mapping[str, Any], default: int) -> Any:
    """Context before scaling, which is also put into ``main``: said there, beside the rotation, or
    by the program.
    """
    name = "original_max_position_embeddings"
    beside = source.get(name, default or None)
    inside = main.setdefault(name, beside)
    if beside is not None and inside != beside:
        implicit_defaults = (
            ", which programs of this family take where a file does not say it beside the rotation"
        )
        raise ConfigError(
            f"config.json: {name} is {inside!r:.50} in the rotation and {beside!r:.50} beside it"
            f"{'' if name in source else implicit_defaults}; make them equal"
        )
    return inside


def _longrope(main: dict[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
    """Both lists, or one of them where no text of the model is of the other's length."""
    long, short = (main.pop(name, None) for name in ("long_factor", "short_factor"))
    original = main.get("original_max_position_embeddings")
    if not isinstance(long, list) or not isinstance(short, list) or not isinstance(original, int):
        raise ConfigError(
            "config.json: rope_scaling of type 'longrope' needs long_factor, short_factor,"
            " original_max_position_embeddings"
        )
    long, short = (
        tuple(typed(float, f, f"rope_scaling.{name}_factor") for f in given)
        for name, given in (("long", long), ("short", short))
    )
    return factors_in_use(long, short, original, native["max_length"])


def _mscale(main: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek's two scales as the one factor on sine and cosine that they come to."""
    top, all_dim = main.pop("mscale", None), main.pop("mscale_all_dim", None)
    if not (top and all_dim) or main.get("attention_factor") is not None:
        return {}

    def scale(m):
        return 0.1 * m * math.log(main["factor"]) + 1.0 if main["factor"] > 1 else 1.0

    return {"rope_attention_factor": scale(top) / scale(all_dim)}


def typed(want: type, value: Any, name: str) -> Any:
    """A number or a truth value of theirs as ``want``. ConfigError, with its name, for another
    value.
    """
    fits = (
        isinstance(value, bool) == (want is bool)
        and isinstance(value, int | float)
        and abs(value) < 1e300
    )
    if not fits or (want is int and value != int(value)):
        raise ConfigError(
            f"config.json: {name} is {repr(value)[:50]}; it must be of type {want.__name__}"
        )
    return want(value)


def _is_dict(name: str, value: Any) -> None:
    if not isinstance(value, dict) or not all(
        isinstance(v, dict) for k, v in value.items() if k.endswith("_attention")
    ):
        raise ConfigError(f"config.json: {name} is {value!r}, which is no object")


_FULL, _SLIDING = "full_attention", "sliding_attention"


def windows(
    cycle: tuple[str, ...] = (_SLIDING,),
    *,
    width: int = 0,
    listed: bool = False,
    gated: bool = False,
    first: int = 0,
    unrotated: bool = False,
) -> ConfigTransform:
    """Sliding windows. cycle: kinds of the layers, repeated, where the file does not list them ·
    width: where it does not say (0: none) · listed: ``layer_types`` is written · gated: windows are
    off unless ``use_sliding_window`` · first: ``max_window_layers``, the first layer with a window,
    where the file does not say (0: the key is not read) · unrotated: windows are in layers without
    rotation.
    """

    def read(source: Mapping[str, Any], native: Mapping[str, Any]) -> dict[str, Any]:
        wide, layers = source.get("sliding_window", width), native["num_layers"]
        if not wide or (gated and not source.get("use_sliding_window", False)):
            return {"window_pattern": (0,)}
        wide = typed(int, wide, "sliding_window")
        every = source.get("sliding_window_pattern") or source.get("_sliding_window_pattern")
        kinds = (
            (_SLIDING,) * (every - 1) + (_FULL,) if isinstance(every, int) and every > 1 else cycle
        )
        types = [kinds[l % len(kinds)] for l in range(layers)]
        if first:
            begin = typed(int, source.get("max_window_layers", first), "max_window_layers")
            types = [_SLIDING if l >= begin else _FULL for l in range(layers)]
        if unrotated:
            rotated = native["rope_pattern"]
            types = [_FULL if rotated[l % len(rotated)] else _SLIDING for l in range(layers)]
        types = source.get("layer_types") or types
        if not isinstance(types, list) or len(types) != layers or set(types) - {_FULL, _SLIDING}:
            raise ConfigError(
                f"config.json: layer_types is {str(types)[:100]}; it must be {layers} times {_FULL}"
                f" or {_SLIDING}"
            )
        return {"window_pattern": shortest([wide if t == _SLIDING else 0 for t in types])}

    def write(m: ModelConfig) -> dict[str, Any]:
        each = [m.window(l) for l in range(m.num_layers)]
        out: dict[str, Any] = {"sliding_window": max(each) or None}
        if listed:
            out["layer_types"] = [_SLIDING if w else _FULL for w in each]
        if gated:
            out["use_sliding_window"] = any(each)
        if first:
            out["max_window_layers"] = next((l for l, w in enumerate(each) if w), m.num_layers)
        return out

    keys = (
        "sliding_window",
        "layer_types",
        "use_sliding_window",
        "max_window_layers",
        "sliding_window_pattern",
        "_sliding_window_pattern",
    )
    return ConfigTransform(keys, read, write)


def through(
    theirs_key: str,
    field: str,
    ours_of: Callable[[float], float],
    theirs_of: Callable[[float], float],
    default: float,
) -> ConfigTransform:
    """A number of theirs that is a function of one of ours, such as its inverse."""

    def read(source: Mapping[str, Any], _: Mapping[str, Any]) -> dict[str, Any]:
        value = typed(float, source.get(theirs_key, default), theirs_key)
        if value <= 0:
            raise ConfigError(f"config.json: {theirs_key} is {value}; it must be positive")
        return {field: ours_of(value)}

    def write(m: ModelConfig) -> dict[str, Any]:
        # Twelve digits undo the rounding of the way there.
        value = float(f"{theirs_of(getattr(m, field)):.12g}")
        return {theirs_key: int(value) if value == int(value) else value}

    return ConfigTransform((theirs_key,), read, write)
